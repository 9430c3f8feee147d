"""How far actions move when a network computes in bfloat16 or fp8, and which part moves them.

    python benchmark/precision.py [--checkpoint DIR] [--observations 12] [--seeds 3] [--only TEXT]
                                  [--json FILE]

Networks: a checkpoint on observations of a demonstration in the simulation, one a second, and
random ones on noise. The relative error is the norm of the difference over the norm of the
reference, over the normalised actions of all observations of a network together: the actions of
one are too few numbers, and too much alike, to tell rounding from luck. The reference computes in
float32 with the same weights, rounded to bfloat16 alike; how far that rounding alone moves the
actions is a row too, which no arithmetic can avoid. fp8 is computed from the same 8-bit numbers as
on a GPU, in float32. Numbers do not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from latency.hf_baseline import share_weights
from latency.oft_rows import relative_error
from latency.random_oft import random_model, random_prompt, scaled_down
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vla_oft_ros.aloha import GRIPPERS, load_profile
from vla_oft_ros.config import PreprocessingConfig
from vla_oft_ros.evaluation import FIRST_SEED
from vla_oft_ros.model.checkpoint import load_checkpoint
from vla_oft_ros.model.engine import Engine, Request, make_engine
from vla_oft_ros.model.engine_pass import Network
from vla_oft_ros.model.engine_regions import PLAIN
from vla_oft_ros.model.engine_vision import run_block
from vla_oft_ros.model.film import Film
from vla_oft_ros.model.inputs import ImagePipeline, ModelInputs, sequence_ids
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.vla import OpenVLAOFT
from vla_oft_ros.normalization import NormStats, normalize, unnormalize
from vla_oft_ros.shipped_policies import DEMO_POLICY, checkpoint_path
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.demonstrator import demonstrate
from vla_oft_ros.sim.record import measured

CPU = torch.device("cpu")
READY_MADE = PreprocessingConfig(resize_to_256=False, jpeg_roundtrip=False, center_crop=False)
SIZES = {
    "random, width 64": {"width": 64, "layers": 4, "tower_width": 32, "tower_depth": 3, "grid": 4},
    "random, width 256": {
        "width": 256,
        "layers": 8,
        "tower_width": 128,
        "tower_depth": 6,
        "grid": 8,
    },
}
"""Those of `latency_cpu.py`."""
RANDOM_OBSERVATIONS = 3
PARTS = (
    "vision_backbone.featurizer",
    "vision_backbone.fused_featurizer",
    "projector",
    "proprio_projector",
    "language_model.model",
    "action_head",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One network with observations.

    Attributes:
        model: In float32, its weights not yet rounded.
        images: For images that are prepared already.
        stats: Bounds of the actions; None where they mean nothing.
        prompt: (L,) token ids.
        seen: Prepared images and normalised proprio (A,) of every observation.
    """

    model: OpenVLAOFT
    images: ImagePipeline
    stats: NormStats | None
    prompt: np.ndarray
    seen: Sequence[tuple[list[np.ndarray], np.ndarray]]

    def inputs(self, dtype: torch.dtype) -> Iterator[ModelInputs]:
        """What a network reads, in its format."""
        slots = self.model.config.chunk_len * self.model.config.action_dim
        for images, proprio in self.seen:
            yield ModelInputs(
                pixel_values=torch.from_numpy(self.images.pixel_values(images))[None],
                input_ids=sequence_ids([self.prompt], slots),
                prompt_lens=(len(self.prompt),),
                proprio=torch.from_numpy(proprio)[None],
            ).to(CPU, dtype)


def of_checkpoint(directory: Path, observations: int) -> Case:
    """A checkpoint, and what it sees of a demonstration that its training did not see."""
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    profile = load_profile("sim")
    world = AlohaWorld(profile.gripper)
    world.reset(seed=FIRST_SEED)
    every, seen = round(1e9 / world.control_period_ns), []
    assert checkpoint.proprio_stats is not None
    for tick, targets in enumerate(demonstrate(world)):
        if len(seen) == observations:
            break
        if tick % every == 0:
            images = world.images(checkpoint.record.cameras or ())
            proprio = normalize(measured(world, profile), checkpoint.proprio_stats)
            seen.append(
                (checkpoint.images.prepare(list(images.values())), proprio.astype(np.float32))
            )
        world.set_targets(targets)
        world.advance(world.control_period_ns)
    prompt = checkpoint.tokenizer.prompt_ids(world.instruction)
    world.close()
    return Case(
        model=checkpoint.model,
        images=replace(checkpoint.images, options=READY_MADE),
        stats=checkpoint.action_stats,
        prompt=prompt,
        seen=seen,
    )


def of_noise(size: dict[str, int], seed: int, observations: int) -> Case:
    """A random network and noise."""
    config = scaled_down(heads=4, **size)
    generator = np.random.default_rng(seed)
    half = np.full((2, 3), 0.5, dtype=np.float32)
    shape = (config.cameras, config.dino.image_px, config.dino.image_px, 3)
    return Case(
        model=random_model(config, CPU, torch.float32, seed),
        images=ImagePipeline(
            size_px=config.dino.image_px, mean=half, std=half, options=READY_MADE
        ),
        stats=None,
        prompt=random_prompt(),
        seen=[
            (
                list(generator.integers(0, 256, shape, dtype=np.uint8)),
                generator.uniform(-1, 1, config.proprio_dim).astype(np.float32),
            )
            for _ in range(observations)
        ],
    )


def by_forward(case: Case, network: nn.Module, dtype: torch.dtype) -> np.ndarray:
    """(observations, K, A) by our plain forward."""
    return np.stack([network(one).actions[0].double().numpy() for one in case.inputs(dtype)])


