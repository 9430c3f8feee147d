"""What is to be done in the simulated ALOHA: objects, where they start, reward, and what counts as
success.

A task is a record of plain values and two pure functions, so it can be tested without physics.
Contacts come in as names of touching geometries; `aloha_world` produces them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEFT_FINGER = "vx300s_left/10_left_gripper_finger"
RIGHT_FINGER = "vx300s_right/10_right_gripper_finger"
TABLE = "table"
"""Geometries that gym-aloha's rewards look at: one finger of each arm, and the table."""


@dataclass(frozen=True, kw_only=True)
class Cube:
    """A free cube on the table; all share size, mass and friction of gym-aloha's red box.

    Attributes:
        name: Name of its body, joint and geometry.
        rgba: Colour, four values 0 … 1.
    """

    name: str
    rgba: tuple[float, float, float, float]


@dataclass(frozen=True)
class Contacts:
    """Which geometries touch at one instant."""

    pairs: frozenset[frozenset[str]]

    def touch(self, first: str, second: str) -> bool:
        """True if the two named geometries are in contact, whichever the physics names first."""
        return frozenset((first, second)) in self.pairs


PoseSampler = Callable[[np.random.Generator], Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the simulated robot.

    Attributes:
        name: What the parameter `task` calls it.
        instruction: What an operator would say, if nothing else is said.
        cubes: The free objects of the scene.
        sample_poses: Draws cube name → (7,) float64 world pose: position in m, quaternion (w, x,
            y, z).
        reward: Reward of the present instant from its contacts, an integer 0 … `max_reward`.
        max_reward: The reward of a task done.
        hold_steps: Control steps for which `max_reward` must last at the end of an episode.
    """

    name: str
    instruction: str
    cubes: tuple[Cube, ...]
    sample_poses: PoseSampler
    reward: Callable[[Contacts], int]
    max_reward: int
    hold_steps: int = 10

    def is_success(self, rewards: Sequence[int]) -> bool:
        """True if the episode ended with the highest reward held for `hold_steps` control steps.

        Args:
            rewards: Reward after each control step, oldest first.
        """
        last = rewards[-self.hold_steps :]
        return len(last) == self.hold_steps and all(reward == self.max_reward for reward in last)


def transfer_cube_poses(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws where the box starts: upright, to fall 3 cm (ranges: gym-aloha, sample_box_pose)."""
    x, y = generator.uniform([0.0, 0.4], [0.2, 0.6])
    return {"red_box": np.array([x, y, 0.05, 1.0, 0.0, 0.0, 0.0])}


def transfer_cube_reward(contacts: Contacts) -> int:
    """Reward of gym-aloha's TransferCubeTask.

    Returns:
        0 nothing · 1 the right gripper touches the box · 2 and has lifted it · 3 the left gripper
        touches it · 4 and it is off the table. Later lines of the original win over earlier ones,
        and so here.
    """
    lifted = not contacts.touch("red_box", TABLE)
    if contacts.touch("red_box", LEFT_FINGER):
        return 4 if lifted else 3
    if contacts.touch("red_box", RIGHT_FINGER):
        return 2 if lifted else 1
    return 0


TRANSFER_CUBE = Task(
    name="transfer_cube",
    instruction="transfer the cube from the right gripper to the left gripper",
    cubes=(Cube(name="red_box", rgba=(1.0, 0.0, 0.0, 1.0)),),
    sample_poses=transfer_cube_poses,
    reward=transfer_cube_reward,
    max_reward=4,
)

TASKS: Mapping[str, Task] = {task.name: task for task in (TRANSFER_CUBE,)}


def load_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: if there is none; names those that there are.
    """
    if name not in TASKS:
        raise ValueError(
            f"task: expected one of {', '.join(sorted(TASKS))}; got {name!r}. "
            "Set the parameter 'task'"
        )
    return TASKS[name]
