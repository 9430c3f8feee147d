"""Shows what the policy saw, kept and plans: overlays of the cameras, markers around the robot,
the robot as it is and as it should be. For RViz and Foxglove.

A process of its own that only listens, best effort, so that no publisher ever waits for it or
sends anything twice. What nobody subscribes to is not drawn, and what is needed for nothing else
is not even heard: a viewer at which nobody looks only asks, now and then, whether anybody does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from visualization_msgs.msg import Marker, MarkerArray

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES, ARMS, CAMERAS, load_profile
from vla_oft_ros.config import TokenViewerConfig
from vla_oft_ros.image_decoding import ImageError
from vla_oft_ros.kinematics import BasePose
from vla_oft_ros.robot_model import model_positions
from vla_oft_ros.ros.conversions import (
    chunk_from_msg,
    pruning_from_msg,
    retained_from_msg,
    safety_from_msg,
    stamp_from_msg,
)
from vla_oft_ros.ros.diagnostics import OK, Diagnostics
from vla_oft_ros.ros.lifecycle import declare_node_config, main_of
from vla_oft_ros.ros.model_frames import TARGET_PREFIX, ModelFrames
from vla_oft_ros.ros.overlay_output import OverlayOutput
from vla_oft_ros.ros.robot_description import robot_description
from vla_oft_ros.ros.robot_io import FollowerStates, targets_from_msg
from vla_oft_ros.ros.viewer_markers import (
    Status,
    arm_markers,
    plan_markers,
    status_marker,
)
from vla_oft_ros.ros.watched_inputs import TopicInput, WatchedInputs
from vla_oft_ros.token_frames import TokenFrames
from vla_oft_ros.types import ActionChunk

_COMPLAIN_EVERY_S = 5.0
_DIAGNOSTICS_PERIOD_S = 1.0
_LOOK_PERIOD_S = 0.2
"""How often a viewer asks who looks: its own only work while nobody does."""
_SHOWN = QoSProfile(depth=2)


class TokenViewerNode(Node):
    """The viewer. Parameters: `TokenViewerConfig`."""

    def __init__(self) -> None:
        super().__init__("token_viewer_node", automatically_declare_parameters_from_overrides=True)
        self.config: TokenViewerConfig = declare_node_config(self, TokenViewerConfig)
        config = self.config
        self._profile = load_profile(config.profile, config.profiles_path)
        poses = (config.left_base_pose, config.right_base_pose)
        self._bases = {arm: BasePose(*pose) for arm, pose in zip(ARMS, poses, strict=True)}
        self._tokens = TokenFrames(CAMERAS, frames=config.frames)
        self._heard: dict[str, tuple[int, Any]] = {}
        self._overlays = {
            camera: OverlayOutput(
                self, camera, self._profile.camera_topic(camera), config, self._tokens.add_frame
            )
            for camera in CAMERAS
        }
        self._markers = self.create_publisher(MarkerArray, config.marker_topic, _SHOWN)
        self._frames = self._model() if self._profile.arm_model == "vx300s" else None
        self._diagnostics = Diagnostics(self)
        self._inputs = self._make_inputs()
        # Real time: a simulation that stands still is looked at too.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._rounds = self.create_timer(1.0 / config.rate_hz, self._show, clock=steady)
        self._rounds.cancel()
        self.create_timer(_LOOK_PERIOD_S, self._look, clock=steady)
        self.create_timer(_DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=steady)

    def _make_inputs(self) -> tuple[WatchedInputs, ...]:
        """What is heard, by what it is heard for."""
        config = self.config

        def words(kind: type, topic: str, what: str, convert: Callable) -> TopicInput:
            return TopicInput(self, kind, topic, lambda said: self._keep(what, convert(said)))

        spoken = (
            words(messages.ActionChunk, config.chunk_topic, "chunk", _chunk),
            words(messages.PruningStatus, config.pruning_status_topic, "motion", pruning_from_msg),
            words(messages.SafetyStatus, config.safety_topic, "safety", safety_from_msg),
        )
        joints = (
            TopicInput(self, JointState, config.target_topic, self._on_targets),
            FollowerStates(self, self._profile, self._on_joints),
        )
        tokens = (
            TopicInput(
                self, messages.RetainedTokens, config.retained_tokens_topic, self._on_retained
            ),
        )
        overlays = self._overlays.values()
        moving = self._frames.outputs if self._frames is not None else ()
        self._words = WatchedInputs([self._markers], spoken)
        return (
            *(overlay.camera_input for overlay in overlays),
            WatchedInputs([output for overlay in overlays for output in overlay.outputs], tokens),
            WatchedInputs([self._markers, *moving], joints),
            self._words,
        )

    def hear_everything(self) -> None:
        """Takes up every input at once, whoever looks, until the next look; for tools that list
        what the node may hear.
        """
        for inputs in self._inputs:
            inputs.hear(True)

    def _model(self) -> ModelFrames:
        """Both arms; only of a robot whose kinematics are known."""
        config = self.config
        urdf, origin = robot_description(config.robot_description, self._bases)
        self.get_logger().info(f"robot description: {origin}")
        topics = {"": config.joint_state_topic, TARGET_PREFIX: config.joint_target_topic}
        return ModelFrames(
            self, urdf, config.robot_description_topic, topics, tf=config.publish_tf
        )

    def _look(self) -> None:
        """Begins to hear and to draw what somebody subscribes to, and ends when nobody does."""
        listened = self._words.is_watched
        watched = [inputs.look() for inputs in self._inputs]
        for camera, overlay in self._overlays.items():
            if not overlay.camera_input.is_watched:
                self._tokens.clear(camera)
        if self._words.is_watched and not listened:
            self._keep("beginning", True)
        if not any(watched):
            self._rounds.cancel()
        elif self._rounds.is_canceled():
            self._rounds.reset()

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _keep(self, what: str, value: object) -> None:
        self._heard[what] = (self._now_ns(), value)

    def _recent(self, what: str) -> Any:
        """What was last heard, or None if that is long ago."""
        heard_ns, value = self._heard.get(what, (0, None))
        recent = abs(self._now_ns() - heard_ns) <= self.config.stale_after_s * 1e9
        return value if recent else None

    def _on_retained(self, message: messages.RetainedTokens) -> None:
        overlay = self._overlays.get(message.camera)
        if overlay is not None and overlay.camera_input.is_watched:
            self._tokens.add_retained(retained_from_msg(message))

    def _on_targets(self, message: JointState) -> None:
        self._keep("target", (stamp_from_msg(message.header.stamp), targets_from_msg(message)))

    def _on_joints(self, arm: str, stamp_ns: int, qpos: np.ndarray) -> None:
        self._keep(arm, (stamp_ns, qpos))

    def _show(self) -> None:
        """One round: overlays of the answers that came, then markers and frames of this moment."""
        for camera, overlay in self._overlays.items():
            if overlay.camera_input.is_watched:
                self._show_overlay(camera, overlay)
        if self._frames is not None:
            self._show_frames(self._frames)
        if self._markers.get_subscription_count():
            self._markers.publish(MarkerArray(markers=self._present_markers()))

    def _show_overlay(self, camera: str, overlay: OverlayOutput) -> None:
        try:
            kept = self._tokens.settled(camera)
            if kept is not None:
                overlay.publish(kept)
        except (ImageError, ValueError) as error:
            self.get_logger().error(
                f"{camera}: no overlay: {error}", throttle_duration_sec=_COMPLAIN_EVERY_S
            )

    def _show_frames(self, frames: ModelFrames) -> None:
        measured, target, gripper = self._measured(), self._recent("target"), self._profile.gripper
        if measured is not None:
            frames.publish("", measured[0], model_positions(measured[1], gripper, commanded=False))
        if target is not None:
            positions = model_positions(target[1], gripper, commanded=True)
            frames.publish(TARGET_PREFIX, target[0], positions)

    def _measured(self) -> tuple[int, np.ndarray] | None:
        """The older stamp of the two arms and (14,) measured joints, or None if one is silent."""
        arms = [self._recent(arm) for arm in ARMS]
        if None in arms:
            return None
        return min(stamp for stamp, _ in arms), np.concatenate([qpos for _, qpos in arms])

    def _present_markers(self) -> list[Marker]:
        now_ns = self._now_ns()
        chunk = self._recent("chunk")
        motion, retain_ratio = self._recent("motion") or (None, 1.0)
        status = Status(
            motion=motion,
            retain_ratio=retain_ratio,
            safety=self._recent("safety"),
            instruction=chunk.instruction if chunk else "",
            waited=self._recent("beginning") is None,
        )
        markers = [status_marker(status, self._bases, now_ns)]
        if self._frames is None:
            return markers
        states = (self._measured(), self._recent("target"))
        measured, target = (state[1] if state else None for state in states)
        markers += arm_markers(measured, target, self._bases, now_ns)
        if chunk and now_ns <= chunk.stamp_ns + chunk.chunk_len * chunk.dt_ns:
            markers += plan_markers(chunk, self._bases, now_ns)
        return markers

    def _publish_diagnostics(self) -> None:
        watched = [
            camera for camera, overlay in self._overlays.items() if overlay.camera_input.is_watched
        ]
        self._diagnostics.publish(
            {
                "overlays": (
                    OK,
                    "" if watched else "nobody looks",
                    {
                        "watched": ", ".join(watched),
                        "drawn": sum(overlay.drawn for overlay in self._overlays.values()),
                        "missed_frames": self._tokens.missed,
                    },
                )
            }
        )


def _chunk(message: messages.ActionChunk) -> ActionChunk:
    return chunk_from_msg(message, ACTION_NAMES)


main = main_of(TokenViewerNode)

if __name__ == "__main__":
    main()
