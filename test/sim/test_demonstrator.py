"""Laws of the scripted teleoperator: it succeeds, smoothly, and only where the cube is."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")

from vla_oft_ros.aloha import (
    ARMS,
    CAMERAS,
    GRIPPERS,
    JOINT_VELOCITY_RAD_S,
    START_ARM_POSE_RAD,
    load_profile,
    position_limits,
)
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.demonstrator import SCRIPTS, Demonstrator, Script, between, demonstrate
from vla_oft_ros.sim.inverse_kinematics import ToolSolver
from vla_oft_ros.sim.record import record_demonstration

pytestmark = pytest.mark.sim

TICK_NS = 40_000_000
TRANSFER, PICK = SCRIPTS["transfer_cube"], SCRIPTS["pick_cube"]


def play(world: AlohaWorld, plan: np.ndarray) -> bool:
    rewards = []
    for targets in plan:
        world.set_targets(targets)
        world.advance(TICK_NS)
        rewards.append(world.reward())
    return world.task.is_success(rewards)


def test_demonstrations_succeed_from_random_poses(world: AlohaWorld) -> None:
    outcomes = []
    for _ in range(6):
        world.reset()
        plan = Demonstrator(world.model, TRANSFER).plan(world.cube_pose("red_box"))
        outcomes.append(play(world, plan))
    assert all(outcomes)


def test_demonstration_for_another_place_fails(world: AlohaWorld) -> None:
    elsewhere = world.cube_pose("red_box")
    elsewhere[1] += 0.06
    assert not play(world, Demonstrator(world.model, TRANSFER).plan(elsewhere))


def picked(world: AlohaWorld, seed: int, wanted: str = "") -> list[int]:
    """Rewards of a demonstration; `wanted` are the words that the operator hears instead."""
    world.reset(seed=seed)
    cube = world.task.target(wanted) if wanted else world.target
    rewards = []
    for targets in Demonstrator(world.model, PICK).plan(world.cube_pose(cube)):
        world.set_targets(targets)
        world.advance(TICK_NS)
        rewards.append(world.reward())
    return rewards


def test_the_cube_that_is_asked_for_is_picked_and_no_other_is_moved(picking: AlohaWorld) -> None:
    asked = set()
    for seed in (0, 1, 3, 6, 11):
        picking.reset(seed=seed)
        asked.add(picking.target)
        others = [cube.name for cube in picking.task.cubes if cube.name != picking.target]
        before = [picking.cube_pose(name)[:2] for name in others]
        rewards = []
        for targets in demonstrate(picking):
            picking.set_targets(targets)
            picking.advance(TICK_NS)
            rewards.append(picking.reward())
        assert picking.task.is_success(rewards) and {1, 2}.isdisjoint(rewards)
        for name, place in zip(others, before, strict=True):
            np.testing.assert_allclose(picking.cube_pose(name)[:2], place, atol=3e-3)
    assert len(asked) == len(picking.task.cubes)


def test_an_operator_deaf_to_the_words_lifts_the_wrong_cube(picking: AlohaWorld) -> None:
    picking.reset(seed=2)
    other = next(words for words in picking.task.instructions if words != picking.instruction)
    rewards = picked(picking, 2, other)
    assert rewards[-10:] == [2] * 10 and not picking.task.is_success(rewards)


def test_the_arm_that_picks_nothing_stays_where_it_is(picking: AlohaWorld) -> None:
    picking.reset(seed=0)
    plan = Demonstrator(picking.model, PICK).plan(picking.cube_pose(picking.target))
    np.testing.assert_allclose(plan[:, :6], np.tile(START_ARM_POSE_RAD, (len(plan), 1)), atol=1e-3)
    assert np.all(plan[:, 6] == 0.0)
    lower, upper = position_limits()
    assert np.all(plan >= lower) and np.all(plan <= upper)
    assert np.abs(plan[:, [10, 12]]).max() < 0.05  # forearm and wrist stay unrolled
    joints = np.delete(plan, GRIPPERS, axis=1)
    joints = np.vstack([START_ARM_POSE_RAD * 2, joints])
    assert np.abs(np.diff(joints, axis=0)).max() * 25 < JOINT_VELOCITY_RAD_S


@pytest.mark.parametrize("corner", [(0.0, 0.4), (0.0, 0.6), (0.2, 0.4), (0.2, 0.6)])
def test_plan_is_smooth_within_limits_and_begins_at_the_start_pose(
    world: AlohaWorld, corner: tuple[float, float]
) -> None:
    plan = Demonstrator(world.model, TRANSFER).plan(np.array([*corner, 0.02]))
    lower, upper = position_limits()
    assert plan.shape == (152, 14)
    assert np.all(plan >= lower) and np.all(plan <= upper)
    joints = np.delete(plan, GRIPPERS, axis=1)
    joints = np.vstack([START_ARM_POSE_RAD * 2, joints])
    assert np.abs(np.diff(joints, axis=0)).max() * 25 < JOINT_VELOCITY_RAD_S


def test_picking_arm_keeps_forearm_and_wrist_unrolled(world: AlohaWorld) -> None:
    plan = Demonstrator(world.model, TRANSFER).plan(world.cube_pose("red_box"))
    assert np.abs(plan[:, [10, 12]]).max() < 0.05


def test_looking_at_the_world_tick_by_tick_gives_the_plan(world: AlohaWorld) -> None:
    opening = float(world.targets()[GRIPPERS[0]])
    plan = Demonstrator(world.model, TRANSFER, opening).plan(world.cube_pose("red_box"))
    for expected, targets in zip(plan, demonstrate(world), strict=True):
        np.testing.assert_allclose(targets, expected, rtol=0, atol=2e-3)
        world.set_targets(targets)
        world.advance(TICK_NS)


def test_planning_again_gives_the_same_plan(world: AlohaWorld) -> None:
    demonstrator = Demonstrator(world.model, TRANSFER)
    first, second = (demonstrator.plan(world.cube_pose("red_box")) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_cube_pushed_before_it_is_grasped_is_still_handed_over(world: AlohaWorld) -> None:
    rewards, pushed = [], False
    for tick, targets in enumerate(demonstrate(world)):
        if tick == 15:
            pose = world.cube_pose("red_box")
            pose[1] += 0.06
            world.place_cube("red_box", pose)
            pushed = True
        world.set_targets(targets)
        world.advance(TICK_NS)
        rewards.append(world.reward())
    assert pushed and world.task.is_success(rewards)


def test_motion_rests_at_way_points_and_before_and_after(world: AlohaWorld) -> None:
    waypoints = Demonstrator(world.model, TRANSFER).waypoints(np.array([0.1, 0.5, 0.02]))
    for points in waypoints.values():
        for point in points:
            here = between(points, point.time_s)
            np.testing.assert_allclose(here.position_m, point.position_m, atol=1e-12)
            near = between(points, point.time_s + 1e-5)
            assert np.abs(near.position_m - here.position_m).max() / 1e-5 < 1e-3
        np.testing.assert_array_equal(between(points, 99.0).position_m, points[-1].position_m)
        np.testing.assert_array_equal(between(points, -1.0).position_m, points[0].position_m)


@pytest.mark.parametrize("arm", ARMS)
def test_inverse_kinematics_undoes_forward_kinematics(world: AlohaWorld, arm: str) -> None:
    solver = ToolSolver(world.model, arm)
    generator = np.random.default_rng(2)
    start = np.array(START_ARM_POSE_RAD)
    for _ in range(20):
        position_m, rotation = solver.forward(start + generator.uniform(-0.3, 0.3, 6))
        reached_m, turned = solver.forward(solver.solve(position_m, rotation, start))
        np.testing.assert_allclose(reached_m, position_m, atol=5e-4)
        np.testing.assert_allclose(turned, rotation, atol=5e-4)


@pytest.mark.parametrize("position_m", [(5.0, 0.0, 0.3), (-0.3, 0.0, 0.0), (0.1, 0.0, -0.5)])
def test_out_of_reach_the_arm_stays_within_its_limits(
    world: AlohaWorld, position_m: tuple[float, float, float]
) -> None:
    solver = ToolSolver(world.model, "left")
    angles = solver.solve(np.array(position_m), np.eye(3), np.array(START_ARM_POSE_RAD))
    lower, upper = position_limits()
    assert np.all(angles >= lower[:6] - 1e-4) and np.all(angles <= upper[:6] + 1e-4)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=list(SCRIPTS))
def test_an_arm_bears_no_push_while_it_holds_the_cube_and_any_before(script: Script) -> None:
    slack = np.stack([script.slack(time_s) for time_s in np.arange(0.0, script.duration_s, 0.01)])
    assert np.all((slack >= 0.0) & (slack <= 1.0))
    np.testing.assert_array_equal(slack[0], [1.0, 1.0])
    assert np.abs(np.diff(slack, axis=0)).max() < 0.05  # no jerk at the ends of it
    assert script.slack(script.look_s)[1] == script.slack(script.look_s + 0.5)[1] == 0.0


def test_disturbed_demonstrations_still_succeed(
    world: AlohaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = {camera: np.zeros((2, 2, 3), np.uint8) for camera in CAMERAS}
    monkeypatch.setattr(AlohaWorld, "images", lambda world: blank)
    for seed in range(8):
        world.reset(seed=seed)
        generator = np.random.default_rng(seed)
        take = record_demonstration(world, load_profile("sim"), generator, disturbance_rad=0.02)
        assert take.success, seed
