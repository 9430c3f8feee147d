"""Slow moves to the start and the sleep pose, tick by tick, in place of a policy's actions.

What is wanted still goes through the safety gate; a hold on the way is waited for, and the way is
then planned anew from where the arms are. Knows nothing of ROS.
"""

from __future__ import annotations

import numpy as np

from vla_oft_ros.config import SafetyConfig
from vla_oft_ros.motion_limits import parking_poses, plan_parking


class Parking:
    """Goes to a pose and stays there until released.

    Args:
        config: Its parking limits.
        dt_ns: Control period, nanoseconds.
    """

    def __init__(self, config: SafetyConfig, dt_ns: int) -> None:
        self._config, self._dt_ns = config, dt_ns
        self.abort()

    @property
    def pose(self) -> str:
        """`start` or `sleep` on the way to it and in it; empty while a policy drives the arms."""
        return self._pose

    @property
    def arrived(self) -> bool:
        """True once the last target of the way was handed out."""
        return self._plan is not None and self._next == len(self._plan)

    def go(self, pose: str) -> None:
        """Begins the way to a pose at the next tick.

        Raises:
            ValueError: for another name than `start` and `sleep`.
        """
        parking_poses(pose)  # refuses a wrong name before anything changes
        self._pose = pose
        self._plan: np.ndarray | None = None

    def abort(self) -> None:
        """Hands the arms back, wherever they are."""
        self._pose, self._plan, self._next = "", None, 0

    def release(self) -> None:
        """Hands the arms back to the policy.

        Raises:
            ValueError: on the way, and in the sleep pose: the arms unfold by way of the start pose
                only.
        """
        if not self._pose:
            return
        if not self.arrived:
            raise ValueError(f"the arms are on their way to the {self._pose} pose; wait for it")
        if self._pose == "sleep":
            raise ValueError("the arms are folded; call go_to_start first")
        self.abort()

    def next_target(self, present: np.ndarray, held: bool) -> np.ndarray:
        """What is wanted in this tick.

        Args:
            present: (14,) the last target that was given.
            held: True if the gate held in the tick before; the way goes on from `present` then.

        Returns:
            (14,) wanted target.
        """
        if held:
            self._plan = None
            return present
        if self._plan is None:
            poses = parking_poses(self._pose, self._config.start_gripper)
            self._plan = plan_parking(present, poses, self._config, self._dt_ns)  # (T, 14)
            self._next = 0
        row = self._plan[min(self._next, len(self._plan) - 1)]
        self._next = min(self._next + 1, len(self._plan))
        return np.array(row)
