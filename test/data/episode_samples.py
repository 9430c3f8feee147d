"""Episodes in memory for the tests of formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_oft_ros.aloha import CAMERAS, start_pose
from vla_oft_ros.data.episode import Episode


def smooth_image(camera: int, step: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A picture without noise, different for each camera and step, with distinct colours."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    red = 100 + 60 * np.sin(0.05 * columns + 0.2 * step)
    green = 80 + 40 * np.cos(0.06 * rows + camera)
    blue = np.full(size, 40.0 + 30 * camera)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def make_episode(
    steps: int = 30,
    seed: int = 0,
    size: tuple[int, int] = (48, 64),
    rate_hz: float = 25.0,
    cameras: tuple[str, ...] = CAMERAS,
    instruction: str = "transfer the cube",
) -> Episode:
    """A smooth demonstration whose numbers float32 can hold."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(steps)[:, None] / rate_hz
    phase = rng.uniform(0, 6, 14)
    action = start_pose(0.5) + 0.2 * (np.sin(1.5 * time_s + phase) - np.sin(phase))
    action = action.astype(np.float32).astype(np.float64)
    qpos = np.concatenate([action[:1], action[:-1]])
    stamps = 10**9 + np.round(np.arange(steps) * 1e9 / rate_hz).astype(np.int64)
    return Episode(
        images={
            camera: np.stack([smooth_image(place, step + 7 * seed, size) for step in range(steps)])
            for place, camera in enumerate(cameras)
        },
        qpos=qpos,
        action=action,
        qvel=(0.5 * qpos).astype(np.float32).astype(np.float64),
        effort=None,
        stamps_ns=stamps,
        image_stamps_ns={camera: stamps - 5_000_000 for camera in cameras},
        rate_hz=rate_hz,
        instruction=instruction,
        profile="sim",
        color_order="rgb",
        outcome="success",
        source=f"episode {seed}",
    )


def assert_same_numbers(first: Episode, second: Episode) -> None:
    assert np.array_equal(first.qpos, second.qpos)
    assert np.array_equal(first.action, second.action)
    assert first.rate_hz == second.rate_hz
    assert first.instruction == second.instruction
    assert first.cameras == second.cameras


def assert_same_images(first: Episode, second: Episode, tolerance: float = 0.0) -> None:
    """Equal, or the mean error of every image is at most `tolerance`."""
    for camera in first.cameras:
        for step in range(len(first)):
            one = np.asarray(first.images[camera][step], dtype=np.int64)
            other = np.asarray(second.images[camera][step], dtype=np.int64)
            assert np.abs(one - other).mean() <= tolerance


def write_2_0(episode: Episode, path: Path) -> None:
    """The same demonstration as branch 2.0 of Interbotix/aloha would have stored it."""
    import h5py

    from vla_oft_ros.aloha import load_profile

    gripper = load_profile("interbotix_2_0").gripper
    qpos = np.concatenate([episode.qpos[:, 7:], episode.qpos[:, :7]], axis=1)
    for place in (6, 13):
        span = gripper.position_open_m - gripper.position_closed_m
        for step, opening in enumerate(qpos[:, place]):
            servo = gripper.servo_rad(gripper.position_closed_m + opening * span)
            qpos[step, place] = (servo - 0.0440) / (0.0579 - 0.0440)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        file["action"] = np.concatenate([episode.action[:, 7:], episode.action[:, :7]], axis=1)
        file["observations/qpos"] = qpos
        names = ("camera_high", "camera_wrist_left", "camera_wrist_right")
        for name, images in zip(names, episode.images.values(), strict=True):
            file[f"observations/images/{name}"] = np.asarray(images)
