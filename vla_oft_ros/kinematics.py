"""Where the links of a ViperX-300 S are, and how fast its gripper moves between two targets.

Forward kinematics by the product of exponentials, T = e^[S1]q1 … e^[S6]q6 M. Vectorised over any
leading dimensions. Frames: an arm's base_link (x forward, z up) unless a function says otherwise.
Constants: interbotix_xs_modules, mr_descriptions.vx300s, which equals the URDF of aloha_vx300s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

ARM_JOINT_COUNT = 6

# mr_descriptions.vx300s, Slist: axis w and -w × (a point on the axis), one row per joint.
_SCREWS = np.array(
    [
        [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, -0.12705, 0.0, 0.0],
        [0.0, 1.0, 0.0, -0.42705, 0.0, 0.05955],
        [1.0, 0.0, 0.0, 0.0, 0.42705, 0.0],
        [0.0, 1.0, 0.0, -0.42705, 0.0, 0.35955],
        [1.0, 0.0, 0.0, 0.0, 0.42705, 0.0],
    ]
)
HOME_POSITION_M = np.array([0.536494, 0.0, 0.42705])
"""ee_gripper_link at all joints zero; its rotation is the identity (mr_descriptions.vx300s, M)."""
_SHOULDER_M = np.array([0.0, 0.0, 0.12705])
_ELBOW_HOME_M = np.array([0.05955, 0.0, 0.42705])
_WRIST_HOME_M = np.array([0.35955, 0.0, 0.42705])


def _matrices(screws: np.ndarray) -> np.ndarray:
    """[S] of each screw: (6, 4, 4)."""
    matrices = np.zeros((len(screws), 4, 4))
    for matrix, (wx, wy, wz, vx, vy, vz) in zip(matrices, screws, strict=True):
        matrix[:3] = [[0.0, -wz, wy, vx], [wz, 0.0, -wx, vy], [-wy, wx, 0.0, vz]]
    return matrices


_S = _matrices(_SCREWS)
_S_SQUARED = _S @ _S


def home_axes() -> tuple[np.ndarray, np.ndarray]:
    """Where the joints turn at all joints zero, in the arm's base_link.

    Returns:
        Directions (6, 3), of length 1, and of each axis the point nearest to the base (6, 3), m.
    """
    directions, moments = _SCREWS[:, :3], _SCREWS[:, 3:]
    return directions.copy(), np.cross(directions, moments)  # v = -w × p


@dataclass(frozen=True)
class BasePose:
    """Where an arm stands: position of its base_link and heading about the vertical.

    Attributes:
        x_m: Position in the frame of the table, m.
        y_m: Position, m.
        z_m: Height, m.
        yaw_rad: Direction in which the arm's x axis points, rad.
    """

    x_m: float
    y_m: float
    z_m: float
    yaw_rad: float

    def place(self, points: np.ndarray) -> np.ndarray:
        """Moves points (..., 3) from the arm's base frame into that of the table, m."""
        cosine, sine = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        rotation = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        return np.asarray(points @ rotation.T + np.array([self.x_m, self.y_m, self.z_m]))


@dataclass(frozen=True, kw_only=True)
class GripperMotion:
    """How one gripper moves from one target to the next; every field has shape (...).

    Attributes:
        translation_m_s: Speed of ee_gripper_link, m/s.
        rotation_rad_s: Angular speed, rad/s.
        rise_m_s: Vertical velocity, positive upward, m/s.
    """

    translation_m_s: np.ndarray
    rotation_rad_s: np.ndarray
    rise_m_s: np.ndarray


def _joint_transforms(arm_q: np.ndarray) -> np.ndarray:
    """e^[S1]q1 … e^[Sn]qn for n = 1 … 6: (..., 6, 4, 4)."""
    arm_q = np.asarray(arm_q, dtype=np.float64)
    if arm_q.ndim == 0 or arm_q.shape[-1] != ARM_JOINT_COUNT:
        raise ValueError(
            f"arm_q: expected (..., {ARM_JOINT_COUNT}) joint angles of one arm, without the "
            f"gripper; got {arm_q.shape}"
        )
    angle = arm_q[..., None, None]  # (..., 6, 1, 1)
    # A screw without pitch has [S]³ = -[S], so its exponential is Rodrigues' formula.
    transforms = np.eye(4) + np.sin(angle) * _S + (1.0 - np.cos(angle)) * _S_SQUARED
    for joint in range(1, ARM_JOINT_COUNT):
        transforms[..., joint, :, :] = (
            transforms[..., joint - 1, :, :] @ transforms[..., joint, :, :]
        )
    return np.asarray(transforms)


