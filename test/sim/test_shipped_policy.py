"""The policy that comes with the package: small, whole, and looking at the cube it picks up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")
pytest.importorskip("torch", reason="the extra 'torch' is not installed")

import vla_oft_ros
from vla_oft_ros.aloha import load_profile
from vla_oft_ros.config import PolicyConfig
from vla_oft_ros.policy import Policy, load_policy
from vla_oft_ros.shipped_policies import DEMO_POLICY, shipped_policies
from vla_oft_ros.sim.aim import aim_errors, grasp_tick
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.closed_loop import run_episode
from vla_oft_ros.sim.loop_setting import LoopSetting

pytestmark = pytest.mark.sim

PROFILE = load_profile("sim")
LARGEST_BYTES = 12 * 10**6
"""Of an archive: what a clone of the repository may cost for it."""
RIGHT = 1


@pytest.fixture(scope="module")
def world() -> AlohaWorld:
    return AlohaWorld(PROFILE.gripper)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return load_policy(PolicyConfig(checkpoint_dir=DEMO_POLICY, threads=1), profile=PROFILE)


def test_the_policy_of_the_demo_comes_with_the_package_and_is_small() -> None:
    assert DEMO_POLICY in shipped_policies()
    folder = Path(vla_oft_ros.__file__).parent / "policies"
    for archive in folder.iterdir():
        assert archive.stat().st_size <= LARGEST_BYTES


def test_it_has_enough_patches_that_pruning_means_something(policy: Policy) -> None:
    assert int(np.prod(policy.patch_grid)) >= 64


def test_its_chunks_reach_for_cubes_that_no_demonstration_had(
    policy: Policy, world: AlohaWorld
) -> None:
    tick, errors_mm = grasp_tick(world), []
    for seed in range(10_000, 10_004):
        world.reset(seed=seed)
        errors_mm.append(aim_errors(world, PROFILE, policy)[tick, RIGHT])
    assert np.median(errors_mm) < 20.0  # the cube is 40 mm wide; a blind policy errs by 45


@pytest.mark.slow
def test_it_hands_over_most_cubes_when_it_sees_and_none_when_it_does_not(
    policy: Policy, world: AlohaWorld
) -> None:
    done = {"own": 0, "blank": 0}
    for sight in done:
        for seed in range(10_000, 10_020):
            world.reset(seed=seed)
            done[sight] += run_episode(world, PROFILE, policy, LoopSetting(sight=sight)).success
    assert done["own"] >= 13 and done["blank"] <= 2
