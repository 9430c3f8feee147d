"""What the controller tells of its gate, and how often."""

import pytest

from vla_oft_ros.ros.controller_report import Tidings
from vla_oft_ros.safety_report import SafetyState

SECOND_NS = 1_000_000_000
TICK_NS = SECOND_NS // 25


def told(reasons: list[str], state: SafetyState = SafetyState.HOLD) -> list[str]:
    """Those of one reason per tick that are told."""
    tidings = Tidings()
    return [
        reason
        for tick, reason in enumerate(reasons)
        if tidings.are_new(state, reason, tick * TICK_NS)
    ]


@pytest.mark.parametrize("state", [SafetyState.HOLD, SafetyState.ESTOP])
def test_a_cause_whose_numbers_change_at_every_tick_is_told_once(state: SafetyState) -> None:
    growing = [f"joint states are {0.06 + 0.04 * tick:.3f} s old" for tick in range(100)]
    assert told(growing, state) == growing[:1]


def test_causes_that_take_turns_are_told_once_a_second_each_time_in_other_words() -> None:
    turns = ["joint states are old", "no action for this tick"] * 50  # 4 s
    assert 3 <= len(told(turns)) <= 4


def test_what_stays_is_told_within_a_second() -> None:
    assert told(["old", *["none"] * 26]) == ["old", "none"]
    assert told([*["old"] * 30, "none"]) == ["old", "none"]


def test_an_emergency_stop_is_told_at_once() -> None:
    tidings = Tidings()
    assert tidings.are_new(SafetyState.ACTIVE, "", 0)
    assert tidings.are_new(SafetyState.ESTOP, "asked for by service", 1)
    assert not tidings.are_new(SafetyState.HOLD, "reset", 2)
    assert tidings.are_new(SafetyState.HOLD, "reset", 1 + SECOND_NS)
