"""Laws of the overlay: it paints exactly the retained cells, where the network saw them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_oft_ros.overlay import COLORS, paint_retained, patch_edges, reason_color
from vla_oft_ros.types import KeptBy, RetainedTokens

GRID = (4, 5)
HEIGHT, WIDTH = 80, 125
FRAME_PX = 2  # a ninth of a patch of 20 px


def retained(indices: list[int], kept_by: int = KeptBy.LOCAL) -> RetainedTokens:
    return RetainedTokens(
        camera="cam_high",
        stamp_ns=0,
        grid=GRID,
        layer=2,
        patch_indices=np.array(indices, dtype=np.int32),
        kept_by=np.full(len(indices), kept_by, dtype=np.uint8),
    )


def cell(index: int, crop_area: float) -> tuple[slice, slice]:
    row, column = divmod(index, GRID[1])
    tops, lefts = patch_edges(HEIGHT, 4, crop_area), patch_edges(WIDTH, 5, crop_area)
    return slice(tops[row], tops[row + 1]), slice(lefts[column], lefts[column + 1])


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 19)), st.sampled_from([1.0, 0.9]), st.integers(0, 99))
def test_exactly_the_retained_cells_are_bright(kept: set[int], crop_area: float, seed) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    painted = paint_retained(image, retained(sorted(kept)), crop_area=crop_area)
    expected = (image * 0.3).astype(np.uint8)
    for index in kept:
        rows, columns = cell(index, crop_area)
        expected[rows, columns] = COLORS[KeptBy.LOCAL]
        inside = tuple(
            slice(side.start + FRAME_PX, side.stop - FRAME_PX) for side in (rows, columns)
        )
        expected[inside] = image[inside]
    assert np.array_equal(painted, expected)


def test_the_image_itself_is_not_touched() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 200, dtype=np.uint8)
    paint_retained(image, retained([3]), crop_area=0.9)
    assert np.all(image == 200)


@pytest.mark.parametrize("crop_area", [1.0, 0.9])
def test_cells_cover_what_the_network_saw_without_gap_or_overlap(crop_area: float) -> None:
    covered = np.zeros((HEIGHT, WIDTH), dtype=int)
    for index in range(20):
        covered[cell(index, crop_area)] += 1
    assert covered.max() == 1
    assert covered.sum() == pytest.approx(HEIGHT * WIDTH * crop_area, rel=0.02)
    margin = round(HEIGHT * (1 - np.sqrt(crop_area)) / 2)
    assert np.all(covered[margin : HEIGHT - margin, WIDTH // 2] == 1)


def test_colors_of_several_reasons_mix() -> None:
    mixed = np.array(reason_color(KeptBy.GLOBAL | KeptBy.DYNAMIC))
    mean = (np.array(COLORS[KeptBy.GLOBAL]) + COLORS[KeptBy.DYNAMIC]) / 2
    assert np.abs(mixed - mean).max() <= 0.5
    assert len({reason_color(flags) for flags in range(1, 16)}) == 15


def test_what_cannot_be_painted_is_refused() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="uint8"):
        paint_retained(image.astype(float), retained([]), crop_area=1.0)
    with pytest.raises(ValueError, match="4 pixels"):
        paint_retained(image[:10], retained([]), crop_area=1.0)
    with pytest.raises(ValueError, match="crop_area"):
        paint_retained(image, retained([]), crop_area=90.0)
    with pytest.raises(ValueError, match="KeptBy"):
        reason_color(0)
