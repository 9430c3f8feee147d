"""Random crops and colours of training images; never run when the policy acts.

The official set in the official order: crop of 90 % of the area, brightness, contrast, saturation,
hue, each clipped to [0, 1]. Source: openvla-oft `finetune.py` (image_aug), dlimp
`augmentations.py`, tf.image.
"""

from __future__ import annotations

import cv2
import numpy as np

from vla_oft_ros.model.image_ops import CROP_AREA

BRIGHTNESS = 0.2
"""Largest shift of all values (openvla-oft, random_brightness)."""
CONTRAST = (0.8, 1.2)
SATURATION = (0.8, 1.2)
HUE = 0.05
"""Largest turn of the hue, in full circles."""


def augment(
    image: np.ndarray, generator: np.random.Generator, *, diagonal_crops: bool = False
) -> np.ndarray:
    """Crops and recolours one image.

    Args:
        image: (size, size, 3) uint8 RGB, as resized for the network, not yet cropped.
        generator: Source of randomness; every image draws anew.
        diagonal_crops: Official behaviour: one random number serves both offsets of the crop, so
            that crops slide along the diagonal only.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    down, right, light, contrast, saturation, hue = generator.random(6)
    if diagonal_crops:
        right = down
    values = image.astype(np.float32) * np.float32(1.0 / 255.0)
    values = _crop(values, float(down), float(right))
    values = np.clip(values + np.float32(_between((-BRIGHTNESS, BRIGHTNESS), light)), 0.0, 1.0)
    mean = values.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)  # (3,)
    factor = np.float32(_between(CONTRAST, contrast))
    values = np.clip((values - mean) * factor + mean, 0.0, 1.0)
    values = _recolour(values, _between(SATURATION, saturation), _between((-HUE, HUE), hue))
    levels: np.ndarray = (values * np.float32(255.5)).astype(np.uint8)  # convert_image_dtype
    return levels


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(share)


def _crop(values: np.ndarray, down: float, right: float) -> np.ndarray:
    """Keeps `CROP_AREA` of the area and enlarges it again (tf crop_and_resize, bilinear).

    Args:
        values: (size, size, 3) float32.
        down: Share 0 … 1 of the free way that the crop moves down.
        right: The same to the right.
    """
    size = len(values)
    side = float(np.sqrt(CROP_AREA))
    grid = np.arange(size, dtype=np.float32) * np.float32(side)
    free = (1.0 - side) * (size - 1)
    columns, rows = np.meshgrid(
        grid + np.float32(right * free), grid + np.float32(down * free)
    )  # (size, size) each
    cropped = cv2.remap(values, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(np.asarray(cropped), 0.0, 1.0)


def _recolour(values: np.ndarray, saturation: float, turn: float) -> np.ndarray:
    """Scales the saturation and turns the hue, (size, size, 3) float32 in [0, 1]."""
    hsv = np.asarray(cv2.cvtColor(values, cv2.COLOR_RGB2HSV))  # hue 0 … 360, others 0 … 1
    hsv[..., 0] = np.mod(hsv[..., 0] + np.float32(360.0 * turn), np.float32(360.0))
    hsv[..., 1] = np.clip(hsv[..., 1] * np.float32(saturation), 0.0, 1.0)
    return np.clip(np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)), 0.0, 1.0)
