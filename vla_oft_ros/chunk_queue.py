"""Action chunks in, one action per tick out: where successive predictions are joined.

A policy answers late and disagrees with itself from chunk to chunk. The queue places each chunk in
time by what the robot really did since the observation, and joins it to the motion that is
running. It knows nothing of ROS or of the robot's limits; `safety.py` comes after it. Time is
integer nanoseconds of one clock, handed in by the caller.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM, ACTION_NAMES, GRIPPERS
from vla_oft_ros.chunk_report import JoinReport
from vla_oft_ros.chunk_timing import Fade, PlacedChunk
from vla_oft_ros.config import ChunkQueueConfig
from vla_oft_ros.types import ActionChunk

logger = logging.getLogger(__name__)

_ARM_JOINTS = np.array([index for index in range(ACTION_DIM) if index not in GRIPPERS])
"""Positions of the twelve arm joints in a 14-vector."""
_GRIPPERS = np.array(GRIPPERS)
_OPEN_CLOSED_MIDDLE = 0.5
"""Gripper opening half way between closed (0) and open (1)."""
_DT_TOLERANCE = 0.01
"""Relative difference of two periods that are still the same rate, e.g. a rounded 1/30 s."""
_AGREE = 1e-9
"""Openings that are the same: successive chunks of a plan that does not change leave no trace."""
_GAPS = 100
"""Pauses that are remembered; far more than fit into the age of the oldest chunk."""


class ChunkRefused(ValueError):
    """A chunk that must not move the robot; says what was expected and what came."""


class ActionChunkQueue:
    """Joins action chunks into one stream of actions.

    Invariant: every action handed out is due now. For the joins that go by time
    (`latency_matched_blend`, `replace`, `temporal_ensemble`), row k of a chunk is handed out only
    when k periods of really executed motion have passed since its observation, never by an
    estimate of latency; for those that play (`sync`, `append`), each row is handed out once and in
    order. Nothing is made up: when no accepted chunk covers the tick, there is no action.

    Joins:
        latency_matched_blend: The newest chunk, entered where the robot is in it. The difference
            to the motion before is cancelled at the join and fades within `blend_steps`, in
            position and velocity, so that it works with and without an old tail. Grippers are
            never averaged: they switch, unless the new value is undecided.
        sync: The paper's open loop: a chunk is played from row 0 to its end, then the newest one
            that has come.
        append: Chunks are played one after the other, in the order of arrival, from row 0.
        replace: The newest chunk, entered where the robot is in it, without any blending.
        temporal_ensemble: Arm joints are the average of all chunks that cover now, weighted
            exp(-m·i), i = 0 the oldest (ACT, temporal ensembling); grippers as in the default.

    Time during which the queue had nothing to hand out, or the robot held (`hold`), does not count
    as executed: the first chunk, and any chunk observed while the robot stood still, starts where
    the robot stands and not one latency later.
    """

    def __init__(self, config: ChunkQueueConfig, dt_ns: int) -> None:
        """Starts empty.

        Args:
            config: Join policy and its parameters.
            dt_ns: Control period, nanoseconds; chunks of another period are refused.

        Raises:
            ValueError: if `dt_ns` is not positive.
        """
        if dt_ns <= 0:
            raise ValueError(f"ActionChunkQueue: expected a positive dt_ns; got {dt_ns}")
        self._config = config
        self._dt_ns = dt_ns
        self._plays = config.join in ("sync", "append")
        self._last_now_ns: int | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets all chunks and what was handed out; the next chunk is a first one."""
        self._placed: list[PlacedChunk] = []  # oldest first; for sync and append what plays
        self._waiting: deque[PlacedChunk] = deque()  # accepted, begins at a later tick
        self._next_row = 0
        self._last: np.ndarray | None = None
        self._handed_out = False
        self._fade: Fade | None = None
        self._gripper_undecided_until_ns = 0
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_GAPS)
        self._gap_start_ns: int | None = -(2**63)  # nothing has been executed since ever
        self._newest_stamp_ns: int | None = None

    def put(self, chunk: ActionChunk, now_ns: int) -> JoinReport:
        """Accepts a chunk and joins it to the running motion.

        Args:
            chunk: (K, 14) actions with the stamp of their observation.
            now_ns: Present time, nanoseconds, on the clock of the stamp.

        Returns:
            Where the chunk is entered and how well it fits.

        Raises:
            ChunkRefused: if it has another shape or period, is not finite, comes from the past or
                the future or out of order; the queue is unchanged then.
        """
        self._watch_clock(now_ns)
        self._check(chunk, now_ns)
        # The copy keeps a caller's later change of the array away from the robot.
        placed = PlacedChunk(
            rows=np.array(chunk.actions, dtype=np.float64),
            stamp_ns=chunk.stamp_ns,
            dt_ns=self._dt_ns,
            origin_ns=chunk.stamp_ns,
            instruction=chunk.instruction,
        )
        report = self._play_later(placed, now_ns) if self._plays else self._place(placed, now_ns)
        self._newest_stamp_ns = chunk.stamp_ns
        return report

    def next_action(self, now_ns: int) -> np.ndarray | None:
        """The action of this tick; to be called once per tick.

        Args:
            now_ns: Present time, nanoseconds.

        Returns:
            (14,) float64, rad and gripper openings, or None when no chunk covers this tick.
        """
        self._watch_clock(now_ns)
        action = self._play(now_ns) if self._plays else self._sample(now_ns)
        self._handed_out = action is not None
        self._last = action if action is not None else self._last
        return None if action is None else action.copy()

    def hold(self, now_ns: int, given: np.ndarray | None) -> None:
        """Takes back the action of this tick: the robot held instead of executing it.

        It is due again at the first tick after the hold, unless a newer chunk has come or its
        observation is too old by then. Without an action in this tick nothing happens.

        Args:
            now_ns: The time that `next_action` was called with, nanoseconds.
            given: (14,) what the robot was told instead; None if nothing.
        """
        if not self._handed_out:
            return
        self._handed_out = False
        self._last = None if given is None else np.array(given, dtype=np.float64)
        if self._plays:
            self._next_row -= 1
            return
        if self._gaps and self._gaps[-1][1] == now_ns:  # stood still until this very tick
            self._gap_start_ns = self._gaps.pop()[0]
        else:
            self._gap_start_ns = now_ns
        self._waiting = deque(self._placed[-1:])
        self._placed = []
        self._fade = None

    def remaining(self, now_ns: int) -> int:
        """Ticks, from `now_ns` on, for which there are actions."""
        if self._plays:
            playing = sum(len(chunk.rows) for chunk in self._placed) - self._next_row
            return playing + sum(len(chunk.rows) for chunk in self._waiting)
        if self._waiting:
            return self._resumed(self._waiting[-1], now_ns).remaining(now_ns)
        return max((chunk.remaining(now_ns) for chunk in self._placed), default=0)

    def age_s(self, now_ns: int) -> float | None:
        """Age of the newest observation behind the present action, s; None without an action."""
        source = self._placed or self._waiting
        if not source or self.remaining(now_ns) == 0:
            return None
        return (now_ns - source[-1].stamp_ns) * 1e-9

    def _watch_clock(self, now_ns: int) -> None:
        if self._last_now_ns is not None and now_ns < self._last_now_ns - self._dt_ns:
            logger.warning(
                "The clock went back by %.3f s; all chunks are dropped",
                (self._last_now_ns - now_ns) * 1e-9,
            )
            self.clear()
        self._last_now_ns = now_ns

    def _check(self, chunk: ActionChunk, now_ns: int) -> None:
        if chunk.actions.ndim != 2 or chunk.actions.shape[1] != ACTION_DIM:
            raise ChunkRefused(
                f"chunk: expected (K, {ACTION_DIM}) actions, two arms; got {chunk.actions.shape}. "
                "The policy was trained for another robot"
            )
        bad = np.argwhere(~np.isfinite(chunk.actions))
        if bad.size:
            row, joint = (int(place) for place in bad[0])
            raise ChunkRefused(
                f"chunk: expected finite actions; {len(bad)} are not, the first is row {row}, "
                f"{ACTION_NAMES[joint]}: {chunk.actions[row, joint]}"
            )
        if abs(chunk.dt_ns - self._dt_ns) > _DT_TOLERANCE * self._dt_ns:
            raise ChunkRefused(
                f"chunk: expected one action per {self._dt_ns * 1e-6:.3f} ms; got "
                f"{chunk.dt_ns * 1e-6:.3f} ms. Set control_rate_hz of policy_node and "
                "controller_node to the same value"
            )
        age_s = (now_ns - chunk.stamp_ns) * 1e-9
        if age_s < -self._config.max_future_s:
            raise ChunkRefused(
                f"chunk: expected an observation of the past; got one {-age_s:.3f} s in the "
                f"future (queue.max_future_s {self._config.max_future_s:g}). Synchronise the "
                "clocks of both machines"
            )
        if age_s > self._config.max_chunk_age_s:
            raise ChunkRefused(
                f"chunk: expected an observation of at most {self._config.max_chunk_age_s:g} s "
                f"(queue.max_chunk_age_s); got {age_s:.3f} s"
            )
        if self._newest_stamp_ns is not None and chunk.stamp_ns <= self._newest_stamp_ns:
            late_s = (self._newest_stamp_ns - chunk.stamp_ns) * 1e-9
            raise ChunkRefused(
                "chunk: expected an observation after that of the last chunk; got one "
                f"{late_s:.3f} s before it"
            )

    # Joins that go by time.

    def _place(self, placed: PlacedChunk, now_ns: int) -> JoinReport:
        if self._placed and all(now_ns > c.end_ns + self._dt_ns // 2 for c in self._placed):
            self._end_motion()  # the tick after the last row has passed without being asked for
        standing = self._gap_start_ns is not None
        placed = self._resumed(placed, now_ns)
        index = int(placed.position(now_ns) + 0.5)
        if placed.remaining(now_ns) == 0:
            raise ChunkRefused(
                f"chunk: expected at least one row still to come; {index} steps were executed "
                f"since its observation and it has {len(placed.rows)} rows"
            )
        report = self._report(placed, now_ns, index)
        if standing:  # when it starts is known at the next tick only
            self._waiting = deque([placed])
            return report
        position, velocity = self._motion(now_ns)
        if self._config.join == "temporal_ensemble":
            self._placed = [c for c in self._placed if c.instruction == placed.instruction]
        else:
            self._placed = []
        self._placed.append(placed)
        self._begin_fade(
            now_ns, position - placed.sample(now_ns), velocity - placed.velocity(now_ns)
        )
        return report

    def _sample(self, now_ns: int) -> np.ndarray | None:
        if self._waiting:
            self._resume(now_ns)
        lasting = [chunk for chunk in self._placed if chunk.remaining(now_ns)]
        if not lasting:
            if self._placed:
                self._end_motion()
            return None
        self._placed = lasting
        action = self._placed[-1].sample(now_ns)
        action[_ARM_JOINTS] = self._mean([c.sample(now_ns) for c in self._placed])[_ARM_JOINTS]
        if self._config.join == "replace" or self._last is None:
            return action
        if self._fade is not None:
            action[_ARM_JOINTS] += self._fade.at(now_ns)[_ARM_JOINTS]
        if now_ns < self._gripper_undecided_until_ns:
            self._settle_grippers(action, self._last)
        return action

    def _settle_grippers(self, action: np.ndarray, last: np.ndarray) -> None:
        """Keeps a gripper where it is while the new chunk is undecided between open and closed."""
        wanted = action[_GRIPPERS]
        band = self._config.gripper_hysteresis
        near = np.abs(wanted - last[_GRIPPERS]) <= band
        decided = np.abs(wanted - _OPEN_CLOSED_MIDDLE) >= band
        action[_GRIPPERS] = np.where(near | decided, wanted, last[_GRIPPERS])

    def _motion(self, now_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity of the running motion, what still fades included."""
        position = self._mean([chunk.continued(now_ns) for chunk in self._placed])
        velocity = self._mean([chunk.velocity(now_ns) for chunk in self._placed])
        if self._fade is not None:
            position = position + self._fade.at(now_ns)
            velocity = velocity + self._fade.velocity_at(now_ns)
        return position, velocity

    def _mean(self, values: list[np.ndarray]) -> np.ndarray:
        """Weighted mean over chunks, oldest first; only temporal_ensemble ever has several."""
        weights = np.exp(-self._config.ensemble_decay * np.arange(len(values)))
        return np.asarray(weights @ np.stack(values) / weights.sum())  # (chunks, A) → (A,)

    def _begin_fade(self, start_ns: int, offset: np.ndarray, velocity: np.ndarray) -> None:
        length_ns = self._config.blend_steps * self._dt_ns
        self._fade = None
        if self._config.join == "latency_matched_blend" and length_ns:
            self._fade = Fade(
                start_ns=start_ns, length_ns=length_ns, offset=offset, velocity=velocity
            )
        if np.abs(offset[_GRIPPERS]).max() > _AGREE:
            self._gripper_undecided_until_ns = start_ns + length_ns

    # Standing still: time in which nothing was executed.

    def _end_motion(self) -> None:
        self._gap_start_ns = max(chunk.end_ns for chunk in self._placed)
        self._placed = []
        self._fade = None

    def _is_stale(self, placed: PlacedChunk, now_ns: int) -> bool:
        return (now_ns - placed.stamp_ns) * 1e-9 > self._config.max_chunk_age_s

    def _resumed(self, placed: PlacedChunk, now_ns: int) -> PlacedChunk:
        """The chunk, moved by the time since its observation in which nothing was executed."""
        gaps = list(self._gaps)
        if self._gap_start_ns is not None:
            gaps.append((self._gap_start_ns, now_ns))
        stamp_ns = placed.stamp_ns
        idle_ns = sum(max(0, end - max(start, stamp_ns)) for start, end in gaps)
        return replace(placed, origin_ns=stamp_ns + idle_ns)

    def _resume(self, now_ns: int) -> None:
        placed = self._resumed(self._waiting.pop(), now_ns)
        if self._is_stale(placed, now_ns):
            return
        assert self._gap_start_ns is not None  # a chunk waits only while the robot stands
        self._gaps.append((self._gap_start_ns, now_ns))
        self._gap_start_ns = None
        self._placed = [placed]
        if self._last is not None:  # from rest, one period ago, so that this tick already moves
            velocity = placed.velocity(now_ns)
            offset = self._last - (placed.sample(now_ns) - velocity * self._dt_ns * 1e-9)
            self._begin_fade(now_ns - self._dt_ns, offset, -velocity)

    # Joins that play chunks from their first row.

    def _play_later(self, placed: PlacedChunk, now_ns: int) -> JoinReport:
        steps = self._config.play_steps or len(placed.rows)
        placed = replace(placed, rows=placed.rows[:steps])
        report = self._report(placed, now_ns, 0)
        if self._config.join == "sync":
            self._waiting.clear()
        elif len(self._waiting) >= self._config.max_waiting_chunks:
            raise ChunkRefused(
                f"chunk: expected at most {self._config.max_waiting_chunks} chunks to wait "
                "(queue.max_waiting_chunks); the policy answers faster than its chunks are "
                "played. Raise its execute_steps or lower queue.play_steps"
            )
        self._waiting.append(placed)
        return report

    def _play(self, now_ns: int) -> np.ndarray | None:
        if self._placed and self._is_stale(self._placed[0], now_ns - self._placed[0].length_ns):
            self._next_row = len(self._placed[0].rows)  # the ticks had stopped meanwhile
        while not self._placed or self._next_row == len(self._placed[0].rows):
            self._placed = []
            self._next_row = 0
            if not self._waiting:
                return None
            following = self._waiting.popleft()
            if not self._is_stale(following, now_ns):
                self._placed = [following]
        self._next_row += 1
        return np.asarray(self._placed[0].rows[self._next_row - 1])

    def _report(self, placed: PlacedChunk, now_ns: int, index: int) -> JoinReport:
        before = self._before(now_ns)
        jump, step = 0.0, 0.0
        if before is not None:
            position, velocity = before
            at_ns = placed.origin_ns if self._plays else now_ns
            seam = np.abs(placed.sample(at_ns) - position)[_ARM_JOINTS]
            change = np.abs(placed.velocity(at_ns) - velocity)[_ARM_JOINTS]
            jump, step = float(seam.max()), float(change.max())
        return JoinReport(
            first=before is None,
            index=index,
            seam_jump_rad=jump,
            velocity_step_rad_s=step,
            staleness_s=(now_ns - placed.stamp_ns) * 1e-9,
        )

    def _before(self, now_ns: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Position and velocity that a new chunk has to continue; None before any motion."""
        if self._plays:
            queued = [*self._placed, *(self._waiting if self._config.join == "append" else ())]
            if queued:
                return queued[-1].rows[-1], queued[-1].velocity(queued[-1].end_ns)
        elif self._placed:
            return self._motion(now_ns)
        return None if self._last is None else (self._last, np.zeros(ACTION_DIM))
