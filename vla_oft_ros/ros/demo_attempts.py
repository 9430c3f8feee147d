"""Attempt after attempt in a demo: the policy acts, then the robot is put back as by an operator.

An attempt ends when the task is done or its time is over. The arms then go to the start pose by
the controller's own service, objects are laid out anew, and the policy gets the robot back. All is
asked for by services that a person could call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from vla_oft_ros.aloha import GRIPPERS, start_pose
from vla_oft_ros.sim.tasks import Task

ATTEMPT_S = 12.0
"""Longest attempt, simulated time; a demonstration takes half of it."""
_NEAR_RAD = 0.05
_ARM_JOINTS = np.delete(np.arange(len(start_pose())), GRIPPERS)


class Phase(Enum):
    """What is going on."""

    ACTING = "attempt"
    PARKING = "going back after attempt"
    LAYING_OUT = "laying out after attempt"
    HANDING_OVER = "handing over after attempt"


@dataclass(frozen=True)
class Attempt:
    """One finished attempt.

    Attributes:
        success: Whether the task was done.
        seconds: Simulated time that it took.
    """

    success: bool
    seconds: float


class DemoAttempts:
    """Watches the reward and asks for what comes next; `update` is called often.

    Args:
        node: That asks.
        task: Says what success is.
        call: How a service is called, name → future of its answer or None while there is no such
            service; for tests.
    """

    def __init__(
        self, node: Node, task: Task, call: Callable[[str], Future | None] | None = None
    ) -> None:
        self._task = task
        self.finished: list[Attempt] = []
        self.phase = Phase.ACTING
        self._rewards: list[int] = []
        self._began_ns: int | None = None
        self._answer: Future | None = None
        if call is None:
            names = ("controller_node/go_to_start", "sim_node/reset")
            clients = {
                name: node.create_client(Trigger, name)
                for name in (*names, "controller_node/follow_policy")
            }

            def call(name: str) -> Future | None:
                ready = clients[name].service_is_ready()
                return clients[name].call_async(Trigger.Request()) if ready else None

        self._call = call

    @property
    def successes(self) -> int:
        """Finished attempts in which the task was done."""
        return sum(attempt.success for attempt in self.finished)

    def line(self) -> str:
        """For the live line."""
        number = len(self.finished) + (self.phase is Phase.ACTING)
        return f"{self.phase.value} {number}, done {self.successes}"

    def summary(self) -> str:
        """For the table at the end."""
        if not self.finished:
            return "not done; no attempt was finished"
        times = [f"{attempt.seconds:.1f} s" for attempt in self.finished if attempt.success]
        said = f"done in {self.successes} of {len(self.finished)} attempts"
        return f"{said}, after {', '.join(times)}" if times else said

    def on_reward(self, reward: float) -> None:
        """Takes the reward after one control step."""
        if self.phase is Phase.ACTING:
            self._rewards.append(round(reward))

    def update(self, now_ns: int, qpos: np.ndarray | None) -> None:
        """Goes on to the next phase when it is time.

        Args:
            now_ns: Simulated time since the policy began to act.
            qpos: (14,) newest joint state; None if there is none yet.
        """
        if self._began_ns is None:
            self._began_ns = now_ns
            self._rewards.clear()
        if self.phase is Phase.ACTING:
            seconds = (now_ns - self._began_ns) / 1e9
            success = self._task.is_success(self._rewards)
            if success or seconds > ATTEMPT_S:
                self.finished.append(Attempt(success, seconds))
                self.phase = Phase.PARKING
        elif self.phase is Phase.PARKING:
            if self._done("controller_node/go_to_start", _is_at_start(qpos)):
                self.phase = Phase.LAYING_OUT
        elif self.phase is Phase.LAYING_OUT:
            if self._done("sim_node/reset"):
                self.phase = Phase.HANDING_OVER
        elif self._done("controller_node/follow_policy"):
            self.phase, self._began_ns = Phase.ACTING, None

    def _done(self, service: str, so_far: bool = True) -> bool:
        """Asks a service until it agrees; True once it did and what was asked for is so."""
        if self._answer is None:
            self._answer = self._call(service)
        elif self._answer.done():
            answer = self._answer.result()
            if answer is None or not answer.success:
                self._answer = None  # once more
            elif so_far:
                self._answer = None
                return True
        return False


def _is_at_start(qpos: np.ndarray | None) -> bool:
    """Whether all arm joints are at the start pose, whatever the grippers hold."""
    if qpos is None:
        return False
    return bool(np.all(np.abs(qpos - start_pose())[_ARM_JOINTS] < _NEAR_RAD))
