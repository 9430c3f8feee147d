"""Attempts of a demo: an operator's order of things, whatever services answer."""

from __future__ import annotations

import numpy as np
import pytest

from vla_oft_ros.aloha import start_pose
from vla_oft_ros.ros.demo_attempts import ATTEMPT_S, Attempt, DemoAttempts, Phase
from vla_oft_ros.sim.tasks import load_task

SECOND_NS = 1_000_000_000
TASK = load_task("transfer_cube")


class Answer:
    def __init__(self, success: bool) -> None:
        self.success = success

    def done(self) -> bool:
        return True

    def result(self) -> Answer:
        return self


class Services:
    """Answers as told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refusals = 0

    def __call__(self, name: str) -> Answer | None:
        self.asked.append(name.partition("/")[2])
        if self.refusals:
            self.refusals -= 1
            return None if self.refusals % 2 else Answer(False)
        return Answer(True)


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def attempts(services: Services) -> DemoAttempts:
    return DemoAttempts(None, TASK, services)


def run(attempts: DemoAttempts, now_ns: int, qpos: np.ndarray, times: int = 20) -> None:
    for _ in range(times):
        attempts.update(now_ns, qpos)


def succeed(attempts: DemoAttempts) -> None:
    for _ in range(TASK.hold_steps):
        attempts.on_reward(float(TASK.max_reward))


def test_a_task_done_is_counted_once_and_the_robot_put_back_in_order(
    attempts: DemoAttempts, services: Services
) -> None:
    attempts.update(0, start_pose())
    succeed(attempts)
    run(attempts, 6 * SECOND_NS, start_pose())
    assert attempts.finished == [Attempt(True, 6.0)]
    assert services.asked == ["go_to_start", "reset", "follow_policy"]
    assert attempts.phase is Phase.ACTING


def test_objects_are_not_touched_before_the_arms_are_back(
    attempts: DemoAttempts, services: Services
) -> None:
    attempts.update(0, start_pose())
    succeed(attempts)
    away = start_pose()
    away[7] += 0.2
    run(attempts, SECOND_NS, away)
    assert services.asked == ["go_to_start"] and attempts.phase is Phase.PARKING
    holding = start_pose(gripper_opening=0.0)
    run(attempts, SECOND_NS, holding)
    assert attempts.phase is Phase.ACTING


@pytest.mark.parametrize("refusals", range(1, 8))
def test_a_service_that_is_not_there_or_refuses_is_asked_again(
    refusals: int, attempts: DemoAttempts, services: Services
) -> None:
    services.refusals = refusals
    attempts.update(0, start_pose())
    succeed(attempts)
    run(attempts, SECOND_NS, start_pose(), times=40)
    assert attempts.phase is Phase.ACTING and len(services.asked) == 3 + refusals
    assert list(dict.fromkeys(services.asked)) == ["go_to_start", "reset", "follow_policy"]


def test_an_attempt_whose_time_is_over_has_failed(attempts: DemoAttempts) -> None:
    attempts.update(0, None)
    attempts.on_reward(3.0)
    attempts.update(round(ATTEMPT_S * SECOND_NS), None)
    assert attempts.finished == []
    attempts.update(round(ATTEMPT_S * SECOND_NS) + 1, None)
    assert [attempt.success for attempt in attempts.finished] == [False]
    assert attempts.successes == 0


def test_the_next_attempt_starts_with_no_reward_and_its_own_time(attempts: DemoAttempts) -> None:
    attempts.update(0, start_pose())
    succeed(attempts)
    attempts.update(6 * SECOND_NS, start_pose())
    while attempts.phase is not Phase.ACTING:
        succeed(attempts)  # of the attempt before: the cube still lies in the gripper
        attempts.update(9 * SECOND_NS, start_pose())
    run(attempts, 10 * SECOND_NS, start_pose())
    assert attempts.finished == [Attempt(True, 6.0)]
    succeed(attempts)
    attempts.update(14 * SECOND_NS, start_pose())
    assert attempts.finished == [Attempt(True, 6.0), Attempt(True, 4.0)]
