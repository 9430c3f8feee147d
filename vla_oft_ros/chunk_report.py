"""What the join of two action chunks did, and figures over many joins, for diagnostics."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

_WINDOW = 100
"""Joins that `JoinStatistics` looks back on."""


@dataclass(frozen=True, kw_only=True)
class JoinReport:
    """What one join did; everything but `staleness_s` is 0 for a chunk that follows nothing.

    Attributes:
        first: True if nothing was handed out before it (since the start or the last `clear`).
        index: Row at which the chunk is entered; the number of actions really executed since its
            observation.
        seam_jump_rad: Largest difference over the arm joints between where the new chunk wants the
            robot at the join and where the motion before it would have it, rad. Before any
            blending.
        velocity_step_rad_s: The same for the velocity, rad/s.
        staleness_s: Age of the observation when the chunk arrived, s.
    """

    first: bool
    index: int
    seam_jump_rad: float
    velocity_step_rad_s: float
    staleness_s: float


class JoinStatistics:
    """Figures over the last joins, without the first one: it carries the policy's warm-up."""

    def __init__(self) -> None:
        self._reports: deque[JoinReport] = deque(maxlen=_WINDOW)

    def add(self, report: JoinReport) -> None:
        """Takes one join into account."""
        if not report.first:
            self._reports.append(report)

    def percentile(self, what: str, percent: float) -> float | None:
        """Percentile of one field of `JoinReport`; None before the second chunk.

        Args:
            what: Field name, e.g. `staleness_s`.
            percent: 0 … 100.
        """
        if not self._reports:
            return None
        values = [float(getattr(report, what)) for report in self._reports]
        return float(np.percentile(values, percent))
