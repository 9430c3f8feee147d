"""Sends a recorded episode to the running controller, which has the last word on every target.

Asks the controller what it is, refuses what does not fit, asks the person, and then only says what
`data.replay` gives it, in short chunks: silence is a hold. Knows no robot but the controller.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import rclpy
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import GetParameters
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES, GRIPPERS, JointStateError
from vla_oft_ros.data.episode import Episode
from vla_oft_ros.data.replay import SETTLE_STEPS, ReplayChunks, replay_targets
from vla_oft_ros.ros.conversions import chunk_to_msg, stamp_from_msg
from vla_oft_ros.ros.robot_io import targets_from_msg
from vla_oft_ros.safety_report import SafetyState

ANSWER_TIMEOUT_S = 10.0
FOLLOW_TIMEOUT_S = 5.0
"""How long the controller may take to follow the first chunks, which ask it to stay."""
JOINS = ("latency_matched_blend", "replace")
"""Joins that hand out overlapping chunks of one plan exactly as they are."""
_HOLD_EVERY_STEPS = 3
_SILENT_S = 2.0
_SPIN_S = 0.005
_FAREWELL = Duration(seconds=0.5)
_ASKED = {
    "profile": ParameterType.PARAMETER_STRING,
    "control_rate_hz": ParameterType.PARAMETER_DOUBLE,
    "queue.join": ParameterType.PARAMETER_STRING,
    "shadow": ParameterType.PARAMETER_BOOL,
    "chunk_topic": ParameterType.PARAMETER_STRING,
    "target_topic": ParameterType.PARAMETER_STRING,
    "safety_topic": ParameterType.PARAMETER_STRING,
}
_VALUE = {
    ParameterType.PARAMETER_STRING: "string_value",
    ParameterType.PARAMETER_DOUBLE: "double_value",
    ParameterType.PARAMETER_BOOL: "bool_value",
}
_ARM_JOINTS = [place for place in range(len(ACTION_NAMES)) if place not in GRIPPERS]


class ReplayRefused(ValueError):
    """A replay that must not begin; says what was expected and what came."""


class ReplayStopped(RuntimeError):
    """A replay that the controller did not follow to its end; says why."""


@dataclass(frozen=True)
class ReplayPlan:
    """What would be done, for the person who has to say yes.

    Attributes:
        profile: The robot.
        duration_s: From now to the last target, seconds.
        ease_in_s: Its first part, on the way to where the episode begins.
        way_rad: Longest way of an arm joint to there, rad.
        fastest_rad_s: Fastest arm joint, rad/s.
    """

    profile: str
    duration_s: float
    ease_in_s: float
    way_rad: float
    fastest_rad_s: float


@dataclass(frozen=True)
class ReplayOutcome:
    """What came of it.

    Attributes:
        targets: Targets that the controller published meanwhile.
        farthest_rad: Largest distance of an arm joint's target from what was asked for, rad.
        interventions: Kind → how often the safety gate changed a target.
    """

    targets: int
    farthest_rad: float
    interventions: dict[str, int]


def replay_on_robot(
    episode: Episode,
    *,
    controller: str,
    speed: float,
    confirm: Callable[[ReplayPlan], bool],
    on_progress: Callable[[float], None],
) -> ReplayOutcome | None:
    """Replays an episode on the robot of a running controller.

    Args:
        episode: What was recorded.
        controller: Name of the controller's node.
        speed: 1 is as recorded, 0.5 half as fast.
        confirm: Asked before anything is sent.
        on_progress: Called with the share that is done, 0 … 1.

    Returns:
        What came of it; None if `confirm` said no.

    Raises:
        ReplayRefused, ReplayStopped: see `RobotReplay`.
    """
    # Ctrl-C comes to this thread as KeyboardInterrupt, while ROS still works: the robot is told to
    # hold.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    node = RobotReplay(episode, lambda: time.sleep(_SPIN_S), controller)
    executor.add_node(node)
    # The robot is watched while the person reads.
    thread = threading.Thread(target=executor.spin, name="replay", daemon=True)
    thread.start()
    try:
        return node.run(on_progress) if confirm(node.connect(speed)) else None
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.try_shutdown()


class RobotReplay(Node):
    """One replay.

    Args:
        episode: What was recorded.
        spin: Lets this node work for a moment.
        controller: Name of the controller's node.
    """

    def __init__(
        self, episode: Episode, spin: Callable[[], None], controller: str = "/controller_node"
    ) -> None:
        super().__init__("replay")
        self._episode, self._spin, self._controller = episode, spin, controller
        self._target: np.ndarray | None = None
        self._target_ns = 0
        self._heard_s = time.monotonic()
        self._status: messages.SafetyStatus | None = None
        self._told: list[tuple[int, np.ndarray]] = []
        self._recording = False

    def connect(self, speed: float = 1.0) -> ReplayPlan:
        """Finds the controller and plans the way; sends nothing.

        Raises:
            ReplayRefused: if there is no controller, or it is not fit for this episode.
            ValueError: if `speed` is out of range.
        """
        facts = self._ask_controller()
        self._check(facts)
        self._dt_ns = round(1e9 / facts["control_rate_hz"])
        status, target = messages.SafetyStatus, JointState
        self.create_subscription(status, facts["safety_topic"], self._on_status, 10)
        self.create_subscription(target, facts["target_topic"], self._on_target, 100)
        self._publisher = self.create_publisher(messages.ActionChunk, facts["chunk_topic"], 10)
        self._until(
            lambda: self._target is not None and self._publisher.get_subscription_count() > 0,
            ANSWER_TIMEOUT_S,
            f"{self._controller} publishes no targets: activate it, and start the robot's drivers",
        )
        others = self.count_publishers(facts["chunk_topic"]) - 1
        if others > 0:
            raise ReplayRefused(
                f"expected nobody else to publish {self._publisher.topic_name}; {others} do. "
                "Stop the policy first"
            )
        assert self._target is not None  # waited for
        rate_hz = 1e9 / self._dt_ns
        targets = replay_targets(self._episode, self._target, rate_hz=rate_hz, speed=speed)
        self._chunks = ReplayChunks(
            targets, self._target, self._dt_ns, self._episode.instruction or "replay"
        )
        self._start, self._targets = self._target, targets
        arms = np.concatenate([self._target[None], targets])[:, _ARM_JOINTS]
        recorded = (len(self._episode) - 1) / self._episode.rate_hz / speed
        return ReplayPlan(
            profile=facts["profile"],
            duration_s=len(targets) / rate_hz,
            ease_in_s=len(targets) / rate_hz - recorded,
            way_rad=float(np.abs(self._episode.action[0] - self._target)[_ARM_JOINTS].max()),
            fastest_rad_s=float(np.abs(np.diff(arms, axis=0)).max(initial=0.0) * rate_hz),
        )

    def run(self, on_progress: Callable[[float], None] = lambda share: None) -> ReplayOutcome:
        """Does it; whatever ends it, the robot holds then.

        Args:
            on_progress: Called with the share that is done, 0 … 1.

        Raises:
            ReplayStopped: if the controller holds or stops meanwhile; says why.
        """
        if self._target is None or np.abs(self._target - self._start).max() > 1e-3:
            raise ReplayStopped("the robot has moved since the way was planned; begin again")
        try:
            counts = self._take_over()
            self._recording = True
            self._chunks.begin(self._target_ns)
            while (step := self._chunks.step(self._target_ns)) < len(self._targets):
                self._say(self._chunks.due(self._target_ns))
                on_progress(max(step, 0) / len(self._targets))
                self._spin()
                self._require_following()
        except BaseException:
            self._say(self._chunks.hold(self._target_ns, self._target))
            self._publisher.wait_for_all_acked(_FAREWELL)
            raise
        finally:
            self._recording = False
        on_progress(1.0)
        return self._outcome(counts)

    def _ask_controller(self) -> dict:
        client = self.create_client(GetParameters, f"{self._controller}/get_parameters")
        try:
            missing = (
                f"expected a running {self._controller}; none answers. Start it with `ros2 launch "
                "vla_oft_ros aloha_policy.launch.py`, or name it with --controller"
            )
            self._until(client.service_is_ready, ANSWER_TIMEOUT_S, missing)
            future = client.call_async(GetParameters.Request(names=list(_ASKED)))
            self._until(future.done, ANSWER_TIMEOUT_S, missing)
        finally:
            self.destroy_client(client)
        values = future.result().values
        for (name, kind), value in zip(_ASKED.items(), values, strict=True):
            if value.type != kind:
                raise ReplayRefused(
                    f"expected {self._controller} to be a controller_node; it has no {name}"
                )
        return {
            name: getattr(value, _VALUE[kind])
            for (name, kind), value in zip(_ASKED.items(), values, strict=True)
        }

    def _check(self, facts: dict) -> None:
        episode, source = self._episode, self._episode.source
        if episode.profile != facts["profile"]:
            told = repr(episode.profile) if episode.profile else "nothing about its robot"
            raise ReplayRefused(
                f"{source}: expected an episode of the robot that {self._controller} moves, "
                f"profile {facts['profile']!r}; it says {told}. An episode of another robot must "
                "not be replayed here; if you know that it is this one, say --profile "
                f"{facts['profile']}"
            )
        if facts["shadow"]:
            raise ReplayRefused(
                f"{self._controller} is in shadow mode and moves nothing: start it without shadow"
            )
        if facts["queue.join"] not in JOINS:
            raise ReplayRefused(
                f"expected {self._controller} to put chunks where their time says, queue.join "
                f"{' or '.join(JOINS)}; it has {facts['queue.join']}. Start it with one of them"
            )

    def _take_over(self) -> dict[str, int]:
        """Asks the robot to stay until the controller follows; returns what it counted so far."""
        began_s, said_ns, follows_ns = time.monotonic(), 0, self._target_ns
        while True:
            if self._target_ns - said_ns >= _HOLD_EVERY_STEPS * self._dt_ns:
                said_ns = self._target_ns
                self._say(self._chunks.hold(said_ns, self._start))
            self._spin()
            if self._status is None or self._status.state != SafetyState.ACTIVE:
                follows_ns = self._target_ns
            elif self._target_ns > max(said_ns, follows_ns + SETTLE_STEPS * self._dt_ns):
                return self._counts()
            if time.monotonic() - began_s > FOLLOW_TIMEOUT_S:
                raise ReplayStopped(
                    f"{self._controller} does not follow: {self._why()}. If the arms are parked, "
                    "call its follow_policy; after an emergency stop, its reset_estop"
                )

    def _require_following(self) -> None:
        if self._status is not None and self._status.state not in (
            SafetyState.ACTIVE,
            SafetyState.EASE_IN,
        ):
            raise ReplayStopped(f"{self._controller} stopped following: {self._why()}")
        if time.monotonic() - self._heard_s > _SILENT_S:
            raise ReplayStopped(f"nothing was heard of {self._controller} for {_SILENT_S:g} s")

    def _outcome(self, counts: dict[str, int]) -> ReplayOutcome:
        errors = [
            np.abs(target - self._chunks.wanted(stamp_ns))[_ARM_JOINTS].max()
            for stamp_ns, target in self._told
        ]
        farthest = float(max(errors, default=0.0))
        now = self._counts()
        changed = {kind: now[kind] - counts.get(kind, 0) for kind in now}
        return ReplayOutcome(
            len(self._told), farthest, {kind: count for kind, count in changed.items() if count}
        )

    def _counts(self) -> dict[str, int]:
        status = self._status
        if status is None:
            return {}
        return dict(zip(status.intervention_kinds, status.intervention_counts, strict=True))

    def _why(self) -> str:
        return (self._status.reason if self._status else "") or "it does not say why"

    def _say(self, chunk: object) -> None:
        if chunk is not None:
            self._publisher.publish(chunk_to_msg(chunk, ACTION_NAMES))

    def _on_status(self, message: messages.SafetyStatus) -> None:
        self._status = message

    def _on_target(self, message: JointState) -> None:
        try:
            self._target = targets_from_msg(message)
        except JointStateError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        self._target_ns, self._heard_s = stamp_from_msg(message.header.stamp), time.monotonic()
        if self._recording:
            self._told.append((self._target_ns, self._target))

    def _until(self, condition: Callable[[], bool], timeout_s: float, missing: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise ReplayRefused(missing)
            self._spin()
