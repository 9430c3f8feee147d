"""Laws of the robot: grippers, limits, joint order, profiles."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_oft_ros.aloha import (
    ACTION_DIM,
    ACTION_NAMES,
    ARM_DIM,
    ARM_JOINTS,
    ARMS,
    CAMERAS,
    GRIPPERS,
    JOINT_STATE_NAMES,
    GripperCalibration,
    JointStateError,
    RobotProfile,
    example_observation,
    load_profile,
    position_limits,
    start_pose,
)
from vla_oft_ros.config import ConfigError, config_dir, load_yaml

PROFILES = sorted(load_yaml(config_dir() / "aloha.yaml"))
SIM = load_profile("sim")
CALIBRATIONS = [load_profile(name).gripper for name in PROFILES]
EXACT = 1e-9
angles = st.floats(-math.pi / 2, math.pi / 2)
openings = st.floats(-0.5, 1.5)


def test_an_action_is_the_left_arm_then_the_right_arm_with_the_gripper_last() -> None:
    assert len(ACTION_NAMES) == ACTION_DIM == 2 * ARM_DIM
    assert ACTION_NAMES[0] == "left/waist" and ACTION_NAMES[7] == "right/waist"
    assert [ACTION_NAMES[place] for place in GRIPPERS] == ["left/gripper", "right/gripper"]


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@given(servo_rad=angles)
def test_finger_and_servo_are_inverse_wherever_a_servo_can_be(
    calibration: GripperCalibration, servo_rad: float
) -> None:
    # Within a millirad of ±90° the finger hardly moves, so only the finger can be compared.
    finger_m = calibration.finger_m(servo_rad)
    assert calibration.finger_m(calibration.servo_rad(finger_m)) == pytest.approx(
        finger_m, abs=EXACT
    )
    if abs(servo_rad) < math.pi / 2 - 1e-3:
        assert calibration.servo_rad(finger_m) == pytest.approx(servo_rad, abs=1e-6)


@pytest.mark.parametrize("finger_m", [-1.0, -0.001, 0.0, 0.01399, 0.0581, 10.0])
def test_a_finger_out_of_reach_gives_the_nearest_servo_angle(finger_m: float) -> None:
    nearest = math.pi / 2 if finger_m > 0.03 else -math.pi / 2
    assert SIM.gripper.servo_rad(finger_m) == pytest.approx(nearest)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@given(opening=openings)
def test_action_and_servo_are_inverse(calibration: GripperCalibration, opening: float) -> None:
    servo_rad = calibration.action_to_servo_rad(opening)
    assert calibration.servo_rad_to_action(servo_rad) == pytest.approx(opening, abs=EXACT)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_open_is_one_and_closed_is_zero_on_every_scale(calibration: GripperCalibration) -> None:
    c = calibration
    assert c.action_to_servo_rad(1.0) == pytest.approx(c.joint_open_rad)
    assert c.action_to_servo_rad(0.0) == pytest.approx(c.joint_closed_rad)
    assert c.leader_to_action(c.leader_joint_open_rad) == pytest.approx(1.0)
    assert c.leader_to_action(c.leader_joint_closed_rad) == pytest.approx(0.0)
    finger = c.observed_scale == "finger"
    opened = c.servo_rad(c.position_open_m) if finger else c.joint_open_rad
    closed = c.servo_rad(c.position_closed_m) if finger else c.joint_closed_rad
    assert c.observed_opening(opened) == pytest.approx(1.0, abs=0.01)
    assert c.observed_opening(closed) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("calibration", CALIBRATIONS)
@given(low=angles, high=angles)
def test_a_larger_servo_angle_never_looks_more_closed(
    calibration: GripperCalibration, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    assert calibration.observed_opening(low) <= calibration.observed_opening(high) + EXACT


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"position_open_m": 0.01}, "expected position_open_m above position_closed_m"),
        ({"joint_open_rad": -1.0}, "expected joint_open_rad above joint_closed_rad"),
        ({"leader_joint_open_rad": -1.0}, "expected leader_joint_open_rad above"),
        ({"arm_m": 0.022}, "expected arm_m above horn_m 0.022; got 0.022"),
    ],
)
def test_a_gripper_that_cannot_exist_is_refused(changes: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(SIM.gripper, **changes)
    assert expected in str(refused.value)


positions = st.lists(st.floats(-3.0, 3.0), min_size=9, max_size=9)


@given(positions=positions, order=st.permutations(range(9)))
def test_the_order_of_a_joint_states_message_does_not_matter(
    positions: list[float], order: list[int]
) -> None:
    straight = SIM.arm_qpos(JOINT_STATE_NAMES, positions)
    shuffled = SIM.arm_qpos(
        [JOINT_STATE_NAMES[place] for place in order], [positions[place] for place in order]
    )
    np.testing.assert_array_equal(shuffled, straight)


@given(positions=positions)
def test_arm_joints_pass_unchanged_and_the_gripper_becomes_an_opening(
    positions: list[float],
) -> None:
    qpos = SIM.arm_qpos(JOINT_STATE_NAMES, positions)
    assert qpos.shape == (ARM_DIM,) and qpos.dtype == np.float64
    assert qpos[:6].tolist() == positions[:6]
    assert qpos[6] == SIM.gripper.observed_opening(positions[6])


@pytest.mark.parametrize("profile", map(load_profile, PROFILES), ids=PROFILES)
@given(servo_rad=st.floats(-1.5, 1.5))
def test_an_arm_that_is_told_to_hold_is_told_the_servo_angles_that_it_has(
    profile: RobotProfile, servo_rad: float
) -> None:
    has = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6, servo_rad])
    qpos = profile.arm_qpos(profile.joint_names, has.tolist())
    told = profile.arm_command(profile.holding_target(qpos))
    np.testing.assert_allclose(told, has, atol=1e-6)


def test_joint_states_without_waist_say_what_was_expected_what_came_and_where_to_change_it() -> (
    None
):
    with pytest.raises(JointStateError) as refused:
        SIM.arm_qpos(JOINT_STATE_NAMES[1:], [0.0] * 8)
    told = str(refused.value)
    assert "expected the joints waist, shoulder, elbow" in told and "profile 'sim'" in told
    assert "waist missing, got shoulder, elbow" in told
    assert "Set joint_names of the profile in config/aloha.yaml" in told


def test_joint_states_without_any_name_are_refused() -> None:
    with pytest.raises(JointStateError, match="missing, got none"):
        SIM.arm_qpos([], [])


def test_joint_states_with_fewer_positions_than_names_are_refused() -> None:
    with pytest.raises(JointStateError, match="got 9 names and 8 positions"):
        SIM.arm_qpos(JOINT_STATE_NAMES, [0.0] * 8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_position_that_is_no_number_names_its_joint(value: float) -> None:
    positions = [0.0] * 9
    positions[2] = value
    with pytest.raises(JointStateError, match="expected finite positions; elbow is not"):
        SIM.arm_qpos(JOINT_STATE_NAMES, positions)


def test_fingers_are_not_looked_at() -> None:
    names, values = (*ARM_JOINTS, "gripper"), [0.0] * 7
    expected = SIM.arm_qpos(names, values)
    np.testing.assert_array_equal(
        SIM.arm_qpos(JOINT_STATE_NAMES, [*values, math.nan, math.nan]), expected
    )


def test_an_unknown_profile_is_answered_with_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError) as refused:
        load_profile("interbotix_man")
    told = str(refused.value)
    assert str(config_dir() / "aloha.yaml") in told
    assert f"expected one of the profiles {', '.join(PROFILES)}; got" in told
    assert "got 'interbotix_man', did you mean 'interbotix_main'?" in told
    assert "Set the parameter 'profile'" in told


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("camera_topics:", "camera_topic:", "sim: unknown key 'camera_topic'; did you mean"),
        ("horn_m:", "horn:", "sim.gripper: unknown key 'horn'; did you mean 'horn_m'"),
        ("0.01844", "0.5", "expected position_open_m above position_closed_m"),
        ("[/leader_left/joint_states, ", "[", "leader_joint_state_topics: expected 2 entries"),
    ],
)
def test_a_profile_with_a_mistake_is_refused_with_file_and_section(
    old: str, new: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    text = (config_dir() / "aloha.yaml").read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_profile("sim", path)
    assert expected in str(refused.value) and f"{path}, sim" in str(refused.value)


def test_a_section_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("sim: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="sim: expected a mapping of RobotProfile fields; got 3"):
        load_profile("sim", path)


def test_the_arms_of_a_profile_are_left_and_right_in_some_order() -> None:
    assert load_profile("interbotix_2_0").arm_order == ("right", "left")
    with pytest.raises(ConfigError, match="expected left and right in some order; got"):
        replace(SIM, arm_order=("left", "left"))


def test_every_camera_of_a_profile_has_its_own_topic() -> None:
    for name in PROFILES:
        profile = load_profile(name)
        assert len({profile.camera_topic(camera) for camera in CAMERAS}) == len(CAMERAS)
        assert any(side in profile.camera_topic("cam_left_wrist") for side in ("left", "_l/"))
        assert any(side in profile.camera_topic("cam_right_wrist") for side in ("right", "_r/"))


def test_the_start_pose_is_within_the_limits_and_the_same_for_both_arms() -> None:
    lower, upper = position_limits()
    assert lower.shape == upper.shape == (ACTION_DIM,)
    for opening in (0.0, 1.0):
        pose = start_pose(opening)
        assert np.all(lower <= pose) and np.all(pose <= upper)
        assert pose[:ARM_DIM].tolist() == pose[ARM_DIM:].tolist()
        assert pose[list(GRIPPERS)].tolist() == [opening] * len(ARMS)


def test_an_example_observation_is_legal_and_reproducible() -> None:
    first, second = (example_observation(np.random.default_rng(7)) for _ in range(2))
    lower, upper = position_limits()
    assert tuple(first.images) == CAMERAS
    assert np.all(lower <= first.proprio) and np.all(first.proprio <= upper)
    np.testing.assert_array_equal(first.proprio, second.proprio)
    np.testing.assert_array_equal(first.images["cam_high"], second.images["cam_high"])
