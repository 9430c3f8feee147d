"""How far a policy's targets are from what a teleoperator does: figures of shadow mode."""

from __future__ import annotations

from collections import deque

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM, ACTION_NAMES, GRIPPERS

_WINDOW = 250
"""Ticks that the figures look back on: ten seconds at 25 Hz."""
_ARM_JOINTS = [index for index in range(ACTION_DIM) if index not in GRIPPERS]


class ShadowComparison:
    """Differences between two streams of 14-vectors over the last ticks."""

    def __init__(self) -> None:
        self._differences: deque[np.ndarray] = deque(maxlen=_WINDOW)
        self.compared = 0
        """Ticks compared so far."""

    def add(self, target: np.ndarray, teleop: np.ndarray) -> None:
        """Takes one tick into account.

        Args:
            target: (14,) what the robot would have been told, rad and gripper openings.
            teleop: (14,) what the teleoperator did at the same time.
        """
        self._differences.append(np.abs(target - teleop))
        self.compared += 1

    def figures(self) -> dict[str, float | str]:
        """Largest difference over the arm joints per tick as median and 95th percentile, the joint
        that is off most on average, and the same for the grippers; empty before the first tick.
        """
        if not self._differences:
            return {}
        table = np.stack(tuple(self._differences))  # (ticks, 14)
        arm = table[:, _ARM_JOINTS]
        joint = _ARM_JOINTS[int(arm.mean(axis=0).argmax())]
        return {
            "arm_difference_rad_p50": float(np.median(arm.max(axis=1))),
            "arm_difference_rad_p95": float(np.quantile(arm.max(axis=1), 0.95)),
            "worst_joint": ACTION_NAMES[joint],
            "worst_joint_difference_rad": float(table[:, joint].mean()),
            "gripper_difference_p50": float(np.median(table[:, list(GRIPPERS)].max(axis=1))),
        }
