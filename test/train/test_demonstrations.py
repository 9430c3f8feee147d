"""Demonstrations straight from the simulation: rows, disturbance, stored images, repetition."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="needs the extra sim")

from vla_oft_ros.aloha import CAMERAS, load_profile
from vla_oft_ros.config import ConfigError, PreprocessingConfig
from vla_oft_ros.data.episode import FAILURE
from vla_oft_ros.data.hdf5 import read_hdf5
from vla_oft_ros.model.inputs import ImagePipeline
from vla_oft_ros.sim import record
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.demonstrator import demonstrate
from vla_oft_ros.sim.record import measured, record_demonstration
from vla_oft_ros.train.demonstrations import make_demonstrations

pytestmark = pytest.mark.sim
PROFILE = load_profile("sim")
TICKS = 6


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first ticks of a demonstration."""
    monkeypatch.setattr(record, "demonstrate", lambda world: islice(demonstrate(world), TICKS))


def taken(seed: int, disturbance_rad: float = 0.0) -> record.Demonstration:
    world = AlohaWorld(PROFILE.gripper, width_px=64, height_px=48, seed=seed)
    try:
        return record_demonstration(
            world, PROFILE, np.random.default_rng(seed), disturbance_rad=disturbance_rad
        )
    finally:
        world.close()


def test_a_whole_demonstration_hands_the_cube_over(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = {camera: np.zeros((4, 4, 3), np.uint8) for camera in CAMERAS}
    monkeypatch.setattr(AlohaWorld, "images", lambda world: blank)
    recorded = taken(3)
    assert recorded.success and recorded.rewards[-1] == 4
    assert len(recorded.qpos) == len(recorded.images[CAMERAS[0]]) == len(recorded.stamps_ns)
    assert np.all(np.diff(recorded.stamps_ns) == 40_000_000)


@pytest.mark.usefixtures("short")
def test_a_row_holds_what_was_seen_before_its_action() -> None:
    recorded = taken(1)
    world = AlohaWorld(PROFILE.gripper, width_px=64, height_px=48, seed=1)
    try:
        for step, target in enumerate(islice(demonstrate(world), TICKS)):
            assert np.array_equal(recorded.qpos[step], measured(world, PROFILE))
            assert np.array_equal(recorded.action[step], target)
            for camera, image in world.images().items():
                assert np.array_equal(recorded.images[camera][step], image)
            world.set_targets(target)
            world.advance(world.control_period_ns)
    finally:
        world.close()


@pytest.mark.usefixtures("short")
def test_a_disturbance_moves_the_arms_but_not_what_is_learned() -> None:
    plain, pushed = taken(1), taken(1, disturbance_rad=0.05)
    assert np.array_equal(plain.action, pushed.action)
    assert np.array_equal(plain.qpos[0], pushed.qpos[0])
    assert np.abs(plain.qpos[-1] - pushed.qpos[-1]).max() > 0.01


@pytest.mark.usefixtures("short")
def test_episodes_are_kept_and_their_images_are_those_of_the_live_policy(tmp_path: Path) -> None:
    first = list(make_demonstrations(tmp_path, 1, seed=5, image_px=28))
    assert [take.success for take in first] == [False]  # six ticks hand nothing over
    stamp = first[0].path.stat().st_mtime_ns
    again = list(make_demonstrations(tmp_path, 2, seed=5, image_px=28))
    assert [take.success for take in again] == [None, False]
    assert first[0].path.stat().st_mtime_ns == stamp
    episode, other = (read_hdf5(take.path) for take in again)
    assert episode.outcome == FAILURE and episode.instruction and episode.profile == "sim"
    assert not np.array_equal(episode.images["cam_high"][0], other.images["cam_high"][0])
    world = AlohaWorld(PROFILE.gripper)
    world.reset(seed=5)
    pipeline = ImagePipeline(
        size_px=28, mean=np.zeros((2, 3)), std=np.ones((2, 3)), options=PreprocessingConfig()
    )
    try:
        for camera, image in world.images().items():
            assert np.array_equal(episode.images[camera][0], pipeline.resize(image))
    finally:
        world.close()


def test_numbers_without_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one episode"):
        next(make_demonstrations(tmp_path, 0))
