"""A recording done again in the simulation is the same episode: joints, reward and outcome."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco")
from vla_oft_ros import cli
from vla_oft_ros.aloha import CAMERAS, GRIPPERS, load_profile
from vla_oft_ros.config import ConfigError
from vla_oft_ros.data.episode import Episode, EpisodeError
from vla_oft_ros.data.hdf5 import write_hdf5
from vla_oft_ros.replay_in_sim import SimReplayOptions, replay_in_sim
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.record import measured, record_demonstration

pytestmark = pytest.mark.sim
RATE_HZ = 25.0
SAME = 1e-6
"""Joints that are the same but for what float32 of a file takes away, after seconds of contact."""


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No camera is drawn."""
    grey = np.full((24, 32, 3), 90, np.uint8)
    monkeypatch.setattr(AlohaWorld, "images", lambda self: dict.fromkeys(CAMERAS, grey))


@pytest.fixture
def recorded(blind: None) -> Callable[..., Episode]:
    def record(task: str = "pick_cube", seed: int = 3) -> Episode:
        profile = load_profile("sim")
        world = AlohaWorld(profile.gripper, control_rate_hz=RATE_HZ, task=task, seed=seed)
        take = record_demonstration(world, profile, np.random.default_rng(0))
        assert take.success
        return Episode(
            images=take.images,
            qpos=take.qpos,
            action=take.action,
            stamps_ns=take.stamps_ns,
            rate_hz=RATE_HZ,
            instruction=take.instruction,
            profile="sim",
            outcome="success",
            object_poses=take.cube_poses,
            source="take",
        )

    return record


@pytest.mark.parametrize("task", ["pick_cube", "transfer_cube"])
def test_a_recording_done_again_takes_the_same_path_to_the_same_reward(
    task: str, recorded: Callable[..., Episode]
) -> None:
    episode = recorded(task)
    steps: list[int] = []
    result = replay_in_sim(episode, on_step=lambda: steps.append(1))
    assert (result.task.name, result.success) == (task, True)
    assert result.rewards[-1] == result.task.max_reward
    assert np.abs(result.qpos - episode.qpos).max() < SAME
    assert result.arm_error_rad.max() < SAME and result.gripper_error.max() < SAME
    assert len(steps) == len(result.rewards) == len(episode) and result.notes == ()


def test_a_recording_that_begins_anywhere_is_begun_there(recorded: Callable[..., Episode]) -> None:
    episode = recorded().taken(range(30, 40))
    assert episode.object_poses is None  # they were those of another step
    result = replay_in_sim(episode)
    assert np.abs(result.qpos[0] - episode.qpos[0]).max() < 1e-9
    assert result.arm_error_rad.max() < 0.1 < np.abs(episode.qpos[0] - recorded().qpos[0]).max()


def test_objects_elsewhere_cost_the_reward_and_are_told(recorded: Callable[..., Episode]) -> None:
    episode = replace(recorded(), object_poses=None)
    result = replay_in_sim(episode, SimReplayOptions(seed=77))
    assert not result.success and result.rewards[-1] < result.task.max_reward
    assert "does not say where its objects were" in result.notes[0] and "77" in result.notes[0]
    other = replay_in_sim(replace(episode, instruction="dance"))
    assert other.task.name == "transfer_cube" and "--task" in other.notes[0]


def test_an_observed_joint_state_is_where_the_robot_is_put() -> None:
    for name in ("sim", "interbotix_main"):
        profile = load_profile(name)
        world = AlohaWorld(profile.gripper)
        qpos = measured(world, profile) + 0.1
        qpos[list(GRIPPERS)] = 0.3, 0.8
        world.place_robot(qpos)
        assert np.allclose(measured(world, profile), qpos, atol=1e-9)


def test_an_episode_of_an_unknown_robot_or_of_an_odd_rate_is_refused(
    recorded: Callable[..., Episode],
) -> None:
    episode = recorded()
    with pytest.raises(EpisodeError, match="--profile"):
        replay_in_sim(replace(episode, profile=""))
    with pytest.raises(EpisodeError, match=r"30 Hz.*--rate 25"):
        replay_in_sim(replace(episode, rate_hz=30.0))
    with pytest.raises(ConfigError, match="robot9"):
        replay_in_sim(replace(episode, profile="robot9"))
    with pytest.raises(ValueError, match="juggle"):
        replay_in_sim(episode, SimReplayOptions(task="juggle"))


def test_the_command_replays_a_file_tells_the_outcome_and_draws_it(
    recorded: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("av")
    for number in range(2):
        write_hdf5(recorded(), tmp_path / "set" / f"episode_{number}.hdf5")
    picture, film = tmp_path / "out" / "a.png", tmp_path / "a.mp4"
    folder = [str(tmp_path / "set")]
    drawn = ["--picture", str(picture), "--video", str(film)]
    assert cli.main(["replay", *folder, "--sim", "--episode", "1", *drawn]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "episode_1.hdf5: success at pick_cube, highest reward 4 of 4, recorded as suc" in told
    assert re.search(r"0\.00\d\d rad at most", told)  # of float32, through seconds of contact
    assert picture.read_bytes().startswith(b"\x89PNG") and film.stat().st_size > 1000
    assert cli.main(["replay", *folder, "--sim"]) == cli.EXIT_BAD_INPUT
    assert "found 2" in capsys.readouterr().err
    assert cli.main(["replay", *folder, "--sim", "--episode", "0", "--task", "transfer_cube"]) == 1
