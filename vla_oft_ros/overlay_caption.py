"""Words around pictures of kept patches: a line above, and what the colours mean below.

Knows nothing of the network or of where pictures go.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from vla_oft_ros.overlay import reason_color
from vla_oft_ros.types import KeptBy

STRIP_PX = 26
"""Height of a line of text."""
LONG_LEGEND = (
    (KeptBy.GLOBAL, "global: best of the inference before"),
    (KeptBy.LOCAL, "local: best of the first layers"),
    (KeptBy.DYNAMIC, "dynamic: changed"),
    (KeptBy.FILL, "fill"),
)
SHORT_LEGEND = tuple((reason, str(reason.name).lower()) for reason in KeptBy)
_INK, _PAPER = (20, 20, 20), 245
_LEFT_PX = 8


def with_title(picture: np.ndarray, text: str) -> np.ndarray:
    """Puts a line of text above a picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        text: What is not wider than the picture is seen.

    Returns:
        (H + `STRIP_PX`, W, 3) uint8 RGB.
    """
    strip = _strip(picture.shape[1])
    _write(strip, text, _LEFT_PX)
    return np.concatenate([strip, picture])


def with_legend(picture: np.ndarray, legend: Sequence[tuple[KeptBy, str]]) -> np.ndarray:
    """Says below a picture what the colours of its frames mean.

    Args:
        picture: (H, W, 3) uint8 RGB.
        legend: Reason and its word, from the left.

    Returns:
        (H + `STRIP_PX`, W, 3) uint8 RGB.
    """
    strip, left = _strip(picture.shape[1]), _LEFT_PX
    for reason, text in legend:
        corner = (left + 12, 19)
        cv2.rectangle(strip, (left, 7), corner, reason_color(reason), -1)
        cv2.rectangle(strip, (left, 7), corner, _INK, 1)
        left = _write(strip, text, left + 18) + 18
    return np.concatenate([picture, strip])


def _strip(width_px: int) -> np.ndarray:
    return np.full((STRIP_PX, width_px, 3), _PAPER, dtype=np.uint8)


def _write(strip: np.ndarray, text: str, left: int) -> int:
    """Writes on a strip and says where the text ends, px."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    cv2.putText(strip, text, (left, 18), font, size, _INK, 1, cv2.LINE_AA)
    return left + int(cv2.getTextSize(text, font, size, 1)[0][0])
