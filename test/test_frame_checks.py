"""Laws of the look at the pixels: frozen and dark cameras, and nothing else."""

from dataclasses import replace

import numpy as np

from vla_oft_ros.aloha import GRIPPERS, start_pose
from vla_oft_ros.config import SyncConfig
from vla_oft_ros.frame_checks import FrameChecks
from vla_oft_ros.types import Observation


def seen(image: np.ndarray, stamp_s: float, moved_rad: float = 0.0) -> Observation:
    stamp_ns = round(stamp_s * 1e9)
    return Observation(
        images={"cam_high": image},
        image_stamps_ns={"cam_high": stamp_ns},
        proprio=start_pose(0.5) + moved_rad,
        proprio_stamp_ns=stamp_ns,
        instruction="",
    )


def grey(value: int = 100) -> np.ndarray:
    return np.full((6, 8, 3), value, dtype=np.uint8)


def test_same_pixels_are_refused_once_they_last_too_long_while_the_arms_move() -> None:
    checks = FrameChecks(SyncConfig(max_frozen_s=0.5, frozen_motion_rad=0.02))
    assert checks.problems(seen(grey(), 0.0)) == []
    assert checks.problems(seen(grey(), 0.5, 0.03)) == []
    (reason,) = checks.problems(seen(grey(), 0.6, 0.03))
    assert "cam_high: the same pixels for 0.60 s" in reason and "max_frozen_s" in reason


def test_same_pixels_of_a_robot_at_rest_are_no_fault_unless_asked_for() -> None:
    checks = FrameChecks(SyncConfig(max_frozen_s=0.5, frozen_motion_rad=0.02))
    for stamp_s in (0.0, 1.0, 2.0):
        assert checks.problems(seen(grey(), stamp_s, 0.001 * stamp_s)) == []
    strict = FrameChecks(SyncConfig(max_frozen_s=0.5, frozen_motion_rad=0.0))
    assert strict.problems(seen(grey(), 0.0)) == []
    assert strict.problems(seen(grey(), 1.0)) != []


def test_one_changed_pixel_ends_a_freeze() -> None:
    checks = FrameChecks(SyncConfig(max_frozen_s=0.5, frozen_motion_rad=0.0))
    checks.problems(seen(grey(), 0.0))
    assert checks.problems(seen(grey(), 1.0))
    changed = grey()
    changed[0, 0, 0] += 1
    assert checks.problems(seen(changed, 1.1)) == []


def test_darkness_is_refused_and_the_switches_turn_the_checks_off() -> None:
    checks = FrameChecks(SyncConfig())
    (reason,) = checks.problems(seen(grey(1), 0.0))
    assert "mean brightness 1.0 of 255" in reason and "min_brightness" in reason
    assert checks.problems(seen(grey(2), 0.1)) == []
    off = FrameChecks(SyncConfig(max_frozen_s=0.0, min_brightness=0.0, frozen_motion_rad=0.0))
    assert not any(off.problems(seen(grey(0), stamp_s)) for stamp_s in (0.0, 9.0))


def test_a_jump_back_of_the_clock_and_a_new_episode_forget_what_was_frozen() -> None:
    checks = FrameChecks(SyncConfig(frozen_motion_rad=0.0))
    checks.problems(seen(grey(), 5.0))
    assert checks.problems(seen(grey(), 1.0)) == []
    assert checks.problems(seen(grey(), 1.2)) == []
    assert checks.problems(seen(grey(), 2.0)) != []
    checks.clear()
    assert checks.problems(seen(grey(), 2.1)) == []


def test_a_way_there_and_back_is_a_motion_and_a_gripper_alone_is_none() -> None:
    config = SyncConfig(max_frozen_s=0.5, frozen_motion_rad=0.02)
    arms, gripper = FrameChecks(config), FrameChecks(config)
    for stamp_s, moved_rad in ((0.0, 0.0), (0.3, 0.03), (0.6, 0.0)):
        observation = seen(grey(), stamp_s, moved_rad)
        told = arms.problems(observation)
        squeezing = start_pose(0.5)
        squeezing[list(GRIPPERS)] += moved_rad
        assert gripper.problems(replace(observation, proprio=squeezing)) == []
    assert told
