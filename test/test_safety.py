import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_oft_ros.aloha import (
    ACTION_DIM,
    ACTION_NAMES,
    GRIPPERS,
    SLEEP_ARM_POSE_RAD,
    position_limits,
    start_pose,
)
from vla_oft_ros.clearance import Clearance
from vla_oft_ros.config import ConfigError, SafetyConfig
from vla_oft_ros.kinematics import end_effector_pose
from vla_oft_ros.motion_limits import (
    braking_steps,
    braking_way,
    largest_stoppable_step,
    limited_step,
    parking_poses,
    plan_parking,
)
from vla_oft_ros.parking import Parking
from vla_oft_ros.safety import SafetyGate
from vla_oft_ros.safety_report import SafetyDecision, SafetyState

DT_NS = 40_000_000
DT_S = 0.04
START_NS = 1_700_000_000_000_000_000
ARM = [joint for joint in range(ACTION_DIM) if joint not in GRIPPERS]
LIMITS = SafetyConfig()
STEP_RAD = LIMITS.max_velocity_rad_s * DT_S
BRAKE_RAD = LIMITS.max_acceleration_rad_s2 * DT_S**2
TOLERANCE = 1e-9
SLEEP = np.concatenate([[*SLEEP_ARM_POSE_RAD, 1.0]] * 2)


class Robot:
    """A gate with a robot behind it that is where it was told to be; records what it was told."""

    def __init__(self, pose: np.ndarray | None = None, **limits: object) -> None:
        self.gate = SafetyGate(replace(LIMITS, **limits), DT_NS)  # type: ignore[arg-type]
        self.pose = start_pose(0.5) if pose is None else pose.copy()
        self.tick = 0
        self.told = [self.pose.copy()]
        self.gate.activate()

    @property
    def now_ns(self) -> int:
        return START_NS + self.tick * DT_NS

    def check(
        self, wanted: object, measured: object = "pose", age_s: float = 0.01
    ) -> SafetyDecision:
        seen = self.pose if isinstance(measured, str) else measured
        decision = self.gate.check(wanted, seen, self.now_ns, self.now_ns - round(age_s * 1e9))
        self.tick += 1
        if decision.target is not None:
            self.told.append(decision.target)
            self.pose = decision.target
        return decision

    def run(self, wanted: object, ticks: int) -> SafetyDecision:
        for _ in range(ticks):
            decision = self.check(wanted)
        return decision


def moved(joint: int, by: float, gripper: float = 0.5) -> np.ndarray:
    pose = start_pose(gripper)
    pose[joint] += by
    return pose


def kinds(decision: SafetyDecision) -> set[str]:
    return {one.kind for one in decision.interventions}


def assert_laws(told: np.ndarray, limits: SafetyConfig = LIMITS) -> None:
    """Every law of the gate, on the targets (T, 14) from the first pose on."""
    assert np.all(np.isfinite(told))
    lower, upper = position_limits()
    lower[ARM] += limits.position_margin_rad
    upper[ARM] -= limits.position_margin_rad
    assert np.all(told >= np.minimum(lower, told[0]) - TOLERANCE)
    assert np.all(told <= np.maximum(upper, told[0]) + TOLERANCE)
    steps = np.diff(told, axis=0)
    assert np.abs(steps[:, ARM]).max() <= limits.max_velocity_rad_s * DT_S + TOLERANCE
    assert np.abs(steps[:, GRIPPERS]).max() <= limits.max_gripper_speed * DT_S + TOLERANCE
    changes = np.diff(steps[:, ARM], axis=0, prepend=np.zeros((1, len(ARM))))
    assert np.abs(changes).max() <= limits.max_acceleration_rad_s2 * DT_S**2 + TOLERANCE
    violations = Clearance(limits).violations(told)
    assert np.all(violations <= violations[0] + 1e-8)
    if not violations[0].any():
        for arm in (told[:, :6], told[:, 7:13]):
            tips = end_effector_pose(arm)[1]
            assert np.all(tips >= np.array(limits.workspace_lower_m) - 1e-8)
            assert np.all(tips <= np.array(limits.workspace_upper_m) + 1e-8)


# Laws for whatever is wanted.

NASTY = np.array([np.nan, np.inf, -np.inf, 5e-324, -5e-324, 1.7e308, -1.7e308, 0.0, -0.0])