def by_engine(case: Case, engine: Engine) -> np.ndarray:
    """The same by the engine."""
    instruction = engine.instruction(case.prompt)
    requests = (
        Request(instruction=instruction, images=images, proprio=proprio)
        for images, proprio in case.seen
    )
    return np.stack([engine.run(request).normalized for request in requests])


def in_8_bits(case: Case, model: OpenVLAOFT) -> Engine:
    """An engine with fp8 products, which on this device are computed in float32."""
    network = Network(
        model,
        images=case.images,
        action_stats=None,
        plan=None,
        savings=Savings(),
        regions=PLAIN,
        run=run_block,
        fp8=True,
    )
    return Engine(network, kind="eager", savings=Savings())


def with_part_in_bf16(model: OpenVLAOFT, name: str) -> OpenVLAOFT:
    """A copy of a float32 network of which one part computes in bfloat16."""
    model = deepcopy(model)
    part = model.get_submodule(name).to(torch.bfloat16)
    for module in part.modules():
        if isinstance(module, nn.Embedding):
            module.float()  # what else reads it is no part of the part
        if module is part or isinstance(module, Film):  # towers are asked for FiLM apart
            module.register_forward_pre_hook(_narrowed, with_kwargs=True)
            module.register_forward_hook(lambda *call: tree_map(_float32, call[-1]))
    return model


def _narrowed(_: nn.Module, arguments: object, named: object) -> object:
    return tree_map(_bfloat16, (arguments, named))


def _bfloat16(value: object) -> object:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


def _float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass(frozen=True, kw_only=True)
class Error:
    """How far one way of computing is off.

    Attributes:
        relative: Norm of the difference over norm of the reference, all networks together.
        lowest: Of the networks, one by one.
        highest: Alike.
        worst: Largest difference of a normalised action.
        worst_rad: Largest difference of a joint target, rad; None for a random network.
    """

    relative: float
    lowest: float
    highest: float
    worst: float
    worst_rad: float | None


def rows_of(case: Case) -> dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]]:
    """Row → what it answers, and what it is held against: (observations, K, A) each."""
    narrow = deepcopy(case.model).bfloat16()
    rounded = deepcopy(narrow).float()
    reference, exact = (by_forward(case, m, torch.float32) for m in (rounded, case.model))

    def engine(model: OpenVLAOFT) -> np.ndarray:
        return by_engine(
            case, make_engine(model, images=case.images, action_stats=None, kind="eager")
        )

    def hugging_face() -> np.ndarray:
        baseline = share_weights(narrow)
        given = ((i.pixel_values, i.input_ids, i.proprio) for i in case.inputs(torch.bfloat16))
        return np.stack([baseline(*one)[0].double().numpy() for one in given])

    rows = {
        "weights rounded, nothing else": lambda: (reference, exact),
        "engine, fp32": lambda: (engine(rounded), reference),
        "**engine, bf16**": lambda: (engine(narrow), reference),
        "plain forward, bf16": lambda: (by_forward(case, narrow, torch.bfloat16), reference),
        "Hugging Face, bf16": lambda: (hugging_face(), reference),
        "engine, bf16, and weights rounded": lambda: (engine(narrow), exact),
        "engine, fp8": lambda: (by_engine(case, in_8_bits(case, narrow)), reference),
    }
    for name in PARTS:
        rows[f"fp32 but for {name}"] = lambda name=name: (
            by_forward(case, with_part_in_bf16(rounded, name), torch.float32),
            reference,
        )
    return rows


def error_of(cases: Sequence[Case], pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Error:
    """All networks together, and the range over them."""
    each = [relative_error(*pair) for pair in pairs]
    ours, theirs = (np.concatenate(part) for part in zip(*pairs, strict=True))
    stats = cases[0].stats
    rad = None
    if stats is not None:
        gap = np.abs(unnormalize(ours, stats) - unnormalize(theirs, stats))
        rad = float(np.delete(gap, GRIPPERS, axis=-1).max())
    return Error(
        relative=relative_error(ours, theirs),
        lowest=min(each),
        highest=max(each),
        worst=float(np.abs(ours - theirs).max()),
        worst_rad=rad,
    )


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Error]]:
    """Yields network, row, error."""
    torch.set_num_threads(1)
    networks: dict[str, Callable[[], list[Case]]] = {
        arguments.checkpoint: lambda: [
            of_checkpoint(checkpoint_path(arguments.checkpoint), arguments.observations)
        ]
    }
    for name, size in SIZES.items():
        networks[name] = lambda size=size: [
            of_noise(size, seed, RANDOM_OBSERVATIONS) for seed in range(arguments.seeds)
        ]
    for network, make in networks.items():
        if arguments.only not in network:
            continue
        cases = make()
        rows = [rows_of(case) for case in cases]
        for name in rows[0]:
            yield network, name, error_of(cases, [own[name]() for own in rows])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default=DEMO_POLICY, help="directory or shipped:<name>")
    parser.add_argument("--observations", type=int, default=12, help="of the checkpoint, 1 a s")
    parser.add_argument("--seeds", type=int, default=3, help="random networks of each size")
    parser.add_argument("--only", default="", help="only networks with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    table, told = Table(box=None, pad_edge=False), []
    for column in ("network", "row", "relative error", "of one network", "worst", "worst, rad"):
        table.add_column(column)
    for network, row, error in measure(arguments):
        rad = "" if error.worst_rad is None else f"{error.worst_rad:.1e}"
        spread = f"{error.lowest:.1e} … {error.highest:.1e}"
        table.add_row(network, row, f"{error.relative:.1e}", spread, f"{error.worst:.1e}", rad)
        told.append({"network": network, "row": row, **asdict(error)})
    Console(highlight=False, width=150).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
