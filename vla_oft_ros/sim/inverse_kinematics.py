"""Joint angles that bring an arm's tool point to a pose: damped least squares on the scene's own
model.

Serves the scripted teleoperator. Follows one solution continuously instead of searching for all:
each answer starts from the one before, so small moves of the tool are small moves of the joints.
"""

from __future__ import annotations

import mujoco
import numpy as np

from vla_oft_ros.aloha import ARM_JOINTS

TOOL_M = 0.1347
"""Distance from gripper_link to the point between the finger tips, along the fingers (measured on
the meshes)."""
DAMPING = 1e-4
"""Keeps steps finite near singular poses; in the units of squared Jacobian entries (m², rad²)."""
MAX_STEP_RAD = 0.2
ITERATIONS = 40
TOLERANCE = 1e-4
"""Iteration ends below this error; metres and radians alike."""


class ToolSolver:
    """Inverse kinematics of one arm, in the frame of its base.

    Args:
        model: The scene; only read.
        arm: left or right.
    """

    def __init__(self, model: mujoco.MjModel, arm: str) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._link = model.body(f"vx300s_{arm}/gripper_link").id
        joints = [model.joint(f"vx300s_{arm}/{joint}") for joint in ARM_JOINTS]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dof = np.array([joint.dofadr[0] for joint in joints])
        self._lower, self._upper = np.array([joint.range for joint in joints]).T
        mujoco.mj_kinematics(model, self._data)
        base = self._data.body(f"vx300s_{arm}")
        self.base_position_m: np.ndarray = np.array(base.xpos)
        """(3,) position of the arm's base in the world."""
        self.base_rotation: np.ndarray = np.array(base.xmat).reshape(3, 3)
        """(3, 3) rotation from the arm's base to the world."""

    def forward(self, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pose of the tool point in the base frame.

        Args:
            angles: (6,) joint angles, rad.

        Returns:
            (3,) position in m and (3, 3) rotation, x along the fingers, z up at the start pose.
        """
        self._data.qpos[self._qpos] = angles
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)  # for the Jacobian
        rotation = np.array(self._data.xmat[self._link]).reshape(3, 3)
        point = self._data.xpos[self._link] + TOOL_M * rotation[:, 0]
        to_base = self.base_rotation.T
        return to_base @ (point - self.base_position_m), to_base @ rotation

    def solve(self, position_m: np.ndarray, rotation: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Joint angles that reach a pose of the tool point, or come near where it cannot be
        reached.

        Args:
            position_m: (3,) in the base frame.
            rotation: (3, 3) in the base frame.
            start: (6,) angles from which to start, rad; the answer is the nearest solution
                downhill of it.

        Returns:
            (6,) float64 angles within the joints' limits, rad.
        """
        angles = np.array(start, dtype=np.float64)
        jacobian = np.empty((6, self._model.nv))
        for _ in range(ITERATIONS):
            reached_m, turned = self.forward(angles)
            error = np.concatenate([position_m - reached_m, _rotation_vector(rotation @ turned.T)])
            if np.linalg.norm(error) < TOLERANCE:
                break
            world_error = np.concatenate(
                [self.base_rotation @ part for part in np.split(error, 2)]
            )
            point = self.base_position_m + self.base_rotation @ reached_m
            mujoco.mj_jac(self._model, self._data, jacobian[:3], jacobian[3:], point, self._link)
            arm = jacobian[:, self._dof]  # (6, 6)
            step = arm.T @ np.linalg.solve(arm @ arm.T + DAMPING * np.eye(6), world_error)
            step *= min(1.0, MAX_STEP_RAD / max(np.abs(step).max(), 1e-12))
            angles = np.clip(angles + step, self._lower, self._upper)
        return angles


def _rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """(3,) axis times angle of a rotation matrix, rad."""
    quaternion, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector
