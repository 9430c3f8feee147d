"""Per-feature statistics in LeRobot's shapes: of one episode, and of several joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_oft_ros.data.episode import Images

Stats = Mapping[str, np.ndarray]
"""min, max, mean, std and count of one feature."""
_FRAMES_PER_EPISODE = 32
"""LeRobot looks at a sample of the frames, too."""


def vector_stats(values: np.ndarray) -> dict[str, np.ndarray]:
    """Of (T, n) values."""
    values = values.astype(np.float64)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "count": np.array([len(values)]),
    }


def image_stats(images: Images) -> dict[str, np.ndarray]:
    """Of T images, per colour, on a scale of 0 … 1: (3, 1, 1) each."""
    steps = np.unique(np.linspace(0, len(images) - 1, _FRAMES_PER_EPISODE).astype(int))
    pixels = [images[int(step)][::2, ::2].reshape(-1, 3) / 255.0 for step in steps]
    found = vector_stats(np.concatenate(pixels))
    shaped = {name: values.reshape(3, 1, 1) for name, values in found.items() if name != "count"}
    return {**shaped, "count": np.array([len(steps)])}


def joined_stats(parts: Sequence[Mapping[str, Stats]]) -> dict[str, dict[str, np.ndarray]]:
    """Those of all episodes together, as if they were one."""
    joined: dict[str, dict[str, np.ndarray]] = {}
    for feature in parts[0]:
        found = [part[feature] for part in parts]
        counts = np.array([float(stats["count"][0]) for stats in found])
        means = np.stack([stats["mean"] for stats in found])
        weights = (counts / counts.sum()).reshape(-1, *[1] * (means.ndim - 1))
        mean = (weights * means).sum(axis=0)
        spreads = np.stack([stats["std"] for stats in found]) ** 2 + (means - mean) ** 2
        joined[feature] = {
            "min": np.min([stats["min"] for stats in found], axis=0),
            "max": np.max([stats["max"] for stats in found], axis=0),
            "mean": mean,
            "std": np.sqrt((weights * spreads).sum(axis=0)),
            "count": np.array([int(counts.sum())]),
        }
    return joined


def nested_stats(stats: Mapping[str, Stats]) -> dict[str, dict[str, Any]]:
    """As nested lists, for JSON and Parquet."""
    return {
        feature: {name: np.asarray(values).tolist() for name, values in found.items()}
        for feature, found in stats.items()
    }
