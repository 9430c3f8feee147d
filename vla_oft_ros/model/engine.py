"""How a pass is run, apart from what it computes: eagerly, compiled, or as a captured CUDA graph.

`eager` works on every device and is the reference. `compiled` lets torch.compile fuse what lies
between the big products. `cuda_graph` records a whole pass, from camera frames to actions in robot
units, per length of prompt and kind of pruning, and replays it without any work of the host. What
a device cannot do is replaced by what it can, and `Engine.report` names the reason.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.engine_graph import GpuCapture
from vla_oft_ros.model.engine_pass import Network
from vla_oft_ros.model.engine_regions import PLAIN, compile_problem, compiled_regions
from vla_oft_ros.model.engine_request import Answer, EngineReport, Instruction, Request
from vla_oft_ros.model.engine_run import KEEP_GRAPHS, PRECISIONS, Engine
from vla_oft_ros.model.engine_vision import run_block
from vla_oft_ros.model.fp8 import fp8_problem
from vla_oft_ros.model.inputs import ImagePipeline, close_prompt
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.stage_times import StageTimes
from vla_oft_ros.model.tokens import BOS_ID
from vla_oft_ros.model.vla import OpenVLAOFT
from vla_oft_ros.normalization import NormStats

__all__ = [
    "KINDS",
    "Answer",
    "Engine",
    "EngineReport",
    "Instruction",
    "Request",
    "make_engine",
]

logger = logging.getLogger(__name__)

KINDS = ("auto", "eager", "compiled", "cuda_graph")
FP8_TOLERANCE = 0.05
"""Largest difference of a normalised action that fp8 may make, 2.5 % of the range from -1 to 1;
bf16 itself moves those of a random network by as much (self_test.TOLERANCE).
"""
GUARD_INPUTS = 3
"""Noise observations on which fp8 is held against bf16."""
GUARD_WORDS = 16
"""Length of their prompts, about that of a sentence."""


def make_engine(
    model: OpenVLAOFT,
    *,
    images: ImagePipeline,
    action_stats: NormStats | None,
    plan: PruningPlan | None = None,
    kind: str = "auto",
    fp8: bool = False,
    fp8_tolerance: float = FP8_TOLERANCE,
    keep_graphs: int = KEEP_GRAPHS,
    savings: Savings | None = None,
    diffusion_steps: int = 50,
    stage_times: StageTimes | None = None,
) -> Engine:
    """Makes the best engine that was asked for and that the device can run.

    Args:
        model: In evaluation mode, on its device. Its LLM's parameters become views of packed
            ones; several engines may share it.
        images: How camera frames become network input.
        action_stats: Bounds of the actions; None leaves them normalised.
        plan: Which visual tokens to drop; None for none.
        kind: auto, eager, compiled or cuda_graph; auto is cuda_graph on a GPU, else eager.
        fp8: LLM products in e4m3.
        fp8_tolerance: Largest difference of a normalised action from bf16 that fp8 may make on
            reference inputs; more falls back to bf16.
        keep_graphs: Captured passes kept.
        savings: None is all.
        diffusion_steps: DDIM steps of a diffusion checkpoint.
        stage_times: Marks between the stages of every pass.

    Raises:
        ValueError: if a setting is none of those that exist, or adapters were not merged.
    """
    if kind not in KINDS:
        raise ValueError(f"engine.kind: expected one of {', '.join(KINDS)}; got {kind!r}")
    savings = savings or Savings()
    device = next(model.parameters()).device
    fallbacks: list[str] = []
    if kind == "auto":
        kind = "cuda_graph" if device.type == "cuda" else "eager"
    if kind == "cuda_graph":
        problem = graph_problem(device, model.config.head, plan)
        if problem:
            fallbacks.append(f"cuda_graph → eager: {problem}")
            kind = "eager"
    fused = kind == "compiled" or (kind == "cuda_graph" and savings.fuse_pointwise)
    if fused:
        problem = compile_problem(device)
        if problem:
            instead = "eager" if kind == "compiled" else "separate kernels"
            asked = "compiled" if kind == "compiled" else "fused kernels"
            fallbacks.append(f"{asked} → {instead}: {problem}")
            fused, kind = False, "eager" if kind == "compiled" else kind

    def network(*, fp8: bool, fused: bool = False, watched: bool = True) -> Network:
        regions, run = compiled_regions() if fused else (PLAIN, run_block)
        return Network(
            model,
            images=images,
            action_stats=action_stats,
            plan=plan,
            savings=savings,
            regions=regions,
            run=run,
            fp8=fp8,
            diffusion_steps=diffusion_steps,
            times=stage_times if watched else None,
        )

    if fp8:
        problem = fp8_problem(device, next(model.parameters()).dtype, _linear_sizes(model))
        problem = problem or guard_problem(
            network(fp8=True, watched=False), network(fp8=False, watched=False), fp8_tolerance
        )
        if problem:
            dtype = next(model.parameters()).dtype
            fallbacks.append(f"fp8 → {PRECISIONS.get(dtype, str(dtype))}: {problem}")
            fp8 = False
    engine = Engine(
        network(fp8=fp8, fused=fused),
        kind=kind,
        savings=savings,
        keep_graphs=keep_graphs,
        capture=GpuCapture() if kind == "cuda_graph" else None,
        fallback=None if kind == "eager" else lambda: network(fp8=fp8),
        fallbacks=tuple(fallbacks),
        times=stage_times,
    )
    for note in fallbacks:
        logger.warning("engine: %s", note)
    return engine


def graph_problem(device: torch.device, head: HeadKind, plan: PruningPlan | None) -> str | None:
    """Why a pass cannot be captured; None if it can."""
    if device.type != "cuda":
        return f"{device.type} has no CUDA graphs"
    if head is not HeadKind.L1:
        return f"passes of a checkpoint with {head.value} decoding are not captured"
    if plan is None:
        return None
    if plan.config.method != "specprune":
        return f"pruning.method {plan.config.method} waits for the host"
    if plan.config.preset != "static_shape":
        return (
            f"pruning.preset {plan.config.preset} keeps a number of tokens that depends on the "
            "images; static_shape does not"
        )
    return None


def guard_problem(narrow: Network, wide: Network, tolerance: float) -> str | None:
    """Why 8 bits are too few for a checkpoint: how far its actions move on noise images.

    Args:
        narrow: The network in fp8.
        wide: The same without.
        tolerance: Largest difference of a normalised action.
    """
    errors = []
    for seed in range(GUARD_INPUTS):
        first, second = (
            Engine(network, kind="eager", savings=Savings()) for network in (narrow, wide)
        )
        request = _noise_request(second, wide, seed)
        expected = second.run(request).normalized
        try:
            gap = first.run(request).normalized - expected
        except RuntimeError as error:  # a product that the library has no kernel for
            return f"a pass in fp8 fails: {(str(error).strip() or 'no reason').splitlines()[0]}"
        errors.append(float(np.abs(gap).max()))
    worst = max(errors)
    # Written so that NaN is a problem too.
    if worst <= tolerance:
        return None
    return f"normalised actions differ by {worst:.3f} from bf16, {tolerance:g} is allowed"


def _noise_request(engine: Engine, network: Network, seed: int) -> Request:
    config = network.model.config
    generator = np.random.default_rng(seed)
    side = config.dino.image_px
    words = generator.integers(3, config.vocab_end - config.action_bins, GUARD_WORDS)
    return Request(
        instruction=engine.instruction(close_prompt(np.array([BOS_ID, *words]))),
        images=list(generator.integers(0, 256, (config.cameras, side, side, 3), dtype=np.uint8)),
        proprio=generator.uniform(-1, 1, config.proprio_dim).astype(np.float32)
        if config.proprio_dim
        else None,
        dense=True,
    )


def _linear_sizes(model: OpenVLAOFT) -> tuple[int, ...]:
    llm = model.config.llm
    return (llm.width, llm.kv_heads * llm.head_dim, llm.mlp_hidden)
