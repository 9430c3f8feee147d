"""Scripted demonstrations of the simulated ALOHA as HDF5 episodes: training without a robot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_oft_ros.aloha import load_profile
from vla_oft_ros.config import ConfigError, PreprocessingConfig
from vla_oft_ros.data.episode import FAILURE, RGB, SUCCESS, Episode
from vla_oft_ros.data.hdf5 import write_hdf5
from vla_oft_ros.model.inputs import ImagePipeline
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.record import record_demonstration

PROFILE = "sim"
RATE_HZ = 25.0


@dataclass(frozen=True, kw_only=True)
class Take:
    """One episode on disk.

    Attributes:
        path: File.
        success: Whether the task was done; None if the file was there before.
    """

    path: Path
    success: bool | None


def make_demonstrations(
    directory: Path,
    episodes: int,
    *,
    seed: int = 0,
    task: str = "transfer_cube",
    image_px: int = 0,
    disturbance_rad: float = 0.0,
) -> Iterator[Take]:
    """Writes episode_<number>.hdf5 one after the other; those that exist are left as they are.

    Args:
        directory: Folder of the files.
        episodes: How many.
        seed: Episode i starts from the object poses, and asks what, seed + i draws.
        task: Task of the simulation.
        image_px: Store images as a network of this input size sees them before cropping, with the
            preparation of the live policy: exact, and a twentieth of the size; 0 stores the
            camera's 640x480.
        disturbance_rad: See `record_demonstration`.

    Yields:
        One take per episode.

    Raises:
        ConfigError: if a number makes no sense.
    """
    if episodes < 1 or image_px < 0 or disturbance_rad < 0:
        raise ConfigError(
            "make-demos: expected at least one episode and no negative size or disturbance; got "
            f"{episodes} episodes, {image_px} px, {disturbance_rad:g} rad"
        )
    directory.mkdir(parents=True, exist_ok=True)
    profile = load_profile(PROFILE)
    store = _preparation(image_px).resize if image_px else np.asarray
    world = AlohaWorld(profile.gripper, control_rate_hz=RATE_HZ, task=task)
    try:
        for number in range(seed, seed + episodes):
            path = directory / f"episode_{number:06d}.hdf5"
            if path.is_file():
                yield Take(path=path, success=None)
                continue
            world.reset(seed=number)
            recorded = record_demonstration(
                world,
                profile,
                np.random.default_rng(number),
                disturbance_rad=disturbance_rad,
                store=store,
            )
            episode = Episode(
                images=recorded.images,
                qpos=recorded.qpos,
                action=recorded.action,
                stamps_ns=recorded.stamps_ns,
                rate_hz=RATE_HZ,
                instruction=recorded.instruction,
                profile=PROFILE,
                color_order=RGB,
                outcome=SUCCESS if recorded.success else FAILURE,
                object_poses=recorded.cube_poses,
                source=f"scripted demonstration, seed {number}",
            )
            write_hdf5(episode, path)
            yield Take(path=path, success=recorded.success)
    finally:
        world.close()


def _preparation(image_px: int) -> ImagePipeline:
    """The live policy's resizing; means and deviations play no part in it."""
    return ImagePipeline(
        size_px=image_px,
        mean=np.zeros((2, 3), np.float32),
        std=np.ones((2, 3), np.float32),
        options=PreprocessingConfig(),
    )
