"""Laws of the task: where cubes start, what is rewarded, what is a success. No physics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vla_oft_ros.config.sim import TASKS as SIM_TASKS
from vla_oft_ros.sim.tasks import (
    LEFT_FINGER,
    PICK_CUBE,
    PICK_INSTRUCTIONS,
    PICK_PLACES_M,
    PICK_SPREAD_M,
    RIGHT_FINGER,
    RIGHT_FINGERS,
    TABLE,
    TASKS,
    TRANSFER_CUBE,
    Contacts,
    load_task,
    pick_cube_reward,
    sample_pick_cube,
    sample_transfer_cube,
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
        assert transfer_cube_reward(contacts(*touching), "red_box") == expected, touching


def test_contacts_of_other_objects_earn_nothing() -> None:
    others = Contacts(frozenset({frozenset((LEFT_FINGER, RIGHT_FINGER)), frozenset(("a", TABLE))}))
    assert transfer_cube_reward(others, "red_box") == 0


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
    poses = np.stack([sample_transfer_cube(generator).cube_poses["red_box"] for _ in range(500)])
    low, high = poses.min(axis=0), poses.max(axis=0)
    assert np.all(low[:2] >= [0.0, 0.4]) and np.all(high[:2] <= [0.2, 0.6])
    assert np.all(high[:2] - low[:2] > 0.19)
    np.testing.assert_array_equal(poses[:, 2:], np.tile([0.05, 1.0, 0.0, 0.0, 0.0], (500, 1)))


def test_tasks_that_parameters_allow_are_those_that_there_are() -> None:
    pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")
    from vla_oft_ros.sim.demonstrator import SCRIPTS

    assert set(SIM_TASKS) == set(TASKS) == set(SCRIPTS)


def test_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"transfer_cube.*got 'transfer_cub'"):
        load_task("transfer_cub")


CUBES = tuple(PICK_INSTRUCTIONS.values())


def touching(*pairs: tuple[str, str]) -> Contacts:
    return Contacts(frozenset(frozenset(pair) for pair in pairs))


def held(cube: str) -> list[tuple[str, str]]:
    return [(cube, finger) for finger in RIGHT_FINGERS]


@pytest.mark.parametrize("target", CUBES)
def test_picking_is_rewarded_by_colour_alone(target: str) -> None:
    def reward(*pairs: tuple[str, str]) -> int:
        return pick_cube_reward(touching(*pairs), target)

    wrong = next(name for name in CUBES if name != target)
    assert reward(*((name, TABLE) for name in CUBES)) == 0
    for cube, touched, lifted in ((target, 3, 4), (wrong, 1, 2)):
        assert reward((cube, TABLE), (cube, RIGHT_FINGER)) == touched
        assert reward(*held(cube), (cube, TABLE)) == touched
        assert reward(*held(cube)) == lifted
        assert reward((cube, RIGHT_FINGERS[1])) == touched  # one finger holds nothing
        assert reward((cube, LEFT_FINGER)) == 0  # the left arm's


def test_a_cube_that_rests_on_another_is_not_lifted() -> None:
    pairs = [*held("red_cube"), ("red_cube", "blue_cube"), ("blue_cube", TABLE)]
    assert pick_cube_reward(touching(*pairs), "red_cube") == 3


def test_holding_the_right_and_a_wrong_cube_is_no_success() -> None:
    both = touching(*held("red_cube"), *held("blue_cube"))
    assert pick_cube_reward(both, "red_cube") == 2
    grazed = touching(*held("red_cube"), ("blue_cube", TABLE), ("blue_cube", RIGHT_FINGER))
    assert pick_cube_reward(grazed, "red_cube") == 1


def test_cubes_to_pick_lie_apart_each_near_a_place_of_its_own_and_in_every_order() -> None:
    generator = np.random.default_rng(0)
    places = np.array(
        [
            [pose[:2] for pose in sample_pick_cube(generator).cube_poses.values()]
            for _ in range(500)
        ]
    )  # (500, cubes, 2)
    off = places[:, :, None] - np.array(PICK_PLACES_M)  # (500, cubes, places, 2)
    near = np.abs(off).max(axis=3) <= PICK_SPREAD_M  # (500, cubes, places)
    assert np.all(near.sum(axis=1) == 1) and np.all(near.sum(axis=2) == 1)
    assert len(np.unique(near.argmax(axis=2), axis=0)) == 6
    assert np.all(np.ptp(off[near], axis=0) > 2 * PICK_SPREAD_M * 0.98)
    for first, second in itertools.combinations(range(len(CUBES)), 2):
        away = np.linalg.norm(places[:, first] - places[:, second], axis=1)
        assert away.min() >= 0.1


def test_neither_place_nor_colour_tells_which_cube_is_asked_for() -> None:
    generator = np.random.default_rng(1)
    count = 3000
    asked, places = np.zeros(count, dtype=int), np.zeros((count, len(CUBES), 2))
    for row in range(count):
        start = sample_pick_cube(generator)
        asked[row] = CUBES.index(PICK_CUBE.target(start.instruction))
        places[row] = [start.cube_poses[name][:2] for name in CUBES]
    share = np.bincount(asked, minlength=3) / count
    assert np.all(np.abs(share - 1 / 3) < 0.04)  # 4.6 standard deviations
    meant = places[np.arange(count), asked]
    # Nearest to the arm, leftmost, ... of the three: the one asked for is any of them alike.
    for axis in (0, 1):
        rank = (places[:, :, axis] < meant[:, None, axis]).sum(axis=1)
        assert np.all(np.abs(np.bincount(rank, minlength=3) / count - 1 / 3) < 0.04)
    for cube in range(3):
        spread = [places[asked == which, cube].mean(axis=0) for which in range(3)]
        assert np.ptp(spread, axis=0).max() < 0.02


def test_the_same_seed_asks_the_same_of_the_same_places() -> None:
    first, second = (sample_pick_cube(np.random.default_rng(5)) for _ in range(2))
    assert first.instruction == second.instruction
    for name in CUBES:
        np.testing.assert_array_equal(first.cube_poses[name], second.cube_poses[name])


def test_words_decide_where_there_is_a_choice_and_only_there() -> None:
    assert TRANSFER_CUBE.target("do something") == "red_box"
    assert PICK_CUBE.target("pick up the blue cube") == "blue_cube"
    with pytest.raises(ValueError, match=r"'pick up the red cube'.*got 'pick up the pink cube'"):
        PICK_CUBE.target("pick up the pink cube")
