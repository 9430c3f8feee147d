"""Laws of the engine: how a pass is run does not change what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_oft_ros.config import PruningConfig
from vla_oft_ros.model import engine as engine_module
from vla_oft_ros.model.checkpoint import Checkpoint, load_checkpoint
from vla_oft_ros.model.engine import Answer, Engine, Request, graph_problem, make_engine
from vla_oft_ros.model.engine_graph import LeastRecent
from vla_oft_ros.model.engine_pass import Network, PassOutput
from vla_oft_ros.model.engine_regions import PLAIN
from vla_oft_ros.model.engine_vision import run_block
from vla_oft_ros.model.engine_weights import packed
from vla_oft_ros.model.fp8 import FP8_STEP, fp8_problem, linear, quantize_rows
from vla_oft_ros.model.inputs import ModelInputs, sequence_ids
from vla_oft_ros.model.pruner import SpecPruner
from vla_oft_ros.model.pruning import patch_similarity
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.small_checkpoint import SmallSize, make_random_checkpoint
from vla_oft_ros.model.stage_times import StageTimes
from vla_oft_ros.normalization import unnormalize
from vla_oft_ros.types import MotionMode

CPU = torch.device("cpu")
WORDS = "pick up the cube"
SIZE = SmallSize(width=48, layers=8, heads=4, dino_width=32, siglip_width=24, depth=3, chunk_len=5)
SAVINGS = [entry.name for entry in fields(Savings)]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-7}
"""Of normalised actions, which leave the network in float32."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("engine") / "checkpoint"
    make_random_checkpoint(directory, size=SIZE)
    return directory


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def checkpoint(directory: Path, request: pytest.FixtureRequest) -> Checkpoint:
    return load_checkpoint(directory, device=CPU, dtype=request.param)


def plan_of(checkpoint: Checkpoint, **changes: object) -> PruningPlan:
    sizes = checkpoint.config
    config = PruningConfig(**{"method": "specprune", **changes})
    return PruningPlan.resolve(
        config, cameras=sizes.cameras, patches=sizes.dino.patches, depth=sizes.llm.layers
    )


def engine_of(checkpoint: Checkpoint, **changes: object) -> Engine:
    settings = {"plan": plan_of(checkpoint), "kind": "eager", **changes}
    return make_engine(
        checkpoint.model,
        images=checkpoint.images,
        action_stats=checkpoint.action_stats,
        **settings,
    )


def frames(seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(3)]


def request_of(checkpoint: Checkpoint, engine: Engine, seed: int = 0) -> Request:
    ids = checkpoint.tokenizer.prompt_ids(WORDS)
    return Request(
        instruction=engine.instruction(ids, checkpoint.tokenizer.instruction_span(WORDS)),
        images=frames(seed),
        proprio=np.random.default_rng(seed).uniform(-1, 1, 14).astype(np.float32),
    )


def episode(checkpoint: Checkpoint, engine: Engine) -> list[Answer]:
    """A dense pass, a cold one, and two pruned ones."""
    first = request_of(checkpoint, engine)
    answers = [engine.run(replace(first, dense=True)), engine.run(first)]
    for seed, mode in ((1, MotionMode.COARSE), (2, MotionMode.FINE)):
        answers.append(
            engine.run(
                replace(
                    request_of(checkpoint, engine, seed),
                    references=frames(seed - 1),
                    state=answers[-1].state,
                    mode=mode,
                )
            )
        )
    return answers


def kept(answer: Answer) -> list[list[int]]:
    return [stage.patches.tolist() for stage in answer.stages]


