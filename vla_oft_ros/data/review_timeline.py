"""The timeline of a run: a lane per sort of event, a mark per event, a cursor.

Every event has exactly one mark, in the lane and the colour of its kind. Knows no bag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_oft_ros.data import run_events as happened
from vla_oft_ros.data.review_canvas import (
    BLUE,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PALE,
    PANEL,
    PAPER,
    RED,
    VIOLET,
    YELLOW,
    Color,
    write,
)
from vla_oft_ros.data.run_events import RunEvent

LANES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("episode", (happened.EPISODE, happened.INSTRUCTION, happened.REWARD)),
    ("chunks", (happened.CHUNK,)),
    ("hold, e-stop", (happened.HOLD, happened.ESTOP)),
    ("interventions", (happened.INTERVENTION,)),
    ("silent", (happened.SILENCE,)),
    ("warnings, faults", (happened.WARNING, happened.FAULT)),
)
"""Name of each lane and the kinds of events in it."""
COLORS: dict[str, Color] = {
    happened.EPISODE: (70, 90, 76),
    happened.INSTRUCTION: INK,
    happened.REWARD: GREEN,
    happened.CHUNK: BLUE,
    happened.HOLD: YELLOW,
    happened.ESTOP: RED,
    happened.INTERVENTION: ORANGE,
    happened.SILENCE: VIOLET,
    happened.WARNING: (150, 130, 60),
    happened.FAULT: RED,
}
SMOOTHED = ("position", "velocity", "acceleration", "ease_in")
"""Interventions that only shape a motion; they are dim, so that the others are seen."""
LANE_PX, NAME_PX, AXIS_PX = 30, 128, 22
_MARGIN_PX = 10
_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_MIN_TICK_PX = 70


def color_of(event: RunEvent) -> Color:
    """Colour of an event's mark."""
    dim = event.kind == happened.INTERVENTION and event.text in SMOOTHED
    return (140, 96, 48) if dim else COLORS[event.kind]


@dataclass(frozen=True)
class Mark:
    """Where an event is drawn.

    Attributes:
        event: It.
        lane: Number of its lane.
        left_px, right_px: First and last column, on the timeline's image.
    """

    event: RunEvent
    lane: int
    left_px: int
    right_px: int


class Timeline:
    """A run's timeline.

    Args:
        events: What happened.
        duration_s: Length of the run.
        shown_s: Begin and end of what the video shows; the rest is dimmed.
        width_px: Of the image.

    Attributes:
        marks: One per event.
    """

    height_px = LANE_PX * len(LANES) + AXIS_PX

    def __init__(
        self,
        events: Sequence[RunEvent],
        duration_s: float,
        shown_s: tuple[float, float],
        width_px: int,
    ) -> None:
        self._duration_s, self._width_px = max(duration_s, 1e-9), width_px
        lanes = {kind: lane for lane, (_, kinds) in enumerate(LANES) for kind in kinds}
        self.marks = [Mark(event, lanes[event.kind], *self._span_px(event)) for event in events]
        self._background = self._draw(shown_s)

    def column(self, time_s: float) -> int:
        """Column of a time, px."""
        across = self._width_px - NAME_PX - _MARGIN_PX - 1
        return NAME_PX + round(min(max(time_s / self._duration_s, 0.0), 1.0) * across)

    def _span_px(self, event: RunEvent) -> tuple[int, int]:
        left = self.column(event.start_s)
        return left, max(self.column(event.end_s), left + 1)

    def at(self, time_s: float) -> np.ndarray:
        """The timeline with its cursor at a time.

        Returns:
            (height_px, width_px, 3) uint8 RGB, a new image.
        """
        image = self._background.copy()
        column = self.column(time_s)
        image[: -AXIS_PX + 4, column - 1 : column + 2] = INK
        return image

    def _draw(self, shown_s: tuple[float, float]) -> np.ndarray:
        image = np.full((self.height_px, self._width_px, 3), PAPER, dtype=np.uint8)
        right = self._width_px - _MARGIN_PX
        for lane, (name, _) in enumerate(LANES):
            top = lane * LANE_PX
            image[top + 1 : top + LANE_PX - 1, NAME_PX:right] = PANEL
            write(image, name, (8, top + 20), PALE, 0.42)
        # Those with a length below, moments on top of them.
        for mark in sorted(self.marks, key=lambda mark: -mark.event.duration_s):
            top = mark.lane * LANE_PX
            columns = slice(mark.left_px, mark.right_px + 1)
            image[top + 3 : top + LANE_PX - 3, columns] = color_of(mark.event)
        for outside in ((0.0, shown_s[0]), (shown_s[1], self._duration_s)):
            left, end = (self.column(time_s) for time_s in outside)
            part = image[:-AXIS_PX, left : end if end > left else left]
            part[:] = part // 2
        self._draw_axis(image)
        return image

    def _draw_axis(self, image: np.ndarray) -> None:
        across = self._width_px - NAME_PX - _MARGIN_PX
        most = max(across // _MIN_TICK_PX, 1)
        step_s = next((s for s in _STEPS_S if self._duration_s / s <= most), self._duration_s)
        for number in range(int(self._duration_s / step_s) + 1):
            column = self.column(number * step_s)
            image[-AXIS_PX : -AXIS_PX + 4, column] = GRID
            write(image, f"{number * step_s:g} s", (column - 8, image.shape[0] - 5), PALE, 0.4)
