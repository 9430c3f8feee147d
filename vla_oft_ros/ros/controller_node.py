"""Action chunks in, one joint target per tick out: the only node between a policy and the robot.

It receives no images and imports no torch, so that nothing heavy shares its process. Queue and
safety gate decide; this file wires them to topics and keeps the stop order: refuse new chunks,
clear the queue, hold, fall silent.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES, ARMS, load_profile
from vla_oft_ros.chunk_queue import ActionChunkQueue
from vla_oft_ros.config import ControllerConfig
from vla_oft_ros.ros.conversions import chunk_from_msg, safety_to_msg
from vla_oft_ros.ros.diagnostics import OK, WARN, Diagnostics, RollingTimes
from vla_oft_ros.ros.lifecycle import ManagedNode, main_of
from vla_oft_ros.ros.robot_io import FollowerStates, make_target_publisher, targets_to_msg
from vla_oft_ros.safety import SafetyGate
from vla_oft_ros.safety_report import SafetyState

_COMPLAIN_EVERY_S = 5.0
_DIAGNOSTICS_PERIOD_S = 1.0
_FAREWELL_LIMIT_S = 1.0
_AT_REST = 1e-6


class ControllerNode(ManagedNode):
    """Publishes joint targets at the control rate. Parameters: `ControllerConfig`."""

    config: ControllerConfig

    def __init__(self) -> None:
        super().__init__("controller_node", ControllerConfig)
        self._parts: list[FollowerStates | Diagnostics] = []
        self._handles: list[tuple] = []
        self._timers: list = []

    def _setup(self) -> None:
        config = self.config
        profile = load_profile(config.profile, config.profiles_path)
        self._dt_ns = round(1e9 / config.control_rate_hz)
        self._queue = ActionChunkQueue(config.queue, self._dt_ns)
        self._gate = SafetyGate(config.safety, self._dt_ns)
        self._measured: dict[str, tuple[int, np.ndarray]] = {}
        self._running = False
        self._ticks = self._starved = self._chunks = self._refused = 0
        self._last_tick_s: float | None = None
        self._periods = RollingTimes()
        self._reason = ""
        self._diagnostics = Diagnostics(self)
        self._followers = FollowerStates(self, profile, self._on_joints)
        self._parts = [self._followers, self._diagnostics]
        self._followers.setup()
        self._target_publisher = make_target_publisher(self, config.target_topic)
        self._safety_publisher = self.create_lifecycle_publisher(
            messages.SafetyStatus, config.safety_topic, 10
        )
        chunks = self.create_subscription(
            messages.ActionChunk, config.chunk_topic, self._on_chunk, QoSProfile(depth=10)
        )
        services = [
            self.create_service(Trigger, "~/estop", partial(self._on_estop, latch=True)),
            self.create_service(Trigger, "~/reset_estop", partial(self._on_estop, latch=False)),
        ]
        self._handles = [
            (self.destroy_lifecycle_publisher, self._target_publisher),
            (self.destroy_lifecycle_publisher, self._safety_publisher),
            (self.destroy_subscription, chunks),
            *((self.destroy_service, service) for service in services),
        ]

    def _start(self) -> None:
        self._queue.clear()
        self._gate.activate()
        self._running = True
        self._last_tick_s = None
        # Simulated time drives the tick where it is used; on a robot the steady clock does, which
        # nobody can step.
        simulated = self.get_parameter("use_sim_time").value
        clock = self.get_clock() if simulated else Clock(clock_type=ClockType.STEADY_TIME)
        self._timers = [
            self.create_timer(self._dt_ns / 1e9, self._tick, clock=clock),
            self.create_timer(_DIAGNOSTICS_PERIOD_S, self._publish_diagnostics),
        ]

    def _stop(self) -> None:
        self._running = False
        for timer in self._timers:
            self.destroy_timer(timer)
        self._timers = []
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
            self._target_publisher.publish(targets_to_msg(decision.target, now_ns))
            if np.abs(decision.target - before).max() < _AT_REST:
                return
            time.sleep(self._dt_ns / 1e9)

    def _on_joints(self, arm: str, stamp_ns: int, qpos: np.ndarray) -> None:
        # Age counts from arrival: the stamp is of another clock, and a driver that repeats a
        # stale reading under a fresh stamp is caught by the tracking error.
        self._measured[arm] = (self.now_ns(), qpos)

    def _newest_joints(self) -> tuple[np.ndarray | None, int | None]:
        if len(self._measured) < len(ARMS):
            return None, None
        joints = np.concatenate([self._measured[arm][1] for arm in ARMS])  # (14,)
        return joints, min(self._measured[arm][0] for arm in ARMS)

    def _on_chunk(self, message: messages.ActionChunk) -> None:
        if not self._running:
            return
        try:
            report = self._queue.put(chunk_from_msg(message, ACTION_NAMES), self.now_ns())
        except ValueError as error:  # a message for other joints, or ChunkRefused
            self._refused += 1
            self.get_logger().error(
                f"chunk refused: {error}", throttle_duration_sec=_COMPLAIN_EVERY_S
            )
            return
        self._chunks += 1
        self._join = report

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

    def _tick(self) -> None:
        now_ns = self.now_ns()
        now_s = time.monotonic()
        if self._last_tick_s is not None:
            self._periods.add(now_s - self._last_tick_s)
        self._last_tick_s = now_s
        self._ticks += 1
        wanted = self._queue.next_action(now_ns)
        self._starved += wanted is None and self._chunks > 0
        decision = self._gate.check(wanted, *self._with_now(now_ns))
        if decision.target is not None:
            self._target_publisher.publish(targets_to_msg(decision.target, now_ns))
        self._publish_safety(now_ns)
        if decision.reason != self._reason:
            self._reason = decision.reason
            text = f"{decision.state.name}: {decision.reason}" if decision.reason else "follows"
            log = self.get_logger()
            (log.error if decision.state is SafetyState.ESTOP else log.info)(text)

    def _with_now(self, now_ns: int) -> tuple[np.ndarray | None, int, int | None]:
        measured, stamp_ns = self._newest_joints()
        return measured, now_ns, stamp_ns

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
        age_s = self._queue.age_s(now_ns)
        state = self._gate.state
        join = getattr(self, "_join", None)
        self._diagnostics.publish(
            {
                "tick": (
                    OK,
                    "",
                    {
                        "ticks": self._ticks,
                        "period_ms_p50": self._periods.quantile(0.5) * 1e3,
                        "period_ms_p99": self._periods.quantile(0.99) * 1e3,
                        "period_ms_max": self._periods.quantile(1.0) * 1e3,
                    },
                ),
                "queue": (
                    OK if age_s is not None else WARN,
                    "" if age_s is not None else "no action chunk to execute",
                    {
                        "chunks": self._chunks,
                        "refused": self._refused,
                        "ticks_without_action": self._starved,
                        "remaining": self._queue.remaining(now_ns),
                        "age_s": float("nan") if age_s is None else age_s,
                        "seam_jump_rad": float("nan") if join is None else join.seam_jump_rad,
                        "index": -1 if join is None else join.index,
                    },
                ),
                "safety": (
                    OK if state in (SafetyState.ACTIVE, SafetyState.EASE_IN) else WARN,
                    self._reason,
                    {"state": state.name, **self._gate.kind_counts()},
                ),
                "joint states": (OK, "", {"refused": self._followers.refused}),
            }
        )


main = main_of(ControllerNode)

if __name__ == "__main__":
    main()
