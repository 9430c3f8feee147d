"""The policy on the wire: an observation in, its chunk out, and silence whenever in doubt."""

import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros.fakes import FakePolicy, FakeRobot
from ros.graph import Graph, parameters
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES, CAMERAS, load_profile, start_pose
from vla_oft_ros.frame_ring import reference_ticks
from vla_oft_ros.ros.conversions import chunk_from_msg, retained_from_msg, stamp_from_msg
from vla_oft_ros.ros.policy_node import PolicyNode
from vla_oft_ros.ros.robot_io import targets_to_msg
from vla_oft_ros.types import ActionChunk, MotionMode, Observation

UNCONFIGURED = State.PRIMARY_STATE_UNCONFIGURED


class Bench:
    """A policy node before a fake robot, and what it publishes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node = graph.add(PolicyNode())
        self.robot = FakeRobot(graph.ear)
        self.chunks: list[messages.ActionChunk] = graph.hear(messages.ActionChunk, "action_chunk")
        self.retained: list[messages.RetainedTokens] = graph.hear(
            messages.RetainedTokens, "retained_tokens"
        )

    def until_chunks(self, count: int = 1) -> messages.ActionChunk:
        """Waits for that many more chunks; returns the newest."""
        wanted = len(self.chunks) + count
        self.graph.until(lambda: len(self.chunks) >= wanted, f"{count} more chunks")
        return self.chunks[-1]

    def until_asked(self, policy: FakePolicy, count: int = 1) -> Observation:
        """Waits for that many more questions to the policy; returns the newest."""
        wanted = len(policy.asked) + count
        self.graph.until(lambda: len(policy.asked) >= wanted, f"{count} more questions")
        return policy.asked[-1]

    def expect_no_chunk(self) -> None:
        count = len(self.chunks)
        self.graph.listen_in_silence()
        assert len(self.chunks) == count

    def drain(self) -> None:
        """Takes what is still under way."""
        self.graph.listen_in_silence()

    def say(self, instruction: str, durability: DurabilityPolicy) -> None:
        qos = QoSProfile(depth=1, durability=durability)
        publisher = self.graph.ear.create_publisher(String, "instruction", qos)
        self.graph.until(publisher.get_subscription_count, "discovery")
        publisher.publish(String(data=instruction))


@pytest.fixture
def make_bench(policy: FakePolicy, make_graph: Callable) -> Callable[..., Bench]:
    """A bench of a node with these parameters, in simulated time, with an instruction."""

    def make(**values: object) -> Bench:
        given = {"use_sim_time": "true", "instruction": "lift", "execute_steps": 2} | values
        return Bench(make_graph(*parameters(**given)))

    return make


def test_an_observation_goes_in_and_its_chunk_comes_out(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    assert bench.node.autostart()
    message = bench.until_chunks(2)
    got = chunk_from_msg(message, ACTION_NAMES)
    asked = next(o for o in policy.asked if o.stamp_ns == got.stamp_ns)
    np.testing.assert_array_equal(got.actions, policy.ramp(asked).actions)
    assert (got.instruction, asked.instruction) == ("lift", "lift")
    assert (got.dt_ns, got.inference_s) == (40_000_000, 0.01)
    assert tuple(asked.images) == CAMERAS
    for camera in CAMERAS:
        seen = bench.robot.image(camera, asked.image_stamps_ns[camera])
        np.testing.assert_array_equal(asked.images[camera], seen)
    assert asked.stamp_ns == min(asked.proprio_stamp_ns, *asked.image_stamps_ns.values())


def test_what_was_kept_of_each_camera_goes_out_with_every_chunk(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    bench.node.autostart()
    stamp_ns = stamp_from_msg(bench.until_chunks(2).header.stamp)
    asked = next(o for o in policy.asked if o.stamp_ns == stamp_ns)
    expected = policy.ramp(asked).retained

    def heard() -> list:
        by_stamp = [retained_from_msg(message) for message in bench.retained]
        return [r for r in by_stamp if r.stamp_ns == asked.image_stamps_ns[r.camera]]

    bench.graph.until(lambda: len(heard()) >= len(CAMERAS), "retained tokens of each camera")
    for got, sent in zip(heard(), expected, strict=True):
        assert (got.camera, got.layer, got.grid) == (sent.camera, sent.layer, sent.grid)
        np.testing.assert_array_equal(got.patch_indices, sent.patch_indices)


def test_the_policy_is_loaded_with_the_parameters_of_the_node(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench(control_rate_hz=50.0, policy__checkpoint_dir="/a", policy__device="cpu")
    bench.node.trigger_configure()
    config, keywords = policy.loaded_with  # type: ignore[attr-defined]
    assert (config.checkpoint_dir, config.device) == ("/a", "cpu")
    assert keywords == {"control_rate_hz": 50.0, "profile": load_profile("sim")}


def test_nothing_is_asked_or_sent_before_activation_and_after_deactivation(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    bench.expect_no_chunk()
    bench.node.trigger_configure()
    bench.expect_no_chunk()
    assert policy.asked == []
    bench.node.trigger_activate()
    bench.until_chunks()
    bench.node.trigger_deactivate()
    bench.drain()
    asked = len(policy.asked)
    bench.expect_no_chunk()
    assert len(policy.asked) == asked
    bench.node.trigger_activate()
    bench.until_chunks()


def test_without_an_instruction_the_policy_is_not_asked(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench(instruction="''")
    bench.node.autostart()
    bench.expect_no_chunk()
    assert policy.asked == []


@pytest.mark.parametrize("instruction", ["''", "lift"])
def test_a_node_that_waits_for_an_instruction_says_where(
    instruction: str, make_bench: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    make_bench(instruction=instruction).node.autostart()
    waits = "waits for an instruction on /instruction" in capfd.readouterr().err
    assert waits == (instruction != "lift")


def test_an_instruction_can_be_set_by_parameter_while_running(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    bench.node.autostart()
    bench.until_chunks()
    (result,) = bench.node.set_parameters([Parameter("instruction", value="drop")])
    assert result.successful
    bench.graph.until(lambda: bench.chunks[-1].instruction == "drop", "a chunk for it")
    assert policy.asked[-1].instruction == "drop"


@pytest.mark.parametrize(
    "durability", [DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL]
)
def test_an_instruction_can_be_set_by_topic_while_running(
    durability: DurabilityPolicy, make_bench: Callable
) -> None:
    bench = make_bench(instruction="''")
    bench.node.autostart()
    bench.say("push", durability)
    assert bench.until_chunks().instruction == "push"
    bench.say("pull", durability)
    bench.graph.until(lambda: bench.chunks[-1].instruction == "pull", "a chunk for it")


def test_a_latched_instruction_reaches_a_node_that_starts_later(make_bench: Callable) -> None:
    bench = make_bench(instruction="''")
    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    bench.graph.ear.create_publisher(String, "instruction", qos).publish(String(data="early"))
    bench.node.autostart()
    assert bench.until_chunks().instruction == "early"


def test_a_new_instruction_begins_a_new_episode_and_the_same_one_does_not(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    bench.node.autostart()
    bench.until_asked(policy, 2)
    assert policy.calls[:3] == ["reset", "infer", "infer"]
    bench.say("lift", DurabilityPolicy.VOLATILE)
    bench.until_asked(policy, 2)
    assert policy.calls.count("reset") == 1
    bench.say("drop", DurabilityPolicy.VOLATILE)
    bench.graph.until(lambda: policy.asked[-1].instruction == "drop", "a question about it")
    assert policy.calls.count("reset") == 2
    first = next(i for i, o in enumerate(policy.asked) if o.instruction == "drop")
    resets = [i for i, call in enumerate(policy.calls) if call == "reset"]
    assert resets[1] == first + 1  # one reset before, right before it


def test_the_policy_is_asked_once_in_execute_steps(
    make_bench: Callable, policy: FakePolicy
) -> None:
    steps = 20
    bench = make_bench(execute_steps=steps)
    bench.node.autostart()
    bench.until_asked(policy, 4)
    times = [observation.stamp_ns for observation in policy.asked]
    oldest_ns = round(bench.node.config.sync.max_image_age_s * 1e9)
    # Counted from the observation; the next one may itself be as old as is allowed.
    assert all(gap >= steps * 40_000_000 - oldest_ns for gap in np.diff(times))


def raises(_: Observation) -> ActionChunk:
    raise RuntimeError("the network is gone")


def nonsense(observation: Observation) -> ActionChunk:
    chunk = FakePolicy().ramp(observation)
    chunk.actions[3, 5] = np.nan
    return chunk


@pytest.mark.parametrize(
    ("answer", "told"),
    [(raises, "RuntimeError: the network is gone"), (nonsense, "NaN or infinite actions")],
)
def test_a_policy_that_raises_or_talks_nonsense_sends_nothing_and_may_recover(
    answer: Callable,
    told: str,
    make_bench: Callable,
    policy: FakePolicy,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bench = make_bench()
    policy.answer = answer
    bench.node.autostart()
    bench.until_asked(policy, 3)
    bench.expect_no_chunk()
    assert bench.chunks == [] and bench.retained == []
    assert told in (text := capfd.readouterr().err) and "the robot will hold" in text
    policy.answer = policy.ramp
    bench.until_chunks()


class Gate:
    """Holds an inference back until it is opened."""

    def __init__(self, policy: FakePolicy) -> None:
        self._policy = policy
        self._open = threading.Event()
        self.answered = threading.Event()

    def __call__(self, observation: Observation) -> ActionChunk:
        self._open.wait(10.0)
        self.answered.set()
        return self._policy.ramp(observation)

    def open(self) -> None:
        self._policy.answer = self._policy.ramp
        self._open.set()


def deactivate(bench: Bench) -> None:
    bench.node.trigger_deactivate()


def restart(bench: Bench) -> None:
    bench.node.trigger_deactivate()
    bench.node.trigger_activate()


def reset(bench: Bench) -> None:
    assert bench.graph.call(Trigger, "policy_node/reset", Trigger.Request()).success


def ask_for_something_else(bench: Bench) -> None:
    bench.node.set_parameters([Parameter("instruction", value="drop")])


@pytest.mark.parametrize("event", [deactivate, restart, reset, ask_for_something_else])
def test_what_was_being_inferred_when_things_changed_is_never_sent(
    event: Callable, make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    gate = Gate(policy)
    policy.answer = gate
    bench.node.autostart()
    stale_ns = bench.until_asked(policy).stamp_ns
    event(bench)
    gate.open()
    bench.graph.until(gate.answered.is_set, "the late answer")
    if event is deactivate:
        bench.expect_no_chunk()
    else:
        bench.until_chunks(2)
    assert stale_ns not in [stamp_from_msg(chunk.header.stamp) for chunk in bench.chunks]


def test_a_slow_inference_delays_no_message_and_is_not_queued_behind(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    gate = Gate(policy)
    policy.answer = gate
    bench.node.autostart()
    asked_ns = bench.until_asked(policy).stamp_ns
    seen = len(policy.asked)
    bench.graph.until(lambda: bench.robot.stamp_ns > asked_ns + 10**9, "a simulated second")
    newest = bench.node._builder.streams["cam_high"].stamp_ns
    assert newest > asked_ns + 5 * 10**8  # frames go on being taken
    assert len(policy.asked) == seen
    gate.open()
    bench.until_asked(policy)
    fresh = policy.asked[seen]
    assert fresh.stamp_ns > asked_ns + 5 * 10**8  # and the next question is about now


@pytest.mark.parametrize("silent", ["cam_left_wrist", "right"])
def test_a_stream_that_falls_silent_stops_the_questions_and_is_named(
    silent: str, make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    status = bench.graph.hear(DiagnosticArray, "/diagnostics")
    bench.node.autostart()
    bench.until_chunks()
    bench.robot.silent.add(silent)
    stopped_ns = bench.robot.stamp_ns
    bench.graph.until(lambda: bench.robot.stamp_ns > stopped_ns + 10**9, "a simulated second")
    asked = len(policy.asked)
    bench.expect_no_chunk()
    assert len(policy.asked) == asked
    name = silent if silent in CAMERAS else f"joint states {silent}"

    def complaint() -> bool:
        return any(
            part.name == "/policy_node: observation" and name in part.message
            for array in status
            for part in array.status
        )

    bench.graph.until(complaint, "a complaint in /diagnostics")
    bench.robot.silent.clear()
    bench.until_chunks()


def test_diagnostics_tell_age_and_count_of_every_stream_and_the_inference_times(
    make_bench: Callable,
) -> None:
    bench = make_bench()
    status = bench.graph.hear(DiagnosticArray, "/diagnostics")
    bench.node.autostart()
    bench.until_chunks(3)
    count = len(status)
    bench.graph.until(lambda: len(status) > count, "diagnostics")
    parts = {part.name: part for part in status[-1].status}
    streams = (*CAMERAS, "joint states left", "joint states right")
    expected = {f"/policy_node: {name}" for name in ("inference", "observation", *streams)}
    assert set(parts) == expected
    values = {pair.key: pair.value for pair in parts["/policy_node: inference"].values}
    assert int(values["chunks"]) >= 3
    assert (float(values["p50_ms"]), float(values["retain_ratio"])) == (10.0, 0.5)
    assert values["engine"] == "fake"
    stream = {pair.key: pair.value for pair in parts["/policy_node: cam_high"].values}
    assert int(stream["received"]) > 0 and float(stream["age_ms"]) <= 150.0


def test_a_reset_forgets_frames_and_what_the_policy_kept(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    bench.node.autostart()
    bench.until_asked(policy, 2)
    bench.robot.silent.update(CAMERAS)
    bench.drain()
    reset(bench)
    assert all(bench.node._builder.streams[camera].stamp_ns is None for camera in CAMERAS)
    bench.robot.silent.clear()
    bench.until_asked(policy)
    assert policy.calls.count("reset") == 2


def test_simulated_time_that_begins_anew_begins_a_new_episode(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench()
    bench.node.autostart()
    bench.robot.stamp_ns = 100 * 10**9
    bench.graph.until(
        lambda: policy.asked and policy.asked[-1].stamp_ns > 100 * 10**9, "a late question"
    )
    resets = policy.calls.count("reset")
    bench.robot.stamp_ns = 5 * 10**9
    bench.graph.until(lambda: policy.asked[-1].stamp_ns < 100 * 10**9, "a question about it")
    assert policy.calls.count("reset") > resets


def test_a_policy_for_another_robot_is_refused(
    make_bench: Callable, policy: FakePolicy, capfd: pytest.CaptureFixture[str]
) -> None:
    policy.action_dim = 7
    bench = make_bench(policy__checkpoint_dir="/a")
    assert not bench.node.autostart()
    assert bench.node.state_id == UNCONFIGURED
    told = capfd.readouterr().err
    assert "policy.checkpoint_dir /a: expected a checkpoint for 14 joints; it has 7" in told


def test_an_unknown_profile_is_refused_before_anything_is_loaded(
    make_bench: Callable, policy: FakePolicy, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = make_bench(profile="simm")
    assert not bench.node.autostart()
    assert not hasattr(policy, "loaded_with")
    told = capfd.readouterr().err
    assert "got 'simm', did you mean 'sim'?" in told and "Traceback" not in told


def endpoints(bench: Bench) -> dict[str, int]:
    node = bench.graph.ear
    return {
        "chunks": node.count_publishers("action_chunk"),
        "images": node.count_subscribers("/cam_high/camera/color/image_rect_raw"),
        "jpegs": node.count_subscribers("/cam_high/camera/color/image_rect_raw/compressed"),
        "joints": node.count_subscribers("/follower_left/joint_states"),
        "instruction": node.count_subscribers("instruction"),
    }


def test_cleanup_leaves_nothing_and_the_node_can_be_configured_again(make_bench: Callable) -> None:
    bench = make_bench(image_transport="raw")
    nothing = dict.fromkeys(endpoints(bench), 0)
    everything = {"chunks": 1, "images": 1, "jpegs": 0, "joints": 1, "instruction": 2}
    for _ in range(2):
        assert bench.node.autostart()
        bench.until_chunks()
        assert endpoints(bench) == everything
        bench.node.trigger_deactivate()
        bench.node.trigger_cleanup()
        bench.graph.until(lambda: endpoints(bench) == nothing, "an empty graph")


def test_a_configuration_that_fails_half_way_leaves_nothing(
    make_bench: Callable, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    bench = make_bench(image_decoder="cv_bridge")
    assert not bench.node.autostart()
    assert bench.node.state_id == UNCONFIGURED
    told = capfd.readouterr().err
    assert "expected cv_bridge to be installed" in told and "Traceback" not in told
    assert endpoints(bench) == dict.fromkeys(endpoints(bench), 0)


def test_the_policy_is_told_the_motion_that_was_really_published(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench(policy__pruning__method="specprune")
    statuses = bench.graph.hear(messages.PruningStatus, "pruning_status")
    targets = bench.graph.ear.create_publisher(JointState, "joint_targets", 10)
    bench.node.autostart()
    bench.graph.until(targets.get_subscription_count, "discovery")
    bench.until_chunks()
    assert policy.modes[-1] is MotionMode.FINE  # nothing was sent to the robot yet
    for step in range(3):
        joints = start_pose()
        joints[0] += 0.1 * step  # the left waist turns fast
        targets.publish(targets_to_msg(joints, (1 + step) * 40_000_000))
    bench.graph.until(lambda: MotionMode.COARSE in policy.modes, "a coarse question")
    bench.graph.until(lambda: any(s.mode == s.COARSE for s in statuses), "its status")
    status = next(s for s in statuses if s.mode == s.COARSE)
    assert status.translation[0] > 1.0
    assert (status.translation[1], status.rotation[1]) == (0.0, 0.0)
    assert status.retain_ratio == 0.5  # what the fake policy keeps


def test_pruning_is_shown_images_of_some_ticks_ago(
    make_bench: Callable, policy: FakePolicy
) -> None:
    bench = make_bench(policy__pruning__method="specprune")
    bench.node.autostart()
    bench.graph.until(
        lambda: any(
            o.reference_images and all(image is not None for image in o.reference_images.values())
            for o in policy.asked
        ),
        "reference images",
    )
    asked = policy.asked[-1]
    for camera in CAMERAS:
        before_ns = asked.image_stamps_ns[camera] - reference_ticks(0.0) * 40_000_000
        reference = (asked.reference_images or {})[camera]
        near = [bench.robot.image(camera, before_ns + n * 20_000_000) for n in range(-2, 3)]
        assert any(np.array_equal(reference, image) for image in near)
