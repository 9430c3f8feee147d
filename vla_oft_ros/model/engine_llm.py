"""The LLM as the engine runs it: the loop of `llm.LlamaModel` without the work that nobody needs.

What `llm` computes is the reference, what happens here equals it up to rounding. Blank action
slots enter as one row that stands for all; the last layer works for the rows that the head reads;
products that read the same input are one. Between two calls of the attention kernel lie two
regions, `project` and `finish`, which may be compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vla_oft_ros.model import pruning
from vla_oft_ros.model.attention import attend, mix
from vla_oft_ros.model.engine_weights import LayerWeights, layer_weights
from vla_oft_ros.model.engine_wide import narrow_rms_norm
from vla_oft_ros.model.fp8 import Weight, linear
from vla_oft_ros.model.llm import (
    LayerOutput,
    Llama,
    LlamaConfig,
    Rotary,
    TokenPruner,
    rms_norm,
)
from vla_oft_ros.model.pruner import SpecPruner
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.stage_times import StageTimes
from vla_oft_ros.model.tokens import TokenLayout


def repeat_blank(x: Tensor, count: int, dim: int) -> Tensor:
    """Writes the blank slot, the last row, `count` times before the stop token, the row before it.

    Args:
        x: (…, rows, …): everything up to the slots, stop, one blank slot.
        count: Slots.
        dim: Where the rows are.
    """
    rows = x.shape[dim]
    shape = list(x.shape)
    shape[dim] = count
    blank = x.narrow(dim, rows - 1, 1).expand(shape)
    return torch.cat([x.narrow(dim, 0, rows - 2), blank, x.narrow(dim, rows - 2, 1)], dim=dim)


def _products(x: Tensor, weights: tuple[Weight, ...]) -> Tensor:
    """One product or several, side by side: (B, S, inputs) → (B, S, all outputs)."""
    parts = [linear(x, weight) for weight in weights]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """The arithmetic of a layer between calls of the attention kernel.

    Attributes:
        project: See `project`.
        finish: See `finish`.
    """

    project: Callable[..., tuple[Tensor, Tensor, Tensor]]
    finish: Callable[..., Tensor]


def project(
    hidden: Tensor,
    weights: LayerWeights,
    rotary: Rotary,
    config: LlamaConfig,
    repeat: int = 0,
    wanted: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, query, key, value, rotary embedding.

    Args:
        hidden: (B, S, D) wide.
        weights: Of the layer.
        rotary: One row per token, blank slots repeated.
        config: Sizes.
        repeat: `repeat_blank` after the products; 0 does not.
        wanted: First row and row after the last whose queries are needed; None is all.

    Returns:
        Queries, keys (both rotated) and values, each (B, heads, S, head dim).
    """
    x = narrow_rms_norm(hidden, weights.input_norm, config.rms_eps)
    if wanted is not None:
        q = linear(x[:, wanted[0] : wanted[1]], weights.query)
        kv = _products(x, weights.key_value)
    else:
        qkv = _products(x, weights.qkv)
        if repeat:
            qkv = repeat_blank(qkv, repeat, dim=1)
        q, kv = qkv[..., : config.width], qkv[..., config.width :]
    k, v = kv.chunk(2, dim=-1)
    q, k, v = (rearrange(part, "b s (h d) -> b h s d", d=config.head_dim) for part in (q, k, v))
    query_rows = rotary if wanted is None else rotary.rows(*wanted)
    return query_rows.rotate(q), rotary.rotate(k), v


def finish(hidden: Tensor, mixed: Tensor, weights: LayerWeights, config: LlamaConfig) -> Tensor:
    """Output projection, residual, norm, MLP, residual.

    Args:
        hidden: (B, S, D) before the layer, wide.
        mixed: (B, heads, S, head dim) from attention.
        weights: Of the layer.
        config: Sizes.
    """
    hidden = hidden + linear(rearrange(mixed, "b h s d -> b s (h d)"), weights.out)
    x = narrow_rms_norm(hidden, weights.post_norm, config.rms_eps)
    gate, up = _products(x, weights.gate_up).chunk(2, dim=-1)  # each (B, S, hidden)
    gated = F.silu(gate.to(hidden.dtype)) * up
    return hidden + linear(gated.to(x.dtype), weights.down)


