"""Tests that a loaded checkpoint must pass before it may move a robot.

Each has a name, is timed and can be left out by that name. They catch what makes a policy fail
silently: causal attention, inputs that do not reach the actions, weights that are missing or not
finite, statistics of another robot, and a LoRA that was merged elsewhere with another result.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_oft_ros.aloha import ACTION_DIM, GRIPPERS, RobotProfile, load_profile, position_limits
from vla_oft_ros.config import ConfigError
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint import Checkpoint
from vla_oft_ros.model.inputs import ModelInputs, sequence_ids
from vla_oft_ros.normalization import NormStats

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "fingerprint.json"
INSTRUCTION = "pick up the cube"
OTHER_INSTRUCTION = "fold the towel"
MIN_EFFECT = 1e-6
"""A change of input that moves no number by more than this does not reach the output: a dead path
gives exactly 0.
"""
JOINT_MARGIN_RAD = 0.3
"""How far statistics may exceed the robot's joint limits: targets of teleoperation overshoot them
a little.
"""
GRIPPER_MARGIN = 0.5
"""How far statistics of a gripper may exceed 0 … 1: leader grippers open and close beyond the
follower's range.
"""
SAME_PLACE_TOLERANCE = 1e-3
"""Fingerprint on the same device, torch and precision: only the choice of kernels may differ."""
_TOKENS = (HeadKind.DISCRETE, HeadKind.AUTOREGRESSIVE)
TOLERANCE = {"float32": 1e-2, "bfloat16": 1e-1}
"""Fingerprint elsewhere. Official bf16 and fp32 runs of a random network differ by 0.06 in
normalised actions.
"""


class SelfTestError(ValueError):
    """A checkpoint that loads, but must not be used; says which tests failed and how to leave them
    out.
    """


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Outcome of one self-test.

    Attributes:
        name: By which it can be skipped.
        passed: Whether all is well.
        detail: What was seen.
        seconds: Wall time it took.
    """

    name: str
    passed: bool
    detail: str
    seconds: float


class _Failed(Exception):
    """What is wrong, for the report."""


@dataclass(eq=False)
class _Subject:
    """The checkpoint under test, and its answer to the reference input, computed once."""

    checkpoint: Checkpoint
    profile: RobotProfile | None
    _reference: Tensor | None = None

    @property
    def reference(self) -> Tensor:
        if self._reference is None:
            self._reference = self.answer(reference_inputs(self.checkpoint))
        return self._reference

    def answer(self, inputs: ModelInputs) -> Tensor:
        """What the head reads: token choices of discrete decoding hide small effects, hidden
        states do not.
        """
        return _run(self.checkpoint, inputs)[1]

    def effect(self, inputs: ModelInputs) -> float:
        """Largest change of the answer against the reference input."""
        return float((self.answer(inputs) - self.reference).abs().max())


def reference_inputs(
    checkpoint: Checkpoint,
    *,
    instruction: str = INSTRUCTION,
    black: int | None = None,
    proprio: float = 0.25,
) -> ModelInputs:
    """A fixed input: noise images from a seed, a constant proprio vector.

    Args:
        checkpoint: For whom.
        instruction: What the prompt says.
        black: Index of a camera whose image is black instead.
        proprio: Every number of the normalised proprio vector.
    """
    config = checkpoint.config
    generator = np.random.default_rng(0)
    side = config.dino.image_px
    images = [
        generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(config.cameras)
    ]
    if black is not None:
        images[black] = np.zeros_like(images[black])
    prompt = checkpoint.tokenizer.prompt_ids(instruction)
    parameter = next(checkpoint.model.parameters())
    return ModelInputs(
        pixel_values=torch.from_numpy(checkpoint.images.pixel_values(images))[None],
        input_ids=sequence_ids([prompt], config.chunk_len * config.action_dim),
        prompt_lens=(len(prompt),),
        proprio=torch.full((1, config.proprio_dim), proprio) if config.proprio_dim else None,
    ).to(parameter.device, parameter.dtype)


@torch.inference_mode()
def _expected_actions(checkpoint: Checkpoint, hidden: Tensor) -> Tensor:
    """(rows,) means of the action bins as the output layer weighs them, for (rows, D) hidden
    states. Unlike the most likely bin, they move little where the rounding moves little.
    """
    bins, head = checkpoint.model.bins, checkpoint.model.language_model.lm_head
    parameter = next(head.parameters())
    ids = torch.arange(bins.vocab_end - bins.bins, bins.vocab_end, device=parameter.device)
    logits = head(hidden.to(parameter.device, parameter.dtype))[:, ids].float()
    means: Tensor = logits.softmax(dim=-1) @ bins.decode(ids).float()  # (rows,)
    return means.cpu()


