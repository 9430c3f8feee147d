"""Pixel arithmetic that official OFT does in PIL and TensorFlow, without TensorFlow: the numpy
reference.

Pure functions on (H, W, 3) uint8 RGB images. `image_ops_torch` holds the same arithmetic for a
device; a test holds the two together. Facts: openvla-oft `openvla_utils.py`
(resize_image_for_policy, crop_and_resize), tf.image kernels.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
import simplejpeg
from PIL import Image

JPEG_QUALITY = 95
"""Quality of tf.io.encode_jpeg (its default), with 4:2:0 chroma."""
CROP_AREA = 0.9
"""Share of the area that training crops keep (openvla-oft, `crop_scale`)."""
LANCZOS_RADIUS = 3


def resize_bicubic(image: np.ndarray, size_px: int) -> np.ndarray:
    """Squashes to a square with PIL's antialiased bicubic, as ALOHA data sets were prepared."""
    if image.shape[:2] == (size_px, size_px):
        return image
    resized = Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    """Encodes and decodes, bit for bit as TensorFlow does.

    TensorFlow encodes as PIL does, and decodes with the fast integer IDCT: the accurate one of PIL
    and OpenCV differs by up to 18 grey levels. simplejpeg's encoder uses the fast DCT, hence
    PIL's.
    """
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    decoded: np.ndarray = simplejpeg.decode_jpeg(
        encoded.getvalue(), fastdct=True, fastupsample=False
    )
    return decoded


def lanczos3(distance: float) -> float:
    """Lanczos kernel of radius 3 at a distance in kernel units."""
    if distance == 0.0:
        return 1.0
    if abs(distance) >= LANCZOS_RADIUS:
        return 0.0
    angle = math.pi * distance
    return LANCZOS_RADIUS * math.sin(angle) * math.sin(angle / LANCZOS_RADIUS) / angle**2


@lru_cache(maxsize=16)
def lanczos_matrix(source_px: int, target_px: int) -> np.ndarray:
    """(target, source) float64: row x holds the weights with which source pixels make target pixel
    x.

    tf.image.resize(antialias=True): the kernel widens by the scale when shrinking, and its weights
    sum to one.
    """
    scale = source_px / target_px
    kernel_scale = max(scale, 1.0)
    reach = LANCZOS_RADIUS * kernel_scale
    matrix = np.zeros((target_px, source_px))
    for x in range(target_px):
        centre = (x + 0.5) * scale
        first = max(math.ceil(centre - reach - 0.5), 0)
        last = min(math.floor(centre + reach - 0.5), source_px - 1)
        for i in range(first, last + 1):
            matrix[x, i] = lanczos3((i + 0.5 - centre) / kernel_scale)
    matrix /= matrix.sum(axis=1, keepdims=True)
    matrix.setflags(write=False)
    return matrix


def resize_lanczos(image: np.ndarray, size_px: int) -> np.ndarray:
    """Resizes to a square with TensorFlow's antialiased Lanczos-3, rounded half to even and
    clipped.
    """
    rows, columns, channels = image.shape
    vertical = lanczos_matrix(rows, size_px)
    horizontal = lanczos_matrix(columns, size_px)
    tall = vertical @ image.reshape(rows, -1).astype(np.float64)  # (size, W·3)
    tall = tall.reshape(size_px, columns, channels)
    resized = np.einsum("xw,hwc->hxc", horizontal, tall, optimize=True)  # (size, size, 3)
    rounded: np.ndarray = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    return rounded


@lru_cache(maxsize=16)
def crop_grid(size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the centre crop samples along one axis: lower index, upper index (int64), weight of
    the upper (float32).
    """
    one = np.float32(1.0)
    side = np.sqrt(np.float32(CROP_AREA))
    offset = (one - side) / np.float32(2.0)
    far = offset + side
    edge = np.float32(size_px - 1)
    step = (far - offset) * edge / edge
    position = offset * edge + np.arange(size_px, dtype=np.float32) * step
    lower = np.floor(position)
    grid = lower.astype(np.int64), np.ceil(position).astype(np.int64), position - lower
    for part in grid:
        part.setflags(write=False)
    return grid


def center_crop(image: np.ndarray) -> np.ndarray:
    """Keeps the central 90 % of the area of a square image and enlarges it to the same size (tf
    crop_and_resize).

    Plain bilinear sampling in float32 on values / 255, then clip and floor(255.5·v):
    tf.image.convert_image_dtype.
    """
    lower, upper, weight = crop_grid(image.shape[0])
    values = image.astype(np.float32) * np.float32(1.0 / 255.0)
    left, right = values[:, lower], values[:, upper]
    rows = (
        left + (right - left) * weight[None, :, None]
    )  # (H, size, 3); columns are interpolated first
    top, bottom = rows[lower], rows[upper]
    cropped = top + (bottom - top) * weight[:, None, None]  # (size, size, 3)
    levels: np.ndarray = (np.clip(cropped, 0.0, 1.0) * np.float32(255.5)).astype(np.uint8)
    return levels


def normalize_pixels(image: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Normalises one image once per tower.

    Args:
        image: (H, W, 3) uint8 RGB.
        mean: (towers, 3) float32.
        std: (towers, 3) float32.

    Returns:
        (towers·3, H, W) float32.
    """
    planes = image.transpose(2, 0, 1).astype(np.float32) / np.float32(255.0)  # (3, H, W)
    towers = (planes[None] - mean[:, :, None, None]) / std[:, :, None, None]  # (towers, 3, H, W)
    stacked: np.ndarray = towers.reshape(-1, *planes.shape[1:])  # (towers·3, H, W)
    return stacked