@torch.inference_mode()
def test_without_savings_every_pass_is_the_models_own_bit_for_bit(checkpoint: Checkpoint) -> None:
    engine = engine_of(checkpoint, savings=Savings.none())
    answers = episode(checkpoint, engine)
    plan, images = plan_of(checkpoint), checkpoint.images
    ids = checkpoint.tokenizer.prompt_ids(WORDS)
    first, end = request_of(checkpoint, engine).instruction.text
    state = None
    for seed, answer in zip((0, 0, 1, 2), answers, strict=True):
        request = request_of(checkpoint, engine, seed)
        inputs = ModelInputs(
            pixel_values=torch.from_numpy(images.pixel_values(images.prepare(frames(seed))))[None],
            input_ids=sequence_ids([ids], 5 * 14),
            prompt_lens=(len(ids),),
            proprio=torch.from_numpy(np.asarray(request.proprio))[None],
        ).to(CPU, next(checkpoint.model.parameters()).dtype)
        pruner = None
        if answer is not answers[0]:
            now, past = (
                (
                    torch.from_numpy(np.stack(images.prepare(frames(s))))
                    for s in (seed, seed - 1 or 0)
                )
                if seed
                else (None, None)
            )
            pruner = SpecPruner(
                plan,
                request.instruction.layout,
                slice(first, end),
                state=state,
                similarity=None
                if past is None
                else patch_similarity(now, past, checkpoint.config.dino.patch_px),
                mode=MotionMode.COARSE if seed == 1 else MotionMode.FINE,
            )
        output = checkpoint.model(inputs, pruner=pruner)
        assert np.array_equal(answer.normalized, output.actions[0].double().numpy())
        robot_units = unnormalize(answer.normalized, checkpoint.action_stats)
        assert np.array_equal(answer.actions, robot_units)
        if pruner is not None:
            state = pruner.state
            assert kept(answer) == [stage.patches.tolist() for stage in pruner.stages]
            assert torch.equal(answer.state.global_patches, state.global_patches)
            assert torch.equal(answer.state.entropies, state.entropies)


@pytest.mark.parametrize("saving", [*SAVINGS, "all"])
def test_a_saving_changes_no_action_and_no_kept_token(checkpoint: Checkpoint, saving: str) -> None:
    """Dense, cold and pruned."""
    off = Savings.none()
    on = Savings() if saving == "all" else replace(off, **{saving: True})
    plain, saved = (episode(checkpoint, engine_of(checkpoint, savings=s)) for s in (off, on))
    tolerance = TOLERANCE[next(checkpoint.model.parameters()).dtype]
    for expected, actual in zip(plain, saved, strict=True):
        np.testing.assert_allclose(actual.normalized, expected.normalized, rtol=0, atol=tolerance)
        assert kept(actual) == kept(expected)
    assert kept(saved[2])


@pytest.mark.parametrize("saving", SAVINGS)
def test_every_saving_has_its_switch(saving: str) -> None:
    assert Savings().off == ()
    assert replace(Savings(), **{saving: False}).off == (saving,)


def test_packed_weights_are_the_old_parameters_in_one_piece() -> None:
    layers = [torch.nn.Linear(6, rows, bias=False) for rows in (4, 2, 3)]
    before = [layer.weight.detach().clone() for layer in layers]
    joined = packed(layers)
    assert torch.equal(joined, torch.cat(before))
    assert all(torch.equal(layer.weight, old) for layer, old in zip(layers, before, strict=True))
    assert packed(layers).data_ptr() == joined.data_ptr() == layers[0].weight.data_ptr()
    with torch.no_grad():
        layers[1].weight.zero_()
    assert joined[4:6].abs().max() == 0


