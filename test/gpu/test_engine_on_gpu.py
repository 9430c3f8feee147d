"""Laws of what only a GPU runs: captured passes, the second stream, flash attention, 8 bits.

pytest -m gpu
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_oft_ros.config import PruningConfig
from vla_oft_ros.model import pruning
from vla_oft_ros.model.attention import attend
from vla_oft_ros.model.checkpoint import Checkpoint, load_checkpoint
from vla_oft_ros.model.engine import Answer, Engine, Request, make_engine
from vla_oft_ros.model.fp8 import Fp8Weight, fp8_problem, linear, quantize_rows
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.small_checkpoint import SmallSize, make_random_checkpoint
from vla_oft_ros.types import MotionMode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

GPU = torch.device("cuda")
WORDS = "pick up the cube"
SIZE = SmallSize(width=96, layers=8, heads=2, dino_width=64, siglip_width=48, depth=3, chunk_len=5)
"""Heads of a multiple of 8 channels for flash attention, layers of multiples of 16 for fp8."""
HALF_A_STEP = 2.0**-8
"""Of bfloat16, relative, and as much again."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp("engine") / "checkpoint"
    make_random_checkpoint(directory, size=SIZE)
    return load_checkpoint(directory, device=GPU, dtype=torch.bfloat16)


def engine_of(checkpoint: Checkpoint, **settings: object) -> Engine:
    sizes = checkpoint.config
    plan = PruningPlan.resolve(
        PruningConfig(method="specprune"),
        cameras=sizes.cameras,
        patches=sizes.dino.patches,
        depth=sizes.llm.layers,
    )
    return make_engine(
        checkpoint.model,
        images=checkpoint.images,
        action_stats=checkpoint.action_stats,
        plan=plan,
        **settings,
    )


def frames(seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(3)]


def episode(checkpoint: Checkpoint, engine: Engine, rounds: int = 1) -> list[Answer]:
    """A dense pass, a cold one, and pruned ones in both modes, again and again."""
    ids = checkpoint.tokenizer.prompt_ids(WORDS)
    first = Request(
        instruction=engine.instruction(ids, checkpoint.tokenizer.instruction_span(WORDS)),
        images=frames(0),
        proprio=np.linspace(-1, 1, 14, dtype=np.float32),
    )
    answers = [engine.run(replace(first, dense=True)), engine.run(first)]
    for seed in range(1, 2 * rounds + 1):
        pruned = replace(
            first,
            images=frames(seed),
            references=frames(seed - 1),
            state=answers[-1].state,
            mode=(MotionMode.FINE, MotionMode.COARSE)[seed % 2],
        )
        answers.append(engine.run(pruned))
    return answers


def are_equal(first: list[Answer], second: list[Answer]) -> bool:
    """Bit for bit: actions and the tokens that were kept."""
    return all(
        np.array_equal(one.actions, other.actions)
        and [stage.patches.tolist() for stage in one.stages]
        == [stage.patches.tolist() for stage in other.stages]
        for one, other in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("fused", [False, True])
def test_a_replayed_graph_equals_the_pass_run_without_capture(
    checkpoint: Checkpoint, fused: bool
) -> None:
    savings = Savings(fuse_pointwise=fused)
    graph = engine_of(checkpoint, kind="cuda_graph", savings=savings)
    same = engine_of(checkpoint, kind="compiled" if fused else "eager", savings=savings)
    replayed = episode(checkpoint, graph, rounds=3)
    assert (graph.report.kind, graph.report.fallbacks) == ("cuda_graph", ())
    assert are_equal(replayed, episode(checkpoint, same, rounds=3))


def test_graphs_that_drive_each_other_out_answer_all_the_same(checkpoint: Checkpoint) -> None:
    unfused = Savings(fuse_pointwise=False)
    many, one = (
        engine_of(checkpoint, kind="cuda_graph", savings=unfused, keep_graphs=count)
        for count in (12, 1)
    )
    assert are_equal(episode(checkpoint, one, rounds=2), episode(checkpoint, many, rounds=2))
    assert one.report.kind == "cuda_graph"


def test_towers_side_by_side_answer_as_one_after_the_other(checkpoint: Checkpoint) -> None:
    both, one = (
        engine_of(checkpoint, kind="eager", savings=Savings(parallel_towers=parallel))
        for parallel in (True, False)
    )
    assert are_equal(episode(checkpoint, both), episode(checkpoint, one))


def test_frames_prepared_on_the_gpu_give_the_tokens_of_those_prepared_on_the_host(
    checkpoint: Checkpoint,
) -> None:
    """Pixels may differ by one of 256 steps, which bfloat16 hardly sees."""
    device, host = (
        episode(
            checkpoint,
            engine_of(checkpoint, kind="eager", savings=Savings(device_preprocessing=there)),
        )[0].normalized
        for there in (True, False)
    )
    assert np.linalg.norm(device - host) <= 0.05 * np.linalg.norm(host)


@torch.inference_mode()
def test_flash_attention_gives_the_normaliser_of_every_query() -> None:
    generator = torch.Generator(GPU).manual_seed(0)
    q, k, v = (
        torch.randn(1, 4, rows, 128, generator=generator, device=GPU).bfloat16()
        for rows in (577, 576, 576)
    )
    mixed, normalizer = attend(q, k, v)
    logits = q.float() @ k.float().transpose(-1, -2) / math.sqrt(128)
    assert normalizer is not None
    torch.testing.assert_close(normalizer, logits.logsumexp(-1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        mixed.float(), logits.softmax(-1) @ v.float(), rtol=0, atol=4 * HALF_A_STEP
    )
    by_hand = pruning.row_logsumexp(q[0], k[0])
    torch.testing.assert_close(normalizer[0], by_hand, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 350, 804])
def test_a_product_in_8_bits_is_that_of_the_same_numbers_in_float32(rows: int) -> None:
    problem = fp8_problem(GPU, torch.bfloat16, (256, 512))
    if problem:
        pytest.skip(problem)
    generator = torch.Generator(GPU).manual_seed(0)
    x = torch.randn(1, rows, 512, generator=generator, device=GPU).bfloat16()
    weight = quantize_rows(torch.randn(256, 512, generator=generator, device=GPU))
    same = linear(x.cpu(), Fp8Weight(weight.values.cpu(), weight.scale.cpu()))
    gap = torch.linalg.norm(linear(x, weight).cpu().float() - same.float())
    # Rows are rounded alike; what is left is the order of sums, and the tensor cores' short ones.
    assert gap <= 4 * HALF_A_STEP * torch.linalg.norm(same.float())


def test_8_bits_run_or_are_refused_by_name(checkpoint: Checkpoint) -> None:
    engine = engine_of(checkpoint, kind="auto", fp8=True)
    episode(checkpoint, engine)
    assert engine.report.precision == "fp8" or any(
        note.startswith("fp8 → bf16") for note in engine.report.fallbacks
    )
