"""Laws of the task: where cubes start, what is rewarded, what is a success. No physics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vla_oft_ros.sim.tasks import (
    LEFT_FINGER,
    RIGHT_FINGER,
    TABLE,
    TRANSFER_CUBE,
    Contacts,
    load_task,
    transfer_cube_poses,
    transfer_cube_reward,
)

pytestmark = pytest.mark.sim


def contacts(*others: str) -> Contacts:
    return Contacts(frozenset(frozenset(("red_box", other)) for other in others))


def test_reward_equals_the_four_rules_of_gym_aloha_for_every_combination_of_contacts() -> None:
    for right, left, table in itertools.product((False, True), repeat=3):
        touching = [
            name
            for name, touched in ((RIGHT_FINGER, right), (LEFT_FINGER, left), (TABLE, table))
            if touched
        ]
        expected = 0
        if right:
            expected = 1
        if right and not table:
            expected = 2
        if left:
            expected = 3
        if left and not table:
            expected = 4
        assert transfer_cube_reward(contacts(*touching)) == expected, touching


def test_contacts_of_other_objects_earn_nothing() -> None:
    others = Contacts(frozenset({frozenset((LEFT_FINGER, RIGHT_FINGER)), frozenset(("a", TABLE))}))
    assert transfer_cube_reward(others) == 0


def test_contact_does_not_depend_on_which_geometry_is_named_first() -> None:
    pair = contacts(TABLE)
    assert pair.touch("red_box", TABLE) and pair.touch(TABLE, "red_box")
    assert not pair.touch("red_box", LEFT_FINGER)


def test_success_needs_the_highest_reward_in_each_of_the_last_ten_steps() -> None:
    assert TRANSFER_CUBE.is_success([0, 2, *[4] * 10])
    assert not TRANSFER_CUBE.is_success([4] * 9)
    assert not TRANSFER_CUBE.is_success([*[4] * 20, 3])
    assert not TRANSFER_CUBE.is_success([*[4] * 20, 2, *[4] * 9])


def test_cubes_start_upright_within_the_ranges_of_gym_aloha_and_fill_them() -> None:
    generator = np.random.default_rng(0)
    poses = np.stack([transfer_cube_poses(generator)["red_box"] for _ in range(500)])
    low, high = poses.min(axis=0), poses.max(axis=0)
    assert np.all(low[:2] >= [0.0, 0.4]) and np.all(high[:2] <= [0.2, 0.6])
    assert np.all(high[:2] - low[:2] > 0.19)
    np.testing.assert_array_equal(poses[:, 2:], np.tile([0.05, 1.0, 0.0, 0.0, 0.0], (500, 1)))


def test_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"transfer_cube.*got 'transfer_cub'"):
        load_task("transfer_cub")
