"""The vision towers as the engine runs them: cameras as one batch, towers side by side on a GPU.

What `vision` computes is the reference; the arithmetic here is the same, rounded less often.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vla_oft_ros.model.engine_wide import layer_norm, wide
from vla_oft_ros.model.film import Modulation, modulate
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.stage_times import StageTimes
from vla_oft_ros.model.vision import Block, LayerScale, VisionBackbone, VisionTower

RunBlock = Callable[[Block, Tensor, "Modulation | None"], Tensor]


def run_block(block: Block, x: Tensor, modulation: Modulation | None) -> Tensor:
    """One block: wide residual stream (N, tokens, width) → the same."""
    dtype = block.norm1.weight.dtype
    x = x + _scaled(block.ls1, block.attn(layer_norm(block.norm1, x).to(dtype)))
    if modulation is not None:
        x = modulate(x, Modulation(wide(modulation.scale), wide(modulation.shift)))
    return x + _scaled(block.ls2, block.mlp(layer_norm(block.norm2, x).to(dtype)))


def _scaled(scale: nn.Module, branch: Tensor) -> Tensor:
    """LayerScale of what a branch answers, if there is one: wide."""
    return wide(branch) * wide(scale.scale_factor) if isinstance(scale, LayerScale) else branch


class Towers:
    """Both towers, for one observation.

    Args:
        backbone: The model's.
        savings: What not to do.
        run: How a block runs.
        device: Where; only a GPU has streams.
    """

    def __init__(
        self, backbone: VisionBackbone, savings: Savings, run: RunBlock, device: torch.device
    ) -> None:
        self._towers = (backbone.featurizer, backbone.fused_featurizer)
        self._savings = savings
        self._run = run
        self._second: torch.cuda.Stream | None = None
        if savings.parallel_towers and device.type == "cuda":
            stream: Any = torch.cuda.Stream  # torch gives it no types
            self._second = stream(device)

    def __call__(
        self,
        views: Tensor,
        modulations: tuple[tuple[Modulation, ...], ...] | None,
        times: StageTimes | None = None,
    ) -> Tensor:
        """Extracts patch features of all cameras.

        Args:
            views: (2, N, 3, H, W) normalised for DINOv2, then for SigLIP.
            modulations: Per tower and block, one row each; None without FiLM.
            times: Marks the end of vision, of each tower where they run one after the other.

        Returns:
            (1, N·P, DINOv2 width + SigLIP width) wide, cameras one after the other.
        """
        first, second = modulations or (None, None)
        if self._second is not None:
            # Every use of the second stream waits for the first here, so what it allocates is
            # never given away while the first still reads it.
            current = torch.cuda.current_stream()
            self._second.wait_stream(current)
            with torch.cuda.stream(self._second):
                siglip = self._tower(self._towers[1], views[1], second)
            dino = self._tower(self._towers[0], views[0], first)
            current.wait_stream(self._second)
        else:
            dino = self._tower(self._towers[0], views[0], first)
            if times is not None and not self._savings.parallel_towers:
                times.end("dino")
            siglip = self._tower(self._towers[1], views[1], second)
        if times is not None:
            times.end("vision" if self._savings.parallel_towers else "siglip")
        return rearrange(torch.cat([dino, siglip], dim=-1), "n p c -> 1 (n p) c")

    def _tower(
        self, tower: VisionTower, pixels: Tensor, modulations: tuple[Modulation, ...] | None
    ) -> Tensor:
        """(N, 3, H, W) → (N, P, width)."""
        if self._savings.batch_cameras:
            return self._blocks(tower, pixels, modulations)
        parts = [self._blocks(tower, view, modulations) for view in torch.split(pixels, 1)]
        return torch.cat(parts)

    def _blocks(
        self, tower: VisionTower, pixels: Tensor, modulations: tuple[Modulation, ...] | None
    ) -> Tensor:
        x = wide(tower.embed(pixels))  # (N, prefix + P, width)
        blocks = tower.run_blocks
        for index, block in enumerate(blocks):
            x = self._run(block, x, modulations[index] if modulations else None)
        if not self._savings.skip_last_blocks:
            self._run(tower.last_block, x, modulations[-1] if modulations else None)
        return x[:, -tower.config.patches :]
