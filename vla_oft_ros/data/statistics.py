"""dataset_statistics.json of a set of episodes: what `normalization` maps to -1 and 1.

As openvla-oft computes it, with two additions that its readers ignore: dimensions that hardly
moved have their range widened and are named, and the scale of motion for SpecPrune's controller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_oft_ros.action_aware import arm_motion, motion_scale
from vla_oft_ros.aloha import ACTION_NAMES, ARMS
from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.episode import Episode, EpisodeError

MIN_RANGE = 0.04
"""Smallest range of a dimension, rad or gripper opening: fine-tuning on one demonstration whose
waist stood still had a normalised error of 21 on the next (measured in this package's simulation).
"""
_PERCENTILE = 99.0


@dataclass(frozen=True)
class Statistics:
    """Statistics of one data set.

    Attributes:
        content: Its entry in dataset_statistics.json.
        floored: Names of the dimensions whose range was widened, e.g. "action left/waist".
    """

    content: dict[str, Any]
    floored: tuple[str, ...]


@dataclass
class StatisticsCollector:
    """Takes the vectors of one episode after the other; they are small, images are not touched.

    Attributes:
        min_range: Smallest range of a dimension.
    """

    min_range: float = MIN_RANGE
    _qpos: list[np.ndarray] = field(default_factory=list)
    _action: list[np.ndarray] = field(default_factory=list)
    _rates: dict[float, str] = field(default_factory=dict)

    def add(self, episode: Episode) -> None:
        """Takes an episode's vectors."""
        self.add_vectors(episode.qpos, episode.action, episode.rate_hz, episode.source)

    def add_vectors(
        self, qpos: np.ndarray, action: np.ndarray, rate_hz: float, source: str
    ) -> None:
        """Takes the (T, 14) measured states and actions of an episode."""
        self._qpos.append(qpos)
        self._action.append(action)
        self._rates.setdefault(rate_hz, source)

    def finish(self) -> Statistics:
        """The statistics of everything taken so far.

        Raises:
            EpisodeError: if there was nothing, or episodes of several rates.
        """
        if not self._qpos:
            raise EpisodeError("statistics: expected at least one episode; got none")
        if len(self._rates) > 1:
            listed = ", ".join(f"{rate:g} Hz ({name})" for rate, name in self._rates.items())
            raise EpisodeError(f"statistics: expected episodes of one rate; got {listed}")
        action, floored_action = self._vector(self._action, "action")
        proprio, floored_proprio = self._vector(self._qpos, "proprio")
        floored = (*floored_action, *floored_proprio)
        content = {
            "action": {**action, "mask": [True] * len(ACTION_NAMES)},
            "proprio": proprio,
            "num_transitions": sum(len(part) for part in self._action),
            "num_trajectories": len(self._action),
            "floored": list(floored),
            "motion_per_step": motion_per_step(self._action),
            "rate_hz": next(iter(self._rates)),
        }
        return Statistics(content, floored)

    def _vector(
        self, parts: list[np.ndarray], what: str
    ) -> tuple[dict[str, list[float]], list[str]]:
        values = np.concatenate(parts)  # (ΣT, 14)
        found = {
            "mean": values.mean(axis=0),
            "std": values.std(axis=0),
            "max": values.max(axis=0),
            "min": values.min(axis=0),
            "q01": np.quantile(values, 0.01, axis=0),
            "q99": np.quantile(values, 0.99, axis=0),
        }
        narrow = np.zeros(len(ACTION_NAMES), dtype=bool)
        for low, high in (("min", "max"), ("q01", "q99")):
            missing = np.maximum(self.min_range - (found[high] - found[low]), 0.0)
            found[low] = found[low] - missing / 2.0
            found[high] = found[high] + missing / 2.0
            narrow |= (missing > 0.0) & (low == "min")
        names = [
            f"{what} {name}"
            for name, is_narrow in zip(ACTION_NAMES, narrow, strict=True)
            if is_narrow
        ]
        return {name: found[name].tolist() for name in found}, names


def motion_per_step(actions: Iterable[np.ndarray]) -> dict[str, Any]:
    """99th percentiles of way and turn of the grippers per control step, of both arms together
    (`action_aware.MotionScale`) and of each.
    """
    episodes = [action for action in actions if len(action) > 1]
    if not episodes:
        return {}
    scale = motion_scale(episodes)
    told: dict[str, Any] = {
        "translation_m": scale.translation_m,
        "rotation_rad": scale.rotation_rad,
    }
    motions = [arm_motion(action[:-1], action[1:], 1.0) for action in episodes]
    ways = np.concatenate([motion.translation_m_s for motion in motions])  # (ΣT, 2)
    turns = np.concatenate([motion.rotation_rad_s for motion in motions])
    for place, arm in enumerate(ARMS):
        told[arm] = {
            "translation_m": float(np.percentile(ways[:, place], _PERCENTILE)),
            "rotation_rad": float(np.percentile(turns[:, place], _PERCENTILE)),
        }
    return told


def write_statistics(path: Path, name: str, statistics: Statistics) -> None:
    """Writes dataset_statistics.json with one data set."""
    with new_file(path) as part:
        part.write_text(json.dumps({name: statistics.content}, indent=2), encoding="utf-8")
