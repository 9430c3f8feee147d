"""Laws of a pruned pass: against a naive fp64 pass with full attention maps, and against counting.

The model is a 32-layer Llama of width 32, so that the paper's layers are the layers of the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vla_oft_ros.config import PruningConfig
from vla_oft_ros.model.llm import LlamaConfig, LlamaModel
from vla_oft_ros.model.pruner import PruningState, ReplayPruner, SpecPruner, StagedPruner
from vla_oft_ros.model.pruning_plan import PruningPlan, llm_flops, scoring_flops
from vla_oft_ros.model.pruning_rivals import RankPruner, diversity_order
from vla_oft_ros.model.tokens import TokenLayout
from vla_oft_ros.types import KeptBy, MotionMode

CAMERAS = ("high", "left", "right")
LAYOUT = TokenLayout(
    cameras=3,
    patches_per_camera=64,
    prompt_len=14,
    chunk_len=4,
    action_dim=5,
    has_proprio=True,
)
TEXT = slice(LAYOUT.prompt.start + 3, LAYOUT.prompt.start + 9)
LLM = LlamaConfig(
    vocab=16,
    width=32,
    layers=32,
    heads=4,
    kv_heads=2,
    mlp_hidden=48,
    rms_eps=1e-6,
    rope_theta=1e4,
)
NONVISUAL = [p for p in range(LAYOUT.length) if not LAYOUT.vision.start <= p < LAYOUT.vision.stop]
STAGES = (2, 10, 15, 20, 25)
ROUNDING = 1e-5
"""RMSNorm and the rotary tables are float32 even in a float64 model; hidden states are about 1."""


@cache
def model() -> LlamaModel:
    torch.manual_seed(0)
    llama = LlamaModel(LLM).double().eval()
    with torch.no_grad():
        for layer in llama.layers:
            layer.self_attn.q_proj.weight.mul_(6)  # makes attention differ between patches
    return llama


@cache
def embeddings() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, LAYOUT.length, LLM.width, generator=generator, dtype=torch.float64)


@cache
def similarity() -> Tensor:
    return torch.rand(3, 64, generator=torch.Generator().manual_seed(2))


def plan(**changes: object) -> PruningPlan:
    changes = {"method": "specprune", "preset": "paper", "tau": 0.5, **changes}
    return PruningPlan.resolve(PruningConfig(**changes), cameras=3, patches=64, depth=32)


@torch.inference_mode()
def run(pruner: object | None, llama: LlamaModel | None = None) -> tuple[Tensor, Tensor]:
    llama = llama or model()
    dtype = next(llama.parameters()).dtype
    output = llama(embeddings().to(dtype), pruner=pruner)
    return output.hidden, output.positions


@cache
def first_state() -> PruningState:
    pruner = SpecPruner(plan(), LAYOUT, TEXT)
    run(pruner)
    return pruner.state


def pruned(*, state: PruningState | None = None, **changes: object) -> SpecPruner:
    mode = changes.pop("mode", MotionMode.COARSE)
    return SpecPruner(
        plan(**changes),
        LAYOUT,
        TEXT,
        state=state or first_state(),
        similarity=similarity(),
        mode=mode,
    )


def rival(method: str, **changes: object) -> RankPruner:
    generator = torch.Generator().manual_seed(3)
    return RankPruner(plan(method=method, **changes), LAYOUT, TEXT, generator=generator)


@dataclass
class NaivePass:
    """What a textbook pass gives: final hidden states, and per layer the attention over all
    present tokens with their positions.
    """

    hidden: Tensor
    attention: list[Tensor]  # (heads, S', S') per layer
    logits: list[Tensor]
    positions: list[Tensor]  # (S',) per layer

    def scores(self, layer: int) -> Tensor:
        """(heads, N·P) mean attention of each patch to the instruction; NaN where dropped."""
        positions = self.positions[layer - 1]
        columns = [i for i, p in enumerate(positions.tolist()) if TEXT.start <= p < TEXT.stop]
        full = torch.full((LLM.heads, LAYOUT.length), math.nan, dtype=torch.float64)
        full[:, positions] = self.attention[layer - 1][:, :, columns].mean(dim=-1)
        return full[:, LAYOUT.vision]

    def entropy(self, layer: int) -> float:
        positions = self.positions[layer - 1]
        rows = (positions >= TEXT.start) & (positions < TEXT.stop)
        columns = (positions >= LAYOUT.vision.start) & (positions < LAYOUT.vision.stop)
        share = self.logits[layer - 1][:, rows][:, :, columns].softmax(dim=-1)
        return float(-(share * share.log()).sum(dim=-1).mean())


@torch.inference_mode()
def naive_pass(kept_after: dict[int, list[int]]) -> NaivePass:
    """Runs the layers with explicit rotation, softmax maps and index sets handed in.

    Args:
        kept_after: Layer → patch indices that stay after it.
    """

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + LLM.rms_eps).sqrt() * weight

    half = LLM.head_dim // 2
    speeds = torch.tensor([LLM.rope_theta ** (-i / half) for i in range(half)]).double()
    x, positions = embeddings()[0], torch.arange(LAYOUT.length)
    result = NaivePass(x, [], [], [])
    for count, layer in enumerate(model().layers, start=1):
        turn = torch.polar(torch.ones(1).double(), positions[:, None].double() * speeds)

        def rotate(part: Tensor, turn: Tensor = turn) -> Tensor:
            spun = torch.complex(part[..., :half], part[..., half:]) * turn
            return torch.cat([spun.real, spun.imag], dim=-1)

        attention, y = layer.self_attn, norm(x, layer.input_layernorm.weight)
        heads = []
        for head in range(LLM.heads):
            shared = head * LLM.kv_heads // LLM.heads
            q_rows = slice(head * LLM.head_dim, (head + 1) * LLM.head_dim)
            k_rows = slice(shared * LLM.head_dim, (shared + 1) * LLM.head_dim)
            q = rotate(y @ attention.q_proj.weight[q_rows].T)
            k = rotate(y @ attention.k_proj.weight[k_rows].T)
            v = y @ attention.v_proj.weight[k_rows].T
            logits = q @ k.T / math.sqrt(LLM.head_dim)
            heads.append((logits, logits.softmax(dim=-1), v))
        result.logits.append(torch.stack([logits for logits, _, _ in heads]))
        result.attention.append(torch.stack([share for _, share, _ in heads]))
        result.positions.append(positions)
        mixed = torch.cat([share @ v for _, share, v in heads], dim=-1)
        x = x + mixed @ attention.o_proj.weight.T
        y = norm(x, layer.post_attention_layernorm.weight)
        gate, up = y @ layer.mlp.gate_proj.weight.T, y @ layer.mlp.up_proj.weight.T
        x = x + (gate / (1 + (-gate).exp()) * up) @ layer.mlp.down_proj.weight.T
        if count in kept_after:
            stays = {*NONVISUAL, *(LAYOUT.vision.start + p for p in kept_after[count])}
            rows = [i for i, p in enumerate(positions.tolist()) if p in stays]
            x, positions = x[rows], positions[rows]
    result.hidden = norm(x, model().norm.weight)
    return result


def index_sets(pruner: StagedPruner) -> dict[int, list[int]]:
    return {stage.layer: stage.patches.tolist() for stage in pruner.stages}


def best(scores: Tensor, count: int) -> set[int]:
    """Per view of 64 the `count` highest, as patch indices; NaN never."""
    found: set[int] = set()
    for view, row in enumerate(scores.reshape(3, 64).tolist()):
        finite = [i for i, value in enumerate(row) if not math.isnan(value)]
        found |= {view * 64 + i for i in sorted(finite, key=lambda i: -row[i])[:count]}
    return found


def test_a_first_inference_only_looks_bit_for_bit() -> None:
    hidden, positions = run(SpecPruner(plan(), LAYOUT, TEXT))
    dense, everything = run(None)
    assert torch.equal(hidden, dense)
    assert torch.equal(positions, everything)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_budgets_of_all_patches_equal_a_dense_pass_bit_for_bit(dtype: torch.dtype) -> None:
    llama = LlamaModel(LLM).to(dtype)
    llama.load_state_dict(model().state_dict())
    everything = {"budget_coarse": 192, "preset": "static_shape", "gamma": 1.0}
    for pruner in (pruned(**everything), rival("random", **everything)):
        hidden, positions = run(pruner, llama)
        assert torch.equal(hidden, run(None, llama)[0])
        assert [len(stage.patches) for stage in pruner.stages] == [192]
        assert positions.tolist() == list(range(LAYOUT.length))


@pytest.mark.parametrize("preset", ["paper", "static_shape"])
@pytest.mark.parametrize("mode", list(MotionMode))
def test_a_pruned_pass_equals_a_naive_one_with_the_same_index_sets(
    preset: str, mode: MotionMode
) -> None:
    pruner = pruned(preset=preset, mode=mode)
    hidden, positions = run(pruner)
    naive = naive_pass(index_sets(pruner))
    torch.testing.assert_close(hidden[0], naive.hidden, rtol=0, atol=ROUNDING)
    assert positions.tolist() == naive.positions[-1].tolist()


def test_a_first_inference_supplies_the_entropies_and_the_best_of_layers_15_and_32() -> None:
    naive, state = naive_pass({}), first_state()
    expected = [naive.entropy(layer) for layer in range(1, 33)]
    np.testing.assert_allclose(state.entropies.numpy(), expected, atol=ROUNDING)
    average = (naive.scores(15) + naive.scores(32)).mean(dim=0)
    got = set(state.global_patches.flatten().nonzero().flatten().tolist())
    assert got == best(average, 6)


def test_a_pruned_inference_hands_on_the_best_of_what_was_left() -> None:
    pruner = pruned()
    run(pruner)
    naive = naive_pass(index_sets(pruner))
    average = (naive.scores(15) + naive.scores(32)).mean(dim=0)
    got = set(pruner.state.global_patches.flatten().nonzero().flatten().tolist())
    assert got == best(average, 6)
    assert got <= set(pruner.stages[-1].patches.tolist())
    assert torch.equal(pruner.state.entropies, first_state().entropies)


@pytest.mark.parametrize("mode", list(MotionMode))
def test_the_static_set_is_the_union_that_the_paper_asks_for(mode: MotionMode) -> None:
    pruner = pruned(mode=mode)
    run(pruner)
    naive = naive_pass({})
    local_count, dynamic_count = {MotionMode.COARSE: (5, 4), MotionMode.FINE: (8, 2)}[mode]
    local = [best(naive.scores(layer).mean(dim=0), local_count) for layer in (1, 2)]
    changed = torch.where(similarity() < 0.5, -similarity().double(), math.nan)
    sets = {
        KeptBy.GLOBAL: set(first_state().global_patches.flatten().nonzero().flatten().tolist()),
        KeptBy.LOCAL: local[0] | local[1],
        KeptBy.DYNAMIC: best(changed, dynamic_count),
    }
    assert pruner.reasons is not None
    reasons = pruner.reasons.flatten()
    for flag, expected in sets.items():
        assert set((reasons & flag).nonzero().flatten().tolist()) == expected
    assert pruner.stages[0].patches.tolist() == sorted(set.union(*sets.values()))


@pytest.mark.parametrize("layer_weights", ["entropy", "uniform"])
def test_each_dynamic_stage_drops_the_least_of_the_moving_average(layer_weights: str) -> None:
    # Entropies as far apart as a random network never has them, so that they matter; in no order,
    # since those of the neighbouring layer would differ by one factor otherwise.
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    entropies = torch.logspace(-2, 0.6, 32, dtype=torch.float64)[order]
    state = replace(first_state(), entropies=entropies)
    pruner = pruned(state=state, layer_weights=layer_weights)
    run(pruner)
    sets = index_sets(pruner)
    naive = naive_pass(sets)
    importance = {patch: 0.0 for patch in sets[2]}
    for layer in range(3, 26):
        if layer in sets:
            count = math.floor(0.9 * len(importance) + 1e-9)
            keep = sorted(importance, key=lambda patch: -importance[patch])[:count]
            assert sorted(keep) == sets[layer]
            importance = {patch: importance[patch] for patch in sorted(keep)}
            continue
        present = list(importance)
        weights = np.zeros(len(present))
        table = np.array([1 / (1 + math.exp(0.2 * rank)) for rank in range(len(present))])
        for head in naive.scores(layer)[:, present].tolist():
            for rank, place in enumerate(sorted(range(len(present)), key=lambda i: -head[i])):
                weights[place] += table[rank] / table.sum() / LLM.heads
        confidence = 1 / (float(entropies[layer - 1]) + 1e-6)
        if layer_weights == "uniform":
            confidence = 1.0
        for place, patch in enumerate(present):
            importance[patch] = 0.8 * importance[patch] + 0.2 * weights[place] * confidence


@pytest.mark.parametrize("preset", ["paper", "static_shape"])
def test_stages_shrink_sorted_unique_and_lose_only_visual_tokens(preset: str) -> None:
    pruner = pruned(preset=preset)
    _, positions = run(pruner)
    assert [stage.layer for stage in pruner.stages] == list(STAGES)
    before = list(range(192))
    for stage in pruner.stages:
        patches = stage.patches.tolist()
        assert patches == sorted(set(patches))
        assert set(patches) <= set(before)
        before = patches
    expected = sorted([*NONVISUAL, *(LAYOUT.vision.start + patch for patch in before)])
    assert positions.tolist() == expected


def test_a_fixed_budget_keeps_a_superset_of_the_papers_set() -> None:
    paper, fixed = pruned(), pruned(preset="static_shape")
    run(paper)
    run(fixed)
    assert len(fixed.stages[0].patches) == fixed.plan.budgets[MotionMode.COARSE] == 3 * 20
    assert set(paper.stages[0].patches.tolist()) <= set(fixed.stages[0].patches.tolist())


@pytest.mark.parametrize("changes", [{}, {"preset": "static_shape", "budget_coarse": 77}])
def test_tokens_per_layer_and_flops_equal_the_closed_form(changes: dict[str, object]) -> None:
    pruner = pruned(**changes)
    lengths: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
        for layer in model().layers
    ]
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)
        )
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        run(pruner)
    for hook in hooks:
        hook.remove()
    kept = len(pruner.stages[0].patches)
    assert lengths == [len(NONVISUAL) + n for n in pruner.plan.visual_counts(kept)]
    expected = llm_flops(LLM, lengths) + scoring_flops(
        LLM, pruner.plan.scored_counts(kept), TEXT.stop - TEXT.start
    )
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_a_diffusion_pass_after_another_starts_afresh() -> None:
    pruner = pruned()
    first, _ = run(pruner)
    sets, state = index_sets(pruner), pruner.state
    second, _ = run(pruner)
    assert torch.equal(first, second)
    assert index_sets(pruner) == sets
    assert torch.equal(pruner.state.global_patches, state.global_patches)


def test_a_replayed_record_gives_the_same_pass_bit_for_bit() -> None:
    pruner = pruned()
    hidden, positions = run(pruner)
    retained = pruner.retained(CAMERAS, dict.fromkeys(CAMERAS, 5), (8, 8))
    replayed, there = run(ReplayPruner(LAYOUT, retained, CAMERAS))
    assert torch.equal(hidden, replayed)
    assert torch.equal(positions, there)


def test_the_record_names_camera_stage_and_reason_of_every_patch() -> None:
    pruner = pruned(preset="static_shape")
    run(pruner)
    stamps = {camera: index for index, camera in enumerate(CAMERAS)}
    retained = pruner.retained(CAMERAS, stamps, (8, 8))
    assert [(r.layer, r.camera) for r in retained] == [(s, c) for s in STAGES for c in CAMERAS]
    assert pruner.reasons is not None
    for record in retained:
        view = CAMERAS.index(record.camera)
        assert record.stamp_ns == view
        assert np.all(record.kept_by > 0)
        expected = pruner.reasons[view].numpy()[record.patch_indices]
        assert record.kept_by.tolist() == expected.tolist()
        patches = sum(int(r.patch_indices.size) for r in retained if r.layer == record.layer)
        assert patches == len(pruner.stages[STAGES.index(record.layer)].patches)


def test_a_dense_pass_is_recorded_as_dense() -> None:
    pruner = SpecPruner(plan(), LAYOUT, TEXT)
    run(pruner)
    retained = pruner.retained(CAMERAS, dict.fromkeys(CAMERAS, 0), (8, 8))
    assert [record.layer for record in retained] == [0, 0, 0]
    assert all(np.all(record.kept_by == KeptBy.DENSE) for record in retained)
    assert all(record.retain_ratio == 1.0 for record in retained)


@pytest.mark.parametrize("method", ["random", "fastv", "divprune"])
def test_rivals_keep_as_many_tokens_as_the_fixed_budget(method: str) -> None:
    pruner, ours = rival(method), pruned(preset="static_shape")
    hidden, _ = run(pruner)
    run(ours)
    assert [len(s.patches) for s in pruner.stages] == [len(s.patches) for s in ours.stages]
    naive = naive_pass(index_sets(pruner))
    torch.testing.assert_close(hidden[0], naive.hidden, rtol=0, atol=ROUNDING)
    retained = pruner.retained(CAMERAS, dict.fromkeys(CAMERAS, 0), (8, 8))
    reason = KeptBy.LOCAL if method == "fastv" else KeptBy.FILL
    assert all(np.all(record.kept_by == reason) for record in retained)


def test_fastv_keeps_what_receives_most_attention_in_layer_2() -> None:
    pruner = rival("fastv")
    run(pruner)
    received = naive_pass({}).attention[1].mean(dim=(0, 1))[LAYOUT.vision]
    order = received.argsort(descending=True).tolist()
    for stage in pruner.stages:
        assert stage.patches.tolist() == sorted(order[: len(stage.patches)])


def test_divprune_keeps_what_it_picked_first_to_the_end() -> None:
    pruner = rival("divprune")
    features: list[Tensor] = []
    hook = (
        model()
        .layers[1]
        .register_forward_hook(
            lambda _, __, output: features.append(output.hidden[0, LAYOUT.vision])
        )
    )
    run(pruner)
    hook.remove()
    order = diversity_order(features[0], 60).tolist()
    for stage in pruner.stages:
        assert stage.patches.tolist() == sorted(order[: len(stage.patches)])


def test_random_choices_repeat_with_the_seed_and_differ_between_inferences() -> None:
    first, again = rival("random"), rival("random")
    run(first)
    run(again)
    assert index_sets(first) == index_sets(again)
    run(again)
    assert index_sets(first) != index_sets(again)


def test_state_is_refused_before_a_pass_has_run() -> None:
    with pytest.raises(RuntimeError, match="run the model"):
        _ = SpecPruner(plan(), LAYOUT, TEXT).state


def test_layouts_and_spans_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 views of 64"):
        SpecPruner(plan(), replace(LAYOUT, cameras=2), TEXT)
    with pytest.raises(ValueError, match="within the prompt"):
        SpecPruner(plan(), LAYOUT, slice(0, 3))
    with pytest.raises(ValueError, match="within the prompt"):
        SpecPruner(plan(), LAYOUT, slice(LAYOUT.prompt.start, LAYOUT.prompt.start))