class FakeCapture:
    """Runs a function once, and again at every replay, into the memory of the first run."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, run: Callable[[], PassOutput]) -> tuple[Callable[[], None], PassOutput]:
        self.captures += 1
        output = run()

        def replay() -> None:
            again = run()
            output.normalized.copy_(again.normalized)
            output.actions.copy_(again.actions)
            if output.reasons is not None and again.reasons is not None:
                output.reasons.copy_(again.reasons)
            for target, source in zip(output.stages, again.stages, strict=True):
                target.patches.copy_(source.patches)
            if output.state is not None and again.state is not None:
                output.state.global_patches.copy_(again.state.global_patches)
                if output.state.entropies is not again.state.entropies:
                    output.state.entropies.copy_(again.state.entropies)

        return replay, output


def captured_engine(
    checkpoint: Checkpoint, capture: Callable[..., object], keep_graphs: int = 12
) -> Engine:
    def network() -> Network:
        return Network(
            checkpoint.model,
            images=checkpoint.images,
            action_stats=checkpoint.action_stats,
            plan=plan_of(checkpoint),
            savings=Savings(),
            regions=PLAIN,
            run=run_block,
        )

    return Engine(
        network(),
        kind="cuda_graph",
        savings=Savings(),
        keep_graphs=keep_graphs,
        capture=capture,
        fallback=network,
    )


def test_passes_in_fixed_memory_equal_eager_ones_bit_for_bit(checkpoint: Checkpoint) -> None:
    capture = FakeCapture()
    eager = episode(checkpoint, engine_of(checkpoint))
    fixed = episode(checkpoint, captured_engine(checkpoint, capture))
    for expected, actual in zip(eager, fixed, strict=True):
        assert np.array_equal(actual.actions, expected.actions)
        assert kept(actual) == kept(expected)
        if expected.state is not None:
            assert torch.equal(actual.state.global_patches, expected.state.global_patches)
            assert torch.equal(actual.state.entropies, expected.state.entropies)
    assert capture.captures == 4, "dense; cold; warm in two modes, ahead of being asked"


def test_another_instruction_of_the_same_length_reuses_its_capture(directory: Path) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    capture = FakeCapture()
    fixed, eager = captured_engine(checkpoint, capture), engine_of(checkpoint)
    ids = checkpoint.tokenizer.prompt_ids(WORDS)
    other = ids.copy()
    other[5] += 1
    for prompt in (ids, other, ids):
        request, same = (
            replace(request_of(checkpoint, e), instruction=e.instruction(prompt))
            for e in (fixed, eager)
        )
        assert np.array_equal(fixed.run(request).actions, eager.run(same).actions)
    assert capture.captures == 3


def test_a_pass_too_many_is_not_captured_where_few_are_kept(directory: Path) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    capture = FakeCapture()
    fixed = episode(checkpoint, captured_engine(checkpoint, capture, keep_graphs=1))
    expected = episode(checkpoint, engine_of(checkpoint))
    assert capture.captures == 4, "dense, cold, coarse, fine: each when it is asked for"
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(fixed, expected, strict=True))


def test_a_capture_that_fails_goes_on_eagerly_and_says_why(directory: Path) -> None:
    def refuse(run: Callable[[], PassOutput]) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    engine = captured_engine(checkpoint, refuse)
    answers = episode(checkpoint, engine)
    assert engine.report.kind == "eager"
    assert engine.report.fallbacks == ("cuda_graph → eager: operation not permitted",)
    expected = episode(checkpoint, engine_of(checkpoint))
    assert all(
        np.array_equal(a.actions, b.actions) for a, b in zip(answers, expected, strict=True)
    )


def test_the_least_recently_used_capture_goes_first() -> None:
    kept_graphs: LeastRecent[str, int] = LeastRecent(2)
    kept_graphs.put("a", 1)
    kept_graphs.put("b", 2)
    assert kept_graphs.get("a") == 1
    kept_graphs.put("c", 3)
    assert len(kept_graphs) == 2
    assert kept_graphs.get("b") is None
    assert (kept_graphs.get("a"), kept_graphs.get("c")) == (1, 3)
    with pytest.raises(ValueError, match="keep_graphs: expected 1 or more"):
        LeastRecent(0)


@pytest.mark.parametrize(("rows", "columns"), [(5, 64), (1, 16), (40, 256)])
def test_rows_in_8_bits_are_off_by_at_most_half_a_step(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator)
    x[0] *= 1e4  # one row must not spoil the others
    values, scale = quantize_rows(x)
    restored = values.float() * scale
    # Below the smallest normal number of e4m3, steps are 2^-9 wide.
    allowed = torch.maximum(x.abs() * FP8_STEP, scale * 2.0**-10) * (1 + 1e-5)
    assert ((restored - x).abs() <= allowed).all()


def test_a_row_of_zeros_stays_zero_in_8_bits() -> None:
    weight = quantize_rows(torch.randn(16, 32, generator=torch.Generator().manual_seed(1)))
    assert linear(torch.zeros(3, 32), weight).abs().max() == 0


def test_a_product_in_8_bits_is_near_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight = (torch.randn(n, 512, generator=generator) for n in (33, 48))
    exact = x @ weight.T
    gap = torch.linalg.norm(linear(x, quantize_rows(weight)) - exact)
    assert 0 < gap < 0.06 * torch.linalg.norm(exact)


def test_8_bits_are_refused_by_name_where_the_device_has_none(directory: Path) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    engine = engine_of(checkpoint, fp8=True)
    assert engine.report.precision == "fp32"
    assert engine.report.fallbacks == ("fp8 → fp32: cpu has no fp8 matrix units",)
    assert fp8_problem(CPU, torch.bfloat16, (64,)) == "cpu has no fp8 matrix units"


def network_of(checkpoint: Checkpoint, *, fp8: bool) -> Network:
    return Network(
        checkpoint.model,
        images=checkpoint.images,
        action_stats=None,
        plan=None,
        savings=Savings(),
        regions=PLAIN,
        run=run_block,
        fp8=fp8,
    )


def test_the_guard_lets_8_bits_pass_up_to_its_tolerance(directory: Path) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    narrow, wide = (network_of(checkpoint, fp8=fp8) for fp8 in (True, False))
    assert engine_module.guard_problem(narrow, wide, 2.0) is None
    problem = engine_module.guard_problem(narrow, wide, 1e-6)
    assert problem is not None
    assert "1e-06 is allowed" in problem
    assert engine_module.guard_problem(wide, wide, 0.0) is None


def test_a_guard_whose_8_bit_pass_fails_says_why(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    wide = network_of(checkpoint, fp8=False)
    narrow = network_of(checkpoint, fp8=True)

    def refuse(*_: object) -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED\nwhen calling")

    monkeypatch.setattr(narrow, "_parallel", refuse)
    problem = engine_module.guard_problem(narrow, wide, 1.0)
    assert problem == "a pass in fp8 fails: CUBLAS_STATUS_NOT_SUPPORTED"


def test_a_graph_is_refused_by_name_where_it_cannot_be(directory: Path) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    engine = engine_of(checkpoint, kind="cuda_graph")
    assert engine.report.kind == "eager"
    assert engine.report.fallbacks == ("cuda_graph → eager: cpu has no CUDA graphs",)
    assert engine_of(checkpoint, kind="auto").report.fallbacks == ()
    gpu = torch.device("cuda")
    head = checkpoint.config.head
    assert graph_problem(gpu, head, plan_of(checkpoint)) is None
    assert "static_shape" in str(graph_problem(gpu, head, plan_of(checkpoint, preset="paper")))
    assert "random" in str(graph_problem(gpu, head, plan_of(checkpoint, method="random")))


def test_a_kind_that_does_not_exist_is_refused(directory: Path) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"engine.kind: expected one of auto, eager"):
        engine_of(checkpoint, kind="fast")


def test_compilation_that_fails_is_replaced_by_name(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "compile_problem", lambda device: "no C++ compiler")
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    engine = engine_of(checkpoint, kind="compiled")
    assert str(engine.report) == "eager, fp32; compiled → eager: no C++ compiler"


def test_budgets_fill_the_sequence_up_to_the_multiple(checkpoint: Checkpoint) -> None:
    plan = plan_of(checkpoint, length_multiple=32)
    length = checkpoint.config.layout(20).length
    filled = plan.for_length(length)
    for mode, budget in filled.budgets.items():
        left = length - plan.vision + budget
        assert left % 32 == 0 or budget == plan.vision
        assert plan.budgets[mode] <= budget <= plan.budgets[mode] + 31
    assert plan_of(checkpoint).for_length(length) == plan_of(checkpoint)


def test_stage_times_name_every_stage_in_order(directory: Path) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    times = StageTimes(CPU)
    engine = engine_of(checkpoint, stage_times=times, savings=Savings(parallel_towers=False))
    episode(checkpoint, engine)
    spent = times.milliseconds()
    assert list(spent)[:5] == ["preprocess", "dino", "siglip", "projector", "embed"]
    assert next(s for s in spent if s.startswith("layers")) == "layers 1-2"
    assert list(spent)[-2:] == ["head", "unnormalize"]
    assert all(milliseconds >= 0 for milliseconds in spent.values())


def test_a_request_that_does_not_fit_is_refused(directory: Path) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    engine = engine_of(checkpoint)
    request = request_of(checkpoint, engine)
    with pytest.raises(ValueError, match=r"Request.images: expected 3; got 2"):
        engine.run(replace(request, images=request.images[:2]))
    with pytest.raises(ValueError, match=r"Request.proprio: expected shape \(14,\); got None"):
        engine.run(replace(request, proprio=None))


@pytest.mark.slow
def test_a_compiled_engine_answers_as_the_eager_one(directory: Path) -> None:
    checkpoint = load_checkpoint(directory, device=CPU, dtype=torch.float32)
    compiled = engine_of(checkpoint, kind="compiled")
    if compiled.report.fallbacks:
        pytest.skip(str(compiled.report))
    plain, fused = (episode(checkpoint, e) for e in (engine_of(checkpoint), compiled))
    assert compiled.report.kind == "compiled"
    for expected, actual in zip(plain, fused, strict=True):
        np.testing.assert_allclose(actual.normalized, expected.normalized, rtol=0, atol=2e-5)
