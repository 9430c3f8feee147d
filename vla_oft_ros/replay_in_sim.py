"""A recorded episode done again by the simulated robot: do its actions still do the task?

Sets the robot, and where the episode says so its objects, as they were at the first step, plays
the recorded targets, and compares what the joints did with what was recorded. No safety gate, no
ROS: what a recording is worth, not what a robot may do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from vla_oft_ros.aloha import ACTION_NAMES, CAMERAS, GRIPPERS, load_profile
from vla_oft_ros.config import ConfigError
from vla_oft_ros.data.episode import Episode, EpisodeError
from vla_oft_ros.data.video import write_film
from vla_oft_ros.sim.aloha_world import TIMESTEP_NS, AlohaWorld
from vla_oft_ros.sim.contact_sheet import contact_sheet
from vla_oft_ros.sim.record import measured
from vla_oft_ros.sim.tasks import TASKS, Task, load_task

PICTURE_MOMENTS = 4
"""Moments of a picture, from the first to the last step."""
_ARM_JOINTS = [place for place in range(len(ACTION_NAMES)) if place not in GRIPPERS]
_TILE_PX = {"film": 320, "picture": 240}


@dataclass(frozen=True, kw_only=True)
class SimReplayOptions:
    """How an episode is done again.

    Attributes:
        task: Task of the simulation; empty takes the one whose objects the episode has, or else
            transfer_cube.
        seed: Where objects lie whose places the episode does not have.
        profiles_path: Profile file; empty is the shipped one.
        film_path: MP4 file to write, what was recorded above what happened now; None is none.
        picture_path: PNG file to write, the same of a few moments; None is none.
    """

    task: str = ""
    seed: int = 0
    profiles_path: str = ""
    film_path: Path | None = None
    picture_path: Path | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SimReplay:
    """What came of it.

    Attributes:
        task: What was done again.
        qpos: (T, 14) float64 joint state before each action, as a policy would see it.
        recorded_qpos: (T, 14) float64 the same as it was recorded.
        rewards: Reward after each action.
        success: Whether the task was done at the end.
        notes: What was assumed, one sentence each.
    """

    task: Task
    qpos: np.ndarray
    recorded_qpos: np.ndarray
    rewards: list[int] = field(default_factory=list)
    success: bool
    notes: tuple[str, ...] = ()

    @property
    def arm_error_rad(self) -> np.ndarray:
        """(T,) largest distance of an arm joint from where it was recorded, rad."""
        return np.asarray(np.abs(self.qpos - self.recorded_qpos)[:, _ARM_JOINTS].max(axis=1))

    @property
    def gripper_error(self) -> np.ndarray:
        """(T,) largest distance of a gripper opening from what was recorded."""
        return np.asarray(np.abs(self.qpos - self.recorded_qpos)[:, list(GRIPPERS)].max(axis=1))

    @property
    def worst_joint(self) -> str:
        """The arm joint that was farthest from where it was recorded."""
        error = np.abs(self.qpos - self.recorded_qpos)[:, _ARM_JOINTS]
        return ACTION_NAMES[_ARM_JOINTS[int(error.max(axis=0).argmax())]]


def replay_in_sim(
    episode: Episode,
    options: SimReplayOptions | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> SimReplay:
    """Does an episode again.

    Args:
        episode: What was recorded.
        options: How.
        on_step: Called after each step.

    Returns:
        What came of it; pictures are written by then.

    Raises:
        EpisodeError: if nobody says which robot recorded it, or its rate does not fit the physics.
        ConfigError: for an unknown profile or task, or a picture without its library.
    """
    options = options or SimReplayOptions()
    if not episode.profile:
        raise EpisodeError(
            f"{episode.source}: expected to know which robot recorded it; the episode does not "
            "say. Name the profile (--profile)"
        )
    profile = load_profile(episode.profile, options.profiles_path)
    task, notes = _task_of(episode, options.task)
    if round(1e9 / episode.rate_hz) % TIMESTEP_NS:
        raise EpisodeError(
            f"{episode.source}: expected a rate whose period is whole steps of 2 ms, such as 25 "
            f"or 50 Hz; got {episode.rate_hz:g} Hz. Read it at another one (--rate 25)"
        )
    world = AlohaWorld(
        profile.gripper, control_rate_hz=episode.rate_hz, task=task, seed=options.seed
    )
    try:
        world.reset(cube_poses=_poses_of(episode, task), instruction=_asked(episode, task))
        world.place_robot(episode.qpos[0])
        if not _poses_of(episode, task):
            notes.append(
                "the episode does not say where its objects were; they lie where seed "
                f"{options.seed} puts them, so its reward says little"
            )
        replayed: list[np.ndarray] = []
        rewards: list[int] = []
        pictures = _Pictures(episode, options)
        for step, target in enumerate(episode.action):
            replayed.append(measured(world, profile))
            pictures.take(step, world)
            world.set_targets(target)
            world.advance(world.control_period_ns)
            rewards.append(world.reward())
            on_step()
        pictures.write()
    finally:
        world.close()
    return SimReplay(
        task=task,
        qpos=np.stack(replayed),
        recorded_qpos=episode.qpos,
        rewards=rewards,
        success=task.is_success(rewards),
        notes=tuple(notes),
    )


def _task_of(episode: Episode, name: str) -> tuple[Task, list[str]]:
    if name:
        return load_task(name), []
    for task in TASKS.values():
        if episode.object_poses and _poses_of(episode, task):
            return task, []
    for task in TASKS.values():
        if episode.instruction in task.instructions:
            return task, []
    task = load_task("transfer_cube")
    return task, [f"which task it was is not said; taken as {task.name} (--task)"]


def _poses_of(episode: Episode, task: Task) -> dict[str, np.ndarray] | None:
    """Where the task's objects were, if the episode knows it of all of them."""
    known = episode.object_poses or {}
    names = [cube.name for cube in task.cubes]
    return {name: known[name] for name in names} if set(names) <= set(known) else None


