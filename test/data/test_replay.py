"""A replay starts where the robot is, never jumps, and ends where the episode ends."""

from __future__ import annotations

import numpy as np
import pytest
from episode_samples import make_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_oft_ros.data.replay import replay_targets


def test_a_robot_that_stands_at_the_first_action_gets_the_episode_as_it_is() -> None:
    episode = make_episode()
    targets = replay_targets(episode, episode.action[0], rate_hz=25.0)
    assert np.array_equal(targets, episode.action)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.1, 2.0))
def test_the_way_to_the_first_action_is_slow_and_without_a_jump(seed: int, limit: float) -> None:
    episode = make_episode(steps=5)
    present = np.random.default_rng(seed).uniform(-1.5, 1.5, 14)
    targets = replay_targets(episode, present, rate_hz=25.0, ease_in_rad_s=limit)
    ease = np.concatenate([present[None], targets[: len(targets) - len(episode)]])
    speed = np.abs(np.diff(ease, axis=0)).max() * 25.0
    assert speed <= limit * 1.001
    assert np.allclose(ease[-1], episode.action[0])
    assert np.array_equal(targets[-len(episode) :], episode.action)


def test_half_the_speed_is_twice_as_many_targets_on_the_same_path() -> None:
    episode = make_episode(steps=11)
    slow = replay_targets(episode, episode.action[0], rate_hz=25.0, speed=0.5)
    assert np.allclose(slow[::2], episode.action) and len(slow) == 21
    assert np.allclose(slow[1::2], (episode.action[1:] + episode.action[:-1]) / 2)
    fast_clock = replay_targets(episode, episode.action[0], rate_hz=50.0)
    assert np.allclose(fast_clock, slow)


def test_the_last_target_is_the_last_action_whatever_the_rate() -> None:
    episode = make_episode(steps=11)
    for rate in (7.0, 10.0, 33.3):
        targets = replay_targets(episode, episode.action[0], rate_hz=rate)
        assert np.array_equal(targets[-1], episode.action[-1])


@pytest.mark.parametrize(
    "wrong", [{"speed": 0.0}, {"speed": 1.5}, {"rate_hz": 0.0}, {"ease_in_rad_s": 9.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    episode = make_episode(steps=3)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replay_targets(episode, episode.action[0], **{"rate_hz": 25.0, **wrong})
    with pytest.raises(ValueError, match="present"):
        replay_targets(episode, np.full(14, np.nan), rate_hz=25.0)
