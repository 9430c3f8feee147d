"""A policy that cannot be wrong: it knows where the cube is and answers as the teleoperator would.

It does what it hears, whatever the episode asks for: told the same always, it shows chance.
Run through the closed loop in place of a network it shows what the loop itself costs: what fails
with it is not the fault of a policy. Blind, it needs no camera.
"""

from __future__ import annotations

import numpy as np

from vla_oft_ros.action_aware import MotionScale
from vla_oft_ros.aloha import ACTION_DIM, GRIPPERS
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.demonstrator import SCRIPTS, Demonstrator
from vla_oft_ros.types import ActionChunk, MotionMode, Observation

CHUNK_LEN = 25
"""K of OpenVLA-OFT+ on ALOHA."""
_MOVED_M = 1e-4


class Oracle:
    """Answers with the teleoperator's plan from where the robot is in it.

    Args:
        world: Where it looks the cube and the targets in force up.
        chunk_len: K.
    """

    def __init__(self, world: AlohaWorld, chunk_len: int = CHUNK_LEN) -> None:
        self._world = world
        self._chunk_len = chunk_len
        self._gripper_range = _gripper_range(world)
        self.reset()

    @property
    def cameras(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def motion_scale(self) -> MotionScale:
        """That of the scripted demonstrations."""
        return MotionScale()

    def reset(self) -> None:
        """Begins an episode of the world just reset."""
        opening = float(self._world.targets()[GRIPPERS[0]])
        script = SCRIPTS[self._world.task.name]
        self._demonstrator = Demonstrator(self._world.model, script, opening)
        self._step = 0  # rows of the plan that are done
        self._cube = np.full(3, np.inf)
        self._plan = np.zeros((0, 0))

    def infer(
        self, observation: Observation, *, mode: MotionMode = MotionMode.FINE
    ) -> ActionChunk:
        """The next rows of the plan; at its end the last one, again and again."""
        period_s = self._world.control_period_ns * 1e-9
        if self._step * period_s <= self._demonstrator.script.look_s:
            self._look(self._world.task.target(observation.instruction), 1.0 / period_s)
        self._step = self._done_rows()
        rows = np.arange(self._step, self._step + self._chunk_len)
        return ActionChunk(
            actions=self._plan[np.minimum(rows, len(self._plan) - 1)],
            stamp_ns=observation.stamp_ns,
            dt_ns=self._world.control_period_ns,
            instruction=observation.instruction,
            inference_s=0.0,
        )

    def _look(self, target: str, control_rate_hz: float) -> None:
        """Plans anew if the cube is not where it was."""
        cube = self._world.cube_pose(target)[:3]
        if np.abs(cube - self._cube)[:2].max() > _MOVED_M:
            self._cube = cube
            self._plan = self._demonstrator.plan(cube, control_rate_hz)

    def _done_rows(self) -> int:
        """How much of the plan is done: up to the row nearest to the targets in force, but no less
        than at the question before.
        """
        if self._world.time_ns == 0:
            return 0
        first = max(self._step - 1, 0)
        rest = self._plan[first:].copy()
        grippers = list(GRIPPERS)
        rest[:, grippers] = np.clip(rest[:, grippers], *self._gripper_range)
        gaps = np.abs(rest - self._world.targets()).max(axis=1)
        return first + int(gaps.argmin()) + 1


def _gripper_range(world: AlohaWorld) -> tuple[float, float]:
    """Openings between which the actuators of the grippers are, on the action scale."""
    present = world.state()
    ends = []
    for opening in (0.0, 1.0):
        world.set_targets(np.full(ACTION_DIM, opening))
        ends.append(float(world.targets()[GRIPPERS[0]]))
    world.restore(present)
    return ends[0], ends[1]