def _asked(episode: Episode, task: Task) -> str | None:
    """The instruction if it is one of the task's; None draws one."""
    return episode.instruction if episode.instruction in task.instructions else None


class _Pictures:
    """Camera images of now below those of the recording."""

    def __init__(self, episode: Episode, options: SimReplayOptions) -> None:
        self._episode, self._options = episode, options
        self._cameras = [camera for camera in CAMERAS if camera in episode.images]
        if (options.film_path or options.picture_path) and not self._cameras:
            raise EpisodeError(f"{episode.source}: expected images for a picture; it has none")
        steps = np.linspace(0, len(episode) - 1, PICTURE_MOMENTS)
        self._moments = {int(step) for step in steps} if options.picture_path else set()
        self._rows: list[dict[str, np.ndarray]] = []
        self._frames: list[np.ndarray] = []

    def take(self, step: int, world: AlohaWorld) -> None:
        """Draws this step if somebody wants to see it."""
        if not self._options.film_path and step not in self._moments:
            return
        recorded = {camera: self._episode.images[camera][step] for camera in self._cameras}
        drawn = world.images()
        pair = [recorded, {camera: drawn[camera] for camera in self._cameras}]
        if self._options.film_path:
            self._frames.append(contact_sheet(pair, _TILE_PX["film"]))
        if step in self._moments:
            self._rows += pair

    def write(self) -> None:
        """Writes what was asked for."""
        if self._options.film_path:
            write_film(self._options.film_path, self._frames, self._episode.rate_hz)
        if self._options.picture_path:
            path = self._options.picture_path
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet = contact_sheet(self._rows, _TILE_PX["picture"])
            if not cv2.imwrite(str(path), sheet[..., ::-1]):
                raise ConfigError(f"{path}: expected a picture file such as replay.png")
