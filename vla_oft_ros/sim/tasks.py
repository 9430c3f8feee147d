"""What is to be done in the simulated ALOHA: objects, how an episode starts, what it asks for,
reward, and what counts as success.

A task is a record of plain values and two pure functions, so it can be tested without physics.
Contacts come in as names of touching geometries; `aloha_world` produces them. Where the objects
start and which instruction is given are drawn together, from one seeded generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEFT_FINGER = "vx300s_left/10_left_gripper_finger"
RIGHT_FINGER = "vx300s_right/10_right_gripper_finger"
TABLE = "table"
"""Geometries that gym-aloha's rewards look at: one finger of each arm, and the table."""
RIGHT_FINGERS = (RIGHT_FINGER, "vx300s_right/10_left_gripper_finger")
"""Both fingers of the right arm."""


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


@dataclass(frozen=True, kw_only=True)
class EpisodeStart:
    """What one episode begins with.

    Attributes:
        instruction: What the operator asks for, one of the task's.
        cube_poses: Cube name → (7,) float64 world pose: position in m, quaternion (w, x, y, z).
    """

    instruction: str
    cube_poses: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the simulated robot.

    Attributes:
        name: What the parameter `task` calls it.
        cubes: The free objects of the scene.
        instructions: What an operator may ask for → name of the cube that is meant.
        sample: Draws the start of an episode; everything random about it comes from the generator.
        reward: Reward of the present instant from its contacts and the name of the cube that is
            meant, an integer 0 … `max_reward`.
        max_reward: The reward of a task done.
        hold_steps: Control steps for which `max_reward` must last at the end of an episode.
    """

    name: str
    cubes: tuple[Cube, ...]
    instructions: Mapping[str, str]
    sample: Callable[[np.random.Generator], EpisodeStart]
    reward: Callable[[Contacts, str], int]
    max_reward: int
    hold_steps: int = 10

    def target(self, instruction: str) -> str:
        """Name of the cube that an instruction is about.

        Where there is only one thing to ask for, any words will do.

        Raises:
            ValueError: if the task has several instructions and this is none of them.
        """
        if len(self.instructions) == 1:
            return next(iter(self.instructions.values()))
        if instruction not in self.instructions:
            asked = ", ".join(repr(known) for known in self.instructions)
            raise ValueError(
                f"instruction: expected one of the task {self.name}, {asked}; got {instruction!r}"
            )
        return self.instructions[instruction]

    def is_success(self, rewards: Sequence[int]) -> bool:
        """True if the episode ended with the highest reward held for `hold_steps` control steps.

        Args:
            rewards: Reward after each control step, oldest first.
        """
        last = rewards[-self.hold_steps :]
        return len(last) == self.hold_steps and all(reward == self.max_reward for reward in last)


TRANSFER_INSTRUCTION = "transfer the cube from the right gripper to the left gripper"


def sample_transfer_cube(generator: np.random.Generator) -> EpisodeStart:
    """Draws where the box starts: upright, to fall 3 cm (ranges: gym-aloha, sample_box_pose)."""
    x, y = generator.uniform([0.0, 0.4], [0.2, 0.6])
    return EpisodeStart(
        instruction=TRANSFER_INSTRUCTION, cube_poses={"red_box": _upright(x, y, 0.05)}
    )


def transfer_cube_reward(contacts: Contacts, target: str) -> int:
    """Reward of gym-aloha's TransferCubeTask.

    Returns:
        0 nothing · 1 the right gripper touches the box · 2 and has lifted it · 3 the left gripper
        touches it · 4 and it is off the table. Later lines of the original win over earlier ones,
        and so here.
    """
    lifted = not contacts.touch(target, TABLE)
    if contacts.touch(target, LEFT_FINGER):
        return 4 if lifted else 3
    if contacts.touch(target, RIGHT_FINGER):
        return 2 if lifted else 1
    return 0


TRANSFER_CUBE = Task(
    name="transfer_cube",
    cubes=(Cube(name="red_box", rgba=(1.0, 0.0, 0.0, 1.0)),),
    instructions={TRANSFER_INSTRUCTION: "red_box"},
    sample=sample_transfer_cube,
    reward=transfer_cube_reward,
    max_reward=4,
)

PICK_CUBES = (
    Cube(name="red_cube", rgba=(1.0, 0.0, 0.0, 1.0)),
    Cube(name="green_cube", rgba=(0.0, 0.75, 0.0, 1.0)),
    Cube(name="blue_cube", rgba=(0.05, 0.15, 1.0, 1.0)),
)
"""Alike but for their colour, so that only the words tell which one is meant: a policy that is
blind to them picks the right one with chance 1 / 3."""
PICK_INSTRUCTIONS = {
    f"pick up the {cube.name.removesuffix('_cube')} cube": cube.name for cube in PICK_CUBES
}
PICK_PLACES_M = ((0.03, 0.42), (0.17, 0.42), (0.10, 0.58))
"""Middles of the places where the cubes lie, x and y on the table: in front of the right arm,
which alone is to pick. Three and not anywhere: what is hard to tell is to be the colour."""
PICK_SPREAD_M = 0.02
"""How far from such a middle at most, along x and y. Cubes, 4 cm wide, are then at least 10 cm
apart, and the open gripper takes hold of one without pushing another."""
CUBE_HALF_M = 0.02
"""Half the edge of a cube (gym-aloha's red box)."""


def sample_pick_cube(generator: np.random.Generator) -> EpisodeStart:
    """Draws which cube is asked for and, independently, which lies where."""
    instructions = list(PICK_INSTRUCTIONS)
    instruction = instructions[int(generator.integers(len(instructions)))]
    middles = generator.permutation(np.array(PICK_PLACES_M))  # (cubes, 2)
    places = middles + generator.uniform(-PICK_SPREAD_M, PICK_SPREAD_M, middles.shape)
    poses = {
        cube.name: _upright(x, y, CUBE_HALF_M)
        for cube, (x, y) in zip(PICK_CUBES, places, strict=True)
    }
    return EpisodeStart(instruction=instruction, cube_poses=poses)


def pick_cube_reward(contacts: Contacts, target: str) -> int:
    """Reward of picking one of several cubes with the right gripper.

    A cube is lifted when the right gripper touches it with both fingers and it touches neither the
    table nor another cube. What happens to a wrong cube counts before what happens to the right
    one: holding both is no success.

    Returns:
        0 nothing · 1 the right gripper touches a wrong cube · 2 has lifted a wrong one · 3 touches
        the right one · 4 has lifted it.
    """
    names = [cube.name for cube in PICK_CUBES]

    def touched(name: str) -> bool:
        return any(contacts.touch(name, finger) for finger in RIGHT_FINGERS)

    def lifted(name: str) -> bool:
        rests = any(contacts.touch(name, other) for other in (TABLE, *names) if other != name)
        return all(contacts.touch(name, finger) for finger in RIGHT_FINGERS) and not rests

    wrong = [name for name in names if name != target]
    if any(map(touched, wrong)):
        return 2 if any(map(lifted, wrong)) else 1
    if touched(target):
        return 4 if lifted(target) else 3
    return 0


PICK_CUBE = Task(
    name="pick_cube",
    cubes=PICK_CUBES,
    instructions=PICK_INSTRUCTIONS,
    sample=sample_pick_cube,
    reward=pick_cube_reward,
    max_reward=4,
)


def _upright(x_m: float, y_m: float, z_m: float) -> np.ndarray:
    """(7,) world pose of an upright cube."""
    return np.array([x_m, y_m, z_m, 1.0, 0.0, 0.0, 0.0])


TASKS: Mapping[str, Task] = {task.name: task for task in (TRANSFER_CUBE, PICK_CUBE)}


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
