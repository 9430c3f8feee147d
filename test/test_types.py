"""Laws of the values that travel through the package."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_oft_ros.aloha import example_observation
from vla_oft_ros.types import ActionChunk, KeptBy, Observation, RetainedTokens

GRID = (3, 5)
COUNT = GRID[0] * GRID[1]


@pytest.fixture
def observation() -> Observation:
    return example_observation(np.random.default_rng(0))


def retained(indices: list[int], grid: tuple[int, int] = GRID) -> RetainedTokens:
    return RetainedTokens(
        camera="cam_high",
        stamp_ns=1,
        grid=grid,
        layer=3,
        patch_indices=np.array(indices, dtype=np.int32),
        kept_by=np.full(len(indices), KeptBy.GLOBAL, dtype=np.uint8),
    )


def chunk(**changes: object) -> ActionChunk:
    values = dict(actions=np.zeros((4, 14)), stamp_ns=5, dt_ns=40, instruction="", inference_s=0.1)
    return ActionChunk(**(values | changes))  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 10**15), min_size=4, max_size=4))
def test_an_observation_is_as_old_as_its_oldest_part(stamps: list[int]) -> None:
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    cameras = ("a", "b", "c")
    made = Observation(
        images=dict.fromkeys(cameras, image),
        image_stamps_ns=dict(zip(cameras, stamps[:3], strict=True)),
        proprio=np.zeros(14),
        proprio_stamp_ns=stamps[3],
        instruction="",
    )
    assert made.stamp_ns == min(stamps)


def test_every_image_needs_a_stamp(observation: Observation) -> None:
    with pytest.raises(ValueError, match=r"one stamp per image.*cam_high.*stamps \[\]"):
        replace(observation, image_stamps_ns={})


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((3, 4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((4, 4, 3), dtype=np.float32),
    ],
)
def test_an_image_that_is_not_rgb_bytes_is_refused(
    observation: Observation, image: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"image 'cam_high' must be \(H, W, 3\) uint8 RGB, got"):
        replace(observation, images={**observation.images, "cam_high": image})


def test_proprio_is_one_vector(observation: Observation) -> None:
    with pytest.raises(ValueError, match=r"one vector \(A,\), got shape \(2, 7\)"):
        replace(observation, proprio=np.zeros((2, 7)))


def test_values_cannot_be_rebound(observation: Observation) -> None:
    with pytest.raises(FrozenInstanceError):
        observation.instruction = "other"  # type: ignore[misc]


@given(st.sets(st.integers(0, COUNT - 1)))
def test_the_retain_ratio_is_the_share_of_patches_kept(kept: set[int]) -> None:
    assert retained(sorted(kept)).retain_ratio == len(kept) / COUNT


@pytest.mark.parametrize(
    "indices", [[-1, 2], [0, COUNT], [3, 3], [4, 2], [0, 2, 1]], ids=lambda value: str(value)
)
@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_patch_indices_are_ascending_unique_and_within_the_grid(
    indices: list[int], dtype: type
) -> None:
    tokens = retained([])
    with pytest.raises(ValueError, match="ascending, unique and within 0 … 14"):
        replace(
            tokens,
            patch_indices=np.array(indices).astype(dtype),
            kept_by=np.ones(len(indices), dtype=np.uint8),
        )


def test_every_kept_patch_has_a_reason() -> None:
    with pytest.raises(ValueError, match=r"one flag per patch index, got \(0,\) indices and \(1,"):
        replace(retained([]), kept_by=np.ones(1, dtype=np.uint8))


@pytest.mark.parametrize("grid", [(0, 5), (3, 0), (0, 0)])
def test_a_grid_without_patches_is_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 1x1 patches, got"):
        retained([], grid)


def test_the_reasons_to_keep_a_patch_are_single_bits_that_add_up() -> None:
    assert [flag.value for flag in KeptBy] == [1, 2, 4, 8, 16]
    assert KeptBy(3) == KeptBy.GLOBAL | KeptBy.LOCAL


@pytest.mark.parametrize("shape", [(14,), (0, 14), (1, 4, 14)])
def test_a_chunk_has_at_least_one_row_of_actions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"actions must be \(K, A\) with K ≥ 1, got shape"):
        chunk(actions=np.zeros(shape))


@pytest.mark.parametrize("dt_ns", [0, -1])
def test_time_runs_forward_in_a_chunk(dt_ns: int) -> None:
    with pytest.raises(ValueError, match="dt_ns must be positive, got"):
        chunk(dt_ns=dt_ns)


def test_chunk_len_counts_the_rows() -> None:
    assert chunk(actions=np.zeros((7, 14))).chunk_len == 7
