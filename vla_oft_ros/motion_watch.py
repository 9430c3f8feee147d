"""Follows the joint targets that are published and says how the arms move: mode and speeds.

The stateful shell over `action_aware`: one call per target. Time is handed in; knows nothing of
ROS or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_oft_ros.action_aware import (
    ActionAwareState,
    ActionAwareThresholds,
    MotionScale,
    arm_motion,
    next_mode,
)
from vla_oft_ros.types import MotionMode

_PERIOD_TOLERANCE = 0.5
"""Two targets are successive if their distance in time is within this share of the period."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How the arms move, per arm, left first; speeds are per control step over `MotionScale`.

    Attributes:
        mode: Of the action-aware controller.
        translation: (2,) v_t, 1 is the data set's 99th percentile.
        rotation: (2,) v_r, likewise.
        rise: (2,) Δz over the scale of translation, positive upward.
    """

    mode: MotionMode
    translation: tuple[float, float]
    rotation: tuple[float, float]
    rise: tuple[float, float]

    @property
    def speed(self) -> float:
        """V of the reference frame's distance: the faster gripper's translation."""
        return max(self.translation)


AT_REST = Motion(
    mode=MotionMode.FINE, translation=(0.0, 0.0), rotation=(0.0, 0.0), rise=(0.0, 0.0)
)
"""Before anything has moved."""


class MotionWatch:
    """Mode and speeds of the motion under way.

    Args:
        period_ns: Control period, nanoseconds.
        scale: What counts as fast in the data set.
        thresholds: When motion is fine.
    """

    def __init__(
        self, period_ns: int, scale: MotionScale, thresholds: ActionAwareThresholds | None = None
    ) -> None:
        self._period_ns = period_ns
        self._scale = scale
        self._thresholds = thresholds or ActionAwareThresholds()
        self.clear()

    def clear(self) -> None:
        """Forgets everything: a new episode."""
        self._state = ActionAwareState()
        self._before: tuple[int, np.ndarray] | None = None
        self.motion = AT_REST
        """The latest answer."""

    def update(self, stamp_ns: int, targets: np.ndarray) -> Motion:
        """Takes one published target.

        Args:
            stamp_ns: When it was published, nanoseconds.
            targets: (14,) rad and gripper openings.

        Returns:
            Mode and speeds; unchanged by a target that does not follow the last one by a period.
        """
        before, self._before = self._before, (stamp_ns, targets)
        if before is None:
            return self.motion
        error_ns = abs(stamp_ns - before[0] - self._period_ns)
        if error_ns > _PERIOD_TOLERANCE * self._period_ns:
            return self.motion
        self._state = next_mode(self._state, before[1], targets, self._scale, self._thresholds)
        step = arm_motion(before[1], targets, 1.0)
        translation = step.translation_m_s / self._scale.translation_m  # (2,)
        rotation = step.rotation_rad_s / self._scale.rotation_rad
        rise = step.rise_m_s / self._scale.translation_m
        self.motion = Motion(
            mode=self._state.mode,
            translation=(float(translation[0]), float(translation[1])),
            rotation=(float(rotation[0]), float(rotation[1])),
            rise=(float(rise[0]), float(rise[1])),
        )
        return self.motion
