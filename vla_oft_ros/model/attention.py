"""Bidirectional attention that also hands out the softmax normaliser of every query.

The fused kernels compute it anyway; with it the exact attention of a few queries to a few keys
costs one small product, and no attention matrix is ever made. Sources: the schemas of PyTorch's
`_scaled_dot_product_flash_attention` operators.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_CHANNELS = 8
"""FlashAttention on a GPU wants the head dimension to be a multiple of this."""


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Every token attends to every token.

    Args:
        queries: (B, heads, S, d).
        keys: (B, heads, S, d).
        values: (B, heads, S, d).

    Returns:
        (B, heads, S, d) mixed values, the same as scaled_dot_product_attention gives, and
        (B, heads, S) float32 or wider log Σ_j exp(q·k_j / √d); None where no kernel gives it.
    """
    if queries.device.type == "cpu" and not torch.is_grad_enabled():
        mixed, normalizer = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values
        )
        return mixed, normalizer
    if (
        queries.device.type == "cuda"
        and queries.dtype in _FLASH_DTYPES
        and queries.shape[-1] % _FLASH_CHANNELS == 0
    ):
        mixed, normalizer = torch.ops.aten._scaled_dot_product_flash_attention(
            queries, keys, values
        )[:2]
        return mixed, normalizer
    return F.scaled_dot_product_attention(queries, keys, values), None


def mix(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention by the fastest way there is.

    While gradients are kept in bfloat16 on a CPU, that is the plain formula: its products run on
    the matrix units, the backward pass of PyTorch's fused kernel does not (docs/performance.md).

    Args:
        queries: (B, heads, S, d).
        keys: (B, heads, S', d).
        values: (B, heads, S', d).
        mask: Broadcastable to (B, heads, S, S'), True where a query may look; None is everywhere.

    Returns:
        (B, heads, S, d) mixed values.
    """
    if queries.device.type == "cpu" and torch.is_grad_enabled() and _computed_in_bf16(queries):
        logits = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(
            -2, -1
        )  # (B, heads, S, S')
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        mixed: Tensor = logits.softmax(dim=-1).to(values.dtype) @ values
        return mixed
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def _computed_in_bf16(x: Tensor) -> bool:
    """Whether products on the CPU run in bfloat16, by the tensor's dtype or by autocast."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") is torch.bfloat16
    return x.dtype is torch.bfloat16
