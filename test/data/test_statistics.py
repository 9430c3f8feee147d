"""dataset_statistics.json: the numbers openvla-oft would compute, and no degenerate range."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from episode_samples import make_episode

from vla_oft_ros.action_aware import motion_scale
from vla_oft_ros.data.episode import EpisodeError
from vla_oft_ros.data.statistics import StatisticsCollector, write_statistics
from vla_oft_ros.normalization import (
    Bounds,
    NormStats,
    choose_dataset,
    normalize,
    read_statistics,
    unnormalize,
)


def test_statistics_are_those_of_all_rows_together() -> None:
    episodes = [make_episode(steps=20 + seed, seed=seed) for seed in range(3)]
    collector = StatisticsCollector(min_range=0.0)
    for episode in episodes:
        collector.add(episode)
    content = collector.finish().content
    rows = {
        "action": np.concatenate([episode.action for episode in episodes]),
        "proprio": np.concatenate([episode.qpos for episode in episodes]),
    }
    for what, values in rows.items():
        for name in ("min", "max", "mean", "std"):
            assert np.allclose(content[what][name], getattr(np, name)(values, axis=0), atol=1e-12)
        assert np.allclose(content[what]["q01"], np.quantile(values, 0.01, axis=0))
        assert np.allclose(content[what]["q99"], np.quantile(values, 0.99, axis=0))
    assert content["num_transitions"] == 63 and content["num_trajectories"] == 3
    assert content["action"]["mask"] == [True] * 14 and content["floored"] == []


def test_a_dimension_that_stood_still_gets_a_range_around_its_middle_and_is_named() -> None:
    episode = make_episode()
    action = episode.action.copy()
    action[:, 7] = 0.3
    collector = StatisticsCollector(min_range=0.04)
    collector.add(replace(episode, action=action))
    statistics = collector.finish()
    assert statistics.floored == ("action right/waist",)
    bounds = statistics.content["action"]
    for low, high in (("min", "max"), ("q01", "q99")):
        assert bounds[low][7] == pytest.approx(0.28) and bounds[high][7] == pytest.approx(0.32)
    stats = NormStats.from_statistics(bounds, Bounds.MIN_MAX)
    beside = action[:1] + 0.01
    assert np.abs(normalize(beside, stats)[0, 7]) < 0.51  # not thrown to the edge


def test_what_is_written_is_what_normalization_reads(tmp_path: Path) -> None:
    episode = make_episode()
    collector = StatisticsCollector()
    collector.add(episode)
    write_statistics(tmp_path / "dataset_statistics.json", "cube", collector.finish())
    content = read_statistics(tmp_path / "dataset_statistics.json")
    assert choose_dataset(content, "") == "cube"
    stats = NormStats.from_statistics(content["cube"]["action"], Bounds.MIN_MAX)
    scaled = normalize(episode.action, stats)
    assert np.allclose(unnormalize(scaled, stats), episode.action, atol=1e-6)
    json.loads((tmp_path / "dataset_statistics.json").read_text())


def test_the_scale_of_motion_is_that_of_the_action_aware_controller() -> None:
    episode = make_episode(steps=100)
    collector = StatisticsCollector()
    collector.add(episode)
    told = collector.finish().content["motion_per_step"]
    scale = motion_scale([episode.action])
    assert told["translation_m"] == scale.translation_m
    assert told["rotation_rad"] == scale.rotation_rad
    still = episode.action.copy()
    still[:, :7] = still[0, :7]
    collector = StatisticsCollector()
    collector.add(replace(episode, action=still))
    told = collector.finish().content["motion_per_step"]
    assert told["left"]["translation_m"] == 0.0 and told["right"]["translation_m"] > 0.0


def test_no_episodes_or_several_rates_are_refused() -> None:
    with pytest.raises(EpisodeError, match="at least one episode"):
        StatisticsCollector().finish()
    collector = StatisticsCollector()
    collector.add(make_episode())
    collector.add(make_episode(rate_hz=50.0, seed=1))
    with pytest.raises(EpisodeError, match=r"25 Hz \(episode 0\), 50 Hz \(episode 1\)"):
        collector.finish()
