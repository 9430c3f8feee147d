"""An episode as a stream of joint targets that a robot can follow from where it stands now, and
that stream as action chunks for the controller.

Only numbers: the controller's safety gate still has the last word on every one of them.
"""

from __future__ import annotations

import math

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM
from vla_oft_ros.data.episode import Episode
from vla_oft_ros.types import ActionChunk

EASE_IN_RAD_S = 0.5
"""Fastest joint on the way to the first action; a gripper opens or closes in two seconds."""
_PEAK = 1.5
"""A smoothstep is this much faster in its middle than on average."""
LOOK_AHEAD_STEPS = 12
"""Rows of a chunk that are still to come: who falls silent stops the robot half a second later."""
SETTLE_STEPS = 4
"""How long the controller must have followed before the first target: a chunk that reaches back
into time in which the robot stood still is moved on by that time (`ActionChunkQueue`)."""
_LEAD_IN_STEPS = 8
"""For so long the first chunks ask the robot to stay, so that the one with the first target has
come before that is due."""
_SEND_EVERY_STEPS = 3
_LOOK_BACK_STEPS = 2
"""Rows of a chunk that have passed: what the controller takes the speed at the join from."""
_CHUNK_LEN = _LOOK_BACK_STEPS + 1 + LOOK_AHEAD_STEPS


def replay_targets(
    episode: Episode,
    present: np.ndarray,
    *,
    rate_hz: float,
    speed: float = 1.0,
    ease_in_rad_s: float = EASE_IN_RAD_S,
) -> np.ndarray:
    """Joint targets that lead gently to the first action and then repeat the episode.

    Args:
        episode: What to repeat.
        present: (14,) where the robot is told to be, or is, now.
        rate_hz: Rate at which the targets will be sent.
        speed: 1 is as recorded, 0.5 is half as fast.
        ease_in_rad_s: Fastest joint on the way to the first action, rad/s; openings per second
            for grippers.

    Returns:
        (N, 14) float64; the last row is the last action of the episode.

    Raises:
        ValueError: if an argument is out of range.
    """
    present = np.asarray(present, dtype=np.float64)
    if present.shape != (ACTION_DIM,) or not np.all(np.isfinite(present)):
        raise ValueError(f"present: expected ({ACTION_DIM},) finite positions; got {present}")
    for name, value, high in (
        ("rate_hz", rate_hz, 1000.0),
        ("speed", speed, 1.0),
        ("ease_in_rad_s", ease_in_rad_s, math.pi),
    ):
        if not 0.0 < value <= high:
            raise ValueError(f"{name}: expected above 0 to {high:g}; got {value}")
    first = episode.action[0]
    way = float(np.abs(first - present).max())
    steps = math.ceil(_PEAK * way / ease_in_rad_s * rate_hz)
    share = np.arange(1, steps + 1)[:, None] / max(steps, 1)
    ease = present + (first - present) * (3.0 - 2.0 * share) * share**2  # (steps, 14)
    count = math.floor((len(episode) - 1) / episode.rate_hz / speed * rate_hz + 1e-9)
    place = np.minimum(np.arange(count + 1) * speed * episode.rate_hz / rate_hz, len(episode) - 1)
    before = np.floor(place).astype(int)
    after = np.minimum(before + 1, len(episode) - 1)
    weight = (place - before)[:, None]
    body = episode.action[before] * (1.0 - weight) + episode.action[after] * weight
    tail = episode.action[-1:] if place[-1] < len(episode) - 1 else episode.action[:0]
    return np.concatenate([ease, body, tail])  # (N, 14)


class ReplayChunks:
    """Joint targets as short action chunks that agree where they overlap.

    Short, so that a robot whose replay is interrupted, by a person, a crash or a broken wire,
    soon holds. Time is that of the controller's ticks: nobody else's clock matters.

    Args:
        targets: (N, 14) joint targets, one per control step.
        present: (14,) what the robot is told now.
        dt_ns: Control period, nanoseconds.
        instruction: What the episode asked for.
    """

    def __init__(
        self, targets: np.ndarray, present: np.ndarray, dt_ns: int, instruction: str
    ) -> None:
        before = np.repeat(present[None], _LEAD_IN_STEPS + _LOOK_BACK_STEPS, axis=0)
        after = np.repeat(targets[-1:], LOOK_AHEAD_STEPS, axis=0)
        self._rows = np.concatenate([before, targets, after])  # (10 + N + 12, 14)
        self._steps, self._dt_ns, self._instruction = len(targets), dt_ns, instruction
        self._origin_ns: int | None = None
        self._next_step = -_LEAD_IN_STEPS

    def begin(self, tick_ns: int) -> None:
        """The first target is due a third of a second after this tick, nanoseconds."""
        self._origin_ns = tick_ns + _LEAD_IN_STEPS * self._dt_ns

    def step(self, tick_ns: int) -> int:
        """Number of the target that is due at a tick: negative before the first one, N and more
        once all have been.

        Raises:
            RuntimeError: before `begin`.
        """
        if self._origin_ns is None:
            raise RuntimeError("ReplayChunks: call begin first")
        return math.floor((tick_ns - self._origin_ns) / self._dt_ns + 0.5)

    def wanted(self, tick_ns: int) -> np.ndarray:
        """(14,) what is asked for at any instant, as the controller reads it: between two rows on
        the line that joins them.
        """
        if self._origin_ns is None:
            raise RuntimeError("ReplayChunks: call begin first")
        place = (tick_ns - self._origin_ns) / self._dt_ns + _LEAD_IN_STEPS + _LOOK_BACK_STEPS
        below = min(max(math.floor(place), 0), len(self._rows) - 2)
        weight = min(max(place - below, 0.0), 1.0)
        asked: np.ndarray = (1.0 - weight) * self._rows[below] + weight * self._rows[below + 1]
        return asked

    def due(self, tick_ns: int) -> ActionChunk | None:
        """The chunk to send after this tick, or None if it is not time for another one."""
        step = self.step(tick_ns)
        if step < self._next_step or step >= self._steps:
            return None
        self._next_step = step + _SEND_EVERY_STEPS
        rows = self._rows[step + _LEAD_IN_STEPS :][:_CHUNK_LEN]  # (K, 14)
        assert self._origin_ns is not None  # `step` has made sure
        stamp_ns = self._origin_ns + (step - _LOOK_BACK_STEPS) * self._dt_ns
        return self._chunk(rows, stamp_ns, self._instruction)

    def hold(self, tick_ns: int, target: np.ndarray) -> ActionChunk:
        """A chunk that asks the robot to stay at, or come to rest at, (14,) `target`."""
        rows = np.repeat(target[None], _CHUNK_LEN, axis=0)  # (K, 14)
        # A moment later than a chunk of the same tick, so that it counts as newer.
        stamp_ns = tick_ns - _LOOK_BACK_STEPS * self._dt_ns + 1
        return self._chunk(rows, stamp_ns, "hold")

    def _chunk(self, rows: np.ndarray, stamp_ns: int, instruction: str) -> ActionChunk:
        return ActionChunk(
            actions=rows,
            stamp_ns=stamp_ns,
            dt_ns=self._dt_ns,
            instruction=instruction,
            inference_s=0.0,
        )
