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