def adversarial_targets(generator: np.random.Generator, count: int) -> np.ndarray:
    """(count, 14) in runs of eight kinds: noise, extremes, steps, smooth, overflow, NaN."""
    lower, upper = position_limits()
    runs = []
    while sum(map(len, runs)) < count:
        n = int(generator.integers(1, 60))
        time = np.arange(n)[:, None]
        centre = generator.uniform(lower, upper)
        signs = generator.choice([-1.0, 1.0], (n, ACTION_DIM))
        runs.append(
            [
                generator.uniform(-10.0, 10.0, (n, ACTION_DIM)),
                np.where(time % 2 == 0, lower, upper) * np.ones((n, 1)),
                np.broadcast_to(centre, (n, ACTION_DIM)).copy(),
                centre + generator.uniform(0.0, 2.0) * np.sin(generator.uniform(0, 3) * time),
                centre + generator.normal(0.0, 0.02, (n, ACTION_DIM)),
                signs * 10.0 ** generator.uniform(-320, 308, (n, ACTION_DIM)),
                np.where(
                    generator.random((n, ACTION_DIM)) < 0.02,
                    generator.choice(NASTY, (n, ACTION_DIM)),
                    centre,
                ),
                start_pose(0.0) + generator.uniform(-0.5, 0.5, ACTION_DIM) * np.minimum(time, 9),
            ][int(generator.integers(8))]
        )
    return np.concatenate(runs)[:count]


def torment(count: int, seed: int) -> SafetyGate:
    """Hands `count` bad targets, and now and then bad joint states, to a gate; checks the laws."""
    generator = np.random.default_rng(seed)
    targets = adversarial_targets(generator, count)
    fate = generator.random(count)
    robot = Robot()
    wrong = itertools.cycle([np.zeros(7), np.zeros((2, 7)), [], "go", np.float64(0.1), object()])
    for target, chance in zip(targets, fate, strict=True):
        if chance < 0.01:
            robot.check(next(wrong))
        elif chance < 0.02:
            robot.check(None)
        elif chance < 0.03:
            robot.check(target, measured=robot.pose * np.nan)
        elif chance < 0.04:
            robot.check(target, age_s=chance * 10.0)
        elif chance < 0.05:
            robot.gate.estop("test")
            robot.check(target)
            assert robot.gate.state is SafetyState.ESTOP
            robot.run(target, 4)  # until the arms rest: a reset takes over the measured pose
            robot.gate.reset()
        else:
            robot.check(target)
    assert_laws(np.array(robot.told))
    return robot.gate


