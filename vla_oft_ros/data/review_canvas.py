"""Text, boxes and curves on an image: what the pages of a review are drawn with, OpenCV alone."""

from __future__ import annotations

import cv2
import numpy as np

Color = tuple[int, int, int]
PAPER, PANEL, GRID = (22, 25, 30), (33, 37, 44), (58, 64, 74)
INK, PALE = (232, 234, 238), (150, 158, 170)
GREEN, YELLOW, ORANGE, RED = (84, 200, 120), (240, 200, 80), (255, 160, 60), (255, 84, 76)
BLUE, VIOLET = (96, 165, 255), (190, 140, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LETTERS = str.maketrans({"…": "..", "→": "->", "·": ".", "–": "-", "×": "x", "≥": ">="})


def write(
    image: np.ndarray, text: str, corner: tuple[int, int], color: Color = INK, size: float = 0.45
) -> int:
    """Writes a line.

    Args:
        image: (H, W, 3) uint8 RGB, changed.
        text: The line; letters that OpenCV's fonts lack become others.
        corner: Left end of the base line, x and y, px.
        color: RGB.
        size: Of the letters; 0.45 is 10 px high.

    Returns:
        Where the text ends, x, px.
    """
    plain = text.translate(_LETTERS).encode("ascii", "replace").decode()
    cv2.putText(image, plain, corner, _FONT, size, color, 1, cv2.LINE_AA)
    return corner[0] + int(cv2.getTextSize(plain, _FONT, size, 1)[0][0])


def shorten(text: str, width_px: int, size: float = 0.45) -> str:
    """A text cut so that it fits into a width."""
    if cv2.getTextSize(text, _FONT, size, 1)[0][0] <= width_px:
        return text
    while text and cv2.getTextSize(f"{text}..", _FONT, size, 1)[0][0] > width_px:
        text = text[:-1]
    return f"{text}.."


def wrap(text: str, width_px: int, lines: int, size: float = 0.45) -> list[str]:
    """A text as at most so many lines that fit into a width."""
    found: list[str] = []
    words = text.split()
    while words and len(found) < lines:
        line = words.pop(0)
        while words and cv2.getTextSize(f"{line} {words[0]}", _FONT, size, 1)[0][0] <= width_px:
            line += f" {words.pop(0)}"
        if len(found) == lines - 1 and words:
            line = " ".join([line, *words])
            words = []
        found.append(shorten(line, width_px, size))
    return found


def label(image: np.ndarray, text: str, corner: tuple[int, int], color: Color = INK) -> None:
    """Writes a line on a dark box, readable on any picture."""
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.42, 1)
    x, y = corner
    box = image[max(y - height - 4, 0) : y + 5, max(x - 4, 0) : x + width + 4]
    box[:] = (box * 0.25).astype(np.uint8)
    write(image, text, corner, color, 0.42)


def curve(
    image: np.ndarray, x_px: np.ndarray, y_px: np.ndarray, color: Color, thickness: int = 1
) -> None:
    """Draws a line through points; places that are not finite interrupt it.

    Args:
        image: (H, W, 3) uint8 RGB, changed.
        x_px: (n,) places across, ascending.
        y_px: (n,) places down.
        color: RGB.
        thickness: Of the line, px.
    """
    height, width = image.shape[:2]
    good = np.isfinite(x_px) & np.isfinite(y_px)
    # OpenCV counts in 16ths of a pixel here; far outside it would overflow.
    points = np.stack([np.clip(x_px, -width, 2 * width), np.clip(y_px, -height, 2 * height)], 1)
    breaks = np.flatnonzero(np.diff(good.astype(np.int8))) + 1
    for part, is_good in zip(np.split(points, breaks), np.split(good, breaks), strict=True):
        if len(part) and is_good[0]:
            exact = np.round(part * 16).astype(np.int32)
            cv2.polylines(image, [exact], False, color, thickness, cv2.LINE_AA, 4)


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image at its own aspect in a box of (width, height) px, as large as it goes; no border.

    Returns:
        (h, w, 3) uint8 RGB with h and w within the box.
    """
    height, width = image.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    new = max(round(width * scale), 1), max(round(height * scale), 1)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, new, interpolation=how))


def placed(page: np.ndarray, image: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Puts an image into the middle of a box (x, y, width, height) of a page."""
    x, y, width, height = box
    h, w = image.shape[:2]
    left, top = x + (width - w) // 2, y + (height - h) // 2
    page[top : top + h, left : left + w] = image
