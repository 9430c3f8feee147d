"""Simulated leader arms with a scripted operator at them: what real leaders would say.

The operator rests, demonstrates, rests again; between demonstrations the leaders stand in the
start pose. Knows neither ROS nor clocks.
"""

from __future__ import annotations

from enum import Enum

import mujoco
import numpy as np

from vla_oft_ros.aloha import (
    ARM_DIM,
    ARMS,
    GripperCalibration,
    RobotProfile,
    start_pose,
)
from vla_oft_ros.sim.demonstrator import Demonstrator, Script

LEADER_HORN_M, LEADER_ARM_M = 0.014, 0.024
"""Gripper geometry of the leaders, wx250s (interbotix_xs_sdk)."""


class Phase(Enum):
    """What the operator is doing."""

    WAITING = "waiting"
    DEMONSTRATING = "demonstrating"
    DONE = "done"


class ScriptedOperator:
    """Moves two leaders through one demonstration after the other.

    Args:
        model: The scene, for its kinematics.
        script: What is demonstrated.
        start_opening: Opening of both grippers in the start pose, action scale.
        rest_s: How long the operator waits before and after the motion.
    """

    def __init__(
        self, model: mujoco.MjModel, script: Script, start_opening: float, rest_s: float
    ) -> None:
        self._demonstrator, self._script = Demonstrator(model, script, start_opening), script
        self._start = start_pose(start_opening)
        self._rest_s = rest_s
        self.rest()

    def rest(self) -> None:
        """Puts the leaders back into the start pose, whatever they were doing."""
        self._demonstrator.reset()
        self.phase = Phase.WAITING
        self._begin_ns: int | None = None
        self._last = self._start
        self._offset_m = self._cube_m = np.zeros(3)

    def demonstrate(self, offset_m: np.ndarray) -> None:
        """Begins a demonstration at the next instant.

        Args:
            offset_m: (3,) how far beside the object the operator reaches.
        """
        self.rest()
        self.phase, self._offset_m = Phase.DEMONSTRATING, offset_m

    def positions(self, stamp_ns: int, cube_m: np.ndarray) -> np.ndarray:
        """Where the leaders are; ask for ascending times.

        Args:
            stamp_ns: Present time, nanoseconds.
            cube_m: (3,) or longer; where the cube is now, in the world. The operator looks at it
                until the gripper closes.

        Returns:
            (14,) float64: rad; gripper openings on the action scale.
        """
        if self.phase is not Phase.DEMONSTRATING:
            return self._last
        if self._begin_ns is None:
            self._begin_ns = stamp_ns
        time_s = (stamp_ns - self._begin_ns) * 1e-9 - self._rest_s
        duration_s = self._script.duration_s
        if time_s <= self._script.look_s:
            self._cube_m = cube_m[:3] + self._offset_m
        if time_s > duration_s + self._rest_s:
            self.phase = Phase.DONE
        elif 0.0 < time_s <= duration_s:
            self._last = self._demonstrator.targets(time_s, self._cube_m)
        return self._last


def leader_joints(profile: RobotProfile, arm: str, positions: np.ndarray) -> np.ndarray:
    """What the driver of one leader would publish.

    Args:
        profile: Gripper constants.
        arm: "left" or "right".
        positions: (14,) where both leaders are, action scale.

    Returns:
        (9,) float64 positions of `JOINT_STATE_NAMES`: servo angles in rad, fingers in m.
    """
    start = ARMS.index(arm) * ARM_DIM
    *angles, opening = positions[start : start + ARM_DIM].tolist()
    servo_rad = leader_servo_rad(profile.gripper, opening)
    # x = h·sin t + √(a² − (h·cos t)²), as xs_sdk computes it.
    height, width = LEADER_HORN_M * np.sin(servo_rad), LEADER_HORN_M * np.cos(servo_rad)
    finger_m = float(height + np.sqrt(LEADER_ARM_M**2 - width**2))
    return np.array([*angles, servo_rad, finger_m, -finger_m])


def leader_servo_rad(gripper: GripperCalibration, opening: float) -> float:
    """Servo angle of a leader's gripper; inverse of `GripperCalibration.leader_to_action`."""
    closed, opened = gripper.leader_joint_closed_rad, gripper.leader_joint_open_rad
    return closed + opening * (opened - closed)
