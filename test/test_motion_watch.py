"""Laws of the watch over published targets."""

from __future__ import annotations

import numpy as np
import pytest

from vla_oft_ros.action_aware import ActionAwareThresholds, MotionScale
from vla_oft_ros.aloha import start_pose
from vla_oft_ros.kinematics import end_effector_pose
from vla_oft_ros.motion_watch import AT_REST, MotionWatch
from vla_oft_ros.types import MotionMode

PERIOD_NS = 40_000_000


def moved(amount_rad: float, steps: int = 1) -> np.ndarray:
    """The start pose with the left waist turned."""
    targets = start_pose()
    targets[0] += amount_rad * steps
    return targets


def test_a_robot_that_was_told_nothing_or_the_same_is_fine_and_at_rest() -> None:
    watch = MotionWatch(PERIOD_NS, MotionScale())
    assert watch.motion == AT_REST
    for step in range(3):
        motion = watch.update(step * PERIOD_NS, start_pose())
    assert motion.mode is MotionMode.FINE
    assert motion.speed == 0.0


def test_speed_is_the_way_of_the_faster_gripper_over_the_scale() -> None:
    # Turning the waist by q moves ee_gripper_link on a circle of radius 0.258476 m in the start
    # pose (aloha_interface, test vector of the start pose): chord 2 r sin(q / 2).
    scale = MotionScale(translation_m=0.01, rotation_rad=0.1)
    watch = MotionWatch(PERIOD_NS, scale)
    watch.update(0, moved(0.0))
    motion = watch.update(PERIOD_NS, moved(0.05))
    assert motion.speed == pytest.approx(2 * 0.258476 * np.sin(0.025) / 0.01, rel=1e-5)
    assert motion.rotation == pytest.approx((0.5, 0.0), abs=1e-9)
    assert motion.translation[1] == 0.0


def test_fast_motion_is_coarse_and_a_new_episode_forgets_it() -> None:
    watch = MotionWatch(PERIOD_NS, MotionScale())
    for step in range(3):
        motion = watch.update(step * PERIOD_NS, moved(0.1, step))
    assert motion.mode is MotionMode.COARSE
    watch.clear()
    assert watch.motion == AT_REST
    assert watch.update(3 * PERIOD_NS, moved(0.9)) == AT_REST


@pytest.mark.parametrize("gap", [0.2, 3.0, -1.0])
def test_targets_that_are_not_one_period_apart_say_nothing_of_speed(gap: float) -> None:
    watch = MotionWatch(PERIOD_NS, MotionScale())
    watch.update(0, moved(0.0))
    assert watch.update(round(gap * PERIOD_NS), moved(0.5)) == AT_REST


def test_after_a_gap_speed_is_that_of_the_two_latest_targets() -> None:
    watch, apart = (MotionWatch(PERIOD_NS, MotionScale()) for _ in range(2))
    watch.update(0, moved(0.0))
    watch.update(3 * PERIOD_NS, moved(0.5))
    apart.update(0, moved(0.5))
    assert watch.update(4 * PERIOD_NS, moved(0.52)) == apart.update(PERIOD_NS, moved(0.52))
    assert watch.motion.speed > 0.0


@pytest.mark.parametrize("shoulder_rad", [-0.04, 0.04], ids=["up", "down"])
def test_each_arm_has_its_own_figures_left_first_and_a_rise_has_a_sign(
    shoulder_rad: float,
) -> None:
    scale = MotionScale(translation_m=0.01, rotation_rad=0.1)
    watch = MotionWatch(PERIOD_NS, scale)
    before, after = start_pose(), start_pose()
    after[0] += 0.01  # the left arm turns a little about the vertical
    after[8] += shoulder_rad
    watch.update(0, before)
    motion = watch.update(PERIOD_NS, after)
    (_, left), (_, right) = (end_effector_pose(after[a : a + 6]) for a in (0, 7))
    _, start = end_effector_pose(before[:6])
    ways = (np.linalg.norm(left - start) / 0.01, np.linalg.norm(right - start) / 0.01)
    assert motion.translation == pytest.approx(ways)
    assert motion.rotation == pytest.approx((0.1, 0.4))
    assert motion.rise == pytest.approx((0.0, (right - start)[2] / 0.01), abs=1e-9)
    assert np.sign(motion.rise[1]) == -np.sign(shoulder_rad)
    assert motion.speed == motion.translation[1] > motion.translation[0]


def test_the_thresholds_given_decide_the_mode() -> None:
    patient = ActionAwareThresholds(translation=100.0, rotation=100.0)
    modes = []
    for thresholds in (None, patient):
        watch = MotionWatch(PERIOD_NS, MotionScale(), thresholds)
        for step in range(3):
            targets = start_pose()
            targets[1] += 0.1 * step  # leans forward and down
            motion = watch.update(step * PERIOD_NS, targets)
        assert motion.rise[0] < 0.0
        modes.append(motion.mode)
    assert modes == [MotionMode.COARSE, MotionMode.FINE]
