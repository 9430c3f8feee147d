"""Laws of the watch over published targets."""

from __future__ import annotations

import numpy as np
import pytest

from vla_oft_ros.action_aware import MotionScale
from vla_oft_ros.aloha import start_pose
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
