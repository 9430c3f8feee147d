"""The picture of kept patches: what it shows is what the policy answered."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("mujoco")

from vla_oft_ros.aloha import load_profile
from vla_oft_ros.config import PolicyConfig, PruningConfig
from vla_oft_ros.model.small_checkpoint import make_random_checkpoint
from vla_oft_ros.policy import Policy, load_policy
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.token_view import watch_demonstration, write_token_view
from vla_oft_ros.types import MotionMode

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    directory = tmp_path_factory.mktemp("checkpoint") / "small"
    make_random_checkpoint(directory)
    pruning = PruningConfig(method="specprune")
    return load_policy(PolicyConfig(checkpoint_dir=str(directory), device="cpu", pruning=pruning))


def test_sights_come_every_stride_with_references_of_about_ten_ticks_ago(
    world: AlohaWorld,
) -> None:
    frames = {}
    sights = []
    for sight in watch_demonstration(world, load_profile("sim"), stride=5):
        sights.append(sight)
        for camera, image in sight.observation.images.items():
            frames[camera, sight.observation.stamp_ns] = image
        if len(sights) == 8:
            break
    tick_ns = world.control_period_ns
    assert sights[0].observation.stamp_ns == tick_ns
    gaps = np.diff([sight.observation.stamp_ns for sight in sights])
    assert set(gaps.tolist()) == {5 * tick_ns}
    first, last = sights[0].observation, sights[-1].observation
    assert first.reference_images is not None
    assert last.reference_images is not None
    assert all(image is None for image in first.reference_images.values())
    # Ten ticks ago is two sights ago at this stride; T may be 9, 10 or 11.
    for camera, image in last.reference_images.items():
        assert image is not None
        near = frames[camera, last.stamp_ns - 10 * tick_ns].astype(int)
        far = frames[camera, last.stamp_ns - 30 * tick_ns].astype(int)
        now = last.images[camera].astype(int)
        assert np.abs(image - near).mean() <= np.abs(image - far).mean()
        assert np.abs(image - near).mean() <= np.abs(image - now).mean()


def test_both_modes_occur_in_a_demonstration(world: AlohaWorld) -> None:
    sights = watch_demonstration(world, load_profile("sim"), stride=10)
    assert {sight.mode for sight in sights} == set(MotionMode)


def test_the_picture_has_a_row_per_stage_and_is_the_answer_it_returns(
    policy: Policy, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "view.png"
    chunk = write_token_view(policy, load_profile("sim"), path, inferences=3, stride=10)
    layers = {record.layer for record in chunk.retained}
    assert len(layers) == 3
    picture = cv2.imread(str(path))
    assert picture is not None
    row = 240 + 26  # a 320x240 tile and its strip
    assert picture.shape == ((1 + len(layers)) * row + 26, 3 * 324 - 4, 3)
    raw, painted = picture[26:266], picture[26 + row : 266 + row]
    assert painted.mean() < raw.mean()


def test_a_demonstration_that_is_too_short_is_refused(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 1 to 2"):
        write_token_view(policy, load_profile("sim"), tmp_path / "v.png", inferences=9, stride=100)
