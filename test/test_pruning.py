"""Laws of SpecPrune's arithmetic, on arrays small enough to check by eye or by a full softmax."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_oft_ros.config import ConfigError, PruningConfig
from vla_oft_ros.model import pruning
from vla_oft_ros.model.attention import attend
from vla_oft_ros.model.llm import LlamaConfig
from vla_oft_ros.model.pruning_plan import PruningPlan, llm_flops
from vla_oft_ros.model.pruning_rivals import diversity_order, received_attention
from vla_oft_ros.types import KeptBy, MotionMode

COARSE, FINE = MotionMode.COARSE, MotionMode.FINE
HEADS, LENGTH, CHANNELS = 3, 90, 8
VISUAL, TEXT = slice(1, 71), slice(75, 81)
LLAMA_2_7B = LlamaConfig(
    vocab=32064,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    mlp_hidden=11008,
    rms_eps=1e-6,
    rope_theta=1e4,
)


def random_heads(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (HEADS, LENGTH, CHANNELS)
    return tuple(2 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))


def full_softmax(queries: Tensor, keys: Tensor) -> Tensor:
    return (queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])).softmax(dim=-1)


def paper_plan(**changes: object) -> PruningPlan:
    return PruningPlan.resolve(
        PruningConfig(method="specprune", **changes), cameras=3, patches=256, depth=32
    )


@pytest.mark.parametrize("normalizer", ["kernel", "fallback"])
def test_scores_beside_the_kernel_equal_those_of_a_full_softmax(normalizer: str) -> None:
    queries, keys, values = random_heads(0)
    if normalizer == "kernel":
        with torch.inference_mode():
            all_rows = attend(queries[None], keys[None], values[None])[1]
        assert all_rows is not None
        logsumexp = all_rows[0, :, VISUAL]
    else:
        logsumexp = pruning.row_logsumexp(queries[:, VISUAL], keys, block=7)
    got = pruning.text_attention(queries[:, VISUAL], keys[:, TEXT], logsumexp)
    expected = full_softmax(queries, keys)[:, VISUAL, TEXT].mean(dim=-1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_half_precision_scores_lose_no_more_than_their_inputs() -> None:
    queries, keys, _ = random_heads(1, torch.bfloat16)
    logsumexp = pruning.row_logsumexp(queries[:, VISUAL], keys)
    got = pruning.text_attention(queries[:, VISUAL], keys[:, TEXT], logsumexp)
    expected = full_softmax(queries.double(), keys.double())[:, VISUAL, TEXT].mean(dim=-1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=0)


def test_attention_with_normalizer_mixes_values_as_torch_does_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        queries, keys, values = (part[None].to(dtype) for part in random_heads(2))
        with torch.inference_mode():
            mixed, _ = attend(queries, keys, values)
        expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
        assert torch.equal(mixed, expected)


def test_uniform_attention_has_the_entropy_of_a_uniform_distribution() -> None:
    keys = random_heads(3)[1]
    queries = torch.zeros(HEADS, 5, CHANNELS, dtype=torch.float64)
    entropy = pruning.attention_entropy(queries, keys[:, VISUAL])
    assert float(entropy) == pytest.approx(math.log(VISUAL.stop - VISUAL.start))


def test_attention_to_one_patch_has_no_entropy_and_the_highest_confidence() -> None:
    queries = torch.zeros(HEADS, 5, CHANNELS, dtype=torch.float64)
    queries[..., 0] = 1e4
    keys = torch.zeros(HEADS, 9, CHANNELS, dtype=torch.float64)
    keys[:, 4, 0] = 1.0
    entropy = pruning.attention_entropy(queries, keys)
    assert float(entropy) == pytest.approx(0.0, abs=1e-12)
    assert float(pruning.entropy_confidence(entropy, 1e-6)) == pytest.approx(1e6)


def test_images_are_alike_themselves_and_unlike_where_pixels_changed() -> None:
    image = np.random.default_rng(0).integers(1, 256, (1, 28, 42, 3), dtype=np.uint8)
    changed = image.copy()
    changed[0, 14:, 14:28] = 0
    changed[0, 20, 20] = (255, 0, 0)
    same = pruning.patch_similarity(torch.from_numpy(image), torch.from_numpy(image), 14)
    moved = pruning.patch_similarity(torch.from_numpy(image), torch.from_numpy(changed), 14)
    assert same.shape == (1, 6)
    torch.testing.assert_close(same, torch.ones(1, 6))
    assert (moved < 0.9).tolist() == [[False, False, False, False, True, False]]


def test_similarity_is_the_cosine_of_the_raw_patches() -> None:
    generator = np.random.default_rng(1)
    now, past = generator.integers(0, 256, (2, 28, 28, 3), dtype=np.uint8)
    got = pruning.patch_similarity(torch.from_numpy(now)[None], torch.from_numpy(past)[None], 14)
    for index, (row, column) in enumerate([(0, 0), (0, 14), (14, 0), (14, 14)]):
        cell = np.s_[row : row + 14, column : column + 14]
        a, b = now[cell].astype(float).ravel(), past[cell].astype(float).ravel()
        assert float(got[0, index]) == pytest.approx(
            a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6
        )


def test_black_patches_are_alike_and_a_light_that_goes_on_is_a_change() -> None:
    black = torch.zeros(1, 14, 28, 3, dtype=torch.uint8)
    lit = black.clone()
    lit[:, :, 14:] = 200
    assert pruning.patch_similarity(lit, black, 14).tolist() == [[1.0, 0.0]]


@st.composite
def views(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Global set, local scores (with ties), similarity, local and dynamic count."""
    cameras, patches = draw(st.integers(1, 3)), draw(st.integers(4, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    global_patches = torch.rand(cameras, patches, generator=generator) < 0.3
    levels = draw(st.sampled_from([3, 1000]))
    scores = torch.randint(levels, (2, cameras, patches), generator=generator) / (levels + 1)
    similarity = torch.rand(cameras, patches, generator=generator)
    return global_patches, scores, similarity, draw(st.integers(0, 4)), draw(st.integers(0, 4))


@settings(max_examples=60, deadline=None)
@given(views())
def test_static_set_is_the_union_per_view_with_the_counts_asked_for(case) -> None:
    global_patches, scores, similarity, local_count, dynamic_count = case
    reasons = pruning.static_reasons(
        global_patches,
        scores,
        similarity,
        local_count=local_count,
        dynamic_count=dynamic_count,
        tau=0.5,
    )
    assert torch.equal(reasons & KeptBy.GLOBAL > 0, global_patches)
    for view in range(len(reasons)):
        local = np.flatnonzero((reasons[view] & KeptBy.LOCAL).numpy())
        assert local_count <= len(local) <= 2 * local_count
        for layer_scores in scores[:, view].numpy():
            bar = np.sort(layer_scores)[::-1][local_count - 1] if local_count else np.inf
            assert set(np.flatnonzero(layer_scores > bar)) <= set(local)
        dynamic = np.flatnonzero((reasons[view] & KeptBy.DYNAMIC).numpy())
        changed = np.flatnonzero(similarity[view].numpy() < 0.5)
        least = changed[np.argsort(similarity[view].numpy()[changed])][:dynamic_count]
        assert sorted(least) == list(dynamic)


@settings(max_examples=60, deadline=None)
@given(views(), st.floats(0.0, 1.0))
def test_a_fixed_budget_is_met_exactly_and_loses_nothing_required(case, share: float) -> None:
    global_patches, scores, similarity, local_count, dynamic_count = case
    required = pruning.static_reasons(
        global_patches,
        scores,
        similarity,
        local_count=local_count,
        dynamic_count=dynamic_count,
        tau=0.5,
    )
    fewest, most = int((required > 0).sum()), required.numel()
    budget = fewest + round(share * (most - fewest))
    filled = pruning.fill_to(required, scores, budget)
    assert int((filled > 0).sum()) == budget
    assert torch.equal(filled[required > 0], required[required > 0])
    added = (filled > 0) & (required == 0)
    assert torch.all(filled[added] == KeptBy.FILL)
    best_rank = pruning.ranks(scores).amin(dim=0)
    left_out = best_rank[filled == 0]
    if added.any() and left_out.numel():
        assert int(best_rank[added].max()) <= int(left_out.min())


def test_fill_prefers_the_better_score_among_equal_ranks() -> None:
    scores = torch.tensor([[[0.9, 0.1, 0.2], [0.3, 0.8, 0.2]]])  # one layer, two views
    filled = pruning.fill_to(torch.zeros(2, 3, dtype=torch.uint8), scores, 3)
    assert (filled > 0).tolist() == [[True, False, False], [True, True, False]]


def test_indices_are_those_marked_ascending_with_or_without_a_known_count() -> None:
    mask = torch.rand(50, generator=torch.Generator().manual_seed(4)) < 0.4
    expected = np.flatnonzero(mask.numpy()).tolist()
    assert pruning.indices_of(mask).tolist() == expected
    assert pruning.indices_of(mask, len(expected)).tolist() == expected


def test_pruned_patches_are_never_among_the_best() -> None:
    scores = torch.tensor([[0.1, -math.inf, 0.3, -math.inf]])
    assert pruning.top_mask(scores, 3).tolist() == [[True, False, True, False]]


def test_ranks_invert_sorting() -> None:
    scores = torch.rand(4, 20, generator=torch.Generator().manual_seed(5))
    ranks = pruning.ranks(scores)
    descending = torch.zeros_like(scores).scatter(-1, ranks, scores)
    assert torch.equal(descending, scores.sort(dim=-1, descending=True).values)


def test_rank_weights_are_the_normalised_sigmoid_of_each_heads_rank() -> None:
    text = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]], dtype=torch.float64)
    table = np.array([1 / (1 + math.exp(2.0 * rank)) for rank in range(3)])
    table /= table.sum()
    expected = [(table[2] + table[0]) / 2, (table[0] + table[1]) / 2, (table[1] + table[2]) / 2]
    got = pruning.rank_weights(text, pruning.rank_table(3, 2.0, text))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    assert float(got.sum()) == pytest.approx(1.0)


