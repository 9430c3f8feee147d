import numpy as np
import pytest

from vla_oft_ros.action_aware import (
    ActionAwareState,
    ActionAwareThresholds,
    MotionScale,
    arm_motion,
    motion_scale,
    next_mode,
)
from vla_oft_ros.aloha import start_pose
from vla_oft_ros.types import MotionMode

FINE, COARSE = MotionMode.FINE, MotionMode.COARSE
SCALE = MotionScale(translation_m=0.02, rotation_rad=0.08)
PAPER = ActionAwareThresholds()
NEW = ActionAwareState()
# At the start pose: the waist moves the gripper level (0.259 m/rad), the last joint only turns it,
# and the shoulder (0.314 m/rad) lowers it when its angle grows.
WAIST, SHOULDER, WRIST_ANGLE, WRIST_ROTATE = 0, 1, 4, 5
RIGHT = 7


def step(**joints: float) -> tuple[np.ndarray, np.ndarray]:
    """Start pose, and the same with joints moved: left=(joint, rad), right=(joint, rad)."""
    after = start_pose()
    for arm, (joint, by) in joints.items():
        after[joint + (RIGHT if arm == "right" else 0)] += by
    return start_pose(), after


def mode_of(state: ActionAwareState = NEW, **joints) -> ActionAwareState:
    return next_mode(state, *step(**joints), SCALE, PAPER)


SLOW_DOWN = (SHOULDER, 0.01)  # v_t 0.16, v_r 0.13
SLOW_UP = (SHOULDER, -0.01)
FAST = (WAIST, 0.06)  # v_t 0.78, v_r 0.75
FAST_TURN = (WRIST_ROTATE, 0.02)  # v_r 0.25 only
REST = (WAIST, 0.0005)


def test_nothing_that_moves_is_fine():
    assert mode_of().mode is FINE
    assert mode_of(left=REST, right=REST).mode is FINE


def test_a_slow_descent_is_fine():
    assert mode_of(left=SLOW_DOWN).mode is FINE


def test_a_slow_motion_at_one_height_is_fine():
    assert mode_of(left=(WAIST, 0.01)).mode is FINE  # Δz = 0 is not above 0 (Eq. 10)


def test_a_slow_rise_is_not_fine_by_itself():
    assert mode_of(left=SLOW_UP).mode is COARSE


def test_a_fast_way_is_coarse():
    assert mode_of(left=FAST).mode is COARSE


def test_a_fast_turn_is_coarse_although_the_gripper_stays_where_it_is():
    assert mode_of(left=FAST_TURN).mode is COARSE


def test_fine_motion_stays_fine_when_it_rises_slowly():
    fine = mode_of(right=SLOW_DOWN)
    assert mode_of(fine, right=SLOW_UP).mode is FINE


@pytest.mark.parametrize("motion", [FAST, FAST_TURN])
def test_fine_motion_ends_with_either_speed(motion):
    fine = mode_of(right=SLOW_DOWN)
    left = mode_of(fine, right=motion)
    assert left.mode is COARSE
    assert mode_of(left, right=SLOW_UP).mode is COARSE


def test_fine_motion_ends_with_a_fast_way_without_any_turn():
    fine = mode_of(left=SLOW_DOWN)
    before, after = step(left=(SHOULDER, 0.08))
    after[WRIST_ANGLE] -= 0.08  # keeps the gripper level
    assert arm_motion(before, after, 1.0).rotation_rad_s[0] < 1e-9
    assert next_mode(fine, before, after, SCALE, PAPER).mode is COARSE


def test_one_moving_fine_arm_is_enough():
    assert mode_of(left=FAST, right=SLOW_DOWN).mode is FINE
    assert mode_of(left=SLOW_DOWN, right=FAST).mode is FINE


def test_an_arm_at_rest_says_nothing_and_keeps_what_it_was():
    fine = mode_of(right=SLOW_DOWN)
    beside = mode_of(fine, left=FAST, right=REST)
    assert beside.mode is COARSE and beside.arm_is_fine == (False, True)
    assert mode_of(beside, right=SLOW_UP).mode is FINE


def test_a_leave_factor_keeps_fine_motion_beyond_its_threshold():
    calm = ActionAwareThresholds(leave_factor=1.5)
    fine = next_mode(ActionAwareState(), *step(left=SLOW_DOWN), SCALE, calm)
    assert next_mode(fine, *step(left=FAST_TURN), SCALE, calm).mode is FINE
    assert next_mode(ActionAwareState(), *step(left=FAST_TURN), SCALE, calm).mode is COARSE


def test_speed_is_measured_against_the_scale():
    wide = MotionScale(translation_m=0.1, rotation_rad=0.8)
    assert next_mode(ActionAwareState(), *step(left=(SHOULDER, 0.06)), SCALE, PAPER).mode is COARSE
    assert next_mode(ActionAwareState(), *step(left=(SHOULDER, 0.06)), wide, PAPER).mode is FINE


def test_the_scale_is_the_99th_percentile_over_all_steps_and_arms():
    generator = np.random.default_rng(0)
    episodes = [
        start_pose() + np.cumsum(generator.normal(0.0, 0.005, (length, 14)), axis=0)
        for length in (120, 1, 80)
    ]
    scale = motion_scale(iter(episodes))
    ways = np.concatenate(
        [arm_motion(e[:-1], e[1:], 1.0).translation_m_s.ravel() for e in episodes if len(e) > 1]
    )
    assert ways.shape == (2 * (119 + 79),)
    assert np.mean(ways > scale.translation_m) == pytest.approx(0.01, abs=0.005)
    assert scale.rotation_rad > scale.translation_m


def test_a_data_set_without_motion_has_a_scale_that_makes_noise_rest():
    scale = motion_scale([np.tile(start_pose(), (50, 1))])
    assert scale.translation_m > 0.0 and scale.rotation_rad > 0.0


def test_speeds_per_arm_are_left_first():
    motion = arm_motion(*step(right=(WAIST, 0.04)), 0.04)
    assert motion.translation_m_s[0] == 0.0
    assert motion.translation_m_s[1] == pytest.approx(0.258, abs=2e-3)
    assert motion.rise_m_s[1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: motion_scale([]),
        lambda: motion_scale([np.zeros((1, 14))]),
        lambda: MotionScale(translation_m=0.0),
        lambda: ActionAwareThresholds(leave_factor=0.9),
        lambda: ActionAwareThresholds(rest=0.3),
        lambda: arm_motion(np.zeros(7), np.zeros(7), 0.04),
    ],
)
def test_what_makes_no_sense_is_refused(broken):
    with pytest.raises(ValueError, match="expected"):
        broken()
