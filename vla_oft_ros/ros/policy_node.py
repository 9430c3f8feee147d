"""Cameras, joint states and an instruction in; action chunks and retained tokens out.

The executor's thread only takes messages and asks, once per `execute_steps` control steps, for an
observation; one worker thread runs the network. So a pass of 300 ms delays no message. The node
knows nothing of torch: it is handed a `Policy` by `load_policy`.
"""

from __future__ import annotations

import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES, JointStateError, RobotProfile, load_profile
from vla_oft_ros.config import ConfigError, PolicyNodeConfig
from vla_oft_ros.frame_checks import FrameChecks
from vla_oft_ros.frame_ring import FrameRing, reference_ticks
from vla_oft_ros.motion_watch import Motion, MotionWatch
from vla_oft_ros.ros import chunk_trace
from vla_oft_ros.ros.camera_input import CameraInput, Decode
from vla_oft_ros.ros.conversions import (
    ImageError,
    chunk_to_msg,
    image_decoder,
    pruning_to_msg,
    retained_to_msg,
    stamp_from_msg,
)
from vla_oft_ros.ros.diagnostics import OK, WARN, Diagnostics, RollingTimes
from vla_oft_ros.ros.lifecycle import ManagedNode, main_of
from vla_oft_ros.ros.params import on_live_change
from vla_oft_ros.ros.robot_io import FollowerStates, targets_from_msg
from vla_oft_ros.sync import ObservationBuilder, ObservationNotReady
from vla_oft_ros.types import ActionChunk, Observation

if TYPE_CHECKING:
    from vla_oft_ros.policy import Policy

_COMPLAIN_EVERY_S = 5.0
_DIAGNOSTICS_PERIOD_S = 1.0
_INSTRUCTION_DURABILITIES = (DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL)
"""One subscription for each: a latched instruction reaches a node that starts later, and only a
volatile subscription matches a publisher that does not latch."""


