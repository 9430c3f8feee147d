"""The controller between policy and robot: it follows, holds in doubt, and stops in order."""

from collections.abc import Callable

import numpy as np
import pytest
from lifecycle_msgs.msg import State
from ros.fakes import FakeRobot
from ros.graph import Graph, parameters
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_DIM, ACTION_NAMES, ARM_DIM, ARMS, load_profile, start_pose
from vla_oft_ros.ros.controller_node import ControllerNode
from vla_oft_ros.ros.conversions import chunk_to_msg, stamp_from_msg
from vla_oft_ros.ros.robot_io import targets_from_msg
from vla_oft_ros.types import ActionChunk

DT_NS = 40_000_000
STILL_RAD = 1e-6
HOLD, ESTOP = messages.SafetyStatus.HOLD, messages.SafetyStatus.ESTOP
ACTIVE = messages.SafetyStatus.ACTIVE
CHUNK_LEN = 25
ARM_JOINTS = [index for index in range(ACTION_DIM) if index % ARM_DIM != ARM_DIM - 1]


class ObedientRobot(FakeRobot):
    """A fake robot whose arms are where they were told to be."""

    def __init__(self, node: object) -> None:
        super().__init__(node)  # type: ignore[arg-type]
        self._gripper = load_profile("sim").gripper
        self.silent.update(name for name in self._cameras)
        self.place(start_pose(0.5))

    def place(self, pose: np.ndarray) -> None:
        for number, arm in enumerate(ARMS):
            joints = pose[number * ARM_DIM : (number + 1) * ARM_DIM]
            self.arms[arm][:6] = joints[:6]
            self.arms[arm][6] = self._gripper.action_to_servo_rad(float(joints[6]))