@torch.inference_mode()
def _run(checkpoint: Checkpoint, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
    """Normalised actions (K, A) and what the head read (K·A, D), float32 on the CPU."""
    config = checkpoint.config
    noise = torch.zeros(1, config.chunk_len, config.action_dim, device=inputs.input_ids.device)
    output = checkpoint.model(inputs, noise=noise, diffusion_steps=1)
    return output.actions[0].float().cpu(), output.action_hidden[0].float().cpu()


def _bidirectional(subject: _Subject) -> str:
    checkpoint = subject.checkpoint
    if checkpoint.config.head is HeadKind.AUTOREGRESSIVE:
        return "not needed: autoregressive decoding is causal"
    inputs = reference_inputs(checkpoint)
    llm = checkpoint.model.language_model.model
    with torch.inference_mode():
        embeddings = llm.embed_tokens(inputs.input_ids)
        changed = embeddings.clone()
        changed[:, -1] = changed[:, 0]
        first, other = (llm(e).hidden[:, 0].float() for e in (embeddings, changed))
    effect = float((first - other).abs().max())
    if effect <= MIN_EFFECT:
        raise _Failed("token 0 does not see the last token: attention is causal")
    return f"the last token moves token 0 by {effect:.2g}"


def _image_dependence(subject: _Subject) -> str:
    cameras = subject.checkpoint.record.cameras or ()
    effects = {
        camera: subject.effect(reference_inputs(subject.checkpoint, black=index))
        for index, camera in enumerate(cameras)
    }
    dead = [camera for camera, effect in effects.items() if not effect > MIN_EFFECT]
    if dead:
        raise _Failed(f"the actions do not depend on the image of {', '.join(dead)}")
    return ", ".join(f"{camera} {effect:.2g}" for camera, effect in effects.items())


def _proprio_dependence(subject: _Subject) -> str:
    if not subject.checkpoint.config.proprio_dim:
        return "not needed: this checkpoint reads no proprio"
    effect = subject.effect(reference_inputs(subject.checkpoint, proprio=-0.25))
    if not effect > MIN_EFFECT:
        raise _Failed("the actions do not depend on proprio")
    return f"{effect:.2g}"


def _instruction_dependence(subject: _Subject) -> str:
    inputs = reference_inputs(subject.checkpoint, instruction=OTHER_INSTRUCTION)
    effect = subject.effect(inputs)
    if not effect > MIN_EFFECT:
        raise _Failed("the actions do not depend on the instruction")
    return f"{effect:.2g}"


def _finite(subject: _Subject) -> str:
    bad = [
        name
        for name, parameter in subject.checkpoint.model.named_parameters()
        if not bool(torch.isfinite(parameter).all())
    ]
    if bad:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise _Failed(f"NaN or infinity in {shown}")
    if not bool(torch.isfinite(subject.reference).all()):
        raise _Failed("finite weights, but the reference input overflows")
    return "all weights and the reference answer are finite"


def _statistics(subject: _Subject) -> str:
    checkpoint, profile = subject.checkpoint, subject.profile
    stats = checkpoint.action_stats
    if stats.dim != ACTION_DIM:
        return f"not needed: {stats.dim} action dimensions are no bimanual ALOHA"
    for what, bounds in (("action", stats), ("proprio", checkpoint.proprio_stats)):
        if bounds is not None and bounds.dim == ACTION_DIM:
            _refuse_other_units(f"{checkpoint.dataset!r}, {what},", bounds)
    trained = _trained_profile(checkpoint.record.profile)
    if profile is not None and trained is not None:
        for name in ("arm_order", "gripper", "color_order"):
            if getattr(profile, name) != getattr(trained, name):
                raise _Failed(
                    f"trained with profile {trained.name!r}, runs on {profile.name!r}: {name} "
                    f"differs, {getattr(trained, name)} and {getattr(profile, name)}"
                )
    return f"{checkpoint.dataset!r} fits" + (f" profile {profile.name!r}" if profile else "")


def _refuse_other_units(what: str, stats: NormStats) -> None:
    """Refuses bounds that no joint and no gripper of the robot can have."""
    lower, upper = position_limits()
    margin = np.full(ACTION_DIM, JOINT_MARGIN_RAD)
    margin[list(GRIPPERS)] = GRIPPER_MARGIN
    outside = np.flatnonzero((stats.lower < lower - margin) | (stats.upper > upper + margin))
    if outside.size:
        i = int(outside[0])
        kind = "a gripper, 0 … 1" if i in GRIPPERS else "a joint in rad"
        raise _Failed(
            f"statistics of {what} do not fit the robot: dimension {i} is {kind}, but runs from "
            f"{stats.lower[i]:.3g} to {stats.upper[i]:.3g}; expected within {lower[i]:.3g} … "
            f"{upper[i]:.3g}"
        )


def _trained_profile(name: str | None) -> RobotProfile | None:
    """The profile that the checkpoint names, if it is one of the shipped ones."""
    if not name:
        return None
    try:
        return load_profile(name)
    except ConfigError:
        logger.warning("the checkpoint names the robot profile %r, which is not shipped", name)
        return None


def fingerprint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What identifies the policy: its normalised actions for the reference input, and where they
    were computed. Of decoding by tokens it is the expected actions, and only the first where each
    token depends on the one before.
    """
    parameter = next(checkpoint.model.parameters())
    device = parameter.device
    actions, hidden = _run(checkpoint, reference_inputs(checkpoint))
    if checkpoint.config.head is HeadKind.DISCRETE:
        actions = _expected_actions(checkpoint, hidden).view_as(actions)
    elif checkpoint.config.head is HeadKind.AUTOREGRESSIVE:
        actions = _expected_actions(checkpoint, hidden[:1])[None]  # (1, 1)
    return {
        "instruction": INSTRUCTION,
        "precision": str(parameter.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "actions": actions.tolist(),
    }


def write_fingerprint(checkpoint: Checkpoint, directory: Path) -> None:
    """Stores the fingerprint beside the weights, for code that saves or merges a checkpoint."""
    content = json.dumps(fingerprint(checkpoint)) + "\n"
    (directory / FINGERPRINT_FILE).write_text(content, encoding="utf-8")


def _fingerprint(subject: _Subject) -> str:
    path = subject.checkpoint.directory / FINGERPRINT_FILE
    if not path.is_file():
        return f"not needed: no {FINGERPRINT_FILE} was stored"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        expected = np.asarray(stored["actions"], dtype=np.float64)
        places = [stored[key] for key in ("precision", "device", "torch")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Failed(f"{FINGERPRINT_FILE}: expected a stored fingerprint; {error!r}") from None
    current = fingerprint(subject.checkpoint)
    here = [current[key] for key in ("precision", "device", "torch")]
    actual = np.asarray(current["actions"])
    if actual.shape != expected.shape:
        raise _Failed(f"{FINGERPRINT_FILE}: expected actions {expected.shape}; got {actual.shape}")
    gaps = np.abs(actual - expected)
    gap, tolerance = float(gaps.max()), SAME_PLACE_TOLERANCE
    if here != places:
        tolerance = max(TOLERANCE.get(str(precision), 1.0) for precision in (places[0], here[0]))
        if subject.checkpoint.config.head in _TOKENS:
            # A token between two likely bins moves far by little rounding: one is no evidence.
            gap = float(gaps.mean())
    if not gap <= tolerance:
        raise _Failed(
            f"actions differ from the stored ones by {gap:.3g} (allowed {tolerance:g}): stored "
            f"with {', '.join(places)}, now {', '.join(here)}. Weights were changed or merged "
            "again elsewhere"
        )
    return f"differs by {gap:.2g} from the one stored with {', '.join(places)}"


CHECKS: dict[str, Callable[[_Subject], str]] = {
    "weights_finite": _finite,
    "attention_bidirectional": _bidirectional,
    "image_dependence": _image_dependence,
    "proprio_dependence": _proprio_dependence,
    "instruction_dependence": _instruction_dependence,
    "statistics_fit_robot": _statistics,
    "fingerprint": _fingerprint,
}
"""Name → test, in the order in which they run."""


def run_self_tests(
    checkpoint: Checkpoint,
    *,
    skip: Collection[str] = (),
    profile: RobotProfile | None = None,
) -> tuple[CheckResult, ...]:
    """Runs all tests that are not skipped.

    Args:
        checkpoint: What was loaded.
        skip: Names of tests to leave out; empty strings are ignored.
        profile: Robot that it shall move; None if unknown.

    Returns:
        One result per test that ran.

    Raises:
        ValueError: if `skip` names a test that does not exist.
        SelfTestError: if a test fails, after all have run.
    """
    unknown = sorted(set(skip) - set(CHECKS) - {""})
    if unknown:
        raise ValueError(
            f"skip_self_tests: expected some of {', '.join(CHECKS)}; got {', '.join(unknown)}"
        )
    subject = _Subject(checkpoint, profile)
    results = [_timed(name, check, subject) for name, check in CHECKS.items() if name not in skip]
    for result in results:
        logger.info("self-test %s: %s (%.2f s)", result.name, result.detail, result.seconds)
    failed = [result for result in results if not result.passed]
    if failed:
        lines = "".join(f"\n  - {result.name}: {result.detail}" for result in failed)
        raise SelfTestError(
            f"{checkpoint.directory}: {len(failed)} self-test(s) failed:{lines}\n"
            "Mend the checkpoint, or name tests in the parameter skip_self_tests to leave them out"
        )
    return tuple(results)


def _timed(name: str, check: Callable[[_Subject], str], subject: _Subject) -> CheckResult:
    start_s = time.perf_counter()
    try:
        passed, detail = True, check(subject)
    except _Failed as error:
        passed, detail = False, str(error)
    return CheckResult(
        name=name, passed=passed, detail=detail, seconds=time.perf_counter() - start_s
    )