def end_effector_pose(arm_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pose of ee_gripper_link in the arm's base_link.

    Args:
        arm_q: (..., 6) joint angles, rad.

    Returns:
        Rotation (..., 3, 3) and position (..., 3) in m.

    Raises:
        ValueError: if the last dimension is not 6.
    """
    tip = _joint_transforms(arm_q)[..., -1, :, :]
    rotation = tip[..., :3, :3]
    return rotation, rotation @ HOME_POSITION_M + tip[..., :3, 3]


def link_points(arm_q: np.ndarray) -> np.ndarray:
    """Ends of the four links: base, shoulder, elbow, wrist, gripper.

    Args:
        arm_q: (..., 6) joint angles, rad.

    Returns:
        (..., 5, 3) positions in the arm's base_link, m; the last one is ee_gripper_link.

    Raises:
        ValueError: if the last dimension is not 6.
    """
    transforms = _joint_transforms(arm_q)
    points = np.zeros((*transforms.shape[:-3], 5, 3))
    points[..., 1, :] = _SHOULDER_M
    # Each point is carried by the last joint before it.
    for place, (joint, home) in enumerate(
        ((1, _ELBOW_HOME_M), (3, _WRIST_HOME_M), (5, HOME_POSITION_M)), start=2
    ):
        carrier = transforms[..., joint, :, :]
        points[..., place, :] = carrier[..., :3, :3] @ home + carrier[..., :3, 3]
    return points


def link_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distances between the links of two arms, each link taken as the line between its ends.

    Args:
        left: (..., n + 1, 3) ends of n links, m.
        right: (..., m + 1, 3) ends of m links in the same frame, m.

    Returns:
        (..., n, m) shortest distances, m.
    """
    start, other = left[..., :-1, None, :], right[..., None, :-1, :]
    along = np.diff(left, axis=-2)[..., :, None, :]  # (..., n, 1, 3)
    across = np.diff(right, axis=-2)[..., None, :, :]  # (..., 1, m, 3)
    gap = start - other  # (..., n, m, 3)
    # Closest points of two segments, Ericson, Real-Time Collision Detection, §5.1.9.
    a = np.maximum((along * along).sum(-1), 1e-12)
    e = np.maximum((across * across).sum(-1), 1e-12)
    b = (along * across).sum(-1)
    c = (along * gap).sum(-1)
    f = (across * gap).sum(-1)
    determinant = a * e - b * b
    parallel = determinant < 1e-12
    s = np.where(parallel, 0.0, (b * f - c * e) / np.where(parallel, 1.0, determinant))
    t = (b * np.clip(s, 0.0, 1.0) + f) / e
    t = np.clip(t, 0.0, 1.0)
    s = np.clip((b * t - c) / a, 0.0, 1.0)
    difference = gap + s[..., None] * along - t[..., None] * across
    return np.asarray(np.sqrt((difference * difference).sum(-1)))


def gripper_motion(before: np.ndarray, after: np.ndarray, dt_s: float) -> GripperMotion:
    """Speed of a gripper between two successive joint targets.

    Args:
        before: (..., 6) joint angles of one arm, rad.
        after: (..., 6) joint angles one control step later, rad.
        dt_s: Length of the step, s.

    Returns:
        Speeds with the leading shape of the arguments.

    Raises:
        ValueError: if a shape or `dt_s` is wrong.
    """
    if not dt_s > 0.0:
        raise ValueError(f"dt_s: expected a positive time; got {dt_s}")
    rotation_before, position_before = end_effector_pose(before)
    rotation_after, position_after = end_effector_pose(after)
    step = position_after - position_before
    # |R1 - R2|² = 8 sin²(angle / 2): exact for small angles too, where arccos is not.
    chord = np.linalg.norm(rotation_after - rotation_before, axis=(-2, -1)) / math.sqrt(8.0)
    angle = 2.0 * np.arcsin(np.clip(chord, 0.0, 1.0))
    return GripperMotion(
        translation_m_s=np.linalg.norm(step, axis=-1) / dt_s,
        rotation_rad_s=angle / dt_s,
        rise_m_s=step[..., 2] / dt_s,
    )
