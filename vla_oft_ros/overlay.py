"""Draws on a camera image which patches were kept, and why.

Pixels of dropped patches are darkened, those of kept ones stay as they are inside a frame of the
colour of their reason. Knows nothing of the network: what part of the image it saw is handed in.
"""

from __future__ import annotations

import numpy as np

from vla_oft_ros.types import KeptBy, RetainedTokens

COLORS: dict[KeptBy, tuple[int, int, int]] = {
    KeptBy.GLOBAL: (60, 130, 255),
    KeptBy.LOCAL: (60, 220, 90),
    KeptBy.DYNAMIC: (255, 70, 60),
    KeptBy.FILL: (190, 190, 190),
    KeptBy.DENSE: (255, 255, 255),
}
"""RGB of each reason; a patch kept for several has their mean."""
_DARKENED = 0.3
_FRAME_SHARE = 9
"""A frame is one of so many parts of a patch wide."""


def reason_color(kept_by: int) -> tuple[int, int, int]:
    """RGB of a sum of `KeptBy` flags.

    Raises:
        ValueError: if no flag is set.
    """
    found = [color for flag, color in COLORS.items() if kept_by & flag]
    if not found:
        raise ValueError(f"reason_color: expected a sum of KeptBy flags; got {kept_by}")
    red, green, blue = np.mean(found, axis=0).round().astype(int).tolist()
    return red, green, blue


def patch_edges(length_px: int, count: int, crop_area: float) -> np.ndarray:
    """Borders of the patches along one side of the camera image.

    Args:
        length_px: Side of the camera image.
        count: Patches along it.
        crop_area: Share of the image's area that the network saw, its centre; 1 is all.

    Returns:
        (count + 1,) int, ascending pixel positions.
    """
    side = np.sqrt(crop_area)
    start = (1.0 - side) / 2.0
    return np.asarray(
        np.round((start + side * np.arange(count + 1) / count) * length_px), dtype=np.int64
    )


def paint_retained(image: np.ndarray, retained: RetainedTokens, *, crop_area: float) -> np.ndarray:
    """Paints what was kept of one camera.

    Args:
        image: (H, W, 3) uint8 RGB from that camera.
        retained: What was kept after one stage.
        crop_area: Share of the image's area that the network saw: 0.9 with `center_crop`, else 1.

    Returns:
        (H, W, 3) uint8 RGB, a new image.

    Raises:
        ValueError: if the image is not (H, W, 3) uint8, too small for the grid, or the crop is
            not a share.
    """
    rows, columns = retained.grid
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"paint_retained: expected (H, W, 3) uint8 RGB; got {image.shape} {image.dtype}"
        )
    if image.shape[0] < 4 * rows or image.shape[1] < 4 * columns:
        raise ValueError(
            f"paint_retained: expected 4 pixels or more per patch of a {rows}x{columns} grid; "
            f"got an image of {image.shape[0]}x{image.shape[1]}"
        )
    if not 0.1 <= crop_area <= 1.0:
        raise ValueError(f"crop_area: expected a share from 0.1 to 1; got {crop_area}")
    painted = (image * _DARKENED).astype(np.uint8)
    tops = patch_edges(image.shape[0], rows, crop_area)
    lefts = patch_edges(image.shape[1], columns, crop_area)
    frame = max(min(image.shape[0] // rows, image.shape[1] // columns) // _FRAME_SHARE, 1)
    for index, kept_by in zip(retained.patch_indices, retained.kept_by, strict=True):
        row, column = divmod(int(index), columns)
        outer = np.s_[tops[row] : tops[row + 1], lefts[column] : lefts[column + 1]]
        inner = np.s_[
            tops[row] + frame : tops[row + 1] - frame,
            lefts[column] + frame : lefts[column + 1] - frame,
        ]
        painted[outer] = reason_color(int(kept_by))
        painted[inner] = image[inner]
    return painted
