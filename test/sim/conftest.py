"""Fixtures of the simulation's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from vla_oft_ros.aloha import GripperCalibration, load_profile

if TYPE_CHECKING:
    from vla_oft_ros.sim.aloha_world import AlohaWorld


@pytest.fixture(scope="session")
def calibration() -> GripperCalibration:
    return load_profile("sim").gripper


@pytest.fixture(scope="module")
def shared_world(calibration: GripperCalibration) -> Iterator[AlohaWorld]:
    from vla_oft_ros.sim.aloha_world import AlohaWorld  # brings MuJoCo, which may not be there

    world = AlohaWorld(calibration, width_px=160, height_px=120)
    yield world
    world.close()


@pytest.fixture
def world(shared_world: AlohaWorld) -> AlohaWorld:
    """A small world in the start pose, always with the same cube."""
    shared_world.reset(seed=0)
    return shared_world


@pytest.fixture(scope="session")
def picking(calibration: GripperCalibration) -> AlohaWorld:
    """A world of three cubes to pick from; it draws no images."""
    from vla_oft_ros.sim.aloha_world import AlohaWorld

    return AlohaWorld(calibration, task="pick_cube")
