from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_oft_ros.normalization import (
    Bounds,
    NormStats,
    choose_dataset,
    normalize,
    read_statistics,
    unnormalize,
)

STATS = NormStats(
    lower=np.array([-2.0, 0.0, 1.0, -1.0]),
    upper=np.array([2.0, 1.0, 1.0, 3.0]),
    mask=np.array([True, True, True, False]),
)
inside = st.floats(0.0, 1.0).map(lambda share: share)


@given(st.lists(inside, min_size=2, max_size=2))
def test_unnormalize_inverts_normalize_within_the_bounds(shares: list[float]) -> None:
    values = STATS.lower + np.array([*shares, 0.0, 0.0]) * (STATS.upper - STATS.lower)
    values[3] = 0.7  # not masked in: passes both ways unchanged
    np.testing.assert_allclose(unnormalize(normalize(values, STATS), STATS), values, atol=1e-7)


def test_bounds_become_minus_one_and_one() -> None:
    np.testing.assert_allclose(normalize(STATS.lower, STATS)[:2], -1.0, atol=1e-7)
    np.testing.assert_allclose(normalize(STATS.upper, STATS)[:2], 1.0, atol=1e-7)


def test_normalize_clips_and_unnormalize_extrapolates() -> None:
    far = np.array([10.0, 10.0, 10.0, 10.0])
    assert np.all(normalize(far, STATS) == 1.0)
    assert unnormalize(np.full(4, 3.0), STATS)[0] == pytest.approx(6.0)


def test_still_dimension_is_minus_one_at_inference_and_zero_in_training() -> None:
    values = np.array([0.0, 0.5, 1.0, 0.0])
    assert normalize(values, STATS)[2] == -1.0
    assert normalize(values, STATS, still_to_zero=True)[2] == 0.0


def test_unmasked_dimension_passes_through() -> None:
    assert unnormalize(np.array([0.0, 0.0, 0.0, 0.123]), STATS)[3] == 0.123
    still = NormStats(lower=np.zeros(2), upper=np.zeros(2), mask=np.array([True, False]))
    trained = normalize(np.array([0.5, 0.5]), still, still_to_zero=True)
    assert trained.tolist() == [0.0, 0.5]  # also one that never moved, as an open gripper


@pytest.mark.parametrize("function", [normalize, unnormalize])
def test_vectors_of_another_length_are_refused(function: object) -> None:
    with pytest.raises(ValueError, match=r"expected vectors of 4.*got shape \(2, 3\)"):
        function(np.zeros((2, 3)), STATS)  # type: ignore[operator]


def test_quantiles_are_used_where_asked_for() -> None:
    section = {"min": [-9.0], "max": [9.0], "q01": [-1.0], "q99": [1.0]}
    assert NormStats.from_statistics(section, Bounds.QUANTILES).upper == 1.0
    assert NormStats.from_statistics(section, Bounds.MIN_MAX).upper == 9.0


@pytest.mark.parametrize(
    ("lower", "upper", "reason"),
    [
        ([0.0, 0.0], [1.0], "one length"),
        ([0.0], [np.inf], "finite"),
        ([1.0], [0.0], "lower ≤ upper"),
    ],
)
def test_senseless_bounds_are_refused(lower: list[float], upper: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        NormStats(
            lower=np.array(lower), upper=np.array(upper), mask=np.ones(len(lower), dtype=bool)
        )


def test_only_data_set_needs_no_name() -> None:
    assert choose_dataset({"pot": {}}, "") == "pot"


@pytest.mark.parametrize("key", ["", "plate"])
def test_choice_between_data_sets_is_left_to_the_user(key: str) -> None:
    with pytest.raises(ValueError, match="cup, pot"):
        choose_dataset({"pot": {}, "cup": {}}, key)


def test_statistics_file_is_read_as_written(tmp_path: Path) -> None:
    content = {"pot": {"action": {"min": [0.0]}}}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(content))
    assert read_statistics(tmp_path / "dataset_statistics.json") == content
