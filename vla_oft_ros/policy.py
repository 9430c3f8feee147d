"""The policy as an ordinary Python object: `Policy.infer(Observation) → ActionChunk`.

Numpy and robot units outside, tensors and [-1, 1] inside. Knows nothing of ROS; importable and
testable anywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from vla_oft_ros.action_aware import MotionScale
from vla_oft_ros.aloha import RobotProfile
from vla_oft_ros.config import ConfigError, EngineConfig, PolicyConfig, PruningConfig
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint import Checkpoint, load_checkpoint
from vla_oft_ros.model.checkpoint_record import CheckpointRecord
from vla_oft_ros.model.engine import Instruction, Request, make_engine
from vla_oft_ros.model.inputs import ModelInputs, sequence_ids
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.self_test import CheckResult, run_self_tests
from vla_oft_ros.model.token_pruning import BeforePass, TokenPruning
from vla_oft_ros.normalization import normalize
from vla_oft_ros.shipped_policies import checkpoint_path
from vla_oft_ros.types import ActionChunk, MotionMode, Observation

logger = logging.getLogger(__name__)

_LONGEST_GAP_CHUNKS = 2
"""Chunks from one inference of an episode to the next, for token pruning. One is too few: in open
loop (queue.join sync) a chunk is played to its end and then the answer is waited for."""
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.bfloat16}
"""Format of the weights; with fp8, those of the LLM are rounded further by the engine."""


class Policy:
    """A loaded checkpoint that answers observations.

    Args:
        checkpoint: From `load_checkpoint`.
        dt_ns: Time between two actions of a chunk, nanoseconds.
        diffusion_steps: DDIM steps of a diffusion checkpoint.
        seed: Seed of the noise that a diffusion checkpoint starts from.
        self_tests: Results of the tests that it passed.
        pruning: Which visual tokens to drop; None for none.
        engine: How passes are run; None leaves it to the device. The model's parameters may become
            views of packed ones.
        fp8: The LLM's products in 8 bits.

    Attributes:
        engine: Runs the passes; its `report` says how, and why not as asked.

    Raises:
        ConfigError: if this checkpoint cannot be pruned so.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dt_ns: int,
        diffusion_steps: int = 50,
        seed: int = 0,
        self_tests: tuple[CheckResult, ...] = (),
        pruning: PruningConfig | None = None,
        engine: EngineConfig | None = None,
        fp8: bool = False,
    ) -> None:
        parameter = next(checkpoint.model.parameters())
        self.checkpoint = checkpoint
        self.device = parameter.device
        self.dtype = parameter.dtype
        self.dt_ns = dt_ns
        self.diffusion_steps = diffusion_steps
        self.self_tests = self_tests
        self._generator = torch.Generator().manual_seed(seed)
        self._words: tuple[str, Instruction] | None = None
        self._pruning = self._token_pruning(pruning or PruningConfig())
        engine = engine or EngineConfig()
        self.engine = make_engine(
            checkpoint.model,
            images=checkpoint.images,
            action_stats=checkpoint.action_stats,
            plan=None if self._pruning is None else self._pruning.plan,
            kind=engine.kind,
            fp8=fp8,
            fp8_tolerance=engine.fp8_tolerance,
            keep_graphs=engine.keep_graphs,
            diffusion_steps=diffusion_steps,
        )
        logger.info("engine: %s", self.engine.report)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names in the order in which the network sees them."""
        return self.checkpoint.record.cameras or ()

    @property
    def chunk_len(self) -> int:
        """K, actions per chunk."""
        return self.checkpoint.config.chunk_len

    @property
    def action_dim(self) -> int:
        """A, numbers per action."""
        return self.checkpoint.config.action_dim

    @property
    def proprio_dim(self) -> int:
        """Numbers of the proprio vector that the network reads; 0 if it reads none."""
        return self.checkpoint.config.proprio_dim

    @property
    def profile(self) -> str:
        """Robot profile that the checkpoint was trained for; empty if it does not say."""
        return self.checkpoint.record.profile or ""

    @property
    def motion_scale(self) -> MotionScale:
        """What counts as a fast step in the checkpoint's data set; the default if it does not say.

        Raises:
            ConfigError: if it says something that is no such scale.
        """
        told = self.checkpoint.statistics.get("motion_per_step")
        if not told:
            return MotionScale()
        try:
            return MotionScale(
                translation_m=float(told["translation_m"]),
                rotation_rad=float(told["rotation_rad"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"dataset_statistics.json, {self.checkpoint.dataset}, motion_per_step: expected "
                f"positive numbers translation_m and rotation_rad; got {told!r}"
            ) from error

    @property
    def how_it_runs(self) -> str:
        """Kind of engine, precision, and why not as asked."""
        return str(self.engine.report)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(rows, columns) of each camera's patches."""
        return (self.checkpoint.config.dino.grid,) * 2

    def reset(self) -> None:
        """Forgets what was kept between inferences; call it at the start of an episode."""
        self._words = None
        if self._pruning is not None:
            self._pruning.reset()

    def infer(
        self, observation: Observation, *, mode: MotionMode = MotionMode.FINE
    ) -> ActionChunk:
        """Predicts the next chunk.

        Args:
            observation: Images of all `cameras` (others are ignored), proprio in robot units.
                Token pruning needs its `reference_images` too; without them the pass is dense.
            mode: From the action-aware controller: how many tokens pruning keeps.

        Returns:
            (K, A) joint targets in robot units, stamped with the oldest part of the observation.

        Raises:
            ValueError: if a camera is missing, proprio has another length or is not finite.
        """
        start_s = time.perf_counter()
        before = BeforePass() if self._pruning is None else self._pruning.before(observation)
        request = replace(
            self._request(observation),
            state=before.state,
            references=before.references,
            dense=before.dense,
            mode=mode,
        )
        self.engine.load(request)
        preprocess_s = time.perf_counter() - start_s
        self.engine.replay()
        answer = self.engine.fetch()
        if self._pruning is not None:
            self._pruning.after(answer.state, observation)
        return ActionChunk(
            actions=answer.actions,
            stamp_ns=observation.stamp_ns,
            dt_ns=self.dt_ns,
            instruction=observation.instruction,
            inference_s=time.perf_counter() - start_s,
            retained=answer.retained(self.cameras, observation.image_stamps_ns, self.patch_grid),
            preprocess_s=preprocess_s,
        )

    def infer_normalized(self, observation: Observation) -> np.ndarray:
        """The network's answer before it is mapped to robot units, with no token pruned: (K, A)
        float64, nominally in [-1, 1].
        """
        return self.engine.run(replace(self._request(observation), dense=True)).normalized

    def _request(self, observation: Observation) -> Request:
        """The observation as a dense question to the engine."""
        proprio = self._proprio(observation.proprio)
        return Request(
            instruction=self._instruction(observation.instruction),
            images=self._images(observation),
            proprio=None if proprio is None else proprio[0].numpy(),
            noise=self._noise(),
        )

    def inputs(self, observation: Observation) -> ModelInputs:
        """Inputs of the model's own forward for one observation, on the device.

        Raises:
            ValueError: as `infer`.
        """
        checkpoint = self.checkpoint
        pixels = checkpoint.images.to_device(self._images(observation), self.device)
        prompt = checkpoint.tokenizer.prompt_ids(observation.instruction)
        return ModelInputs(
            pixel_values=pixels[None],
            input_ids=sequence_ids([prompt], self.chunk_len * self.action_dim),
            prompt_lens=(len(prompt),),
            proprio=self._proprio(observation.proprio),
        ).to(self.device, self.dtype)

    def _images(self, observation: Observation) -> list[np.ndarray]:
        return [_image(observation.images, camera) for camera in self.cameras]

    def _token_pruning(self, config: PruningConfig) -> TokenPruning | None:
        if config.method == "none":
            return None
        sizes = self.checkpoint.config
        if sizes.head is HeadKind.AUTOREGRESSIVE:
            raise ConfigError(
                "pruning.method: expected none for a checkpoint that decodes token by token; got "
                f"{config.method!r}"
            )
        return TokenPruning(
            PruningPlan.resolve(
                config, cameras=sizes.cameras, patches=sizes.dino.patches, depth=sizes.llm.layers
            ),
            cameras=self.cameras,
            tokenizer=self.checkpoint.tokenizer,
            max_gap_ns=_LONGEST_GAP_CHUNKS * self.chunk_len * self.dt_ns,
        )

    def _proprio(self, proprio: np.ndarray) -> torch.Tensor | None:
        stats = self.checkpoint.proprio_stats
        if stats is None:
            return None
        if proprio.shape != (stats.dim,) or not np.all(np.isfinite(proprio)):
            raise ValueError(
                f"Observation: expected {stats.dim} finite proprio numbers, as the checkpoint "
                f"was trained; got shape {proprio.shape} {np.array2string(proprio, precision=3)}"
            )
        return torch.from_numpy(normalize(proprio, stats).astype(np.float32))[None]

    def _instruction(self, words: str) -> Instruction:
        """Its embedding and FiLM depend on the words alone: computed once per instruction."""
        if self._words is None or self._words[0] != words:
            tokenizer = self.checkpoint.tokenizer
            text = slice(0, 0) if self._pruning is None else self._pruning.text(words)
            embedded = self.engine.instruction(tokenizer.prompt_ids(words), text)
            self._words = (words, embedded)
        return self._words[1]

    def _noise(self) -> torch.Tensor | None:
        if self.checkpoint.config.head is not HeadKind.DIFFUSION:
            return None
        shape = (1, self.chunk_len, self.action_dim)
        # Drawn on the CPU, so that a seed gives the same noise on every device.
        return torch.randn(shape, generator=self._generator).to(self.device)