def test_importance_moves_by_beta_towards_the_newest_layer() -> None:
    old, weights = torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.75])
    got = pruning.moving_average(old, weights, torch.tensor(2.0), beta=0.2)
    torch.testing.assert_close(got, torch.tensor([0.8 + 0.1, 0.3]))


def test_dropping_keeps_the_most_important_in_their_order() -> None:
    importance = torch.tensor([0.3, 0.1, 0.9, 0.2, 0.8])
    assert pruning.keep_highest(importance, 3).tolist() == [0, 2, 4]


def test_received_attention_is_the_column_mean_of_a_full_softmax() -> None:
    queries, keys, _ = random_heads(6)
    logsumexp = pruning.row_logsumexp(queries, keys)
    got = received_attention(queries, keys[:, VISUAL], logsumexp)
    expected = full_softmax(queries, keys)[:, :, VISUAL].mean(dim=(0, 1))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_diversity_picks_one_of_each_kind_before_any_second() -> None:
    generator = torch.Generator().manual_seed(7)
    kinds = torch.eye(5).repeat(4, 1)[torch.randperm(20, generator=generator)]
    picked = diversity_order(kinds, 20)
    assert sorted(kinds[picked[:5]].argmax(dim=1).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(picked.tolist()) == list(range(20))


def test_diversity_starts_with_the_loneliest() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.3], [1.0, -0.1]])
    assert diversity_order(features, 2)[0] == 2