class PolicyNode(ManagedNode):
    """Runs the policy. Parameters: `PolicyNodeConfig`."""

    config: PolicyNodeConfig

    def __init__(self) -> None:
        super().__init__("policy_node", PolicyNodeConfig)
        self._instruction = self.config.instruction
        self._policy = None
        self._worker: ThreadPoolExecutor | None = None
        self._inference: Future | None = None
        self._episode = 0
        self._clock_ns = 0
        self._parts: list[CameraInput | FollowerStates | Diagnostics | chunk_trace.ChunkTrace] = []
        self._handles: list[tuple] = []
        self._beats: list = []
        on_live_change(self, PolicyNodeConfig, lambda _, value: self._set_instruction(value))

    def _setup(self) -> None:
        config = self.config
        profile = load_profile(config.profile, config.profiles_path)
        self._policy = self._load_policy(profile)
        if self._policy.action_dim != len(ACTION_NAMES):
            raise ConfigError(
                f"policy.checkpoint_dir {config.policy.checkpoint_dir}: expected a checkpoint for "
                f"{len(ACTION_NAMES)} joints; it has {self._policy.action_dim}"
            )
        self._builder = ObservationBuilder(self._policy.cameras, config.sync)
        self._frame_checks = FrameChecks(config.sync)
        self._dt_ns = round(1e9 / config.control_rate_hz)
        self._looks_back = config.policy.pruning.method == "specprune"
        self._ring = FrameRing(self._policy.cameras, tick_ns=self._dt_ns)
        self._watch = MotionWatch(self._dt_ns, self._policy.motion_scale)
        self._blind: list[str] = []
        self._received_ns: dict[str, int] = {}
        self._times = RollingTimes()
        self._chunks = 0
        self._retain_ratio = 1.0
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        decode = image_decoder(config.image_decoder)
        self._parts = [
            *(
                CameraInput(
                    self,
                    camera,
                    profile.camera_topic(camera),
                    config.image_transport,
                    decode,
                    self._on_frame,
                )
                for camera in self._policy.cameras
            ),
            FollowerStates(self, profile, self._builder.add_joints),
        ]
        for part in self._parts:
            part.setup()
        self._diagnostics = Diagnostics(self)
        self._trace = chunk_trace.ChunkTrace(self)
        self._parts += [self._diagnostics, self._trace]
        self._chunk_publisher = self.create_lifecycle_publisher(
            messages.ActionChunk, config.chunk_topic, 10
        )
        self._retained_publisher = self.create_lifecycle_publisher(
            messages.RetainedTokens, config.retained_tokens_topic, 30
        )
        self._pruning_publisher = self.create_lifecycle_publisher(
            messages.PruningStatus, config.pruning_status_topic, 10
        )
        self._handles = [
            (self.destroy_lifecycle_publisher, self._chunk_publisher),
            (self.destroy_lifecycle_publisher, self._retained_publisher),
            (self.destroy_lifecycle_publisher, self._pruning_publisher),
            (
                self.destroy_subscription,
                self.create_subscription(
                    JointState, config.target_topic, self._on_targets, QoSProfile(depth=10)
                ),
            ),
            *(
                (
                    self.destroy_subscription,
                    self.create_subscription(
                        String,
                        config.instruction_topic,
                        lambda message: self._set_instruction(message.data),
                        QoSProfile(depth=1, durability=durability),
                    ),
                )
                for durability in _INSTRUCTION_DURABILITIES
            ),
            (self.destroy_service, self.create_service(Trigger, "~/reset", self._on_reset)),
        ]
        self.get_logger().info(
            f"policy from {config.policy.checkpoint_dir}: {self._policy.chunk_len} actions per "
            f"chunk, "
            f"cameras {', '.join(self._policy.cameras)}"
        )

    def _load_policy(self, profile: RobotProfile) -> Policy:
        """The network, held against the robot that it shall move."""
        from vla_oft_ros.policy import (
            load_policy,  # brings torch; only the policy's own process pays for it
        )

        config = self.config
        if config.policy.checkpoint_dir:
            self.get_logger().info(
                f"loading {config.policy.checkpoint_dir}, which may take minutes"
            )
        try:
            return load_policy(
                config.policy, control_rate_hz=config.control_rate_hz, profile=profile
            )
        except ValueError as error:
            raise ConfigError(
                f"{error}\nChange the section policy of policy.yaml; the checkpoint can also be "
                "given as checkpoint:=DIR to the launch file or --checkpoint DIR to the demo"
            ) from error

    def _start(self) -> None:
        if not self._instruction:
            topic = self.resolve_topic_name(self.config.instruction_topic)
            self.get_logger().info(f"waits for an instruction on {topic}")
        self._begin_episode()
        self._beats = [
            self.create_beat(1.0 / self.config.control_rate_hz, self._tick),
            self.create_beat(_DIAGNOSTICS_PERIOD_S, self._publish_diagnostics),
        ]

    def _stop(self) -> None:
        for timer in self._beats:
            self.destroy_timer(timer)
        self._beats = []
        self._begin_episode()

    def _begin_episode(self) -> None:
        """What is being inferred will not be published, and the next tick asks a policy that
        remembers nothing.
        """
        self._episode += 1
        self._pending_reset = True
        self._next_query_ns = 0

    def _teardown(self) -> None:
        self._stop()
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        self._worker = self._inference = None
        for part in self._parts:
            part.teardown()
        for destroy, handle in self._handles:
            destroy(handle)
        self._parts, self._handles, self._policy = [], [], None

    def _on_frame(self, camera: str, stamp_ns: int, decode: Decode) -> None:
        received_ns = time.time_ns()
        if not self._builder.add_image(camera, stamp_ns, decode):
            return
        self._received_ns[camera] = received_ns
        if self._looks_back:
            self._ring.add(camera, stamp_ns, decode)

    def _on_targets(self, message: JointState) -> None:
        """What was really sent to the robot tells how it moves, not what the policy wished."""
        try:
            self._watch.update(stamp_from_msg(message.header.stamp), targets_from_msg(message))
        except JointStateError as error:
            self.get_logger().error(str(error), throttle_duration_sec=_COMPLAIN_EVERY_S)

    def _set_instruction(self, instruction: str) -> None:
        if instruction == self._instruction:
            return
        self.get_logger().info(f"instruction: {instruction!r}")
        self._instruction = instruction
        self._begin_episode()

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """A new episode: forgets frames and what was kept, and asks the policy anew."""
        if self._policy is None:
            response.success, response.message = False, "not configured"
            return response
        self._forget()
        response.success = True
        return response

    def _forget(self) -> None:
        """Drops every frame and joint state, and what was concluded from them."""
        self._builder.clear()
        self._frame_checks.clear()
        self._ring.clear()
        self._watch.clear()
        self._begin_episode()

    def _tick(self) -> None:
        now_ns = self.now_ns()
        if now_ns < self._clock_ns:  # simulated time began anew
            self._forget()
        self._clock_ns = now_ns
        busy = self._inference is not None and not self._inference.done()
        if busy or not self._instruction or now_ns < self._next_query_ns:
            return
        try:
            observation = self._builder.build(now_ns, self._instruction)
            self._blind = self._frame_checks.problems(observation)
            if self._blind:
                raise ObservationNotReady(self._blind)
        except (ObservationNotReady, ImageError) as error:
            self.get_logger().warning(
                f"no observation: {error}", throttle_duration_sec=_COMPLAIN_EVERY_S
            )
            return
        self._next_query_ns = observation.stamp_ns + self.config.execute_steps * self._dt_ns
        reset, self._pending_reset = self._pending_reset, False
        motion = self._watch.motion
        ticks = reference_ticks(motion.speed)
        if self._looks_back:
            references = self._ring.reference_images(observation.image_stamps_ns, ticks)
            observation = replace(observation, reference_images=references)
        self._inference = self._worker.submit(
            self._infer,
            observation,
            motion,
            ticks,
            reset,
            self._episode,
            self._instants(observation),
        )

    def _instants(self, observation: Observation) -> dict[str, int]:
        """When the observation's images were taken and came, and that it is complete now."""
        instants = {chunk_trace.OBSERVED: time.time_ns()}
        for camera, stamp_ns in observation.image_stamps_ns.items():
            instants[chunk_trace.STAMP + camera] = stamp_ns
            instants[chunk_trace.RECEIVED + camera] = self._received_ns[camera]
        return instants

    def _infer(
        self,
        observation: Observation,
        motion: Motion,
        ticks: int,
        reset: bool,
        episode: int,
        instants: dict[str, int],
    ) -> None:
        """In the worker thread: one pass of the network, then its chunk on the wire."""
        instants[chunk_trace.STARTED] = time.time_ns()
        try:
            if reset:
                self._policy.reset()
            chunk = self._policy.infer(observation, mode=motion.mode)
            if not np.all(np.isfinite(chunk.actions)):
                raise ValueError("the policy answered with NaN or infinite actions")
        except Exception:
            self.get_logger().error(
                f"inference failed; no chunk is sent and the robot will "
                f"hold:\n{traceback.format_exc()}",
                throttle_duration_sec=_COMPLAIN_EVERY_S,
            )
            return
        if episode != self._episode:
            return  # answered a question that nobody asks any more
        prepared_ns = instants[chunk_trace.STARTED] + round(chunk.preprocess_s * 1e9)
        instants |= {chunk_trace.PREPROCESSED: prepared_ns, chunk_trace.COMPUTED: time.time_ns()}
        self._publish(chunk, motion, ticks if observation.reference_images else 0)
        instants[chunk_trace.SENT] = time.time_ns()
        self._trace.publish(chunk.stamp_ns, instants)

    def _publish(self, chunk: ActionChunk, motion: Motion, ticks: int) -> None:
        self._chunk_publisher.publish(chunk_to_msg(chunk, ACTION_NAMES))
        for retained in chunk.retained:
            self._retained_publisher.publish(retained_to_msg(retained))
        self._chunks += 1
        if self._chunks > 1:  # the first pass warms caches up and would spoil the figures
            self._times.add(chunk.inference_s)
        if chunk.retained:
            last = max(retained.layer for retained in chunk.retained)
            ratios = [
                retained.retain_ratio for retained in chunk.retained if retained.layer == last
            ]
            self._retain_ratio = float(np.mean(ratios))
        self._pruning_publisher.publish(
            pruning_to_msg(
                stamp_ns=chunk.stamp_ns,
                motion=motion,
                ticks=ticks,
                retain_ratio=self._retain_ratio,
            )
        )

    def _publish_diagnostics(self) -> None:
        now_ns = self.now_ns()
        problems = self._builder.problems(now_ns) + self._blind
        parts = {
            "inference": (
                OK if self._instruction else WARN,
                "" if self._instruction else "no instruction yet",
                {
                    "chunks": self._chunks,
                    "last_ms": self._times.last * 1e3,
                    "p50_ms": self._times.quantile(0.5) * 1e3,
                    "p95_ms": self._times.quantile(0.95) * 1e3,
                    "retain_ratio": self._retain_ratio,
                    "engine": self._policy.how_it_runs,
                },
            ),
            "observation": (
                WARN if problems else OK,
                "; ".join(problems),
                {"instruction": self._instruction},
            ),
        }
        for name, stream in self._builder.streams.items():
            age_ms = float("nan") if stream.stamp_ns is None else (now_ns - stream.stamp_ns) / 1e6
            parts[name] = (
                OK,
                "",
                {"age_ms": age_ms, "received": stream.received, "reordered": stream.refused},
            )
        self._diagnostics.publish(parts)


main = main_of(PolicyNode)

if __name__ == "__main__":
    main()
