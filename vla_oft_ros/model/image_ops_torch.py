"""The arithmetic of `image_ops` in torch, for batches on any device, so that images need not pass
through the host.

Sums that numpy and PIL make in integers or float64 are made in float64 here, where they are exact:
the results are the
same, which a test holds true for every function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vla_oft_ros.model.image_ops import crop_grid, lanczos_matrix

BICUBIC_RADIUS = 2
BICUBIC_A = -0.5
"""PIL's choice of the cubic's free parameter (Pillow Resample.c)."""
PIL_BITS = 22
"""Fractional bits of PIL's resampling weights (Pillow Resample.c, PRECISION_BITS)."""


def resize_bicubic(images: Tensor, size_px: int) -> Tensor:
    """PIL's antialiased bicubic: (N, H, W, 3) uint8 → (N, size, size, 3) uint8."""
    if images.shape[1:3] == (size_px, size_px):
        return images
    rows, columns = images.shape[1:3]
    vertical, horizontal = (
        _matrix(bicubic_matrix, source, size_px, images.device) for source in (rows, columns)
    )
    # Columns first, as PIL; each pass ends in whole grey levels.
    narrow = _fixed_point(torch.einsum("xw,nhwc->nhxc", horizontal, images.double()))
    return _fixed_point(torch.einsum("yh,nhxc->nyxc", vertical, narrow)).to(torch.uint8)


@lru_cache(maxsize=32)
def _matrix(
    make: Callable[[int, int], np.ndarray], source_px: int, target_px: int, device: torch.device
) -> Tensor:
    """A resampling matrix on its device, kept: the sizes of a robot's cameras do not change."""
    return torch.tensor(make(source_px, target_px), device=device)


def _fixed_point(sums: Tensor) -> Tensor:
    """Rounds sums of grey levels and 22-bit weights to grey levels, float64."""
    return torch.floor((sums + 2.0 ** (PIL_BITS - 1)) / 2.0**PIL_BITS).clamp(0.0, 255.0)


@lru_cache(maxsize=16)
def bicubic_matrix(source_px: int, target_px: int) -> np.ndarray:
    """(target, source) float64 holding PIL's whole-numbered weights, scaled by 2^22."""
    scale = source_px / target_px
    kernel_scale = max(scale, 1.0)
    reach = BICUBIC_RADIUS * kernel_scale
    matrix = np.zeros((target_px, source_px))
    for x in range(target_px):
        centre = (x + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), source_px)
        weights = [_cubic((i + 0.5 - centre) / kernel_scale) for i in range(first, last)]
        total = sum(weights)
        for i, weight in enumerate(weights, start=first):
            share = weight / total * 2**PIL_BITS
            matrix[x, i] = int(share + math.copysign(0.5, share))
    matrix.setflags(write=False)
    return matrix


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel."""
    x = abs(distance)
    if x < 1.0:
        return ((BICUBIC_A + 2.0) * x - (BICUBIC_A + 3.0)) * x * x + 1.0
    if x < BICUBIC_RADIUS:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * BICUBIC_A
    return 0.0


def resize_lanczos(images: Tensor, size_px: int) -> Tensor:
    """TensorFlow's antialiased Lanczos-3: (N, H, W, 3) uint8 → (N, size, size, 3) uint8."""
    vertical, horizontal = (
        _matrix(lanczos_matrix, source, size_px, images.device) for source in images.shape[1:3]
    )
    tall = torch.einsum("yh,nhwc->nywc", vertical, images.double())
    resized = torch.einsum("xw,nywc->nyxc", horizontal, tall)  # (N, size, size, 3)
    return resized.round().clamp(0, 255).to(torch.uint8)


def center_crop(images: Tensor) -> Tensor:
    """Central 90 % of the area, enlarged to the same size: (N, size, size, 3) uint8 → the same."""
    lower, upper, weight = _crop_grid(images.shape[1], images.device)
    values = images.float() * (1.0 / 255.0)
    left, right = values[:, :, lower], values[:, :, upper]
    rows = left + (right - left) * weight[None, None, :, None]  # (N, H, size, 3)
    top, bottom = rows[:, lower], rows[:, upper]
    cropped = top + (bottom - top) * weight[None, :, None, None]  # (N, size, size, 3)
    return (cropped.clamp(0.0, 1.0) * 255.5).to(torch.uint8)


@lru_cache(maxsize=8)
def _crop_grid(size_px: int, device: torch.device) -> tuple[Tensor, ...]:
    """`image_ops.crop_grid` on its device, kept."""
    return tuple(torch.tensor(part, device=device) for part in crop_grid(size_px))


def normalize_pixels(images: Tensor, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """Normalises images once per tower.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        mean: (towers, 3) float32.
        std: (towers, 3) float32.

    Returns:
        (N·towers·3, H, W) float32, the channel order of `OpenVLAOFT`.
    """
    planes = rearrange(images, "n h w c -> n 1 c h w").float() / 255.0
    mean_, std_ = (
        _per_channel(tuple(map(tuple, part.tolist())), images.device) for part in (mean, std)
    )
    return rearrange((planes - mean_) / std_, "n towers c h w -> (n towers c) h w")


@lru_cache(maxsize=8)
def _per_channel(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """A number per tower and colour, on its device, kept: (1, towers, 3, 1, 1) float32."""
    return torch.tensor(rows, dtype=torch.float32, device=device)[None, :, :, None, None]
