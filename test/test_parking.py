"""Laws of the slow moves to the start and the sleep pose."""

import numpy as np
import pytest

from vla_oft_ros.aloha import SLEEP_ARM_POSE_RAD, start_pose
from vla_oft_ros.config import SafetyConfig
from vla_oft_ros.parking import Parking

DT_NS = 40_000_000
SLEEP = np.concatenate([[*SLEEP_ARM_POSE_RAD, 1.0]] * 2)


def test_parking_ends_exactly_in_its_pose_and_stays_there() -> None:
    parking = Parking(SafetyConfig(), DT_NS)
    parking.go("sleep")
    target = start_pose(0.3) + 0.1
    for _ in range(1000):
        assert not parking.arrived
        target = parking.next_target(target, held=False)
        if parking.arrived:
            break
    assert np.array_equal(target, SLEEP)
    assert np.array_equal(parking.next_target(target, held=False), SLEEP)
    assert parking.arrived and parking.pose == "sleep"


def test_a_hold_keeps_the_present_target_and_the_way_is_planned_anew_from_there() -> None:
    parking = Parking(SafetyConfig(), DT_NS)
    parking.go("start")
    target = start_pose() + 0.5
    for _ in range(10):
        target = parking.next_target(target, held=False)
    moved = target + 0.2  # somebody pushed the arms
    assert np.array_equal(parking.next_target(moved, held=True), moved)
    following = parking.next_target(moved, held=False)
    assert np.abs(following - moved).max() < 0.01


def test_arms_are_given_back_only_at_the_start_pose() -> None:
    parking = Parking(SafetyConfig(), DT_NS)
    parking.release()  # nothing to give back
    parking.go("sleep")
    with pytest.raises(ValueError, match="on their way to the sleep pose"):
        parking.release()
    parking.next_target(SLEEP, held=False)
    while not parking.arrived:
        parking.next_target(SLEEP, held=False)
    with pytest.raises(ValueError, match="call go_to_start first"):
        parking.release()
    parking.go("start")
    while not parking.arrived:
        parking.next_target(start_pose(), held=False)
    parking.release()
    assert parking.pose == ""


def test_an_unknown_pose_changes_nothing() -> None:
    parking = Parking(SafetyConfig(), DT_NS)
    parking.go("start")
    with pytest.raises(ValueError, match="expected one of start, sleep; got 'fold'"):
        parking.go("fold")
    assert parking.pose == "start"
