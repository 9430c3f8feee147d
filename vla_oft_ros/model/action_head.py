"""From hidden states to normalised actions: L1 regression, discrete bins, or diffusion (DDIM).

All three read the hidden states (B, K·A, D) at `TokenLayout.head` and answer (B, K, A), nominally
in [-1, 1].
Source: openvla-oft `action_heads.py`, `action_tokenizer.py`; DDIM: Song et al. 2020, diffusers
`DDIMScheduler`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class HeadKind(str, Enum):
    """How actions are decoded."""

    L1 = "l1"
    DISCRETE = "discrete"
    DIFFUSION = "diffusion"
    AUTOREGRESSIVE = "autoregressive"


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, width) to the same shape."""
        return x + F.relu(self.ffn(x))


class MLPResNet(nn.Module):
    """The network inside the L1 and the diffusion head: A hidden states of one time step → A
    numbers.

    Args:
        inputs: A·D.
        hidden: Width inside.
        outputs: A.
        blocks: Residual blocks.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, K, A·D) to (B, K, A)."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        out: Tensor = self.fc2(self.layer_norm2(x))
        return out


class RegressionHead(nn.Module):
    """Serves L1 regression, where the output is the actions, and diffusion, where it is the
    predicted noise.
    """

    def __init__(self, llm_width: int, hidden: int, action_dim: int, blocks: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = MLPResNet(action_dim * llm_width, hidden, action_dim, blocks)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (B, K·A, D) to (B, K, A): the A hidden states of one time step are read side by
        side.
        """
        steps = rearrange(hidden, "b (k a) d -> b k (a d)", a=self.action_dim)
        out: Tensor = self.model(steps)
        return out


class ActionBins:
    """Actions as token ids: the last `bins` ids before `vocab_end`, highest id for the lowest
    value.

    Args:
        bins: Edges of equal intervals on [-1, 1]; bins − 1 intervals have a centre.
        vocab_end: Size of the vocabulary without its padding (32 000).
    """

    def __init__(self, bins: int, vocab_end: int) -> None:
        self.bins = bins
        self.vocab_end = vocab_end

    def _edges(self, device: torch.device) -> Tensor:
        """(bins,) float64, numpy's: torch.linspace differs from it in the last bit, which moves
        edges.
        """
        return torch.from_numpy(np.linspace(-1.0, 1.0, self.bins)).to(device)

    def encode(self, actions: Tensor) -> Tensor:
        """Normalised actions (…) float, clipped to [-1, 1] → token ids (…) int64."""
        edges = self._edges(actions.device)
        clipped = actions.double().clamp(-1.0, 1.0)
        # right=True counts edges ≤ value: numpy.digitize, 1 … bins.
        return self.vocab_end - torch.bucketize(clipped, edges, right=True)

    def decode(self, token_ids: Tensor) -> Tensor:
        """Token ids (…) → centres of their bins (…) float64; ids that are no actions give the
        outermost bins.
        """
        edges = self._edges(token_ids.device)
        centres = (edges[:-1] + edges[1:]) / 2
        index = (self.vocab_end - token_ids - 1).clamp(0, self.bins - 2)
        return centres[index]


TRAIN_STEPS = 50
"""Noise levels in training (openvla-oft, `num_diffusion_steps_train`)."""


class DdimSchedule:
    """Deterministic DDIM over a squared-cosine schedule: Gaussian noise → actions in few steps.

    Defaults of diffusers' `DDIMScheduler`: noise prediction, sample clipped to [-1, 1] without
    recomputing the noise, leading spacing, η = 0, ᾱ = 1 after the last step.

    Args:
        device: Where the tables live.
    """

    def __init__(self, device: torch.device) -> None:
        def cumulative(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = [
            min(1 - cumulative((i + 1) / TRAIN_STEPS) / cumulative(i / TRAIN_STEPS), 0.999)
            for i in range(TRAIN_STEPS)
        ]
        alphas = 1.0 - torch.tensor(betas, dtype=torch.float32)
        self.alphas_cumprod = torch.cumprod(alphas, dim=0).to(device)

    @staticmethod
    def timesteps(steps: int) -> list[int]:
        """Noise levels to visit, descending.

        Raises:
            ValueError: unless 1 ≤ steps ≤ `TRAIN_STEPS`.
        """
        if not 1 <= steps <= TRAIN_STEPS:
            raise ValueError(
                f"diffusion_steps: expected a value from 1 to {TRAIN_STEPS}; got {steps}"
            )
        return [TRAIN_STEPS // steps * j for j in reversed(range(steps))]

    def step(self, sample: Tensor, noise: Tensor, timestep: int, steps: int) -> Tensor:
        """One denoising step.

        Args:
            sample: (B, K, A) at `timestep`.
            noise: (B, K, A) predicted noise.
            timestep: Current noise level.
            steps: Number of steps of the whole run.

        Returns:
            (B, K, A) at the next lower noise level of the run.
        """
        previous = timestep - TRAIN_STEPS // steps
        alpha = self.alphas_cumprod[timestep]
        alpha_previous = self.alphas_cumprod[previous] if previous >= 0 else torch.ones_like(alpha)
        clean = ((sample - (1 - alpha).sqrt() * noise) / alpha.sqrt()).clamp(-1.0, 1.0)
        return alpha_previous.sqrt() * clean + (1 - alpha_previous).sqrt() * noise

    def add_noise(self, actions: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy actions (B, K, A) for training, at the noise levels (B,) int64."""
        alpha = self.alphas_cumprod[timesteps].to(actions.dtype)[:, None, None]  # (B, 1, 1)
        return alpha.sqrt() * actions + (1 - alpha).sqrt() * noise

    def sample(
        self, start: Tensor, steps: int, predict_noise: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Denoises from pure noise.

        Args:
            start: (B, K, A) Gaussian noise.
            steps: DDIM steps.
            predict_noise: (sample (B, K, A), timesteps (B,) int64) → noise (B, K, A).
        """
        sample = start
        for timestep in self.timesteps(steps):
            levels = torch.full((len(sample),), timestep, device=sample.device)
            sample = self.step(sample, predict_noise(sample, levels).float(), timestep, steps)
        return sample


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoids [sin(t·ω), cos(t·ω)], ω from 1 down to 1e-4.

    Args:
        timesteps: (B,) noise levels.
        width: D, even.

    Returns:
        (B, D) float32.
    """
    half = width // 2
    # Multiplied and divided in this order, as the official code does: float32 rounds differently
    # otherwise.
    exponent = torch.arange(half, device=timesteps.device) * -math.log(1e4) / (half - 1)
    frequency = torch.exp(exponent)
    angles = timesteps.float()[:, None] * frequency  # (B, D / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (B, D)
