from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vla_oft_ros.model.attention import mix
from vla_oft_ros.model.llm import (
    KeyValueCache,
    LayerOutput,
    Llama,
    LlamaConfig,
    LlamaModel,
    Rotary,
    causal_mask,
)

CONFIG = LlamaConfig(
    vocab=11,
    width=16,
    layers=3,
    heads=4,
    kv_heads=4,
    mlp_hidden=24,
    rms_eps=1e-6,
    rope_theta=1e4,
)
TOKENS = 7


def make_model(config: LlamaConfig = CONFIG) -> LlamaModel:
    torch.manual_seed(0)
    return Llama(config).model.double().eval()


def embeddings(rows: int = 1) -> Tensor:
    return torch.randn(
        rows, TOKENS, CONFIG.width, generator=torch.Generator().manual_seed(1)
    ).double()


class Keep:
    """A pruner that keeps given positions after given layers, and records what it was shown."""

    def __init__(self, kept: dict[int, list[int]]) -> None:
        self.kept = kept
        self.seen: list[tuple[int, list[int]]] = []

    def scores_layer(self, layer: int) -> bool:
        return False

    def after_layer(self, layer: int, positions: Tensor, output: LayerOutput) -> Tensor | None:
        assert output.queries.shape[2] == output.keys.shape[2] == len(positions)
        self.seen.append((layer, positions.tolist()))
        if layer not in self.kept:
            return None
        wanted = torch.tensor(self.kept[layer])
        return torch.isin(positions, wanted).nonzero()[:, 0]


@torch.inference_mode()
def test_every_token_sees_every_other() -> None:
    model, x = make_model(), embeddings()
    before = model(x).hidden
    changed = x.clone()
    changed[:, -1] += 1.0
    assert ((model(changed).hidden - before).abs().amax(-1) > 1e-6).all()


@torch.inference_mode()
def test_causal_steps_with_cache_equal_one_causal_pass() -> None:
    model, x = make_model(), embeddings()
    whole = model(x, mask=causal_mask(TOKENS, TOKENS, x.device)).hidden
    cache = KeyValueCache(CONFIG.layers)
    first = model(x[:, :4], mask=causal_mask(4, 4, x.device), cache=cache).hidden
    rest = [model(x[:, i : i + 1], cache=cache).hidden for i in range(4, TOKENS)]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole)
    assert cache.length == TOKENS


@torch.inference_mode()
def test_causal_mask_for_new_tokens_is_the_end_of_the_whole_mask() -> None:
    whole = causal_mask(TOKENS, TOKENS, torch.device("cpu"))
    assert torch.equal(causal_mask(2, TOKENS, torch.device("cpu")), whole[-2:])


@torch.inference_mode()
def test_padding_that_is_masked_changes_nothing() -> None:
    model, x = make_model(), embeddings()
    padded = torch.cat([x, torch.ones(1, 2, CONFIG.width).double()], dim=1)
    mask = (torch.arange(TOKENS + 2) < TOKENS)[None, None, None]
    torch.testing.assert_close(model(padded, mask=mask).hidden[:, :TOKENS], model(x).hidden)


@torch.inference_mode()
def test_pruner_that_keeps_all_equals_none_bit_for_bit() -> None:
    model, x = make_model(), embeddings()
    everything = list(range(TOKENS))
    pruner = Keep({1: everything, 2: everything})
    output = model(x, pruner=pruner)
    assert torch.equal(output.hidden, model(x).hidden)
    assert [layer for layer, _ in pruner.seen] == [1, 2, 3]


@torch.inference_mode()
def test_tokens_that_stay_keep_their_original_positions() -> None:
    """The pruned pass equals one that runs the layers by hand on the rows that are left."""
    model, x = make_model(), embeddings()
    kept = {1: [0, 2, 3, 6], 2: [0, 3, 6]}
    output = model(x, pruner=Keep(kept))
    positions = torch.arange(TOKENS)
    hidden = x
    for count, layer in enumerate(model.layers, start=1):
        rotary = Rotary.at(positions, CONFIG.head_dim, CONFIG.rope_theta, x.dtype)
        hidden = layer(hidden, rotary).hidden
        if count in kept:
            rows = torch.isin(positions, torch.tensor(kept[count]))
            hidden, positions = hidden[:, rows], positions[rows]
    assert output.positions.tolist() == [0, 3, 6]
    torch.testing.assert_close(output.hidden, model.norm(hidden))


def test_pruner_and_mask_together_are_refused() -> None:
    mask = torch.ones(1, 1, 1, TOKENS, dtype=torch.bool)
    with pytest.raises(ValueError, match="only for unpadded input"):
        make_model()(embeddings(), mask=mask, pruner=Keep({}))


@torch.inference_mode()
def test_shared_key_heads_equal_repeated_ones() -> None:
    shared = make_model(replace(CONFIG, kv_heads=2))
    full = make_model()
    state = shared.state_dict()
    for name in state:
        if "k_proj" in name or "v_proj" in name:
            heads = state[name].unflatten(0, (2, CONFIG.head_dim))
            state[name] = heads.repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    x = embeddings()
    torch.testing.assert_close(shared(x).hidden, full(x).hidden)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    rotary = Rotary.at(torch.arange(9), 8, 1e4, torch.float64)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(2)).double()
    rotated_q, rotated_k = (rotary.rotate(x.expand(1, 1, 9, 8)) for x in (q, k))
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm(dim=-1).expand(1, 1, 9))
    scores = rotated_q @ rotated_k.transpose(-1, -2)
    for offset in range(-3, 4):
        diagonal = scores[0, 0].diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-6, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_training_is_attention(masked: bool) -> None:
    """Under bf16 autocast on a CPU another formula serves; values and gradients stay the same."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(2, 1, 37, 37, generator=generator) < 0.7 if masked else None
    if mask is not None:
        mask[..., 0] = True
    values, gradients = [], []
    for autocast in (False, True):
        inputs = [
            torch.randn(2, 3, 37, 16, generator=generator.manual_seed(seed), requires_grad=True)
            for seed in range(3)
        ]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            mixed = mix(*inputs, mask)
        mixed.float().square().sum().backward()
        values.append(mixed.float().detach())
        gradients.append([entry.grad for entry in inputs])
    assert torch.linalg.norm(values[1] - values[0]) < 0.01 * torch.linalg.norm(values[0])
    for exact, rounded in zip(*gradients, strict=True):
        assert torch.linalg.norm(rounded - exact) < 0.02 * torch.linalg.norm(exact)
