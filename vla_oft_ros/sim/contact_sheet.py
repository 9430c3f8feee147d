"""Lays camera images out for a person to look at: cameras side by side, one row per moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

_GREY = 90
_GAP_PX = 4


def contact_sheet(
    moments: Sequence[Mapping[str, np.ndarray]], tile_width: int = 320
) -> np.ndarray:
    """Draws all cameras of some moments into one image.

    Args:
        moments: Of each moment, camera name → (H, W, 3) uint8 RGB; the same cameras in each.
        tile_width: Width of one image in the sheet, px; the height follows from the first image.

    Returns:
        (H', W', 3) uint8 RGB: a row per moment, a column per camera, the camera's name in the
        first row.

    Raises:
        ValueError: if there is no moment, or their cameras differ.
    """
    if not moments or any(list(images) != list(moments[0]) for images in moments):
        raise ValueError(
            "contact_sheet: expected at least one moment and the same cameras in each; "
            f"got {[list(images) for images in moments]}"
        )
    height, width = next(iter(moments[0].values())).shape[:2]
    size = (tile_width, round(tile_width * height / width))
    rows = []
    for number, images in enumerate(moments):
        tiles = []
        for camera, image in images.items():
            tile = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            if number == 0:
                _label(tile, camera)
            tiles.append(np.pad(tile, ((0, _GAP_PX), (0, _GAP_PX), (0, 0)), constant_values=_GREY))
        rows.append(np.concatenate(tiles, axis=1))  # (H, N·W, 3)
    sheet = np.concatenate(rows, axis=0)
    return np.ascontiguousarray(sheet[:-_GAP_PX, :-_GAP_PX])


def _label(tile: np.ndarray, text: str) -> None:
    """Writes white on black into the lower left corner."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    (width, height), below = cv2.getTextSize(text, font, size, 1)
    bottom = tile.shape[0]
    top = bottom - height - below - 6
    cv2.rectangle(tile, (0, top), (width + 10, bottom), (0, 0, 0), -1)
    place = (5, bottom - below - 2)
    cv2.putText(tile, text, place, font, size, (255, 255, 255), 1, cv2.LINE_AA)
