"""Differences between ALOHAs that no file names: profiles, branch 2.0, shadow figures."""

import numpy as np
import pytest

from vla_oft_ros.aloha import (
    ACTION_DIM,
    JOINT_STATE_NAMES,
    JointStateError,
    load_profile,
    start_pose,
)
from vla_oft_ros.recording_traps import recording_problems, swap_evidence
from vla_oft_ros.shadow import ShadowComparison

PROFILES = ("sim", "aloha1", "interbotix_main", "interbotix_2_0", "agilex")


def test_shadow_figures_name_the_joint_that_is_off_most() -> None:
    comparison = ShadowComparison()
    assert comparison.figures() == {}
    target = start_pose(0.5)
    for _ in range(10):
        teleop = target.copy()
        teleop[8] += 0.2
        teleop[6] -= 0.3
        comparison.add(target, teleop)
    figures = comparison.figures()
    assert figures["worst_joint"] == "right/shoulder"
    assert figures["arm_difference_rad_p50"] == pytest.approx(0.2)
    assert figures["gripper_difference_p50"] == pytest.approx(0.3)
    assert comparison.compared == 10


@pytest.mark.parametrize("name", PROFILES)
def test_a_command_of_every_profile_leads_back_to_its_target(name: str) -> None:
    profile = load_profile(name)
    target = np.array([0.1, -0.9, 1.1, 0.2, -0.3, 0.4, 0.7])
    command = profile.arm_command(target)
    assert np.array_equal(command[:-1], target[:-1])
    assert profile.gripper.servo_rad_to_action(command[-1]) == pytest.approx(0.7)


@pytest.mark.parametrize("name", PROFILES)
def test_a_leader_s_ends_are_the_ends_of_an_action(name: str) -> None:
    profile = load_profile(name)
    joints = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    ends = profile.gripper.leader_joint_closed_rad, profile.gripper.leader_joint_open_rad
    for opening, servo_rad in enumerate(ends):
        action = profile.leader_action(profile.joint_names, [*joints, servo_rad])
        assert action == pytest.approx([*joints, opening])
    with pytest.raises(JointStateError, match="missing"):
        profile.leader_action(profile.joint_names[:-1], joints)


def test_agilex_reports_seven_joints_and_observes_the_servo_angle_itself() -> None:
    profile = load_profile("agilex")
    assert profile.joint_names == tuple(f"joint{index}" for index in range(7))
    qpos = profile.arm_qpos(profile.joint_names[::-1], [3.5578, 5, 4, 3, 2, 1, 0])
    assert qpos == pytest.approx([0, 1, 2, 3, 4, 5, 1.0])
    assert not set(JOINT_STATE_NAMES) & set(profile.joint_names)


def recording(generator: np.random.Generator, steps: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Arms that move in turns, and wrist images that change with their own arm."""
    speeds = np.abs(generator.normal(size=(steps - 1, 2))) * 0.02
    proprio = np.tile(start_pose(0.5), (steps, 1))
    for arm in range(2):
        for joint in range(6):
            proprio[1:, 7 * arm + joint] += np.cumsum(speeds[:, arm])
    change = 100.0 * speeds + generator.normal(size=speeds.shape) * 0.1
    return proprio, change


def test_swapped_arms_show_in_the_wrist_cameras() -> None:
    proprio, change = recording(np.random.default_rng(0))
    assert recording_problems(proprio, change) == []
    swapped = np.concatenate([proprio[:, 7:], proprio[:, :7]], axis=1)
    (reason,) = recording_problems(swapped, change)
    assert "swapped" in reason
    assert swap_evidence(swapped, change) == pytest.approx(-swap_evidence(proprio, change))


def test_branch_2_0_shows_in_its_gripper_openings() -> None:
    proprio, _ = recording(np.random.default_rng(0))
    gripper = load_profile("interbotix_2_0").gripper
    servo_rad = np.linspace(gripper.joint_closed_rad, gripper.joint_open_rad, len(proprio))
    span = gripper.position_open_m - gripper.position_closed_m
    proprio[:, 6] = (servo_rad - gripper.position_closed_m) / span
    (reason,) = recording_problems(proprio)
    assert "gripper openings reach 113" in reason and "interbotix_2_0" in reason


def test_still_arms_are_no_evidence_and_wrong_shapes_are_refused() -> None:
    still = np.tile(start_pose(0.5), (10, 1))
    assert swap_evidence(still, np.ones((9, 2))) == 0.0
    with pytest.raises(ValueError, match=r"expected \(9, 2\)"):
        swap_evidence(still, np.ones((10, 2)))
    with pytest.raises(ValueError, match=rf"expected \(T, {ACTION_DIM}\)"):
        recording_problems(np.zeros((3, 7)))
