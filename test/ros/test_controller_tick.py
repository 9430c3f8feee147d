"""The controller as others see it: its beat, its services and the real-time class."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from ros.graph import Graph, parameters
from sensor_msgs.msg import JointState
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import (
    ACTION_NAMES,
    GRIPPERS,
    JOINT_STATE_NAMES,
    SLEEP_ARM_POSE_RAD,
    load_profile,
    start_pose,
)
from vla_oft_ros.ros import realtime
from vla_oft_ros.ros.controller_node import ControllerNode
from vla_oft_ros.ros.conversions import chunk_to_msg, joint_state_to_msg
from vla_oft_ros.ros.robot_io import targets_from_msg
from vla_oft_ros.ros.tick import Tick
from vla_oft_ros.types import ActionChunk

PERIOD_NS = 20_000_000
START = start_pose(0.5)
SLEEP = np.concatenate([[*SLEEP_ARM_POSE_RAD, 1.0]] * 2)


class FollowingRobot:
    """Both followers, always where they were told to be; a policy that wants one pose."""

    def __init__(self, node: Node) -> None:
        self._node = node
        profile = load_profile("sim")
        self._gripper = profile.gripper
        self.pose = START.copy()
        self.told: list[np.ndarray] = []
        self.wanted: np.ndarray | None = None
        self.deadman = False
        self._joints = [
            node.create_publisher(JointState, topic, 10)
            for topic in profile.follower_joint_state_topics
        ]
        self._chunks = node.create_publisher(messages.ActionChunk, "action_chunk", 10)
        self._deadman = node.create_publisher(Empty, "/controller_node/deadman", 10)
        node.create_subscription(JointState, "joint_targets", self._on_targets, 100)
        node.create_timer(0.01, self._publish)
        node.create_timer(0.2, self._ask_policy)

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _on_targets(self, message: JointState) -> None:
        self.pose = targets_from_msg(message)
        self.told.append(self.pose)

    def _publish(self) -> None:
        for arm, publisher in enumerate(self._joints):
            joints = self.pose[7 * arm : 7 * arm + 7].copy()
            joints[-1] = self._gripper.action_to_servo_rad(joints[-1])
            values = np.array([*joints, 0.03, -0.03])
            publisher.publish(joint_state_to_msg(JOINT_STATE_NAMES, values, self._now_ns()))
        if self.deadman:
            self._deadman.publish(Empty())

    def _ask_policy(self) -> None:
        if self.wanted is None:
            return
        chunk = ActionChunk(
            actions=np.tile(self.wanted, (25, 1)),
            stamp_ns=self._now_ns(),
            dt_ns=PERIOD_NS,
            instruction="hold",
            inference_s=0.0,
        )
        self._chunks.publish(chunk_to_msg(chunk, ACTION_NAMES))


class Bench:
    """A controller at 50 Hz and a robot that obeys it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.robot = FollowingRobot(graph.ear)
        self.states = graph.hear(messages.SafetyStatus, "safety_status")
        self.diagnostics = graph.hear(DiagnosticArray, "/diagnostics")
        self.node: ControllerNode = graph.add(ControllerNode())
        assert self.node.autostart()
        graph.until(lambda: self.states, "a safety status")

    def call(self, name: str) -> Trigger.Response:
        return self.graph.call(Trigger, f"/controller_node/{name}", Trigger.Request())

    def until_at(self, pose: np.ndarray) -> None:
        def there() -> bool:
            return bool(np.abs(self.robot.pose - pose).max() < 1e-6)

        self.graph.until(there, "the pose")

    def until_state(self, *states: int) -> messages.SafetyStatus:
        self.graph.until(lambda: self.states[-1].state in states, f"state {states}")
        return self.states[-1]

    def values(self, part: str) -> dict[str, str]:
        for array in reversed(self.diagnostics):
            for status in array.status:
                if status.name == f"/controller_node: {part}":
                    return {pair.key: pair.value for pair in status.values}
        return {}


