"""One picture of a review: cameras, joints, what everybody said, and the timeline.

Puts the panels together for any moment of a run; knows no video and no files.
"""

from __future__ import annotations

import numpy as np

from vla_oft_ros.aloha import ACTION_NAMES, ARMS
from vla_oft_ros.data import review_cameras as cameras
from vla_oft_ros.data.policy_messages import RECORDER_STATES
from vla_oft_ros.data.review_cameras import CameraPanel
from vla_oft_ros.data.review_canvas import (
    GREEN,
    INK,
    ORANGE,
    PALE,
    PANEL,
    PAPER,
    RED,
    YELLOW,
    Color,
    placed,
    shorten,
    wrap,
    write,
)
from vla_oft_ros.data.review_strips import AFTER_S, BEFORE_S, Strips
from vla_oft_ros.data.review_timeline import Timeline
from vla_oft_ros.data.run_events import INTERVENTION
from vla_oft_ros.data.run_log import Answer, RunLog
from vla_oft_ros.overlay import reason_color
from vla_oft_ros.safety_report import SafetyState
from vla_oft_ros.types import KeptBy

SIZE_PX = (1600, 900)
"""Width and height of a picture; 16:9 and even, as players and encoders like it."""
_HEAD_PX, _LINE_PX, _STATUS_PX = 40, 20, 164
_LEGEND_LEFT_PX = 210
_LEGEND = (KeptBy.GLOBAL, KeptBy.LOCAL, KeptBy.DYNAMIC, KeptBy.FILL, KeptBy.DENSE)
_RECENT_S = 1.0
"""An intervention is told for so long."""
_STATE_COLORS: dict[SafetyState, Color] = {
    SafetyState.INACTIVE: PALE,
    SafetyState.HOLD: YELLOW,
    SafetyState.EASE_IN: ORANGE,
    SafetyState.ACTIVE: GREEN,
    SafetyState.ESTOP: RED,
}
_LEVEL_COLORS = {1: YELLOW, 2: RED, 3: RED}

Line = tuple[str, Color]


