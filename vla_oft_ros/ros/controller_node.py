"""Action chunks in, one joint target per tick out: the only node between a policy and the robot.

It receives no images and imports no torch, so that nothing heavy shares its process. Queue, safety
gate and parking decide; this file wires them to topics and services and keeps the stop order:
refuse new chunks, clear the queue, hold, fall silent.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
from rclpy.qos import QoSProfile
from rclpy.timer import Timer
from sensor_msgs.msg import JointState
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES, ARMS, JointStateError, load_profile
from vla_oft_ros.chunk_queue import ActionChunkQueue
from vla_oft_ros.chunk_report import JoinReport, JoinStatistics
from vla_oft_ros.config import ConfigError, ControllerConfig
from vla_oft_ros.parking import Parking
from vla_oft_ros.ros import chunk_trace
from vla_oft_ros.ros.controller_report import Tidings, controller_report
from vla_oft_ros.ros.conversions import chunk_from_msg, safety_to_msg
from vla_oft_ros.ros.diagnostics import Diagnostics
from vla_oft_ros.ros.interbotix import InterbotixRobot
from vla_oft_ros.ros.lifecycle import ManagedNode, run
from vla_oft_ros.ros.realtime import be_normal, be_real_time
from vla_oft_ros.ros.robot_io import (
    FollowerStates,
    JointStateRobot,
    LeaderStates,
    targets_from_msg,
)
from vla_oft_ros.ros.tick import Tick
from vla_oft_ros.safety import SafetyGate
from vla_oft_ros.safety_report import SafetyState
from vla_oft_ros.shadow import ShadowComparison

_COMPLAIN_EVERY_S = 5.0
_DIAGNOSTICS_PERIOD_S = 1.0
_FAREWELL_LIMIT_S = 1.0
_AT_REST = 1e-6
_NO_TRACKING_LIMIT_RAD = 10.0
"""In shadow mode somebody else moves the arms, so that no target is ever tracked."""
SHADOW_TOPIC = "~/shadow"


class ControllerNode(ManagedNode):
    """Publishes joint targets at the control rate. Parameters: `ControllerConfig`.

    Args:
        own_process: True if the process is this node's alone, so that it may be made real-time.
    """

    config: ControllerConfig

    def __init__(self, *, own_process: bool = False) -> None:
        super().__init__("controller_node", ControllerConfig)
        self._own_process = own_process
        self._is_real_time = False
        self._tick: Tick | None = None
        self._parts: list = []
        self._handles: list[tuple] = []
        self._report_timer: Timer | None = None
        self._running = False

    def _setup(self) -> None:
        config = self.config
        profile = load_profile(config.profile, config.profiles_path)
        if profile.arm_model != "vx300s" and not config.shadow:
            raise ConfigError(
                f"profile {profile.name!r}: expected arms whose limits and kinematics are known "
                f"(vx300s); got arm_model {profile.arm_model!r}. Nothing can keep them safe; use "
                "shadow: true, or another profile"
            )
        self._profile = profile
        self._dt_ns = round(1e9 / config.control_rate_hz)
        limits = config.safety
        if config.shadow:
            limits = replace(limits, max_tracking_error_rad=_NO_TRACKING_LIMIT_RAD)
        self._queue = ActionChunkQueue(config.queue, self._dt_ns)
        self._gate = SafetyGate(limits, self._dt_ns)
        self._parking = Parking(limits, self._dt_ns)
        self._measured: dict[str, tuple[int, np.ndarray]] = {}
        self._ticks = self._starved = self._chunks = self._refused = 0
        self._refusal = self._reason = ""
        self._tidings = Tidings()
        self._join: JoinReport | None = None
        self._joins = JoinStatistics()
        self._diagnostics = Diagnostics(self)
        self._followers = FollowerStates(self, profile, self._on_joints)
        self._trace = chunk_trace.ChunkTrace(self)
        self._traced: tuple[int, int] | None = None
        self._parts = [self._followers, self._diagnostics, self._trace]
        self._followers.setup()
        topic = SHADOW_TOPIC if config.shadow else config.target_topic
        self._robots: list = [JointStateRobot(self, topic)]
        self._parts += self._robots
        if config.robot_interface == "interbotix" and not config.shadow:
            robot = InterbotixRobot(
                self, profile, lambda: not self._running, config.interbotix_bring_up
            )
            self._robots.append(robot)
            self._parts.append(robot)
        self._safety_publisher = self.create_lifecycle_publisher(
            messages.SafetyStatus, config.safety_topic, 10
        )
        self._handles = [(self.destroy_lifecycle_publisher, self._safety_publisher)]
        self._subscribe(messages.ActionChunk, config.chunk_topic, self._on_chunk)
        if limits.deadman_timeout_s:
            self._subscribe(Empty, config.deadman_topic, self._on_deadman)
        if config.shadow:
            self._listen_to_teleoperator(profile)
        for name, callback in {
            "estop": partial(self._on_estop, latch=True),
            "reset_estop": partial(self._on_estop, latch=False),
            "go_to_start": partial(self._on_park, pose="start"),
            "go_to_sleep": partial(self._on_park, pose="sleep"),
            "follow_policy": self._on_follow,
        }.items():
            service = self.create_service(Trigger, f"~/{name}", callback)
            self._handles.append((self.destroy_service, service))
        if self._own_process and config.realtime_priority and not self.simulated:
            self._is_real_time = True
            for problem in be_real_time(config.realtime_priority):
                self.get_logger().warning(problem)

    def _subscribe(self, kind: type, topic: str, callback: object) -> None:
        subscription = self.create_subscription(kind, topic, callback, QoSProfile(depth=10))
        self._handles.append((self.destroy_subscription, subscription))

    def _listen_to_teleoperator(self, profile: object) -> None:
        self._shadow = ShadowComparison()
        self._teleop: dict[str, np.ndarray] = {}
        if self.config.teleop_topic:
            self._subscribe(JointState, self.config.teleop_topic, self._on_teleop)
            return
        leaders = LeaderStates(self, profile, self._on_leader)
        leaders.setup()
        self._parts.append(leaders)

    def _start(self) -> None:
        self._queue.clear()
        self._parking.abort()
        self._gate.set_parking(False)
        self._gate.activate()
        self._running = True
        # Simulated time drives the tick where it is used; on a robot the steady clock does, which
        # nobody can step.
        self._tick = Tick(self, self._dt_ns, self._on_tick, simulated=self.simulated)
        self._report_timer = self.create_beat(_DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)

    def _stop(self) -> None:
        self._running = False
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if self._report_timer is not None:
            self.destroy_timer(self._report_timer)
            self._report_timer = None
        self._queue.clear()
        self._farewell()
        self._gate.deactivate()
        self._publish_safety(self.now_ns())

    def _teardown(self) -> None:
        for part in self._parts:
            part.teardown()
        for destroy, handle in self._handles:
            destroy(handle)
        self._parts, self._handles = [], []
        if self._is_real_time:
            self._is_real_time = False
            be_normal()

    def _farewell(self) -> None:
        """Brakes to rest with the last targets it sends, so that falling silent is a hold.

        One brake step per control period of real time; a robot that has not been told anything
        yet is told nothing now.
        """
        if self._gate.target is None:
            return
        self._gate.stop("the controller is deactivated")
        now_ns = self.now_ns()
        for _ in range(round(_FAREWELL_LIMIT_S * 1e9 / self._dt_ns)):
            before = self._gate.target
            now_ns += self._dt_ns
            measured, stamp_ns = self._newest_joints()
            if measured is not None:
                stamp_ns = now_ns  # no message is taken meanwhile; braking needs none
            decision = self._gate.check(None, measured, now_ns, stamp_ns)
            self._tell_robots(decision.target, now_ns)
            if np.abs(decision.target - before).max() < _AT_REST:
                return
            time.sleep(self._dt_ns / 1e9)

    def _on_joints(self, arm: str, stamp_ns: int, qpos: np.ndarray) -> None:
        # Age counts from arrival: the stamp is of another clock, and a driver that repeats a
        # stale reading under a fresh stamp is caught by the tracking error.
        self._measured[arm] = (self.now_ns(), self._profile.holding_target(qpos))

    def _newest_joints(self) -> tuple[np.ndarray | None, int | None]:
        if len(self._measured) < len(ARMS):
            return None, None
        joints = np.concatenate([self._measured[arm][1] for arm in ARMS])  # (14,)
        return joints, min(self._measured[arm][0] for arm in ARMS)

    def _on_leader(self, arm: str, stamp_ns: int, action: np.ndarray) -> None:
        self._teleop[arm] = action

    def _on_teleop(self, message: JointState) -> None:
        try:
            action = targets_from_msg(message)
        except JointStateError as error:
            self.get_logger().error(
                f"{self.config.teleop_topic}: {error}", throttle_duration_sec=_COMPLAIN_EVERY_S
            )
            return
        self._teleop = dict(zip(ARMS, np.split(action, len(ARMS)), strict=True))

    def _on_deadman(self, message: Empty) -> None:
        self._gate.press_deadman(self.now_ns())

    def _on_chunk(self, message: messages.ActionChunk) -> None:
        if not self._running or self._parking.pose:
            return
        try:
            chunk = chunk_from_msg(message, ACTION_NAMES)
            self._join = self._queue.put(chunk, self.now_ns())
        except ValueError as error:  # a message for other joints, or ChunkRefused
            self._refused += 1
            self._refusal = str(error)
            self.get_logger().error(
                f"chunk refused: {error}", throttle_duration_sec=_COMPLAIN_EVERY_S
            )
            return
        self._traced = chunk.stamp_ns, time.time_ns()
        self._chunks += 1
        self._joins.add(self._join)

    def _on_estop(
        self, request: Trigger.Request, response: Trigger.Response, *, latch: bool
    ) -> Trigger.Response:
        if latch:
            self._gate.estop("asked for by service")
            self._queue.clear()
        else:
            self._gate.reset()
        response.success = True
        response.message = self._gate.state.name
        return response

    def _on_park(
        self, request: Trigger.Request, response: Trigger.Response, *, pose: str
    ) -> Trigger.Response:
        """Takes the arms away from the policy; `~/follow_policy` gives them back."""
        if not self._running:
            response.message = "activate the controller first"
        elif self._gate.state is SafetyState.ESTOP:
            response.message = "the emergency stop is latched; call reset_estop first"
        elif self._gate.target is None:
            response.message = "no joint states yet"
        else:
            self._queue.clear()
            self._parking.go(pose)
            self._gate.set_parking(True)
            response.success, response.message = True, f"going to the {pose} pose"
        self.get_logger().info(f"go_to_{pose}: {response.message}")
        return response

    def _on_follow(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._parking.release()
        except ValueError as error:
            response.message = str(error)
            return response
        self._gate.set_parking(False)
        response.success, response.message = True, "follows the policy"
        return response

    def _on_tick(self) -> None:
        now_ns = self.now_ns()
        self._ticks += 1
        decision = self._gate.check(self._wanted(now_ns), *self._with_now(now_ns))
        if decision.waits:
            self._queue.hold(now_ns, decision.target)
        if decision.target is not None:
            self._tell_robots(decision.target, now_ns)
            sent_ns = time.time_ns()
            if self.config.shadow and len(self._teleop) == len(ARMS):
                teleop = np.concatenate([self._teleop[arm] for arm in ARMS])  # (14,)
                self._shadow.add(decision.target, teleop)
        self._tell_reason(decision.state, decision.reason)
        self._publish_safety(now_ns)
        if decision.target is not None and self._traced is not None:
            (stamp_ns, queued_ns), self._traced = self._traced, None
            instants = {chunk_trace.QUEUED: queued_ns, chunk_trace.PUBLISHED: sent_ns}
            self._trace.publish(stamp_ns, instants)

    def _tell_reason(self, state: SafetyState, reason: str) -> None:
        self._reason = reason
        if not self._tidings.are_new(state, reason, time.monotonic_ns()):
            return
        # Two lines: rclpy refuses one call whose severity changes.
        if state is SafetyState.ESTOP:
            self.get_logger().error(f"{state.name}: {reason}")
        else:
            self.get_logger().info(f"{state.name}: {reason}" if reason else "follows")

    def _wanted(self, now_ns: int) -> np.ndarray | None:
        present = self._gate.target
        if self._parking.pose and present is not None:
            held = self._gate.state in (SafetyState.HOLD, SafetyState.ESTOP)
            return self._parking.next_target(present, held)
        wanted = self._queue.next_action(now_ns)
        self._starved += wanted is None and self._chunks > 0
        return wanted

    def _with_now(self, now_ns: int) -> tuple[np.ndarray | None, int, int | None]:
        measured, stamp_ns = self._newest_joints()
        return measured, now_ns, stamp_ns

    def _tell_robots(self, target: np.ndarray, now_ns: int) -> None:
        for robot in self._robots:
            robot.publish(target, now_ns)

    def _publish_safety(self, now_ns: int) -> None:
        gate = self._gate
        self._safety_publisher.publish(
            safety_to_msg(
                stamp_ns=now_ns,
                state=gate.state,
                reason=self._reason,
                holding_since_ns=gate.holding_since_ns,
                counts=gate.kind_counts(),
                last=gate.last_intervention,
            )
        )

    def _publish_diagnostics(self) -> None:
        now_ns = self.now_ns()
        self._diagnostics.publish(
            controller_report(
                tick=self._tick,
                ticks=self._ticks,
                queue={
                    "chunks": self._chunks,
                    "refused": self._refused,
                    "last_refusal": self._refusal,
                    "ticks_without_action": self._starved,
                    "remaining": self._queue.remaining(now_ns),
                },
                age_s=self._queue.age_s(now_ns),
                join=self._join,
                joins=self._joins,
                gate=self._gate,
                reason=self._reason,
                parking=self._parking,
                followers=self._followers,
                shadow=self._shadow if self.config.shadow else None,
            )
        )


def main() -> None:
    """Runs the node in a process of its own."""
    sys.exit(run(partial(ControllerNode, own_process=True)))


if __name__ == "__main__":
    main()