class Decoder:
    """All layers, from embeddings to what the action head reads.

    Args:
        llama: The model; its parameters become views of packed ones if `savings` say so.
        savings: What not to do.
        regions: How the arithmetic between attention calls runs.
        fp8: Linear layers in e4m3.
    """

    def __init__(
        self, llama: Llama, savings: Savings, regions: Regions, *, fp8: bool = False
    ) -> None:
        self.config = llama.model.config
        self.savings = savings
        self.weights = layer_weights(llama.model, fuse=savings.fuse_projections, fp8=fp8)
        self._norm = llama.model.norm.weight.detach()
        self._lm_head = llama.lm_head.weight.detach()
        self._regions = regions

    def rotary(self, length: int, device: torch.device, dtype: torch.dtype) -> Rotary:
        """Tables of a sequence; the same for every pass of this length."""
        positions = torch.arange(length, device=device)
        return Rotary.at(positions, self.config.head_dim, self.config.rope_theta, dtype)

    def __call__(
        self,
        prefix: Tensor,
        stop: Tensor,
        layout: TokenLayout,
        rotary: Rotary,
        *,
        pruner: TokenPruner | None = None,
        times: StageTimes | None = None,
    ) -> Tensor:
        """Runs all layers on a sequence whose action slots are blank.

        Args:
            prefix: (1, S - K·A - 1, D) embeddings of all before the slots, wide.
            stop: (1, 1, D) embedding of the stop token, wide.
            layout: Where everything is.
            rotary: From `rotary`.
            pruner: Drops visual tokens between layers.
            times: Marks the end of a group of layers wherever tokens are dropped.

        Returns:
            (1, K·A, D) what the head reads, after the final norm, wide.
        """
        config, savings = self.config, self.savings
        slots = layout.actions.stop - layout.actions.start
        tail = layout.length - layout.head.start
        # FastV looks at all rows of an early layer, DivPrune and random at none: only SpecPrune
        # is known to read nothing of the slots.
        alike = savings.dedup_actions and (pruner is None or isinstance(pruner, SpecPruner))
        blank = prefix.new_zeros(1, 1 if alike else slots, config.width)
        repeat = slots if alike else 0
        order = [prefix, stop, blank] if alike else [prefix, blank, stop]
        hidden = torch.cat(order, dim=1)  # (1, S, D), or without all slots but one
        positions = torch.arange(layout.length, device=prefix.device)
        begun = 1
        for layer, weights in enumerate(self.weights, start=1):
            scored = pruner is not None and pruner.scores_layer(layer)
            last = layer == config.layers
            if last and not savings.skip_lm_head:
                F.linear(hidden.to(self._lm_head.dtype), self._lm_head)
            if layer == 1 and repeat:
                output = self._alike(hidden, weights, rotary, repeat, scored)
            else:
                head = None
                if last and savings.trim_last_layer:
                    first = len(positions) - tail
                    head = (first, first + slots)
                output = self._layer(hidden, weights, rotary, repeat, head, pruner, scored)
                repeat = 0
            hidden = output.hidden
            if last and repeat:  # a model of one layer
                hidden, repeat = repeat_blank(hidden, repeat, dim=1), 0
            kept = None if pruner is None else pruner.after_layer(layer, positions, output)
            if kept is not None and not last:
                if repeat:
                    hidden, repeat = repeat_blank(hidden, repeat, dim=1), 0
                hidden, positions, rotary = hidden[:, kept], positions[kept], rotary.select(kept)
            if times is not None and (last or kept is not None):
                times.end(f"layers {begun}-{layer}")
                begun = layer + 1
        if hidden.shape[1] != slots:
            hidden = hidden[:, -tail : slots - tail]
        return rms_norm(hidden, self._norm, config.rms_eps)

    def _layer(
        self,
        hidden: Tensor,
        weights: LayerWeights,
        rotary: Rotary,
        repeat: int,
        head: tuple[int, int] | None,
        pruner: TokenPruner | None,
        scored: bool,
    ) -> LayerOutput:
        """One layer; with `head`, only these rows of its output, (first, after the last)."""
        config = self.config
        # A pruner reads queries outside the head's rows.
        wanted = head if pruner is None and not repeat else None
        q, k, v = self._regions.project(hidden, weights, rotary, config, repeat, wanted)
        if repeat:
            hidden = repeat_blank(hidden, repeat, dim=1)
        keys, values = self._shared(k), self._shared(v)
        logsumexp: Tensor | None = None
        rows = slice(*head) if head else slice(None)
        if scored and self.savings.flash_scores:
            mixed, logsumexp = attend(q, keys, values)
            mixed = mixed[:, :, rows]
        else:
            mixed = mix(q if wanted else q[:, :, rows], keys, values)
        # Contiguous: strides of a slice would be one more form to compile.
        hidden = self._regions.finish(hidden[:, rows].contiguous(), mixed, weights, config)
        return LayerOutput(hidden, q, k, logsumexp)

    def _alike(
        self, hidden: Tensor, weights: LayerWeights, rotary: Rotary, slots: int, scored: bool
    ) -> LayerOutput:
        """The first layer on everything but the slots, and one slot for all.

        A blank slot's query, key and value are zero, for the layers have no biases. As a key it
        takes exp(0) of every query's softmax and adds no value: n of them scale what the other
        keys give by Σ / (Σ + n) = sigmoid(log Σ - log n).
        """
        config = self.config
        before = hidden.shape[1] - 2
        # In the order of the rows: all before the slots, stop, a slot (a zero, however turned).
        parts = (rotary.rows(0, before), rotary.rows(-1, None), rotary.rows(before, before + 1))
        turns = Rotary(*(torch.cat(tables) for tables in zip(*parts, strict=True)))
        q, k, v = self._regions.project(hidden, weights, turns, config)
        keys, values = self._shared(k[:, :, :-1]), self._shared(v[:, :, :-1])
        mixed, logsumexp = attend(q, keys, values)
        if logsumexp is None:  # no kernel gives it on this device
            logsumexp = pruning.row_logsumexp(q[0], keys[0])[None]
        share = torch.sigmoid(logsumexp - math.log(slots))  # (1, heads, rows)
        mixed = (mixed * share[..., None]).to(mixed.dtype)
        out = self._regions.finish(hidden, mixed, weights, config)
        if not (scored and self.savings.flash_scores):
            return LayerOutput(out, q, repeat_blank(k, slots, dim=2), None)
        total = torch.logaddexp(logsumexp, torch.full_like(logsumexp, math.log(slots)))
        return LayerOutput(out, q, k, total)

    def _shared(self, x: Tensor) -> Tensor:
        """Repeats (B, kv heads, S, head dim) for the query heads that share them."""
        groups = self.config.heads // self.config.kv_heads
        return x if groups == 1 else x.repeat_interleave(groups, dim=1)
