import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_oft_ros.aloha import SLEEP_ARM_POSE_RAD, START_ARM_POSE_RAD
from vla_oft_ros.kinematics import (
    BasePose,
    end_effector_pose,
    gripper_motion,
    link_distances,
    link_points,
)

ZERO_POSE = (0.0,) * 6
MIXED_POSE = (0.3, -0.5, 0.7, 0.4, -0.2, 1.1)
DT_S = 0.04
angles = arrays(np.float64, 6, elements=st.floats(-math.pi, math.pi))
points = arrays(np.float64, (2, 3), elements=st.floats(-1.0, 1.0, width=32))


def about(axis: int, angle: float) -> np.ndarray:
    """4 x 4 rotation about x (0), y (1) or z (2)."""
    matrix = np.eye(4)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[[i, j], [i, j]] = math.cos(angle)
    matrix[i, j], matrix[j, i] = -math.sin(angle), math.sin(angle)
    return matrix


def along(x: float = 0.0, z: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3], matrix[2, 3] = x, z
    return matrix


def urdf_chain(q) -> list[np.ndarray]:
    """Frames of elbow, wrist and ee_gripper_link, joint by joint as the URDF strings them."""
    elbow = along(z=0.079) @ about(2, q[0]) @ along(z=0.04805) @ about(1, q[1])
    elbow = elbow @ along(x=0.05955, z=0.3)
    wrist = elbow @ about(1, q[2]) @ along(x=0.2) @ about(0, q[3]) @ along(x=0.1)
    hand = wrist @ about(1, q[4]) @ along(x=0.069744) @ about(0, q[5])
    return [elbow, wrist, hand @ along(x=0.042825 + 0.025875 + 0.0385)]


@given(q=angles)
def test_product_of_exponentials_equals_the_urdf_chain(q):
    elbow, wrist, hand = urdf_chain(q)
    rotation, position = end_effector_pose(q)
    np.testing.assert_allclose(position, hand[:3, 3], atol=1e-12)
    np.testing.assert_allclose(rotation, hand[:3, :3], atol=1e-12)
    ends = link_points(q)
    np.testing.assert_allclose(ends[0], 0.0)
    np.testing.assert_allclose(ends[1], [0.0, 0.0, 0.12705], atol=1e-12)
    np.testing.assert_allclose(ends[2], elbow[:3, 3], atol=1e-12)
    np.testing.assert_allclose(ends[3], wrist[:3, 3], atol=1e-12)
    np.testing.assert_allclose(ends[4], position, atol=1e-12)


@pytest.mark.parametrize(
    ("pose", "position"),
    [
        (ZERO_POSE, (0.536494, 0.0, 0.42705)),
        (START_ARM_POSE_RAD, (0.258476, 0.0, 0.305953)),
        (SLEEP_ARM_POSE_RAD, (-0.136195, 0.0, 0.270331)),
        (MIXED_POSE, (0.365970, 0.098878, 0.356554)),
    ],
)
def test_known_poses_have_their_known_positions(pose, position):
    np.testing.assert_allclose(end_effector_pose(np.array(pose))[1], position, atol=1e-6)


def test_known_poses_have_their_known_rotations():
    rotation = end_effector_pose(np.array(MIXED_POSE))[0]
    expected = [
        [0.975223, -0.002510, 0.221210],
        [0.220689, 0.080509, -0.972016],
        [-0.015370, 0.996751, 0.079068],
    ]
    np.testing.assert_allclose(rotation, expected, atol=1e-6)
    pitched = end_effector_pose(np.array(START_ARM_POSE_RAD))[0]
    np.testing.assert_allclose(pitched, about(1, -0.1)[:3, :3], atol=1e-9)


def test_leading_dimensions_pass_through():
    q = np.random.default_rng(0).uniform(-1.0, 1.0, (3, 2, 6))
    rotations, positions = end_effector_pose(q)
    assert rotations.shape == (3, 2, 3, 3) and link_points(q).shape == (3, 2, 5, 3)
    for place in np.ndindex(3, 2):
        np.testing.assert_array_equal(positions[place], end_effector_pose(q[place])[1])


@pytest.mark.parametrize("wrong", [np.zeros(7), np.zeros((6, 7)), np.float64(0.0)])
def test_anything_but_six_angles_is_refused(wrong):
    with pytest.raises(ValueError, match="6"):
        end_effector_pose(wrong)


# Speeds.


def test_a_known_step_from_the_start_pose_has_its_known_speeds():
    start = np.array(START_ARM_POSE_RAD)
    step = np.array([0.02, 0.03, -0.02, 0.01, 0.04, 0.05])
    motion = gripper_motion(start, start + step, DT_S)
    assert motion.translation_m_s == pytest.approx(0.2490, abs=1e-4)
    assert motion.rotation_rad_s == pytest.approx(2.021, abs=1e-3)