class ReviewPage:
    """Draws a run at any of its moments.

    Args:
        log: The run.
        shown_s: Begin and end of what the video shows, for the timeline.
        crop_area: Share of the images' area that the network saw.
    """

    def __init__(self, log: RunLog, shown_s: tuple[float, float], crop_area: float) -> None:
        self._log = log
        self._cameras = CameraPanel(log, crop_area)
        self._strips_left = cameras.PANEL_PX[0] + 6
        self._strips = Strips(log, SIZE_PX[0] - self._strips_left - 4)
        self.timeline = Timeline(log.events, log.duration_s, shown_s, SIZE_PX[0])
        self._changes = [event for event in log.events if event.kind == INTERVENTION]

    def at(self, time_s: float) -> np.ndarray:
        """The picture of a moment.

        Args:
            time_s: Since the start of the run.

        Returns:
            (900, 1600, 3) uint8 RGB.
        """
        answers = self._log.answers
        newest = answers.index(time_s)
        answer = answers.values[newest] if newest >= 0 else None
        oldest = max(answers.index(time_s - BEFORE_S - AFTER_S), 0)
        page = np.full((SIZE_PX[1], SIZE_PX[0], 3), PAPER, dtype=np.uint8)
        self._head(page[:_HEAD_PX], time_s)
        placed(page, self._cameras.at(time_s, answer), (0, _HEAD_PX, *cameras.PANEL_PX))
        strips = self._strips.at(time_s, answers.values[oldest : newest + 1])
        page[_HEAD_PX : _HEAD_PX + strips.shape[0], self._strips_left : -4] = strips
        status_top = _HEAD_PX + cameras.PANEL_PX[1] + 6
        self._status(page[status_top : status_top + _STATUS_PX], time_s, newest, answer)
        page[-Timeline.height_px :] = self.timeline.at(time_s)
        return page

    def _head(self, strip: np.ndarray, time_s: float) -> None:
        log = self._log
        strip[:] = PANEL
        x = write(strip, f"{time_s:7.2f} s of {log.duration_s:.1f}", (8, 26), INK, 0.6) + 26
        safety = log.safety.at(time_s)
        if safety is not None:
            state = safety.state.name.replace("_", " ")
            x = write(strip, state, (x, 26), _STATE_COLORS[safety.state], 0.6) + 26
        answer = log.answers.at(time_s)
        if answer is not None and answer.pruning is not None:
            x = write(strip, answer.pruning.mode.value, (x, 26), ORANGE, 0.6) + 26
        asked = log.instructions.at(time_s)
        name = log.path.name
        room = strip.shape[1] - x - 9 * len(name) - 40
        write(
            strip,
            shorten(f'"{asked}"' if asked else "no instruction", room, 0.6),
            (x, 26),
            INK if asked else PALE,
            0.6,
        )
        write(strip, name, (strip.shape[1] - 9 * len(name) - 12, 26), PALE)

    def _status(self, band: np.ndarray, time_s: float, number: int, answer: Answer | None) -> None:
        columns = (
            ("policy", self._policy_lines(time_s, number, answer)),
            ("robot", self._robot_lines(time_s)),
            ("diagnostics", self._message_lines(time_s)),
        )
        width = band.shape[1] // len(columns)
        for place, (title, lines) in enumerate(columns):
            part = band[:, place * width + 4 : (place + 1) * width - 4]
            part[:] = PANEL
            write(part, title, (8, 16), PALE, 0.42)
            most = (band.shape[0] - 20) // _LINE_PX
            for row, (text, color) in enumerate(lines[:most]):
                line = shorten(text, part.shape[1] - 16)
                write(part, line, (8, 18 + _LINE_PX * (row + 1)), color)

        x = write(band, "kept for:", (_LEGEND_LEFT_PX, 16), PALE, 0.42) + 10
        for reason in _LEGEND:
            name = reason.name or ""
            x = write(band, name.lower(), (x, 16), reason_color(reason), 0.42) + 12

    def _policy_lines(self, time_s: float, number: int, answer: Answer | None) -> list[Line]:
        total = len(self._log.answers.values)
        if not total:
            return [("no action chunks in this run", PALE)]
        if answer is None:
            return [(f"no action chunk yet; {total} to come", PALE)]
        chunk = answer.chunk
        age_s = time_s - self._log.time_s(chunk.stamp_ns)
        row = int(age_s / (chunk.dt_ns / 1e9))
        spent = row >= chunk.chunk_len
        lines = [
            (f"chunk {number + 1} of {total}, arrived {time_s - answer.time_s:.2f} s ago", INK),
            (f"latency {answer.latency_s:.2f} s, of it inference {chunk.inference_s:.2f} s", INK),
            (
                f"its observation is {age_s:.2f} s old: "
                + ("past its last action" if spent else f"action {row + 1} of {chunk.chunk_len}"),
                RED if spent else INK,
            ),
        ]
        if answer.pruning is not None:
            way = "/".join(f"{value:.2f}" for value in answer.pruning.translation)
            turn = "/".join(f"{value:.2f}" for value in answer.pruning.rotation)
            kept = f"kept {answer.pruning.retain_ratio:.0%}, {answer.pruning.mode.value}"
            lines.append((f"{kept}; speed left/right {way}, turn {turn} of p99", INK))
        reward = self._log.rewards.at(time_s)
        if reward is not None:
            lines.append((f"reward {reward:g}", GREEN if reward else PALE))
        return lines

    def _robot_lines(self, time_s: float) -> list[Line]:
        log, lines = self._log, []
        safety = log.safety.at(time_s)
        if safety is None:
            lines.append(("nothing from the safety gate", PALE))
        else:
            state = safety.state.name.replace("_", " ").lower()
            text = f"{state}: {safety.reason}" if safety.reason else state
            lines += [(line, _STATE_COLORS[safety.state]) for line in wrap(text, 500, 2)]
        recent = [e for e in self._changes if e.start_s <= time_s < e.end_s + _RECENT_S]
        if recent:
            kinds = ", ".join(dict.fromkeys(event.text for event in recent))
            lines.append((f"targets changed by: {kinds}", ORANGE))
        measured = [log.joints[arm].at(time_s) for arm in ARMS]
        target = log.targets.at(time_s)
        if target is not None and all(one is not None for one in measured):
            error = np.abs(np.concatenate([one for one in measured if one is not None]) - target)
            worst = int(np.nanargmax(error)) if np.isfinite(error).any() else 0
            lines.append(
                (f"furthest from its target: {ACTION_NAMES[worst]} by {error[worst]:.3f}", INK)
            )
        return lines

    def _message_lines(self, time_s: float) -> list[Line]:
        lines: list[Line] = []
        found = self._log.diagnostics.at(time_s)
        worst_first = sorted((found or {}).values(), key=lambda one: -one.level)
        for one in worst_first[:4]:
            text = f"{one.name.lstrip('/')}: {one.message}"
            lines.append((text, _LEVEL_COLORS.get(one.level, RED)))
        if found is not None and not found:
            lines.append(("all well", GREEN))
        elif found is None:
            lines.append(("nothing said", PALE))
        status = self._log.recorder.at(time_s)
        if status is not None:
            quality = status.quality.name.lower()
            text = f"recorder: {RECORDER_STATES[status.state]}, quality {quality}"
            text += f" ({'; '.join(status.quality_reasons)})" if status.quality_reasons else ""
            lines.append((text, PALE))
        return lines
