"""Laws of the scripted teleoperator: it succeeds, smoothly, and only where the cube is."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")

from vla_oft_ros.aloha import (
    ARMS,
    GRIPPERS,
    JOINT_VELOCITY_RAD_S,
    START_ARM_POSE_RAD,
    position_limits,
)
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.demonstrator import TransferCubeDemonstrator, between, demonstrate
from vla_oft_ros.sim.inverse_kinematics import ToolSolver

pytestmark = pytest.mark.sim

TICK_NS = 40_000_000


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
        plan = TransferCubeDemonstrator(world.model).plan(world.cube_pose("red_box"))
        outcomes.append(play(world, plan))
    assert all(outcomes)


def test_demonstration_for_another_place_fails(world: AlohaWorld) -> None:
    elsewhere = world.cube_pose("red_box")
    elsewhere[1] += 0.06
    assert not play(world, TransferCubeDemonstrator(world.model).plan(elsewhere))


@pytest.mark.parametrize("corner", [(0.0, 0.4), (0.0, 0.6), (0.2, 0.4), (0.2, 0.6)])
def test_plan_is_smooth_within_limits_and_begins_at_the_start_pose(
    world: AlohaWorld, corner: tuple[float, float]
) -> None:
    plan = TransferCubeDemonstrator(world.model).plan(np.array([*corner, 0.02]))
    lower, upper = position_limits()
    assert plan.shape == (152, 14)
    assert np.all(plan >= lower) and np.all(plan <= upper)
    joints = np.delete(plan, GRIPPERS, axis=1)
    joints = np.vstack([START_ARM_POSE_RAD * 2, joints])
    assert np.abs(np.diff(joints, axis=0)).max() * 25 < JOINT_VELOCITY_RAD_S


def test_picking_arm_keeps_forearm_and_wrist_unrolled(world: AlohaWorld) -> None:
    plan = TransferCubeDemonstrator(world.model).plan(world.cube_pose("red_box"))
    assert np.abs(plan[:, [10, 12]]).max() < 0.05


def test_looking_at_the_world_tick_by_tick_gives_the_plan(world: AlohaWorld) -> None:
    opening = float(world.targets()[GRIPPERS[0]])
    plan = TransferCubeDemonstrator(world.model, opening).plan(world.cube_pose("red_box"))
    for expected, targets in zip(plan, demonstrate(world), strict=True):
        np.testing.assert_allclose(targets, expected, rtol=0, atol=2e-3)
        world.set_targets(targets)
        world.advance(TICK_NS)


def test_planning_again_gives_the_same_plan(world: AlohaWorld) -> None:
    demonstrator = TransferCubeDemonstrator(world.model)
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
    waypoints = TransferCubeDemonstrator(world.model).waypoints(np.array([0.1, 0.5, 0.02]))
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