@pytest.mark.parametrize("seed", range(4))
def test_adversarial_actions_never_get_past_the_gate(seed):
    gate = torment(2500, seed)
    assert {"position", "velocity", "acceleration", "non_finite", "shape"} <= set(
        gate.kind_counts()
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_adversarial_actions_never_get_past_the_gate():
    for seed in range(100, 140):
        torment(25_000, seed)


any_number = st.floats(width=64, allow_nan=True, allow_infinity=True)
in_reach = st.floats(-4.0, 4.0)
motions = arrays(np.float64, (30, ACTION_DIM), elements=st.one_of(in_reach, any_number))
legal_motions = arrays(np.float64, (40, ACTION_DIM), elements=in_reach)


@settings(deadline=None, max_examples=60)
@given(targets=motions)
def test_every_target_is_finite_within_limits_and_reachable(targets):
    robot = Robot(ease_in_s=0.0)
    for target in targets:
        robot.check(target)
    assert_laws(np.array(robot.told))


@settings(deadline=None, max_examples=40)
@given(
    targets=legal_motions,
    velocity=st.floats(0.3, 3.1),
    acceleration=st.floats(0.5, 100.0),
    margin=st.floats(0.0, 0.3),
)
def test_the_laws_hold_for_any_limits(targets, velocity, acceleration, margin):
    limits = dict(
        max_velocity_rad_s=velocity,
        max_acceleration_rad_s2=acceleration,
        position_margin_rad=margin,
        ease_in_s=0.0,
    )
    robot = Robot(**limits)
    for target in targets:
        robot.check(target)
    assert_laws(np.array(robot.told), replace(LIMITS, **limits))


@settings(deadline=None, max_examples=30)
@given(targets=legal_motions)
def test_grippers_stay_in_a_small_workspace_and_the_arms_apart(targets):
    limits = dict(
        workspace_lower_m=(0.1, -0.15, 0.15),
        workspace_upper_m=(0.4, 0.15, 0.45),
        min_arm_distance_m=0.2,
        min_gripper_distance_m=0.1,
        left_base_pose=(0.0, 0.25, 0.0, 0.0),
        right_base_pose=(0.0, -0.25, 0.0, 0.0),
        ease_in_s=0.0,
    )
    robot = Robot(**limits)
    for target in targets:
        robot.check(0.2 * target + start_pose(0.5))
    assert_laws(np.array(robot.told), replace(LIMITS, **limits))


@settings(deadline=None, max_examples=60)
@given(
    room=st.floats(0.0, 10.0),
    brake=st.floats(1e-4, 1.0),
)
def test_the_largest_stoppable_step_ends_exactly_at_the_limit(room, brake):
    step = largest_stoppable_step(np.array([room]), np.array([brake]))
    way = step + braking_way(step, np.array([brake]))
    assert way[0] == pytest.approx(room, abs=1e-9)
    steps = braking_steps(step, np.array([brake]))
    assert step[0] + steps.sum() == pytest.approx(way[0], abs=1e-9)
    assert np.all(np.abs(np.diff(np.concatenate([[step[0]], steps[:, 0]]))) <= brake + 1e-12)


@settings(deadline=None, max_examples=60)
@given(target=st.floats(-1.7, 1.7), start=st.floats(-1.7, 1.7))
def test_a_limited_target_reaches_a_fixed_one_without_overshoot(target, start):
    position, step = np.array([start]), np.array([0.0])
    for _ in range(90):
        step = limited_step(
            position,
            step,
            np.array([target]),
            np.array([target]),
            lower=np.array([-1.75]),
            upper=np.array([1.75]),
            largest=np.array([STEP_RAD]),
            brake=np.array([BRAKE_RAD]),
        )
        position = position + step
        assert (target - position[0]) * (target - start) >= -1e-9
    assert position[0] == pytest.approx(target, abs=1e-9)


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_a_target_that_leaves_a_limit_at_speed_brakes_no_harder_than_elsewhere(direction):
    position, step = np.array([1.5 * direction]), np.array([3.5 * BRAKE_RAD * direction])
    steps = [step]
    for _ in range(8):  # the limit is 1 since a moment ago
        steps.append(
            limited_step(
                position,
                steps[-1],
                np.array([0.0]),
                np.array([0.0]),
                lower=np.array([-1.0]),
                upper=np.array([1.0]),
                largest=np.array([STEP_RAD]),
                brake=np.array([BRAKE_RAD]),
            )
        )
        position = position + steps[-1]
    assert np.abs(np.diff(np.array(steps), axis=0)).max() <= BRAKE_RAD + 1e-12
    assert steps[-1] * direction < 0.0  # it is on its way back


@pytest.mark.parametrize("speed_rad_s", [0.3, 1.0, 1.4])
def test_a_gap_to_a_moving_target_is_closed_for_good(speed_rad_s):
    position, step = np.array([0.0]), np.array([0.0])
    wanted = 0.3 + speed_rad_s * DT_S * np.arange(120)
    for before, now in itertools.pairwise(wanted):
        step = limited_step(
            position,
            step,
            np.array([now]),
            np.array([before]),
            lower=np.array([-99.0]),
            upper=np.array([99.0]),
            largest=np.array([STEP_RAD]),
            brake=np.array([BRAKE_RAD]),
        )
        position = position + step
    assert position[0] == pytest.approx(wanted[-1], abs=1e-9)


# What is good passes, what is not is clamped and counted.


def test_a_motion_within_the_limits_passes_unchanged():
    robot = Robot()
    for tick in range(100):
        wanted = start_pose(0.5 + 0.3 * math.sin(0.05 * tick))
        wanted[ARM] += 0.4 * math.sin(0.05 * tick)  # 0.5 rad/s
        decision = robot.check(wanted)
        np.testing.assert_array_almost_equal(decision.target, wanted, decimal=12)
        assert decision.interventions == () and decision.state is SafetyState.ACTIVE
        assert decision.reason == ""
    assert robot.gate.kind_counts() == {} and robot.gate.last_intervention is None


def test_a_joint_limit_clamps_one_joint_and_leaves_the_others_free():
    robot = Robot()
    wanted = moved(5, 4.0)
    wanted[7] = 0.3
    decision = robot.run(wanted, 120)
    assert decision.target[5] == pytest.approx(math.pi - 1e-5 - 0.02)
    assert decision.target[7] == pytest.approx(0.3)
    assert kinds(decision) == {"position"}
    only = decision.interventions[0]
    assert (only.joint, only.wanted) == ("left/wrist_rotate", 4.0)
    assert only.given == decision.target[5]
    assert robot.gate.counts["position", "left/wrist_rotate"] == 120
    assert robot.gate.last_intervention.kind == "position"
    np.testing.assert_array_equal(robot.gate.last_intervention.wanted, wanted)
    np.testing.assert_array_equal(robot.gate.last_intervention.given, decision.target)


def test_a_step_is_taken_at_the_velocity_limit_and_said_so():
    robot = Robot(ease_in_s=0.0)
    seen = [kinds(robot.check(moved(7, 1.0))) for _ in range(30)]
    assert seen[5] == {"velocity"} and seen[-1] == set()
    speeds = np.diff(np.array(robot.told)[:, 7]) / DT_S
    assert speeds.max() == pytest.approx(LIMITS.max_velocity_rad_s)


def test_grippers_are_limited_in_opening_and_speed():
    robot = Robot()
    decision = robot.check(start_pose(-3.0))
    assert decision.target[GRIPPERS[0]] == pytest.approx(0.5 - LIMITS.max_gripper_speed * DT_S)
    assert robot.run(start_pose(-3.0), 10).target[GRIPPERS[1]] == 0.0


def test_the_first_targets_ease_in_from_the_measured_pose():
    robot = Robot()
    decision = robot.check(moved(0, 1.0))
    assert decision.state is SafetyState.EASE_IN and kinds(decision) == {"ease_in"}
    speeds = np.diff(np.array(robot.told)[:, 0]) / DT_S
    assert speeds[0] == pytest.approx(LIMITS.ease_in_velocity_rad_s)
    robot.run(moved(0, 1.0), 50)
    assert robot.gate.state is SafetyState.ACTIVE
    speeds = np.diff(np.array(robot.told)[:, 0]) / DT_S
    assert np.all(np.diff(speeds[:15]) > 0.0) and speeds[12] < 0.75


def test_a_hold_ends_with_an_ease_in():
    robot = Robot()
    robot.run(start_pose(0.5), 5)
    robot.run(None, 3)
    decision = robot.check(moved(0, 1.0))
    assert decision.state is SafetyState.EASE_IN
    robot.run(None, 1)
    assert robot.check(start_pose(0.5)).state is SafetyState.ACTIVE  # near: nothing to ease into


def test_a_start_outside_the_limits_moves_only_inward():
    robot = Robot(pose=SLEEP)
    robot.run(start_pose(), 60)
    assert_laws(np.array(robot.told))
    assert np.all(np.diff(np.array(robot.told)[:, 1]) >= 0.0)
    assert robot.run(SLEEP, 60).target[1] == pytest.approx(-1.85 + 0.02)


@pytest.mark.parametrize("joint", [0, 1, 2, 5, 9, 13])
@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_a_fast_motion_into_a_joint_limit_comes_to_rest_before_it(joint, direction):
    free = dict(
        workspace_lower_m=(-2.0,) * 3, workspace_upper_m=(2.0,) * 3, min_arm_distance_m=0.0
    )
    robot = Robot(ease_in_s=0.0, **free)
    for tick in range(120):
        robot.check(moved(joint, direction * 0.95 * STEP_RAD * tick))
    told = np.array(robot.told)
    assert_laws(told, replace(LIMITS, **free))
    assert np.abs(np.diff(told[-3:, joint])).max() == 0.0


def test_a_fast_motion_is_followed_without_lag():
    robot = Robot()
    for tick in range(100):
        wanted = start_pose(0.5)
        wanted[[0, 5]] += 0.9 * math.sin(0.08 * tick) ** 2  # up to 1.8 rad/s
        decision = robot.check(wanted)
        np.testing.assert_array_almost_equal(decision.target, wanted, decimal=12)
        assert decision.interventions == ()


# The spatial limits.


def facing(gap_m: float, **limits: object) -> Clearance:
    """Arms in the start pose, face to face, this far from gripper to gripper."""
    reach = 0.258476
    return Clearance(
        replace(
            LIMITS,
            left_base_pose=(0.0, 0.0, 0.0, 0.0),
            right_base_pose=(2 * reach + gap_m, 0.0, 0.0, math.pi),
            **limits,  # type: ignore[arg-type]
        )
    )


def test_grippers_may_meet_unless_a_distance_is_set_for_them():
    assert facing(0.03).violations(start_pose()).max() == 0.0
    missing = facing(0.03, min_gripper_distance_m=0.05).violations(start_pose())
    np.testing.assert_allclose(missing, [0.0, 0.0, 0.02], atol=1e-6)


def test_other_links_may_not_come_near():
    assert facing(-0.15).violations(start_pose())[2] > 0.01
    assert facing(-0.15, min_arm_distance_m=0.0).violations(start_pose())[2] == 0.0


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", ["lower", "upper"])
def test_a_gripper_outside_its_workspace_is_seen_on_every_side(arm, axis, side):
    tip = np.array([0.258476, 0.0, 0.305953])
    bounds = {"lower": tip - 0.1, "upper": tip + 0.1}
    bounds[side][axis] = tip[axis] + (0.03 if side == "lower" else -0.03)
    pose = start_pose()
    other = slice(7, 13) if arm == 0 else slice(0, 6)
    limits = replace(
        LIMITS,
        workspace_lower_m=tuple(bounds["lower"]),
        workspace_upper_m=tuple(bounds["upper"]),
    )
    violations = Clearance(limits).violations(pose)
    np.testing.assert_allclose(violations, [0.03, 0.03, 0.0], atol=1e-6)
    away = pose.copy()
    away[other] = 0.0  # stretched out: the other gripper is farther off
    assert Clearance(limits).violations(away)[arm] == pytest.approx(0.03, abs=1e-6)


def test_a_gripper_that_starts_outside_its_workspace_may_only_come_closer_to_it():
    limits = dict(workspace_upper_m=(0.85, 0.8, 0.25), ease_in_s=0.0)
    robot = Robot(**limits)  # the start pose is 56 mm too high
    assert kinds(robot.check(moved(1, -0.05))) == {"workspace"}
    lowered = start_pose(0.5)
    lowered[[1, 8]] += 0.25
    assert robot.run(lowered, 20).state is SafetyState.ACTIVE
    np.testing.assert_allclose(robot.pose, lowered, atol=1e-9)
    assert kinds(robot.run(start_pose(0.5), 3)) == {"workspace"}


# Holds.


def holds():
    bad = start_pose()
    bad[9] = np.nan
    return {
        "no_action": dict(wanted=None),
        "shape": dict(wanted=np.zeros(7)),
        "non_finite": dict(wanted=bad),
        "joint_states": dict(measured=None),
        "workspace": dict(wanted=moved(1, 1.6)),
        "arm_distance": dict(wanted=np.where(np.arange(14) % 7 == 1, 0.7, 0.0)),
    }


@pytest.mark.parametrize("kind", holds())
def test_a_hold_brakes_within_a_tenth_of_a_second_and_keeps_the_grip(kind):
    robot = Robot(ease_in_s=0.0)
    robot.run(moved(0, 9.0), 8)  # at full speed
    since_ns = robot.now_ns
    fault = {"wanted": moved(0, 9.0), **holds()[kind]}
    decisions = [robot.check(**fault) for _ in range(6)]
    assert all(kinds(d) == {kind} and d.state is SafetyState.HOLD for d in decisions)
    assert all(d.reason for d in decisions)
    assert robot.gate.holding_since_ns == since_ns
    told = np.array(robot.told)
    np.testing.assert_array_equal(told[-1], told[-4])  # moved for two more ticks, 80 ms
    assert told[-1][GRIPPERS[0]] == 0.5
    assert robot.gate.counts[kind, ""] == 6
    assert robot.gate.last_intervention.kind == kind
    assert_laws(told)
    assert robot.check(moved(0, 0.5)).state in (SafetyState.ACTIVE, SafetyState.EASE_IN)
    assert robot.gate.holding_since_ns is None


def broken_joint_states():
    far = start_pose()
    far[8] = 5.0
    return {
        "none": (None, 0.0),
        "old": ("pose", 0.051),
        "from the future": ("pose", -0.03),
        "short": (np.zeros(13), 0.0),
        "not finite": (np.full(14, np.nan), 0.0),
        "impossible": (far, 0.0),
    }


@pytest.mark.parametrize("problem", broken_joint_states())
def test_nothing_is_said_before_usable_joint_states_came(problem):
    robot = Robot()
    measured, age_s = broken_joint_states()[problem]
    decision = robot.check(start_pose(), measured=measured, age_s=age_s)
    assert decision.target is None and decision.state is SafetyState.HOLD and decision.reason
    assert robot.check(start_pose()).target is not None


@pytest.mark.parametrize("problem", broken_joint_states())
def test_unusable_joint_states_hold_a_running_robot(problem):
    robot = Robot()
    robot.run(start_pose(0.5), 3)
    measured, age_s = broken_joint_states()[problem]
    decision = robot.check(moved(0, 0.1), measured=measured, age_s=age_s)
    assert kinds(decision) == {"joint_states"}
    np.testing.assert_array_equal(decision.target, start_pose(0.5))


def test_a_call_within_the_same_tick_repeats_the_target():
    robot = Robot(ease_in_s=0.0)
    robot.run(moved(0, 1.0), 5)
    last = robot.told[-1]
    again = robot.gate.check(moved(0, 1.0), robot.pose, robot.now_ns - DT_NS + 3_000_000, None)
    np.testing.assert_array_equal(again.target, last)
    assert again.interventions == ()


@pytest.mark.parametrize("ticks", [10, -10])
def test_a_pause_or_a_step_of_the_clock_starts_again_from_rest(ticks):
    robot = Robot(ease_in_s=0.0)
    robot.run(moved(0, 1.0), 8)
    before = robot.told[-1]
    robot.tick += ticks
    decision = robot.check(moved(0, 1.0))
    assert kinds(decision) == {"late_tick"} and decision.state is SafetyState.HOLD
    np.testing.assert_array_equal(decision.target, before)
    after = robot.check(moved(0, 1.0)).target[0] - before[0]
    assert after == pytest.approx(BRAKE_RAD)  # it starts from rest


def test_a_clock_that_went_back_does_not_keep_the_deadman_switch_pressed():
    robot = Robot(deadman_timeout_s=0.2)
    robot.gate.press_deadman(robot.now_ns)
    assert robot.check(start_pose(0.5)).state is SafetyState.ACTIVE
    robot.tick -= 1000
    robot.check(start_pose(0.5))
    assert kinds(robot.check(start_pose(0.5))) == {"deadman"}


def test_a_deadman_switch_must_be_pressed_again_and_again():
    robot = Robot(deadman_timeout_s=0.2)
    assert kinds(robot.check(start_pose(0.5))) == {"deadman"}
    robot.gate.press_deadman(robot.now_ns)
    held = [robot.check(start_pose(0.5)).state for _ in range(8)]
    assert held == [SafetyState.ACTIVE] * 6 + [SafetyState.HOLD] * 2


# Stops.


def test_an_emergency_stop_stays_until_it_is_reset_and_opens_the_grippers():
    robot = Robot(ease_in_s=0.0)
    robot.run(moved(0, 9.0), 8)
    robot.gate.estop("button")
    decision = robot.run(moved(0, 9.0), 10)
    assert decision.state is SafetyState.ESTOP and decision.reason == "button"
    assert kinds(decision) == {"estop"}
    told = np.array(robot.told)
    np.testing.assert_array_equal(told[-1][ARM], told[-8][ARM])
    assert told[-1][GRIPPERS[0]] == 1.0
    assert_laws(told)
    robot.gate.reset()
    assert robot.check(robot.pose).state is SafetyState.ACTIVE


@pytest.mark.parametrize("state", ["inactive", "hold", "ease_in", "active", "estop"])
def test_an_emergency_stop_works_in_every_state_and_outlives_a_restart(state):
    robot = Robot()
    if state == "inactive":
        robot.gate.deactivate()
    elif state == "ease_in":
        robot.run(moved(0, 1.0), 3)
    elif state == "active":
        robot.run(start_pose(0.5), 3)
    elif state == "estop":
        robot.gate.estop("earlier")
    robot.gate.estop("now")
    robot.check(moved(0, 1.0))
    robot.gate.deactivate()
    assert robot.check(moved(0, 1.0)).target is None
    robot.gate.activate()
    assert robot.gate.state is SafetyState.ESTOP
    decision = robot.check(moved(0, 1.0))
    assert decision.state is SafetyState.ESTOP and decision.target is None
    assert decision.reason == "now"
    robot.gate.reset()
    assert robot.check(robot.pose).state is SafetyState.ACTIVE


def test_a_reset_takes_over_the_pose_that_is_measured_then():
    robot = Robot()
    robot.run(start_pose(0.5), 3)
    robot.gate.estop("button")
    robot.run(start_pose(0.5), 3)
    robot.pose = moved(0, 0.4)  # somebody moved the arm meanwhile
    robot.gate.reset()
    decision = robot.check(start_pose(0.5))
    assert decision.state is SafetyState.EASE_IN
    assert decision.target[0] == pytest.approx(0.4 - LIMITS.ease_in_velocity_rad_s * DT_S)


def test_a_reset_without_an_emergency_stop_changes_nothing():
    robot = Robot(ease_in_s=0.0)
    robot.run(moved(0, 1.0), 8)
    robot.gate.reset()
    robot.check(moved(0, 1.0))
    assert robot.told[-1][0] - robot.told[-2][0] == pytest.approx(STEP_RAD)


def test_an_arm_that_does_not_follow_stops_everything_and_is_relieved():
    robot = Robot(ease_in_s=0.0)
    blocked = start_pose(0.5)
    states = []
    for _ in range(40):
        decision = robot.check(moved(2, -1.2), measured=blocked)
        states.append(decision.state)
    assert states[0] is not SafetyState.ESTOP and states[-1] is SafetyState.ESTOP
    assert "left/elbow is 0." in decision.reason
    furthest = np.abs(np.array(robot.told)[:, 2] - blocked[2]).max()
    run_on_s = LIMITS.max_tracking_error_s + 0.1  # and the time to brake
    assert furthest <= LIMITS.max_tracking_error_rad + LIMITS.max_velocity_rad_s * run_on_s
    np.testing.assert_allclose(decision.target[ARM], blocked[ARM], atol=1e-9)
    assert_laws(np.array(robot.told))


def test_one_wrong_joint_state_is_no_tracking_error():
    robot = Robot()
    robot.run(start_pose(0.5), 3)
    robot.check(start_pose(0.5), measured=np.zeros(ACTION_DIM))  # a bus error reads as zeros
    assert robot.run(start_pose(0.5), 20).state is SafetyState.ACTIVE


def test_short_lags_do_not_add_up_to_a_tracking_error():
    robot = Robot()
    robot.run(start_pose(0.5), 3)
    for _ in range(10):
        for _ in range(3):
            robot.check(start_pose(0.5), measured=np.zeros(ACTION_DIM))
        robot.run(start_pose(0.5), 2)
    assert robot.gate.state is SafetyState.ACTIVE


def test_an_emergency_stop_stays_one_when_joint_states_fail_as_well():
    robot = Robot()
    robot.run(start_pose(0.5), 3)
    robot.gate.estop("button")
    decision = robot.check(start_pose(0.5), measured=None)
    assert kinds(decision) == {"estop"} and decision.reason == "button"
    assert decision.target[GRIPPERS[0]] > 0.5


def test_a_gripper_measured_beyond_its_stroke_is_told_the_end_of_it():
    measured = start_pose(1.33)  # the driver's own geometry reads more than open
    measured[GRIPPERS[1]] = -0.19
    robot = Robot(pose=measured)
    assert list(robot.check(None).target[list(GRIPPERS)]) == [1.0, 0.0]


def test_a_squeezing_gripper_is_no_tracking_error():
    robot = Robot()
    for _ in range(30):
        decision = robot.check(start_pose(0.0), measured=start_pose(0.9))
    assert decision.state is SafetyState.ACTIVE


@pytest.mark.parametrize("opens", [True, False])
def test_the_orderly_end_brakes_and_leaves_the_grippers_open_if_so_set(opens):
    robot = Robot(ease_in_s=0.0, open_grippers_on_stop=opens)
    robot.run(moved(0, 1.0), 8)
    robot.gate.stop("deactivated")
    decision = robot.run(moved(0, 1.0), 12)
    assert decision.state is SafetyState.HOLD and kinds(decision) == {"stop"}
    assert decision.target[GRIPPERS[0]] == (1.0 if opens else 0.5)
    robot.gate.deactivate()
    assert robot.check(moved(0, 1.0)).target is None


def test_an_inactive_gate_says_nothing():
    gate = SafetyGate(LIMITS, DT_NS)
    assert gate.check(start_pose(), start_pose(), START_NS, START_NS).target is None
    assert gate.target is None and gate.state is SafetyState.INACTIVE


def test_activation_begins_new_counts():
    robot = Robot()
    robot.run(None, 3)
    assert robot.gate.kind_counts() == {"no_action": 3}
    robot.gate.activate()
    assert robot.gate.kind_counts() == {} and robot.gate.last_intervention is None


# Parking.


@pytest.mark.parametrize("name", ["start", "sleep"])
def test_the_way_to_a_pose_keeps_its_own_limits_and_passes_the_gate_unchanged(name):
    first = start_pose(0.2)
    first[ARM] += 0.3
    robot = Robot(pose=first)
    plan = plan_parking(first, parking_poses(name), LIMITS, DT_NS)
    robot.gate.set_parking(True)
    for row in plan:
        decision = robot.check(row)
        np.testing.assert_allclose(decision.target, row, atol=1e-9)
    np.testing.assert_array_equal(plan[-1], parking_poses(name)[-1])
    path = np.concatenate([first[None], plan])
    velocity = np.diff(path, axis=0)[:, ARM] / DT_S
    assert np.abs(velocity).max() <= LIMITS.parking_velocity_rad_s + TOLERANCE
    acceleration = np.diff(velocity, axis=0) / DT_S
    assert np.abs(acceleration).max() <= 1.05 * LIMITS.parking_acceleration_rad_s2


def test_the_sleep_pose_is_out_of_reach_unless_the_arms_are_being_parked():
    robot = Robot()
    assert robot.run(SLEEP, 120).target[1] == pytest.approx(-1.85 + 0.02)
    robot.gate.set_parking(True)
    assert robot.run(SLEEP, 120).target[1] == pytest.approx(-2.05)


def test_parking_is_slow_whatever_is_wanted():
    robot = Robot(ease_in_s=0.0)
    robot.gate.set_parking(True)
    robot.run(moved(0, 1.0), 20)
    speeds = np.abs(np.diff(np.array(robot.told)[:, ARM], axis=0)).max() / DT_S
    assert speeds == pytest.approx(LIMITS.parking_velocity_rad_s)


@pytest.mark.parametrize("way", [0.004, 0.05, 0.3, 2.0])
def test_short_and_long_ways_keep_the_parking_limits_and_end_exactly(way):
    generator = np.random.default_rng(round(1000 * way))
    first = start_pose(0.3)
    pose = first + way * generator.uniform(-1.0, 1.0, ACTION_DIM)
    first[GRIPPERS[0]], pose[GRIPPERS[0]] = 0.15, 0.46  # a + (b - a) is not b in floats
    plan = plan_parking(first, [pose], LIMITS, DT_NS)
    np.testing.assert_array_equal(plan[-1], pose)
    path = np.concatenate([first[None], plan])
    velocity = np.diff(path, axis=0)[:, ARM] / DT_S
    assert np.abs(velocity).max() <= LIMITS.parking_velocity_rad_s
    rest = np.zeros((1, len(ARM)))
    acceleration = np.diff(velocity, axis=0, prepend=rest, append=rest) / DT_S
    assert np.abs(acceleration).max() <= LIMITS.parking_acceleration_rad_s2 + TOLERANCE


@pytest.mark.parametrize(("joint", "beyond"), [(1, 1.9), (2, 1.63)])
def test_parking_may_begin_and_end_in_full_motion(joint, beyond):
    robot = Robot(ease_in_s=0.0)
    robot.run(moved(0, 1.5), 8)  # at full speed
    robot.gate.set_parking(True)
    while abs(robot.pose[joint]) < beyond:  # until it is outside its limits, and moves
        robot.check(SLEEP)
    assert abs(robot.told[-2][joint] - robot.pose[joint]) > BRAKE_RAD / 2
    robot.gate.set_parking(False)
    robot.run(SLEEP, 30)
    steps = np.diff(np.array(robot.told)[:, ARM], axis=0)
    assert np.abs(np.diff(steps, axis=0)).max() <= BRAKE_RAD + TOLERANCE
    assert np.abs(np.array(robot.told)[:, joint]).max() < abs(SLEEP[joint])


def test_grippers_open_before_they_close_as_demonstrations_began():
    holding = start_pose(0.4)
    parking = Parking(replace(LIMITS, start_gripper=0.1), DT_NS)
    parking.go("start")
    rows, present = [], holding
    while not parking.arrived:
        present = parking.next_target(present, held=False)
        rows.append(present)
    openings = np.array(rows)[:, list(GRIPPERS)]
    assert np.all(openings.max(axis=0) == 1.0)
    np.testing.assert_array_equal(rows[-1], start_pose(0.1))
    falls = np.diff(openings, axis=0) < 0.0
    assert not falls[: openings[:, 0].argmax()].any()


def test_an_unknown_pose_is_refused():
    with pytest.raises(ValueError, match="start, sleep"):
        parking_poses("home")


def test_no_pose_is_no_way():
    assert plan_parking(start_pose(), [], LIMITS, DT_NS).shape == (0, ACTION_DIM)


# Configuration.


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (dict(workspace_lower_m=(0.0, 0.0)), "expected 3 numbers"),
        (dict(left_base_pose=(0.0, math.inf, 0.0, 0.0)), "expected finite"),
        (dict(workspace_lower_m=(1.0, -1.0, -1.0)), "workspace_upper_m"),
        (dict(ease_in_velocity_rad_s=2.5), "at most max_velocity_rad_s"),
        (dict(max_velocity_rad_s=4.0), "0.01 to"),
        (dict(max_joint_age_s=math.nan), "max_joint_age_s"),
    ],
)
def test_limits_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        SafetyConfig(**setting)


def test_a_period_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="positive dt_ns"):
        SafetyGate(LIMITS, 0)


def test_names_of_joints_in_interventions_are_those_of_the_action_vector():
    robot = Robot(ease_in_s=0.0)
    decision = robot.check(np.full(ACTION_DIM, 0.3) + start_pose(0.0))
    assert {one.joint for one in decision.interventions} <= set(ACTION_NAMES)
