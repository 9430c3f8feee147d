"""FiLM: the instruction scales and shifts the residual stream of every vision block (OpenVLA-OFT+,
§IV-D).

γ = scale(avg), β = shift(avg), x ← x·(1 + γ) + β, with avg the mean language embedding. Between
attention and MLP of each block, on every token of it, class and register tokens too. Source:
openvla-oft `film_vit_wrapper.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Modulation(NamedTuple):
    """γ and β of one block, each (B, 1, width); the same for every call with an instruction."""

    scale: Tensor
    shift: Tensor


class Film(nn.Module):
    """Predicts one block's modulation from the mean language embedding."""

    def __init__(self, llm_width: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Linear(llm_width, width)
        self.shift = nn.Linear(llm_width, width)

    def forward(self, language: Tensor) -> Modulation:
        """Maps the mean language embedding (B, D) to γ and β, each (B, 1, width)."""
        return Modulation(self.scale(language)[:, None], self.shift(language)[:, None])


def modulate(x: Tensor, modulation: Modulation) -> Tensor:
    """Applies x·(1 + γ) + β to (B, tokens, width).

    1 + γ rather than γ keeps features alive where the projection is near zero (openvla-oft, NOTE
    #2).
    """
    return x * (1 + modulation.scale) + modulation.shift


def mean_language_embedding(embeddings: Tensor, is_action: Tensor) -> Tensor:
    """Averages the input embeddings of everything that is no action slot.

    Args:
        embeddings: (B, ids, D) rows of the LLM's embedding table.
        is_action: (B, ids) bool, True at action slots.

    Returns:
        (B, D).

    Note:
        The paper says "of the task description". The code averages BOS, the whole prompt template,
        the closing empty token, the stop token and, in padded training batches, PAD too; we follow
        the code, pinned by test_reference_parity.
    """
    kept = (~is_action).to(embeddings.dtype)[..., None]  # (B, ids, 1)
    return torch.sum(embeddings * kept, dim=1) / torch.sum(kept, dim=1)
