"""Fourteen strips over time, a column per arm: chunk as planned, target as executed, joint as
measured.

The window moves with the video; the scale of a strip is that of the whole run, so that nothing
jumps. Times after the cursor are shaded: what the plan was, beside what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_oft_ros.aloha import ARM_DIM, ARM_JOINTS, ARMS
from vla_oft_ros.data.review_canvas import (
    BLUE,
    GRID,
    INK,
    ORANGE,
    PALE,
    PANEL,
    PAPER,
    Color,
    curve,
    write,
)
from vla_oft_ros.data.run_log import Answer, RunLog, Track

BEFORE_S, AFTER_S = 4.0, 1.5
_ROW_PX, _GAP_PX, _HEAD_PX = 65, 3, 20
_LEAST_SPAN = 0.1
"""Range that a strip shows at least, rad or opening."""
_PLANNED, _OLD_PLAN, _DONE, _MEASURED = ORANGE, (120, 84, 48), BLUE, INK
_LEADER = (84, 200, 120)
_NAMES = (*ARM_JOINTS, "gripper")

Series = tuple[np.ndarray, np.ndarray]
"""(n,) times in s, ascending, and (n, 7) values."""


class Strips:
    """Draws the joints of a run.

    Args:
        log: The run.
        width_px: Of the image.
    """

    height_px = _HEAD_PX + ARM_DIM * _ROW_PX

    def __init__(self, log: RunLog, width_px: int) -> None:
        self._log, self._width_px = log, (width_px - _GAP_PX) // 2
        self._total_px = width_px
        targets = _series(log.targets, len(ARMS) * ARM_DIM)
        self._measured = [_series(log.joints[arm], ARM_DIM) for arm in ARMS]
        self._leaders = [_series(log.leaders[arm], ARM_DIM) for arm in ARMS]
        self._targets = [
            (targets[0], targets[1][:, place * ARM_DIM : (place + 1) * ARM_DIM])
            for place in range(len(ARMS))
        ]
        self._range = [self._ranges(place) for place in range(len(ARMS))]

    def _ranges(self, arm: int) -> np.ndarray:
        """(7, 2) lowest and highest value of each joint of one arm."""
        seen = [self._measured[arm][1], self._targets[arm][1], self._leaders[arm][1]]
        if not any(len(values) for values in seen):
            seen = [answer.chunk.actions[:, _of(arm)] for answer in self._log.answers.values]
        values = np.concatenate([*seen, np.zeros((0, ARM_DIM))])
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            return np.array([[-1.0, 1.0]] * ARM_DIM)
        low, high = values.min(axis=0), values.max(axis=0)
        middle, half = (low + high) / 2, np.maximum(high - low, _LEAST_SPAN) / 2 * 1.15
        return np.stack([middle - half, middle + half], axis=1)  # (7, 2)

    def at(self, time_s: float, answers: Sequence[Answer]) -> np.ndarray:
        """The strips at a time.

        Args:
            time_s: Since the start of the run.
            answers: Chunks to show, the newest last.

        Returns:
            (height_px, width_px, 3) uint8 RGB.
        """
        page = np.full((self.height_px, self._total_px, 3), PAPER, dtype=np.uint8)
        left = write(page, "planned", (6, 14), _PLANNED, 0.42) + 14
        left = write(page, "target", (left, 14), _DONE, 0.42) + 14
        left = write(page, "measured", (left, 14), _MEASURED, 0.42) + 14
        if any(len(times) for times, _ in self._leaders):
            left = write(page, "leader", (left, 14), _LEADER, 0.42) + 14
        write(
            page,
            f"{BEFORE_S:g} s before .. {AFTER_S:g} s after the cursor",
            (left, 14),
            PALE,
            0.42,
        )
        for arm in range(len(ARMS)):
            x = arm * (self._width_px + _GAP_PX)
            for joint in range(ARM_DIM):
                top = _HEAD_PX + joint * _ROW_PX
                box = page[top : top + _ROW_PX - _GAP_PX, x : x + self._width_px]
                self._draw(box, arm, joint, time_s, answers)
        return page

    def _draw(
        self, box: np.ndarray, arm: int, joint: int, time_s: float, answers: Sequence[Answer]
    ) -> None:
        height, width = box.shape[:2]
        now_px = round(width * BEFORE_S / (BEFORE_S + AFTER_S))
        box[:, :now_px], box[:, now_px:] = PANEL, (27, 30, 36)
        low, high = self._range[arm][joint]

        def draw(times: np.ndarray, values: np.ndarray, color: Color, thickness: int) -> None:
            x = (times - time_s + BEFORE_S) / (BEFORE_S + AFTER_S) * width
            y = height - 4 - (values - low) / (high - low) * (height - 8)
            curve(box, x, y, color, thickness)

        for number, answer in enumerate(answers):
            newest = number == len(answers) - 1
            start_s = self._log.time_s(answer.chunk.stamp_ns)
            times = start_s + np.arange(answer.chunk.chunk_len) * answer.chunk.dt_ns / 1e9
            values = answer.chunk.actions[:, arm * ARM_DIM + joint]
            draw(times, values, _PLANNED if newest else _OLD_PLAN, 2 if newest else 1)
        value = None
        for (times, values), color in (
            (self._leaders[arm], _LEADER),
            (self._targets[arm], _DONE),
            (self._measured[arm], _MEASURED),
        ):
            first, end = np.searchsorted(times, [time_s - BEFORE_S, time_s + AFTER_S])
            part = slice(max(first - 1, 0), end + 1)
            draw(times[part], values[part, joint], color, 1)
            place = int(np.searchsorted(times, time_s, side="right")) - 1
            if place >= 0:
                value = values[place, joint]
        box[:, now_px] = GRID
        name = f"{ARMS[arm]} {_NAMES[joint]}" if joint in (0, ARM_DIM - 1) else _NAMES[joint]
        write(box, name, (5, 13), PALE, 0.38)
        if value is not None:
            write(box, f"{value:+.2f}", (width - 46, 13), INK, 0.38)


def _of(arm: int) -> slice:
    return slice(arm * ARM_DIM, (arm + 1) * ARM_DIM)


def _series(track: Track[np.ndarray], width: int) -> Series:
    if not track.values:
        return np.zeros(0), np.zeros((0, width))
    return np.array(track.times_s), np.stack(track.values)
