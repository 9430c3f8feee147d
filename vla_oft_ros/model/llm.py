"""Llama decoder: a loop over layers that one can hold in one's head.

Attention is bidirectional over the whole sequence, as OFT needs for parallel decoding; causal with
a key-value cache serves the autoregressive OpenVLA baseline. Between layers a `TokenPruner` may
drop tokens: those that stay keep their original positions. Parameter names are those of Hugging
Face Llama checkpoints. Source: transformers `modeling_llama.py` (4.40) with OFT's change: no
causal mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vla_oft_ros.model.attention import attend, mix


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of the language model.

    Attributes:
        vocab: Rows of the embedding table.
        width: D.
        layers: Decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads; fewer than `heads` means that query heads share them.
        mlp_hidden: Hidden width of each gated MLP.
        rms_eps: Epsilon of RMSNorm.
        rope_theta: Base of the rotary embedding.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_hidden: int
    rms_eps: float
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


class Rotary(NamedTuple):
    """Cosine and sine per position and channel, each (S, head dim), in the dtype of the
    activations.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
        """Computes the tables for integer positions (S,) in float32, then casts."""
        exponent = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
        angles = positions.float()[:, None] * (1.0 / theta**exponent)  # (S, head dim / 2)
        angles = torch.cat([angles, angles], dim=-1)  # (S, head dim)
        return cls(angles.cos().to(dtype), angles.sin().to(dtype))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotates (B, heads, S, head dim) pairs of channels half a head apart."""
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], dim=-1) * self.sin

    def select(self, kept: Tensor) -> Rotary:
        """Rows of the tokens that stay, (kept,) int64 indices into the current sequence."""
        return Rotary(self.cos[kept], self.sin[kept])

    def rows(self, first: int, end: int | None) -> Rotary:
        """Rows from `first` up to, without, `end`; None is all that follow."""
        return Rotary(self.cos[first:end], self.sin[first:end])


class KeyValueCache:
    """Keys and values of all tokens so far, per layer; grows with every causal step."""

    def __init__(self, layers: int) -> None:
        self._entries: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (B, kv heads, new, head dim) and returns all keys and values of the layer."""
        entry = self._entries[layer]
        if entry is not None:
            keys = torch.cat([entry[0], keys], dim=2)
            values = torch.cat([entry[1], values], dim=2)
        self._entries[layer] = (keys, values)
        self.length = keys.shape[2]
        return keys, values


class LayerOutput(NamedTuple):
    """What one layer hands on.

    Attributes:
        hidden: (B, S, D) residual stream.
        queries: (B, heads, S, head dim), rotated; for attention scores of a pruner.
        keys: (B, kv heads, S, head dim), rotated.
        logsumexp: (B, heads, S) normaliser of each query's attention over all keys; None unless
            the pruner asked for it and the attention kernel gives it.
    """

    hidden: Tensor
    queries: Tensor
    keys: Tensor
    logsumexp: Tensor | None


class TokenPruner(Protocol):
    """Decides between layers which tokens stay."""

    def scores_layer(self, layer: int) -> bool:
        """Whether the layer, counted from 1, should hand on the normaliser of its attention."""
        ...

    def after_layer(self, layer: int, positions: Tensor, output: LayerOutput) -> Tensor | None:
        """Called after every layer; what it drops after the last one no longer matters.

        Args:
            layer: Layers run so far, 1 after the first.
            positions: (S',) int64, original positions of the tokens still present, ascending.
            output: What the layer computed, S' tokens.

        Returns:
            (kept,) int64 ascending indices into the S' present tokens, or None to keep all.
        """
        ...


class LlamaOutput(NamedTuple):
    """Result of the decoder.

    Attributes:
        hidden: (B, S', D) after the final norm.
        positions: (S',) int64 original positions of the tokens still present.
    """

    hidden: Tensor
    positions: Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of (…, D), computed in float32, or float64 for such input."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, D) to the same shape."""
        return rms_norm(x, self.weight, self.eps)


class SelfAttention(nn.Module):
    """Rotary attention without biases."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.heads // config.kv_heads
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def project(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both rotated) and values, each (B, heads, S, head dim)."""
        q, k, v = (
            rearrange(projection(x), "b s (h d) -> b h s d", d=self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotary.rotate(q), rotary.rotate(k), v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, normalizer: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Mixes values and projects back to (B, S, D); `mask` is True where a query may look.

        Also gives `LayerOutput.logsumexp`, if `normalizer` asks for it.
        """
        if self.groups > 1:
            k, v = (part.repeat_interleave(self.groups, dim=1) for part in (k, v))
        logsumexp: Tensor | None = None
        if normalizer:
            mixed, logsumexp = attend(q, k, v)
        else:
            mixed = mix(q, k, v, mask)
        out: Tensor = self.o_proj(rearrange(mixed, "b h s d -> b s (h d)"))
        return out, logsumexp


class GatedMlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_hidden, bias=False)
        self.down_proj = nn.Linear(config.mlp_hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, S, D) to the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind an RMSNorm."""

    def __init__(self, config: LlamaConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.self_attn = SelfAttention(config)
        self.mlp = GatedMlp(config)
        self.input_layernorm = RMSNorm(config.width, config.rms_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.rms_eps)

    def forward(
        self,
        hidden: Tensor,
        rotary: Rotary,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        normalizer: bool = False,
    ) -> LayerOutput:
        """Runs the layer on (B, S, D); see `LlamaModel.forward` for the arguments."""
        q, k, v = self.self_attn.project(self.input_layernorm(hidden), rotary)
        keys, values = (k, v) if cache is None else cache.extend(self.index, k, v)
        mixed, logsumexp = self.self_attn.attend(q, keys, values, mask, normalizer)
        hidden = hidden + mixed
        hidden = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return LayerOutput(hidden, q, k, logsumexp)


class LlamaModel(nn.Module):
    """Embedding table, decoder layers, final norm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.width, config.rms_eps)

    def forward(
        self,
        embeddings: Tensor,
        *,
        mask: Tensor | None = None,
        pruner: TokenPruner | None = None,
        cache: KeyValueCache | None = None,
    ) -> LlamaOutput:
        """Runs all layers.

        Args:
            embeddings: (B, S, D).
            mask: Bool, broadcastable to (B, heads, S, keys), True where a query may look at a key;
                None lets every token see every token. Not together with `pruner`.
            pruner: Drops tokens between layers.
            cache: Keys and values of earlier tokens; the new ones take the positions after them.

        Raises:
            ValueError: if a mask comes with a pruner.
        """
        if mask is not None and pruner is not None:
            raise ValueError(
                "LlamaModel: expected a pruner only for unpadded input, got a mask too"
            )
        start = cache.length if cache is not None else 0
        positions = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)
        rotary = Rotary.at(
            positions, self.config.head_dim, self.config.rope_theta, embeddings.dtype
        )
        hidden = embeddings
        for count, layer in enumerate(self.layers, start=1):
            scored = pruner is not None and pruner.scores_layer(count)
            output: LayerOutput = layer(hidden, rotary, mask, cache, scored)
            hidden = output.hidden
            if pruner is None:
                continue
            kept = pruner.after_layer(count, positions, output)
            if kept is not None:
                hidden, positions, rotary = hidden[:, kept], positions[kept], rotary.select(kept)
        return LlamaOutput(self.norm(hidden), positions)


class Llama(nn.Module):
    """The language model with its output layer, which only discrete and autoregressive decoding
    use.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys) bool: each of the last `queries` tokens sees itself and what came before."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
