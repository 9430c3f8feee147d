"""Whether the grippers stay in their workspace and the two arms apart, by forward kinematics."""

from __future__ import annotations

import numpy as np

from vla_oft_ros.aloha import ARM_DIM, ARMS
from vla_oft_ros.config import SafetyConfig
from vla_oft_ros.kinematics import ARM_JOINT_COUNT, BasePose, link_distances, link_points

_SAME_M = 1e-9


class Clearance:
    """The spatial limits of a pair of arms."""

    def __init__(self, config: SafetyConfig) -> None:
        self._lower = np.array(config.workspace_lower_m)
        self._upper = np.array(config.workspace_upper_m)
        self._bases = [BasePose(*pose) for pose in (config.left_base_pose, config.right_base_pose)]
        links = 4
        self._least = np.full((links, links), config.min_arm_distance_m)
        self._least[-1, -1] = config.min_gripper_distance_m

    def violations(self, poses: np.ndarray) -> np.ndarray:
        """By how much poses break the limits.

        Args:
            poses: (..., 14) joint targets.

        Returns:
            (..., 3) metres, 0 where a limit is kept: left gripper out of its workspace, right
            gripper out of its workspace, missing distance of the arms.
        """
        points = [
            link_points(poses[..., arm * ARM_DIM : arm * ARM_DIM + ARM_JOINT_COUNT])
            for arm in range(len(ARMS))
        ]
        tips = np.stack([arm[..., -1, :] for arm in points], axis=-2)  # (..., arms, 3)
        outside = np.maximum(self._lower - tips, tips - self._upper).max(axis=-1)
        placed = [base.place(arm) for base, arm in zip(self._bases, points, strict=True)]
        missing = (self._least - link_distances(placed[0], placed[1])).max(axis=(-2, -1))
        amounts = np.concatenate([outside, missing[..., None]], axis=-1)  # (..., 3)
        return np.asarray(np.maximum(amounts, 0.0))

    def problem(self, present: np.ndarray, poses: np.ndarray) -> tuple[str, str] | None:
        """The first limit that poses break by more than the present pose already does.

        Args:
            present: (14,) where the targets are.
            poses: (n, 14) where they are to go.

        Returns:
            Kind and reason, or None if all is well.
        """
        amounts = self.violations(np.concatenate([present[None], poses]))  # (1 + n, 3)
        worst = amounts[1:].max(axis=0)
        broken = worst > amounts[0] + _SAME_M
        if broken[-1]:
            return "arm_distance", f"the arms would come {worst[-1] * 1e3:.0f} mm too close"
        for arm, name in enumerate(ARMS):
            if broken[arm]:
                return "workspace", (
                    f"the {name} gripper would leave its workspace by {worst[arm] * 1e3:.0f} mm"
                )
        return None
