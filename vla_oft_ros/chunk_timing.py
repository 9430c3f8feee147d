"""One action chunk placed in time, and the difference between two motions that fades after a join.

Plain arithmetic for `chunk_queue.py`: a row becomes an instant, an instant becomes an action.
Knows nothing of join policies or of what was executed. Time is integer nanoseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vla_oft_ros.aloha import GRIPPERS

_GRIPPERS = np.array(GRIPPERS)


@dataclass(frozen=True, kw_only=True)
class PlacedChunk:
    """A chunk with its place in time: row k is due at `origin_ns + k · dt_ns`.

    Attributes:
        rows: (K, A) float64 actions.
        stamp_ns: Stamp of the observation, nanoseconds.
        dt_ns: Time between two rows, nanoseconds.
        origin_ns: When row 0 is due, nanoseconds.
        instruction: The instruction it answers.
    """

    rows: np.ndarray
    stamp_ns: int
    dt_ns: int
    origin_ns: int
    instruction: str

    def position(self, now_ns: int) -> float:
        """Place on the row axis, in rows; 0 is row 0."""
        return (now_ns - self.origin_ns) / self.dt_ns

    def remaining(self, now_ns: int) -> int:
        """Ticks from `now_ns` on, one period apart, that this chunk can still serve."""
        return max(0, math.ceil(len(self.rows) - 0.5 - self.position(now_ns)))

    @property
    def length_ns(self) -> int:
        """How long the chunk lasts, nanoseconds."""
        return len(self.rows) * self.dt_ns

    @property
    def end_ns(self) -> int:
        """When the row after the last one would be due."""
        return self.origin_ns + self.length_ns

    def sample(self, now_ns: int) -> np.ndarray:
        """(A,) action due now: arm joints linear between rows, grippers from the nearest row."""
        place = min(max(self.position(now_ns), 0.0), len(self.rows) - 1.0)
        below = int(place)
        above = min(below + 1, len(self.rows) - 1)
        action = self.rows[below] + (place - below) * (self.rows[above] - self.rows[below])
        nearest = self.rows[int(place + 0.5)]
        action[_GRIPPERS] = nearest[_GRIPPERS]
        return np.asarray(action)

    def continued(self, now_ns: int) -> np.ndarray:
        """(A,) as `sample`, but past the last row the motion goes on in a straight line."""
        overrun_s = max(self.position(now_ns) - (len(self.rows) - 1), 0.0) * self.dt_ns * 1e-9
        return np.asarray(self.sample(now_ns) + overrun_s * self.velocity(now_ns))

    def velocity(self, now_ns: int) -> np.ndarray:
        """(A,) slope of the rows that lead to now, per second; of the first two at the start.

        Looking back is what an old chunk can still do at its last row; looking the same way in the
        new chunk makes the difference of both a difference of the predictions alone.
        """
        if len(self.rows) == 1:
            return np.zeros(self.rows.shape[1])
        below = min(max(math.ceil(self.position(now_ns)) - 1, 0), len(self.rows) - 2)
        slope = (self.rows[below + 1] - self.rows[below]) / (self.dt_ns * 1e-9)
        return np.asarray(slope)


@dataclass(frozen=True, kw_only=True)
class Fade:
    """What is left of the difference to the motion before a join; it dies out smoothly.

    Attributes:
        start_ns: The join, nanoseconds.
        length_ns: Time in which it dies out, nanoseconds.
        offset: (A,) motion before the join minus motion after it, at the join.
        velocity: (A,) the same for the velocity, per second.
    """

    start_ns: int
    length_ns: int
    offset: np.ndarray
    velocity: np.ndarray

    def at(self, now_ns: int) -> np.ndarray:
        """(A,) what to add to the new chunk."""
        share = min(max((now_ns - self.start_ns) / self.length_ns, 0.0), 1.0)
        # Quintic with value 1 (slope 1) and no acceleration at 0, and value, slope and
        # acceleration 0 at 1.
        of_offset = 1.0 + share**3 * (-10.0 + share * (15.0 - 6.0 * share))
        of_slope = share + share**3 * (-6.0 + share * (8.0 - 3.0 * share))
        return self.offset * of_offset + self.velocity * (self.length_ns * 1e-9 * of_slope)

    def velocity_at(self, now_ns: int) -> np.ndarray:
        """(A,) its time derivative, per second."""
        share = min(max((now_ns - self.start_ns) / self.length_ns, 0.0), 1.0)
        of_offset = share**2 * (-30.0 + share * (60.0 - 30.0 * share))
        of_slope = 1.0 + share**2 * (-18.0 + share * (32.0 - 15.0 * share))
        return self.offset * (of_offset / (self.length_ns * 1e-9)) + self.velocity * of_slope
