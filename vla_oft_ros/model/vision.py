"""The two vision towers, DINOv2 and SigLIP: camera images → patch features.

Both are plain pre-norm ViTs that differ in their sizes, in DINOv2's class and register tokens and
LayerScale, and in SigLIP's pooling head. Parameter names are those of OpenVLA checkpoints. The
output is the residual stream after the second-to-last block, without the final norm; the last
block, that norm and the pooling head are never run and exist so that a checkpoint saved from here
is complete for the official code. Source: timm 0.9 `vision_transformer.py` as used by openvla-oft
`modeling_prismatic.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vla_oft_ros.model.attention import mix
from vla_oft_ros.model.film import Film, Modulation, modulate

LAYER_NORM_EPS = 1e-6
"""timm's VisionTransformer default; torch's own default 1e-5 is measurably wrong."""
CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Sizes of one tower.

    Attributes:
        width: Channels of the residual stream.
        depth: Blocks in the file; depth − 1 are run.
        heads: Attention heads.
        mlp_hidden: Hidden width of each block's MLP.
        patch_px: Side of a patch, pixels.
        grid: Patches along one side of the image.
        class_token: Whether a class token leads the sequence.
        registers: Number of register tokens after it.
        layer_scale: Whether each branch ends in a per-channel scale.
        pooling: Whether an attention pooling head exists.
        film_width: LLM width D that FiLM reads; 0 without FiLM.
    """

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    patch_px: int
    grid: int
    class_token: bool
    registers: int
    layer_scale: bool
    pooling: bool
    film_width: int = 0

    @property
    def image_px(self) -> int:
        """Side of the square input image, pixels."""
        return self.grid * self.patch_px

    @property
    def patches(self) -> int:
        """P, patches per camera."""
        return self.grid * self.grid


class Attention(nn.Module):
    """Multi-head self-attention over all tokens of one image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B·N, tokens, width) to the same shape."""
        q, k, v = rearrange(self.qkv(x), "b t (qkv h d) -> qkv b h t d", qkv=3, h=self.heads)
        mixed = mix(q, k, v)  # (B·N, heads, tokens, head dim)
        out: Tensor = self.proj(rearrange(mixed, "b h t d -> b t (h d)"))
        return out


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, width) to the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, width) to the same shape."""
        return x * self.scale_factor


class Block(nn.Module):
    """One pre-norm transformer block, with FiLM between attention and MLP if there is any."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, config.heads)
        self.ls1 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, config.mlp_hidden)
        self.ls2 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.film = Film(config.film_width, width) if config.film_width else None

    def modulation(self, language: Tensor) -> Modulation:
        """γ and β of this block from the mean language embedding (B, D); needs FiLM."""
        assert self.film is not None
        result: Modulation = self.film(language)
        return result

    def forward(self, x: Tensor, modulation: Modulation | None) -> Tensor:
        """Maps (B·N, tokens, width) to the same shape."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        if modulation is not None:
            x = modulate(x, modulation)
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each."""

    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, width, kernel_size=patch_px, stride=patch_px)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps (B·N, 3, H, W) to (B·N, P, width), row by row."""
        patches: Tensor = rearrange(self.proj(pixels), "b c rows cols -> b (rows cols) c")
        return patches


class AttentionPool(nn.Module):
    """SigLIP's pooling head: parameters that are kept and saved, but never used."""

    def __init__(self, width: int, mlp_hidden: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, mlp_hidden)


class VisionTower(nn.Module):
    """One ViT: pixels → patch features of its second-to-last block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        self.reg_token = (
            nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches, width))
        self.patch_embed = PatchEmbed(width, config.patch_px)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn_pool = AttentionPool(width, config.mlp_hidden) if config.pooling else None

    @property
    def run_blocks(self) -> list[Block]:
        """All blocks but the last, whose output nobody reads."""
        return [block for block in self.blocks if isinstance(block, Block)][:-1]

    @property
    def last_block(self) -> Block:
        """The block that is not run."""
        block = self.blocks[-1]
        assert isinstance(block, Block)
        return block

    def modulations(self, language: Tensor) -> tuple[Modulation, ...]:
        """γ and β of every block that is run, from the mean language embedding (B, D).

        Raises:
            RuntimeError: if the tower has no FiLM.
        """
        if not self.config.film_width:
            raise RuntimeError("vision tower: modulations asked of a checkpoint without FiLM")
        return tuple(block.modulation(language) for block in self.run_blocks)

    def embed(self, pixels: Tensor) -> Tensor:
        """Images (B·N, 3, H, W) → tokens that enter the first block, (B·N, prefix + P, width)."""
        x = self.patch_embed(pixels) + self.pos_embed  # (B·N, P, width)
        prefix = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None
        ]
        # Prefix tokens carry no position: they join after the position embedding (timm's
        # no_embed_class).
        return torch.cat([*prefix, x], dim=1)

    def forward(self, pixels: Tensor, modulations: Sequence[Modulation] | None) -> Tensor:
        """Runs all blocks but the last.

        Args:
            pixels: (B·N, 3, H, W) normalised.
            modulations: One per block that is run, rows repeated for each camera; None without
                FiLM.

        Returns:
            (B·N, P, width), prefix tokens dropped.
        """
        x = self.embed(pixels)
        for index, block in enumerate(self.run_blocks):
            x = block(x, modulations[index] if modulations else None)
        features: Tensor = x[:, -self.config.patches :]
        return features


class VisionBackbone(nn.Module):
    """Both towers side by side: DINOv2 features first, SigLIP features second, on the channel
    axis.
    """

    def __init__(self, dino: TowerConfig, siglip: TowerConfig) -> None:
        super().__init__()
        self.featurizer = VisionTower(dino)
        self.fused_featurizer = VisionTower(siglip)

    def modulations(self, language: Tensor) -> tuple[tuple[Modulation, ...], ...]:
        """γ and β of every block that is run, per tower.

        Args:
            language: (B, D) mean language embedding.

        Raises:
            RuntimeError: if the towers have no FiLM.
        """
        return tuple(
            tower.modulations(language) for tower in (self.featurizer, self.fused_featurizer)
        )

    def forward(
        self,
        pixel_values: Tensor,
        modulations: tuple[tuple[Modulation, ...], ...] | None = None,
    ) -> Tensor:
        """Extracts patch features of all cameras.

        Args:
            pixel_values: (B, 6·N, H, W): per camera three channels normalised for DINOv2, then
                three for SigLIP.
            modulations: From `modulations`; None without FiLM.

        Returns:
            (B, N·P, DINOv2 width + SigLIP width), cameras one after the other.
        """
        batch, cameras = len(pixel_values), pixel_values.shape[1] // (2 * CHANNELS)
        views = rearrange(
            pixel_values, "b (n tower c) h w -> tower (b n) c h w", n=cameras, tower=2
        )
        features = []
        for index, tower in enumerate((self.featurizer, self.fused_featurizer)):
            own = modulations and [_repeat(m, cameras) for m in modulations[index]]
            features.append(tower(views[index], own))
        return rearrange(torch.cat(features, dim=-1), "(b n) p c -> b (n p) c", b=batch)


def _repeat(modulation: Modulation, cameras: int) -> Modulation:
    """All cameras of a sample share its modulation: (B, 1, width) → (B·N, 1, width)."""
    return Modulation(*(part.repeat_interleave(cameras, dim=0) for part in modulation))