@pytest.mark.parametrize(("joint", "speed"), enumerate([0.259, 0.314, 0.472, 0.052, 0.177, 0.0]))
def test_each_joint_moves_the_gripper_of_the_start_pose_at_its_known_speed(joint, speed):
    start = np.array(START_ARM_POSE_RAD)
    step = np.zeros(6)
    step[joint] = 1e-5
    motion = gripper_motion(start, start + step, 1e-5)
    assert motion.translation_m_s == pytest.approx(speed, abs=6e-4)
    assert motion.rotation_rad_s == pytest.approx(1.0, abs=1e-6)


@given(q=angles, step=st.floats(-3.1, 3.1))
def test_turning_the_last_joint_rotates_by_its_own_angle_without_moving(q, step):
    turned = q + np.array([0.0, 0.0, 0.0, 0.0, 0.0, step])
    motion = gripper_motion(q, turned, DT_S)
    assert motion.rotation_rad_s * DT_S == pytest.approx(abs(step), abs=1e-6)
    assert motion.translation_m_s == pytest.approx(0.0, abs=1e-9)


@given(before=angles, after=angles)
def test_the_way_back_has_the_same_speeds_and_the_opposite_rise(before, after):
    there, back = gripper_motion(before, after, DT_S), gripper_motion(after, before, DT_S)
    assert there.translation_m_s == pytest.approx(back.translation_m_s)
    assert there.rotation_rad_s == pytest.approx(back.rotation_rad_s)
    assert there.rise_m_s == pytest.approx(-back.rise_m_s)
    assert abs(there.rise_m_s) <= there.translation_m_s + 1e-9


def test_raising_the_shoulder_is_a_positive_rise():
    start = np.array(START_ARM_POSE_RAD)
    up = start - np.array([0.0, 0.05, 0.0, 0.0, 0.0, 0.0])  # positive shoulder angles lean forward
    assert gripper_motion(start, up, DT_S).rise_m_s > 0.1


@pytest.mark.parametrize("dt_s", [0.0, -0.04, math.nan])
def test_a_step_without_duration_is_refused(dt_s):
    with pytest.raises(ValueError, match="dt_s"):
        gripper_motion(np.zeros(6), np.zeros(6), dt_s)


# Two arms.


def test_a_base_pose_turns_and_then_moves():
    right = BasePose(x_m=0.469, y_m=0.5, z_m=0.1, yaw_rad=math.pi)
    np.testing.assert_allclose(right.place(np.array([0.2, 0.1, 0.3])), [0.269, 0.4, 0.4])
    beside = BasePose(x_m=0.0, y_m=0.0, z_m=0.0, yaw_rad=math.pi / 2)
    np.testing.assert_allclose(
        beside.place(np.array([1.0, 0.0, 0.0])), [0.0, 1.0, 0.0], atol=1e-12
    )


@settings(max_examples=200, deadline=None)
@given(left=points, right=points)
def test_link_distance_is_the_least_over_all_pairs_of_points(left, right):
    distance = link_distances(left, right)[0, 0]
    share = np.linspace(0.0, 1.0, 101)[:, None]
    on_left = left[0] + share * (left[1] - left[0])
    on_right = right[0] + share * (right[1] - right[0])
    sampled = np.linalg.norm(on_left[:, None] - on_right[None], axis=-1).min()
    spacing = 0.005 * (np.linalg.norm(left[1] - left[0]) + np.linalg.norm(right[1] - right[0]))
    assert sampled - spacing - 1e-6 <= distance <= sampled + 1e-6


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ([[0.0, 0.0, 0.5], [1.0, 0.0, 0.5]], 0.5),  # parallel, side by side
        ([[3.0, 0.0, 0.0], [4.0, 0.0, 0.0]], 2.0),  # on one line
        ([[0.5, -1.0, 0.0], [0.5, 1.0, 0.0]], 0.0),  # crossing
        ([[0.5, 0.3, 0.0], [0.5, 0.3, 0.0]], 0.3),  # a link without length
    ],
)
def test_link_distance_of_special_positions(right, expected):
    left = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert link_distances(left, np.array(right))[0, 0] == pytest.approx(expected, abs=1e-9)
    assert link_distances(np.array(right), left)[0, 0] == pytest.approx(expected, abs=1e-9)


def test_arms_that_face_each_other_in_the_start_pose_are_as_far_apart_as_their_grippers():
    left = BasePose(x_m=-0.469, y_m=0.5, z_m=0.0, yaw_rad=0.0)
    right = BasePose(x_m=0.469, y_m=0.5, z_m=0.0, yaw_rad=math.pi)
    ends = link_points(np.array(START_ARM_POSE_RAD))
    distances = link_distances(left.place(ends), right.place(ends))
    assert distances.shape == (4, 4)
    assert distances.min() == distances[3, 3] == pytest.approx(2 * (0.469 - 0.258476), abs=1e-5)