def _image(images: Mapping[str, np.ndarray], camera: str) -> np.ndarray:
    if camera not in images:
        raise ValueError(
            f"Observation: expected an image of {camera}; got {', '.join(images) or 'none'}. The "
            "checkpoint's cameras can be renamed with the parameter 'cameras'"
        )
    return images[camera]


def load_policy(
    config: PolicyConfig,
    *,
    control_rate_hz: float = 25.0,
    profile: RobotProfile | None = None,
) -> Policy:
    """Loads a checkpoint and makes it ready to answer.

    Args:
        config: What to load and how to run it.
        control_rate_hz: Rate of the actions of a chunk; the rate of the training data.
        profile: Robot that it shall move, held against what the checkpoint was trained for.

    Raises:
        ValueError: if a setting or the checkpoint is wrong; a `CheckpointError` lists all faults
            of the latter.
    """
    if not config.checkpoint_dir:
        raise ValueError(
            "checkpoint_dir: expected a local checkpoint directory, or shipped:<name> for a "
            "policy that comes with the package; got an empty string"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    device = _device(config.device)
    precision = config.precision
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16"
    checkpoint = load_checkpoint(
        checkpoint_path(config.checkpoint_dir),
        device=device,
        dtype=PRECISIONS[precision],
        unnorm_key=config.unnorm_key,
        record=_override(config),
    )
    return Policy(
        checkpoint,
        dt_ns=round(1e9 / control_rate_hz),
        diffusion_steps=config.diffusion_steps,
        pruning=config.pruning,
        engine=config.engine,
        fp8=precision == "fp8",
        self_tests=run_self_tests(checkpoint, skip=config.skip_self_tests, profile=profile),
    )


def _override(config: PolicyConfig) -> CheckpointRecord:
    """What the settings say in place of the checkpoint."""
    cameras = tuple(camera for camera in config.cameras if camera)
    return CheckpointRecord(
        chunk_len=config.chunk_len or None,
        cameras=cameras or None,
        decoding=None if config.decoding == "auto" else HeadKind(config.decoding),
        preprocessing=config.preprocessing if config.override_preprocessing else None,
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:<index>; {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: expected a CUDA GPU for {name!r}; torch sees none. Set device to cpu"
        )
    return device
