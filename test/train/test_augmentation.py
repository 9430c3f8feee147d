"""Random crops and colours: how far they go, and that they repeat themselves."""

from __future__ import annotations

import numpy as np
import pytest

from vla_oft_ros.model.image_ops import CROP_AREA, center_crop
from vla_oft_ros.train import augmentation
from vla_oft_ros.train.augmentation import augment

SIZE = 64


class Numbers:
    """A generator that answers with what it is given, in the order of `augment`."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = np.array(numbers)

    def random(self, count: int) -> np.ndarray:
        assert count == len(self.numbers)
        return self.numbers


def image() -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.stack([rows * 3, columns * 3, (rows + columns) * 1.5], axis=-1).astype(np.uint8)


def test_the_middle_of_all_ranges_is_the_centre_crop_that_the_policy_makes() -> None:
    middle = augment(image(), Numbers(0.5, 0.5, 0.5, 0.5, 0.5, 0.5))
    gap = np.abs(middle.astype(int) - center_crop(image()))
    assert gap.max() <= 1


@pytest.mark.parametrize(("down", "right"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.3, 0.8)])
def test_a_crop_keeps_nine_tenths_of_the_area_at_the_drawn_place(
    down: float, right: float
) -> None:
    cropped = augment(image(), Numbers(down, right, 0.5, 0.5, 0.5, 0.5)).astype(float) / 3
    side = np.sqrt(CROP_AREA)
    top, left = ((1 - side) * (SIZE - 1) * share for share in (down, right))
    assert np.abs(cropped[0, :, 0] - top).max() < 1
    assert np.abs(cropped[:, 0, 1] - left).max() < 1
    assert np.abs(cropped[-1, :, 0] - (top + side * (SIZE - 1))).max() < 1


def test_offsets_are_independent_and_on_request_diagonal_as_officially() -> None:
    generator = np.random.default_rng(0)

    def offsets(**options: bool) -> np.ndarray:
        taken = []
        for _ in range(40):
            numbers = Numbers(*generator.random(2), 0.5, 0.5, 0.5, 0.5)
            cropped = augment(image(), numbers, **options)
            taken.append((cropped[0, SIZE // 2, 0], cropped[SIZE // 2, 0, 1]))
        return np.array(taken, dtype=float).T

    assert np.array_equal(*offsets(diagonal_crops=True))
    assert abs(np.corrcoef(offsets())[0, 1]) < 0.6


def test_colours_move_within_the_official_bounds() -> None:
    flat = np.full((8, 8, 3), (100, 120, 140), dtype=np.uint8)
    dark = augment(flat, Numbers(0.5, 0.5, 0.0, 0.5, 0.5, 0.5))
    assert np.abs(dark.astype(int) - (flat.astype(int) - 51)).max() <= 1
    flatter = augment(image(), Numbers(0.5, 0.5, 0.5, 0.0, 0.5, 0.5))
    plain = augment(image(), Numbers(0.5, 0.5, 0.5, 0.5, 0.5, 0.5))
    assert flatter[..., 0].std() == pytest.approx(0.8 * plain[..., 0].std(), rel=0.05)
    strong = augment(flat, Numbers(0.5, 0.5, 0.5, 0.5, 1.0, 0.5))
    grey = np.ptp(strong[0, 0].astype(int)) / np.ptp(flat[0, 0].astype(int))
    assert grey == pytest.approx(augmentation.SATURATION[1], abs=0.06)
    turned = augment(flat, Numbers(0.5, 0.5, 0.5, 0.5, 0.5, 1.0))
    # 18 degrees of hue take a blue of 210 degrees to 228: green falls to 40 · 12/60 above red.
    assert np.abs(turned[0, 0].astype(int) - (100, 108, 140)).max() <= 1


def test_a_seed_repeats_and_images_differ_from_each_other() -> None:
    first, again = (augment(image(), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, again)
    generator = np.random.default_rng(3)
    augment(image(), generator)
    assert not np.array_equal(first, augment(image(), generator))
    assert first.dtype == np.uint8 and first.shape == (SIZE, SIZE, 3)