class Bench:
    """A controller before an obedient robot; the test is the policy."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.targets: list[JointState] = []
        self.robot = ObedientRobot(graph.ear)
        graph.ear.create_subscription(JointState, "joint_targets", self._on_targets, 100)
        self.states = graph.hear(messages.SafetyStatus, "safety_status")
        self._chunks = graph.ear.create_publisher(messages.ActionChunk, "action_chunk", 10)
        self.node = graph.add(ControllerNode())

    def _on_targets(self, message: JointState) -> None:
        self.targets.append(message)
        self.robot.place(targets_from_msg(message))

    def chunk(self, *, towards: float = 0.1, **changes: object) -> messages.ActionChunk:
        """A chunk from now that leads every arm joint a little away from the start pose."""
        pose = start_pose(0.5)
        ramp = np.linspace(0.0, towards, CHUNK_LEN)[:, None] * np.ones(ACTION_DIM)  # (K, A)
        message = chunk_to_msg(
            ActionChunk(
                actions=pose + ramp,
                stamp_ns=self.robot.stamp_ns,
                dt_ns=DT_NS,
                instruction="",
                inference_s=0.0,
            ),
            ACTION_NAMES,
        )
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    def send(self, message: messages.ActionChunk) -> None:
        self.graph.until(self._chunks.get_subscription_count, "discovery")
        self._chunks.publish(message)

    def until_targets(self, count: int = 1) -> np.ndarray:
        """Waits for that many more targets; returns them, (count, 14)."""
        wanted = len(self.targets) + count
        self.graph.until(lambda: len(self.targets) >= wanted, f"{count} more targets")
        return np.array([targets_from_msg(message) for message in self.targets[-count:]])

    def until_still(self) -> np.ndarray:
        """Waits until the targets stand still; returns where, (14,)."""

        def still() -> bool:
            newest = [targets_from_msg(message) for message in self.targets[-10:]]
            return len(newest) == 10 and bool(np.ptp(newest, axis=0).max() < STILL_RAD)

        self.graph.until(still, "standstill")
        return targets_from_msg(self.targets[-1])

    def until_state(self, state: int) -> messages.SafetyStatus:
        self.graph.until(lambda: self.states and self.states[-1].state == state, f"state {state}")
        return self.states[-1]

    def call(self, name: str) -> Trigger.Response:
        return self.graph.call(Trigger, f"controller_node/{name}", Trigger.Request())

    def expect_silence(self) -> None:
        self.graph.listen_in_silence()  # what is still under way
        count = len(self.targets)
        self.graph.listen_in_silence()
        assert len(self.targets) == count


@pytest.fixture
def bench(make_graph: Callable[..., Graph]) -> Bench:
    return Bench(make_graph(*parameters(use_sim_time="true")))


def test_nothing_is_said_before_activation(bench: Bench) -> None:
    bench.node.trigger_configure()
    bench.send(bench.chunk())
    bench.expect_silence()
    assert bench.targets == []


def test_nothing_is_said_before_both_arms_have_spoken(bench: Bench) -> None:
    bench.robot.silent.add("right")
    bench.node.autostart()
    bench.send(bench.chunk())
    bench.until_state(HOLD)
    bench.expect_silence()
    assert bench.targets == []
    bench.robot.silent.discard("right")
    bench.until_targets()


def test_one_target_comes_per_control_period_with_all_names_left_arm_first(bench: Bench) -> None:
    bench.graph.until(bench.node.now_ns, "the first word of the clock")
    bench.node.autostart()
    bench.until_targets(50)
    stamps = [stamp_from_msg(message.header.stamp) for message in bench.targets]
    # A busy machine begins a tick late, which the stamp says; no other tick is shifted by it.
    late_ns = np.array(stamps) - DT_NS * np.arange(len(stamps))
    late_ns -= late_ns.min()
    assert np.median(late_ns) == 0 and late_ns.max() < DT_NS
    assert all(message.name == list(ACTION_NAMES) for message in bench.targets)


def test_without_a_chunk_the_arms_are_told_to_stay_where_they_are(bench: Bench) -> None:
    bench.node.autostart()
    held = bench.until_targets(10)
    np.testing.assert_allclose(held[:, :6], np.tile(start_pose(0.5)[:6], (10, 1)), atol=1e-6)
    assert bench.states[-1].state == HOLD


def test_a_chunk_is_followed_to_its_end(bench: Bench) -> None:
    bench.node.autostart()
    bench.until_targets()
    bench.send(bench.chunk(towards=0.1))
    bench.until_state(ACTIVE)
    bench.graph.until(
        lambda: abs(targets_from_msg(bench.targets[-1])[0] - 0.1) < 0.01, "the end of the chunk"
    )


def test_a_policy_that_dies_leaves_a_robot_that_holds(bench: Bench) -> None:
    bench.node.autostart()
    bench.until_targets()
    bench.send(bench.chunk(towards=0.2))
    bench.until_state(ACTIVE)
    bench.until_state(HOLD)  # the chunk has ended and no other came
    held = bench.until_still()
    later = bench.until_targets(50)
    assert np.abs(later - held).max() < STILL_RAD  # two seconds on, and still being told so
    assert "chunk" in bench.states[-1].reason or "action" in bench.states[-1].reason


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": [float("nan")] * (CHUNK_LEN * ACTION_DIM)},
        {"joint_names": [*ACTION_NAMES[7:], *ACTION_NAMES[:7]]},
        {"chunk_len": CHUNK_LEN - 1},
        {"dt_s": 0.0},
        {"positions": [], "chunk_len": 0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_policy_that_talks_nonsense_leaves_a_robot_that_holds(
    changes: dict, bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.node.autostart()
    before = bench.until_targets(5)[-1]
    for _ in range(3):
        bench.send(bench.chunk(**changes))
        bench.until_targets(5)
    assert np.abs(bench.until_still() - before).max() < STILL_RAD
    assert bench.states[-1].state == HOLD
    assert "chunk refused: " in capfd.readouterr().err


@pytest.mark.parametrize("age_ns", [10 * 10**9, -10 * 10**9])
def test_a_chunk_of_another_time_moves_nothing(age_ns: int, bench: Bench) -> None:
    bench.robot.stamp_ns += 100 * 10**9
    bench.node.autostart()
    before = bench.until_targets(5)[-1]
    message = bench.chunk()
    message.header.stamp.sec -= age_ns // 10**9
    bench.send(message)
    assert np.abs(bench.until_targets(25)[-1] - before).max() < STILL_RAD


def test_arms_that_fall_silent_are_held(bench: Bench) -> None:
    bench.node.autostart()
    bench.until_targets()
    bench.send(bench.chunk(towards=0.2))
    bench.until_state(ACTIVE)
    bench.robot.silent.add("left")
    status = bench.until_state(HOLD)
    assert "joint" in status.reason
    held = bench.until_still()
    bench.send(bench.chunk(towards=0.2))
    assert np.abs(bench.until_targets(10) - held).max() < STILL_RAD


def test_an_emergency_stop_holds_until_it_is_reset_whatever_the_policy_says(bench: Bench) -> None:
    bench.node.autostart()
    bench.until_targets()
    assert bench.call("estop").success
    bench.until_state(ESTOP)
    bench.until_still()
    bench.send(bench.chunk())
    later = bench.until_targets(25)
    assert np.ptp(later[:, ARM_JOINTS], axis=0).max() < STILL_RAD
    assert bench.states[-1].state == ESTOP
    assert bench.call("reset_estop").success
    bench.send(bench.chunk())
    bench.until_state(ACTIVE)


class Spy:
    """Stands before a part of the node and writes down what is asked of it."""

    def __init__(self, part: object, name: str, calls: list[str], watch: Callable) -> None:
        self._part, self._name, self._calls, self._watch = part, name, calls, watch

    def __getattr__(self, attribute: str) -> object:
        found = getattr(self._part, attribute)
        if not callable(found):
            return found

        def called(*arguments: object, **keywords: object) -> object:
            self._calls.append(f"{self._name}.{attribute}")
            self._watch(f"{self._name}.{attribute}")
            return found(*arguments, **keywords)

        return called


def test_the_stop_order_is_refuse_clear_hold_and_fall_silent_last(bench: Bench) -> None:
    bench.node.autostart()
    bench.until_targets()
    bench.send(bench.chunk(towards=0.3))
    bench.until_state(ACTIVE)
    node, calls = bench.node, []
    publisher = node._safety_publisher
    spoke: list[bool] = []

    def watch(call: str) -> None:
        if call == "queue.clear":
            late = bench.chunk()
            node._on_chunk(late)  # one that arrives while the node stops
        if call == "robot.publish":
            spoke.append(publisher.is_activated)

    node._queue = Spy(node._queue, "queue", calls, watch)
    node._gate = Spy(node._gate, "gate", calls, watch)
    node._robots = [Spy(robot, "robot", calls, watch) for robot in node._robots]
    node.trigger_deactivate()

    assert "queue.put" not in calls  # new chunks are refused from the first moment
    order = ["queue.clear", "gate.stop", "gate.check", "robot.publish", "gate.deactivate"]
    places = [calls.index(name) for name in order]
    assert places == sorted(places)
    last = max(place for place, name in enumerate(calls) if name == "robot.publish")
    assert last < calls.index("gate.deactivate")
    assert spoke and all(spoke) and not publisher.is_activated
    assert node.state_id == State.PRIMARY_STATE_INACTIVE
    calls.clear()
    bench.graph.listen_in_silence()
    assert calls == []  # nothing is even thought about any more


def test_the_last_words_are_a_standstill_and_then_there_is_silence(bench: Bench) -> None:
    bench.node.autostart()
    bench.until_targets()
    bench.send(bench.chunk(towards=0.3))
    bench.until_state(ACTIVE)
    bench.until_targets(5)
    bench.node.trigger_deactivate()
    bench.expect_silence()
    last = [targets_from_msg(message) for message in bench.targets[-2:]]
    assert np.abs(last[1] - last[0])[ARM_JOINTS].max() < STILL_RAD
    bench.send(bench.chunk())
    bench.expect_silence()
    bench.node.trigger_activate()
    bench.until_targets()


def test_chunks_from_before_a_restart_are_forgotten(bench: Bench) -> None:
    bench.node.autostart()
    bench.until_targets()
    bench.send(bench.chunk(towards=0.3))
    bench.until_state(ACTIVE)
    bench.node.trigger_deactivate()
    bench.node.trigger_activate()
    bench.states.clear()
    held = bench.until_targets(20)
    assert np.ptp(held[:, ARM_JOINTS], axis=0).max() < STILL_RAD
    assert {status.state for status in bench.states} <= {HOLD, messages.SafetyStatus.INACTIVE}


def test_cleanup_leaves_nothing_and_the_node_can_be_configured_again(bench: Bench) -> None:
    ear = bench.graph.ear

    def endpoints() -> tuple[int, int, int]:
        return (
            ear.count_publishers("joint_targets"),
            ear.count_publishers("safety_status"),
            ear.count_subscribers("action_chunk"),
        )

    for _ in range(2):
        bench.node.autostart()
        bench.until_targets()
        assert endpoints() == (1, 1, 1)
        bench.node.trigger_deactivate()
        bench.node.trigger_cleanup()
        bench.graph.until(lambda: endpoints() == (0, 0, 0), "an empty graph")