def test_sizes_of_256_patches_are_those_of_the_paper_at_alpha() -> None:
    plan = paper_plan()
    assert plan.global_count == 24
    assert (plan.local_counts[COARSE], plan.local_counts[FINE]) == (19, 32)
    assert (plan.dynamic_counts[COARSE], plan.dynamic_counts[FINE]) == (16, 8)
    assert (plan.budgets[COARSE], plan.budgets[FINE]) == (3 * 78, 3 * 96)


def test_tokens_per_layer_follow_the_schedule() -> None:
    counts = paper_plan().visual_counts(230)
    assert len(counts) == 32
    steps = [(2, 768), (8, 230), (5, 207), (5, 186), (5, 167), (7, 150)]
    assert counts == tuple(count for layers, count in steps for _ in range(layers))


def test_flops_of_a_7b_model_are_those_of_the_papers_schedule() -> None:
    dense = llm_flops(LLAMA_2_7B, [1153] * 32)
    pruned = llm_flops(LLAMA_2_7B, [385 + n for n in paper_plan().visual_counts(230)])
    assert dense == pytest.approx(15.63e12, rel=1e-3)
    assert pruned == pytest.approx(8.12e12, rel=2e-3)


def test_layers_scale_with_depth_and_stages_with_nothing_new_are_left_out() -> None:
    config = PruningConfig(method="specprune")
    plan = PruningPlan.resolve(config, cameras=3, patches=64, depth=8)
    assert plan.global_layers == (4, 8)
    assert plan.dynamic_layers == (4, 7)
    earlier = plan.static_layer
    for layer in plan.dynamic_layers:
        assert any(plan.is_weighed(between) for between in range(earlier + 1, layer))
        earlier = layer
    assert plan.budgets[COARSE] == 3 * (6 + 2 * 5 + 4)


@pytest.mark.parametrize(
    ("changes", "depth", "words"),
    [
        ({}, 2, "method to none"),
        ({"budget_coarse": 10}, 32, "from 234"),
        ({"budget_fine": 769}, 32, "to 768"),
    ],
)
def test_plans_that_do_not_fit_the_model_are_refused(changes, depth: int, words: str) -> None:
    config = PruningConfig(method="specprune", **changes)
    with pytest.raises(ConfigError, match=words):
        PruningPlan.resolve(config, cameras=3, patches=256, depth=depth)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local_layers": (1, 3)}, "static_layer 2"),
        ({"global_layers": ()}, "at least one"),
        ({"dynamic_layers": (10, 10)}, "ascending"),
        ({"dynamic_layers": (2, 10)}, "ascending"),
        ({"method": "magic"}, "fastv"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PruningConfig(**changes)
