"""Laws of the simulated robot: time, targets, joint states, reward and replay."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")

from vla_oft_ros.aloha import (
    ARMS,
    GRIPPERS,
    JOINT_LOWER_RAD,
    JOINT_STATE_NAMES,
    JOINT_UPPER_RAD,
    START_ARM_POSE_RAD,
    GripperCalibration,
    load_profile,
    start_pose,
)
from vla_oft_ros.kinematics import end_effector_pose
from vla_oft_ros.sim.aloha_world import TIMESTEP_NS, AlohaWorld
from vla_oft_ros.sim.demonstrator import SCRIPTS, Demonstrator, demonstrate

pytestmark = pytest.mark.sim

SECOND_NS = 1_000_000_000
TICK_NS = 40_000_000


def arm_angles(world: AlohaWorld) -> np.ndarray:
    return np.concatenate([world.joint_state(arm).position[:6] for arm in ARMS])


def test_same_seed_and_targets_give_the_same_world_bit_for_bit(
    calibration: GripperCalibration,
) -> None:
    ends = []
    for _ in range(2):
        world = AlohaWorld(calibration, seed=5)
        for targets in demonstrate(world):
            world.set_targets(targets)
            world.advance(TICK_NS)
        ends.append(world.state().physics)
    np.testing.assert_array_equal(*ends)


def test_seed_starts_the_sequence_of_poses_and_each_reset_draws_the_next(
    world: AlohaWorld,
) -> None:
    def poses() -> list[list[float]]:
        world.reset(seed=3)
        drawn = [world.cube_pose("red_box").tolist()]
        for _ in range(3):
            world.reset()
            drawn.append(world.cube_pose("red_box").tolist())
        return drawn

    first = poses()
    assert first == poses()
    assert len({tuple(pose) for pose in first}) == 4


def test_reset_takes_given_poses_and_refuses_cubes_it_does_not_have(world: AlohaWorld) -> None:
    pose = np.array([0.1, 0.45, 0.05, 1.0, 0.0, 0.0, 0.0])
    world.reset(cube_poses={"red_box": pose})
    np.testing.assert_array_equal(world.cube_pose("red_box"), pose)
    with pytest.raises(ValueError, match=r"expected poses of \['red_box'\]; got \['blue_box'\]"):
        world.reset(cube_poses={"blue_box": pose})


def test_a_given_instruction_changes_what_is_rewarded_and_not_where_things_lie(
    picking: AlohaWorld,
) -> None:
    picking.reset(seed=4)
    asked, poses = picking.instruction, [picking.cube_pose(c.name) for c in picking.task.cubes]
    other = next(words for words in picking.task.instructions if words != asked)
    picking.reset(seed=4, instruction=other)
    assert picking.instruction == other and picking.target == picking.task.target(other)
    for cube, pose in zip(picking.task.cubes, poses, strict=True):
        np.testing.assert_array_equal(picking.cube_pose(cube.name), pose)
    with pytest.raises(ValueError, match="got 'pick up the pink cube'"):
        picking.reset(instruction="pick up the pink cube")
    assert picking.instruction == other


def test_restored_world_asks_what_it_asked(picking: AlohaWorld) -> None:
    picking.reset(seed=0)
    saved, asked = picking.state(), picking.instruction
    other = next(words for words in picking.task.instructions if words != asked)
    picking.reset(instruction=other)
    picking.restore(saved)
    assert picking.instruction == asked


def test_reset_puts_both_arms_into_the_start_pose_and_time_to_zero(world: AlohaWorld) -> None:
    world.set_targets(start_pose(1.0) + 0.1)
    world.advance(SECOND_NS)
    world.reset()
    assert world.time_ns == 0
    np.testing.assert_allclose(arm_angles(world), START_ARM_POSE_RAD * 2, atol=1e-12)
    np.testing.assert_allclose(np.delete(world.targets(), GRIPPERS), START_ARM_POSE_RAD * 2)


def test_time_counts_whole_steps_and_does_not_drift(world: AlohaWorld) -> None:
    for tick in range(1, 1001):
        world.advance(20_000_000)
        assert world.time_ns == tick * 20_000_000


@pytest.mark.parametrize("duration_ns", [0, -TIMESTEP_NS, TIMESTEP_NS + 1, TIMESTEP_NS // 2])
def test_time_that_is_no_whole_number_of_steps_is_refused(
    world: AlohaWorld, duration_ns: int
) -> None:
    with pytest.raises(ValueError, match=rf"multiple of 2000000 ns.*got {duration_ns} ns"):
        world.advance(duration_ns)
    assert world.time_ns == 0


def test_two_half_ticks_are_one_tick_bit_for_bit(world: AlohaWorld) -> None:
    start = world.state()
    ends = []
    for parts in ([TICK_NS], [TICK_NS // 2] * 2, [TIMESTEP_NS] * 20):
        world.restore(start)
        world.set_targets(start_pose(1.0) + 0.05)
        for part in parts:
            world.advance(part)
        ends.append(world.state())
    for end in ends[1:]:
        assert end.time_ns == ends[0].time_ns
        np.testing.assert_array_equal(end.physics, ends[0].physics)


def test_control_rate_must_divide_into_physics_steps(calibration: GripperCalibration) -> None:
    assert AlohaWorld(calibration, control_rate_hz=50.0).control_period_ns == 20_000_000
    with pytest.raises(ValueError, match=r"multiple of 2 ms.*got 30"):
        AlohaWorld(calibration, control_rate_hz=30.0)


def test_arms_reach_their_targets(world: AlohaWorld) -> None:
    generator = np.random.default_rng(1)
    for _ in range(3):
        targets = start_pose(0.5)
        targets[:6] += generator.uniform(-0.4, 0.4, 6)
        targets[7:13] += generator.uniform(-0.4, 0.4, 6)
        world.reset()
        world.set_targets(targets)
        world.advance(SECOND_NS)
        np.testing.assert_allclose(
            arm_angles(world), np.delete(targets, GRIPPERS), rtol=0, atol=0.02
        )


@pytest.mark.parametrize("moved", range(14))
def test_each_entry_of_the_targets_moves_its_own_joint_and_no_other(
    world: AlohaWorld, moved: int
) -> None:
    targets = start_pose(0.5)
    world.set_targets(targets)
    world.advance(SECOND_NS)
    before = np.concatenate([world.joint_state(arm).position[:7] for arm in ARMS])
    targets[moved] += 0.3
    world.set_targets(targets)
    world.advance(SECOND_NS)
    after = np.concatenate([world.joint_state(arm).position[:7] for arm in ARMS])
    change = np.abs(after - before)
    assert np.argmax(change) == moved and change[moved] > 0.25
    assert np.delete(change, moved).max() < 0.02


@pytest.mark.parametrize("opening", [0.25, 0.5, 0.85])
def test_gripper_target_comes_back_as_the_same_opening_in_the_scale_of_actions(
    world: AlohaWorld, calibration: GripperCalibration, opening: float
) -> None:
    world.set_targets(start_pose(opening))
    assert world.targets()[list(GRIPPERS)] == pytest.approx([opening] * 2, abs=1e-9)
    world.advance(3 * SECOND_NS)
    for arm in ARMS:
        position = world.joint_state(arm).position
        assert calibration.servo_rad_to_action(position[6]) == pytest.approx(opening, abs=2e-3)
        assert calibration.finger_m(position[6]) == pytest.approx(position[7], abs=1e-9)


def test_targets_beyond_the_actuators_are_clipped_to_them(world: AlohaWorld) -> None:
    world.set_targets(np.full(14, 100.0))
    upper = world.targets()
    assert upper[1] == pytest.approx(1.25664) and upper[6] < 1.0
    world.set_targets(upper)
    np.testing.assert_allclose(world.targets(), upper, atol=1e-9)


@pytest.mark.parametrize("targets", [np.zeros(13), np.full(14, np.nan), np.zeros((2, 7))])
def test_targets_that_are_not_fourteen_finite_numbers_are_refused(
    world: AlohaWorld, targets: np.ndarray
) -> None:
    before = world.targets()
    with pytest.raises(ValueError, match="expected 14 finite joint targets"):
        world.set_targets(targets)
    np.testing.assert_array_equal(world.targets(), before)


def test_joint_states_have_the_names_signs_and_zeros_of_the_real_robot(world: AlohaWorld) -> None:
    world.set_targets(start_pose(0.8) + 0.1)
    world.advance(200_000_000)
    for arm in ARMS:
        state = world.joint_state(arm)
        assert state.names == JOINT_STATE_NAMES
        for values in (state.position, state.velocity, state.effort):
            assert values.shape == (9,) and values.dtype == np.float64
            assert np.all(np.isfinite(values))
        assert state.position[8] == -state.position[7] < 0
        assert np.all(state.velocity[:7] != 0)
        assert not state.velocity[7:].any() and not state.effort[7:].any()


def test_profile_reads_the_joint_states_of_the_simulation(world: AlohaWorld) -> None:
    state = world.joint_state("left")
    qpos = load_profile("sim").arm_qpos(state.names, state.position)
    np.testing.assert_allclose(qpos[:6], START_ARM_POSE_RAD, atol=1e-12)
    assert qpos[6] == pytest.approx((0.02239 - 0.01844) / (0.058 - 0.01844), abs=1e-9)


def test_reported_velocity_is_the_slope_of_the_reported_position(world: AlohaWorld) -> None:
    world.set_targets(start_pose(0.9) + 0.2)
    world.advance(100_000_000)
    before = world.joint_state("right")
    world.advance(TIMESTEP_NS)
    after = world.joint_state("right")
    slope = (after.position - before.position)[:7] / (TIMESTEP_NS * 1e-9)
    np.testing.assert_allclose(slope, after.velocity[:7], rtol=0.02, atol=1e-3)


def test_effort_of_the_gripper_presses_in_the_direction_of_its_target(world: AlohaWorld) -> None:
    for opening, sign in ((1.0, 1), (0.0, -1)):
        world.reset()
        world.set_targets(start_pose(0.5))
        world.advance(SECOND_NS)
        world.set_targets(start_pose(opening))
        world.advance(TIMESTEP_NS)
        assert np.sign(world.joint_state("left").effort[6]) == sign


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(
    ("angles", "position_m", "rotation"),
    [
        ([0.0] * 6, [0.536494, 0.0, 0.42705], np.eye(3)),
        (
            [0.0, -0.96, 1.16, 0.0, -0.3, 0.0],
            [0.258476, 0.0, 0.305953],
            [[0.995004, 0, -0.099833], [0, 1, 0], [0.099833, 0, 0.995004]],
        ),
        (
            [0.3, -0.5, 0.7, 0.4, -0.2, 1.1],
            [0.365970, 0.098878, 0.356554],
            [
                [0.975223, -0.002510, 0.221210],
                [0.220689, 0.080509, -0.972016],
                [-0.015370, 0.996751, 0.079068],
            ],
        ),
    ],
)
def test_gripper_pose_equals_the_forward_kinematics_of_the_real_arm(
    world: AlohaWorld, arm: str, angles: list[float], position_m: list[float], rotation: np.ndarray
) -> None:
    # Vectors of Interbotix' mr_descriptions for ee_gripper_link, 0.1072 m beyond gripper_link.
    world.place_arm(arm, np.array(angles))
    pose = world.gripper_pose(arm)
    np.testing.assert_allclose(pose[:3, 3] + 0.1072 * pose[:3, 0], position_m, atol=2e-6)
    np.testing.assert_allclose(pose[:3, :3], rotation, atol=2e-6)


@pytest.mark.parametrize("arm", ARMS)
def test_our_kinematics_equal_those_of_the_physics_in_any_pose(
    world: AlohaWorld, arm: str
) -> None:
    rng = np.random.default_rng(0)
    # gripper_link to ee_gripper_link in the URDF: 0.042825 + 0.025875 + 0.0385 m along x.
    reach_m = 0.1072
    for angles in rng.uniform(JOINT_LOWER_RAD, JOINT_UPPER_RAD, (100, 6)):
        world.place_arm(arm, angles)
        pose = world.gripper_pose(arm)
        rotation, position_m = end_effector_pose(angles)
        np.testing.assert_allclose(
            pose[:3, 3] + reach_m * pose[:3, 0], position_m, rtol=0, atol=1e-6
        )
        # |R1 - R2|_F = 2 √2 sin(angle / 2): exact where arccos of a trace is not.
        turn_rad = np.linalg.norm(pose[:3, :3] - rotation) / np.sqrt(2.0)
        assert turn_rad <= 1e-6


def test_restored_world_reads_and_continues_as_it_did_bit_for_bit(world: AlohaWorld) -> None:
    plan = Demonstrator(world.model, SCRIPTS["transfer_cube"]).plan(world.cube_pose("red_box"))
    for targets in plan[:70]:
        world.set_targets(targets)
        world.advance(TICK_NS)
    saved = world.state()

    def readings() -> list[np.ndarray]:
        states = [world.joint_state(arm) for arm in ARMS]
        return [
            np.array([world.time_ns, world.reward()]),
            *(values for s in states for values in (s.position, s.velocity, s.effort)),
            *world.images().values(),
        ]

    def rest() -> np.ndarray:
        for targets in plan[70:110]:
            world.set_targets(targets)
            world.advance(TICK_NS)
        return world.state().physics

    here, end = readings(), rest()
    world.reset()
    world.restore(saved)
    for before, after in zip(here, readings(), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(rest(), end)


def test_reward_climbs_the_ladder_as_the_cube_is_handed_over(world: AlohaWorld) -> None:
    rewards = []
    for targets in demonstrate(world):
        world.set_targets(targets)
        world.advance(TICK_NS)
        rewards.append(world.reward())
    assert rewards[0] == 0
    first = [rewards.index(reward) for reward in (0, 2, 4)]
    assert first == sorted(first)
    assert world.task.is_success(rewards)


def test_reward_belongs_to_this_instant_and_not_to_the_step_before(world: AlohaWorld) -> None:
    for height_m, touches in ((0.0199, True), (0.1, False)):
        world.place_cube("red_box", np.array([0.1, 0.5, height_m, 1.0, 0.0, 0.0, 0.0]))
        assert world.contacts().touch("red_box", "table") == touches