@pytest.fixture
def make_bench(make_graph: Callable[..., Graph]) -> Callable[..., Bench]:
    def make(**values: object) -> Bench:
        # One thread is robot and controller: on a busy machine its joint states come late.
        patient = {"control_rate_hz": 50.0, "safety__max_joint_age_s": 1.0}
        return Bench(make_graph(*parameters(**patient, **values)))

    return make


FAST = {"safety__parking_velocity_rad_s": 1.5, "safety__parking_acceleration_rad_s2": 15.0}
HOLD, ACTIVE = messages.SafetyStatus.HOLD, messages.SafetyStatus.ACTIVE
EASE_IN, ESTOP = messages.SafetyStatus.EASE_IN, messages.SafetyStatus.ESTOP


def test_a_blocked_executor_delays_ticks_but_shifts_none_of_the_later_ones(
    make_graph: Callable[..., Graph],
) -> None:
    graph = make_graph()
    times: list[int] = []
    tick = Tick(graph.ear, PERIOD_NS, lambda: times.append(time.monotonic_ns()), simulated=False)
    graph.until(lambda: len(times) == 5, "five ticks")
    time.sleep(0.05)  # two periods and a half
    graph.until(lambda: len(times) == 30, "thirty ticks")
    tick.cancel()
    phases = (np.array(times) - times[0] + PERIOD_NS // 2) % PERIOD_NS - PERIOD_NS // 2
    # On a busy machine single ticks are late; the beat itself is where it was.
    assert np.abs(np.median(phases[-15:]) - np.median(phases[:5])) < PERIOD_NS / 4
    assert tick.missed >= 1
    periods = round((times[-1] - times[0]) / PERIOD_NS)
    assert abs(periods - (len(times) - 1 + tick.missed)) <= 1


def test_ticks_are_never_early_and_their_lateness_is_what_the_figures_say(
    make_graph: Callable[..., Graph],
) -> None:
    graph = make_graph()
    ticks: list[float] = []
    tick = Tick(graph.ear, PERIOD_NS, lambda: ticks.append(tick.lateness.last), simulated=False)
    graph.until(lambda: len(ticks) >= 20, "twenty ticks")
    tick.cancel()
    assert min(ticks) >= 0.0
    assert tick.lateness.quantile(1.0) == max(ticks)


def test_the_arms_go_to_the_start_pose_slowly_and_stay_there_whatever_the_policy_says(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(**FAST)
    bench.robot.pose = START + 0.2 * np.array([1.0] * 6 + [0.0] + [-1.0] * 6 + [0.0])
    bench.robot.wanted = bench.robot.pose.copy()
    bench.until_state(ACTIVE)
    assert bench.call("go_to_start").success
    bench.until_at(start_pose())
    count = len(bench.robot.told)
    bench.graph.listen_in_silence()
    assert len(bench.robot.told) > count
    assert np.abs(np.array(bench.robot.told[count:]) - start_pose()).max() < 1e-6
    assert bench.call("follow_policy").success
    bench.until_at(bench.robot.wanted)


def test_the_arms_fold_by_way_of_the_start_pose_and_the_policy_cannot_unfold_them(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(**FAST)
    bench.graph.until(lambda: bench.robot.told, "a first target")
    assert bench.call("go_to_sleep").success
    refused = bench.call("follow_policy")
    assert not refused.success and "on their way" in refused.message
    bench.until_at(SLEEP)
    assert any(np.abs(pose - start_pose()).max() < 1e-3 for pose in bench.robot.told)
    refused = bench.call("follow_policy")
    assert not refused.success and "call go_to_start first" in refused.message
    assert bench.call("go_to_start").success
    bench.until_at(start_pose())
    assert bench.call("follow_policy").success


def test_parking_keeps_to_its_velocity(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(safety__parking_velocity_rad_s=1.0, safety__parking_acceleration_rad_s2=15)
    bench.graph.until(lambda: bench.robot.told, "a first target")
    bench.call("go_to_sleep")
    bench.until_at(SLEEP)
    arm = [joint for joint in range(14) if joint not in GRIPPERS]
    steps = np.abs(np.diff(np.array(bench.robot.told), axis=0))[:, arm]
    assert steps.max() <= 1.0 * PERIOD_NS * 1e-9 + 1e-9


def test_a_hold_on_the_way_is_waited_for_and_the_way_then_goes_on(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(**FAST)
    bench.graph.until(lambda: bench.robot.told, "a first target")
    bench.call("go_to_sleep")
    bench.until_state(ACTIVE, EASE_IN)
    bench.call("estop")
    bench.until_state(ESTOP)
    refused = bench.call("go_to_start")
    assert not refused.success and "reset_estop first" in refused.message
    bench.call("reset_estop")
    bench.until_at(SLEEP)


def test_parking_is_refused_before_the_controller_is_active(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    bench.node.trigger_deactivate()
    refused = bench.call("go_to_start")
    assert not refused.success and "activate" in refused.message


def test_with_a_deadman_switch_the_arms_follow_only_while_it_is_pressed(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(safety__deadman_timeout_s=0.2)
    bench.robot.wanted = START + 0.01
    bench.until_state(HOLD)
    bench.graph.until(lambda: "deadman" in bench.states[-1].reason, "the reason")
    bench.robot.deadman = True
    bench.until_state(ACTIVE, EASE_IN)
    bench.robot.deadman = False
    bench.until_state(HOLD)
    # A busy machine may hold for late joint states on the way.
    bench.graph.until(lambda: "deadman" in bench.states[-1].reason, "the reason")
    status = bench.states[-1]
    assert dict(zip(status.intervention_kinds, status.intervention_counts, strict=True))["deadman"]


def test_a_far_target_is_eased_into_visibly_and_every_change_is_counted(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(safety__ease_in_s=0.5)
    bench.robot.wanted = START + 0.4 * np.array([1.0] + [0.0] * 13)
    bench.until_state(ACTIVE)
    bench.until_at(bench.robot.wanted)
    assert EASE_IN in [status.state for status in bench.states]
    last = bench.states[-1]
    counts = dict(zip(last.intervention_kinds, last.intervention_counts, strict=True))
    assert counts["ease_in"] + counts.get("acceleration", 0) > 1
    assert bench.states[-1].joint_names == list(ACTION_NAMES)


def test_diagnostics_tell_tick_and_every_join(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.robot.wanted = START + 0.01
    bench.graph.until(lambda: "seam_jump_rad_p50" in bench.values("joins"), "joins")
    assert {
        "last_index",
        "last_seam_jump_rad",
        "last_velocity_step_rad_s",
        "last_staleness_s",
        "staleness_s_p99",
    } <= set(bench.values("joins"))
    assert float(bench.values("tick")["period_ms_p50"]) > 0.0
    assert "missed" in bench.values("tick")
    assert bench.values("safety")["parking"] == "no"


def test_a_profile_of_unknown_arms_moves_nothing(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph(*parameters(profile="agilex"))
    assert not graph.add(ControllerNode()).autostart()


def test_a_node_inside_another_process_leaves_its_scheduling_class_alone(
    make_bench: Callable[..., Bench],
) -> None:
    before = os.sched_getscheduler(0)
    make_bench(realtime_priority=10)
    assert os.sched_getscheduler(0) == before


def test_a_class_that_is_not_permitted_is_a_warning_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(realtime.resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    problems = realtime.be_real_time(50)
    realtime.gc.unfreeze()
    assert len(problems) == 2
    assert all("limits.d" in problem for problem in problems)
    assert "SCHED_FIFO 50" in problems[0]


def test_taking_the_arms_over_moves_no_gripper(make_bench: Callable[..., Bench]) -> None:
    robot = (bench := make_bench()).robot
    bench.graph.until(lambda: len(robot.told) > 5, "the first targets")
    # The scale of observations is another one than that of targets: half closed is 0.52 on it.
    np.testing.assert_allclose(robot.told[:5], np.tile(START, (5, 1)), atol=1e-6)
