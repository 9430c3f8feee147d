"""Robot units ↔ the network's [-1, 1], by the statistics of the fine-tuning set
(dataset_statistics.json).

Works in float64 as official OFT does. Knows nothing of torch or of the robot.
Source: openvla-oft `openvla_utils.py` (normalize_proprio), `modeling_prismatic.py`
(_unnormalize_actions),
`prismatic/vla/datasets/rlds/utils/data_utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

STATISTICS_FILE = "dataset_statistics.json"
EPSILON = 1e-8
"""Added to every range, so that a dimension that never moved does not divide by zero
(openvla-oft).
"""


class Bounds(str, Enum):
    """Which statistics are mapped to -1 and 1."""

    MIN_MAX = "bounds"
    """Smallest and largest value; ALOHA."""
    QUANTILES = "bounds_q99"
    """1st and 99th percentile; LIBERO and BRIDGE."""

    @property
    def keys(self) -> tuple[str, str]:
        """Names of the lower and the upper bound in dataset_statistics.json."""
        return ("min", "max") if self is Bounds.MIN_MAX else ("q01", "q99")


@dataclass(frozen=True, kw_only=True, eq=False)
class NormStats:
    """Bounds of one kind of vector in one data set.

    Attributes:
        lower: (A,) float64, mapped to -1.
        upper: (A,) float64, mapped to 1.
        mask: (A,) bool; dimensions where it is False are left in their own units.
    """

    lower: np.ndarray
    upper: np.ndarray
    mask: np.ndarray

    def __post_init__(self) -> None:
        if self.lower.ndim != 1 or not self.lower.shape == self.upper.shape == self.mask.shape:
            raise ValueError(
                "NormStats: expected lower, upper and mask of one length; "
                f"got {self.lower.shape}, {self.upper.shape}, {self.mask.shape}"
            )
        if not (np.all(np.isfinite(self.lower)) and np.all(np.isfinite(self.upper))):
            raise ValueError("NormStats: expected finite bounds; got NaN or infinity")
        if np.any(self.lower > self.upper):
            worst = int(np.argmax(self.lower - self.upper))
            raise ValueError(
                f"NormStats: expected lower ≤ upper; dimension {worst} has "
                f"{self.lower[worst]:g} > {self.upper[worst]:g}"
            )

    @property
    def dim(self) -> int:
        """A, the length of the vectors."""
        return int(self.lower.size)

    @classmethod
    def from_statistics(cls, statistics: Mapping[str, Any], bounds: Bounds) -> NormStats:
        """Picks the bounds out of the "action" or "proprio" section of a data set's statistics.

        Raises:
            ValueError: if a bound is missing, has another length than its partner, or is not
                finite.
        """
        lower_key, upper_key = bounds.keys
        missing = [key for key in (lower_key, upper_key) if key not in statistics]
        if missing:
            raise ValueError(
                f"statistics: expected {lower_key} and {upper_key}; {', '.join(missing)} missing, "
                f"got {', '.join(sorted(statistics))}"
            )
        lower = np.asarray(statistics[lower_key], dtype=np.float64)
        upper = np.asarray(statistics[upper_key], dtype=np.float64)
        mask = np.asarray(statistics.get("mask", np.ones(lower.shape, dtype=bool)), dtype=bool)
        return cls(lower=lower, upper=upper, mask=mask)


def normalize(values: np.ndarray, stats: NormStats, *, still_to_zero: bool = False) -> np.ndarray:
    """Maps robot units to [-1, 1] and clips; inverse of `unnormalize` within the bounds.

    Args:
        values: (..., A) in robot units.
        stats: Bounds of the fine-tuning set.
        still_to_zero: Give 0 to dimensions whose bounds coincide.

    Returns:
        (..., A) float64 in [-1, 1]. Dimensions with `stats.mask` False are only clipped.

    Raises:
        ValueError: if the last dimension of `values` is not A.

    Note:
        Official training gives 0 to a dimension that never moved, official inference -1 (or 1):
        pass `still_to_zero=True` for training data. Both are pinned by test_normalization.
    """
    _check_dim(values, stats, "normalize")
    values = np.asarray(values, dtype=np.float64)
    span = stats.upper - stats.lower
    scaled = 2.0 * (values - stats.lower) / (span + EPSILON) - 1.0
    normalized = np.clip(np.where(stats.mask, scaled, values), -1.0, 1.0)
    if still_to_zero:
        normalized = np.where(stats.mask & (span == 0.0), 0.0, normalized)
    return normalized


def unnormalize(actions: np.ndarray, stats: NormStats) -> np.ndarray:
    """Maps network actions back to robot units; inverse of `normalize`.

    Args:
        actions: (..., A) float, nominally in [-1, 1]; values outside extrapolate, they are not
            clipped.
        stats: Bounds of the fine-tuning set.

    Returns:
        (..., A) float64. Dimensions with `stats.mask` False pass through unchanged.

    Raises:
        ValueError: if the last dimension of `actions` is not A.
    """
    _check_dim(actions, stats, "unnormalize")
    actions = np.asarray(actions, dtype=np.float64)
    span = stats.upper - stats.lower
    return np.where(stats.mask, 0.5 * (actions + 1.0) * (span + EPSILON) + stats.lower, actions)


def _check_dim(values: np.ndarray, stats: NormStats, what: str) -> None:
    if values.shape[-1:] != (stats.dim,):
        raise ValueError(
            f"{what}: expected vectors of {stats.dim}, as in {STATISTICS_FILE}; got shape "
            f"{values.shape}"
        )


def read_statistics(path: Path) -> dict[str, Any]:
    """Reads dataset_statistics.json: data set name → {"action": …, "proprio": …, counts}.

    Raises:
        ValueError: if the file is missing or is no such mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file; {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON; {error}") from None
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise ValueError(f"{path}: expected a mapping from data set names to statistics")
    return content


def choose_dataset(statistics: Mapping[str, Any], unnorm_key: str) -> str:
    """The data set whose statistics apply.

    Args:
        statistics: From `read_statistics`.
        unnorm_key: Its name; empty if there is only one.

    Raises:
        ValueError: naming the data sets there are.
    """
    names = ", ".join(sorted(statistics)) or "none"
    if unnorm_key:
        if unnorm_key not in statistics:
            raise ValueError(
                f"unnorm_key: expected one of {names} ({STATISTICS_FILE}); got {unnorm_key!r}"
            )
        return unnorm_key
    if len(statistics) != 1:
        raise ValueError(
            f"unnorm_key: {STATISTICS_FILE} holds {len(statistics)} data sets ({names}); "
            "set unnorm_key to the one that this robot belongs to"
        )
    return next(iter(statistics))
