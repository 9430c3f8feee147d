"""Small MLPs that carry patches, proprio and noisy actions into the LLM's embedding space.

Source: openvla-oft `modeling_prismatic.py` (PrismaticProjector) and `projectors.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchProjector(nn.Module):
    """Fused patch features → LLM width: three linear layers with the exact GELU between them."""

    def __init__(self, features: int, hidden: int, llm_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, llm_width)
        self.fc3 = nn.Linear(llm_width, llm_width)

    def forward(self, patches: Tensor) -> Tensor:
        """Maps (B, N·P, features) to (B, N·P, D)."""
        out: Tensor = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(patches)))))
        return out


class ValueProjector(nn.Module):
    """A vector of numbers → one token. Serves proprio (A numbers) and noisy actions (one number
    per token).
    """

    def __init__(self, values: int, llm_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(values, llm_width)
        self.fc2 = nn.Linear(llm_width, llm_width)

    def forward(self, values: Tensor) -> Tensor:
        """Maps (…, values) to (…, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(values)))
        return out
