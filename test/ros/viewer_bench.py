"""A viewer, and somebody who speaks to it as cameras, robot, policy and controller."""

from __future__ import annotations

import numpy as np
from rclpy.publisher import Publisher
from ros.graph import Graph
from sensor_msgs.msg import Image, JointState

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES, CAMERAS, JOINT_STATE_NAMES, RobotProfile, load_profile
from vla_oft_ros.overlay_caption import STRIP_PX
from vla_oft_ros.ros.conversions import (
    chunk_to_msg,
    image_to_msg,
    joint_state_to_msg,
    retained_to_msg,
)
from vla_oft_ros.ros.robot_io import targets_to_msg
from vla_oft_ros.ros.token_viewer_node import TokenViewerNode
from vla_oft_ros.types import ActionChunk, KeptBy, RetainedTokens

PROFILE = load_profile("sim")
HIGH = CAMERAS[0]
FRAME_NS = 40_000_000
SIDE_PX = 128
KEPT = 5
"""Patch of the 16 x 16 grid that the tests keep."""


def picture(number: int) -> np.ndarray:
    """(128, 128, 3) uint8 of one grey that tells the frame."""
    return np.full((SIDE_PX, SIDE_PX, 3), 10 + 20 * number, dtype=np.uint8)


def tokens(
    stamp_ns: int, camera: str = HIGH, layer: int = 2, kept: int = KEPT
) -> messages.RetainedTokens:
    return retained_to_msg(
        RetainedTokens(
            camera=camera,
            stamp_ns=stamp_ns,
            grid=(16, 16),
            layer=layer,
            patch_indices=np.array([kept], dtype=np.int32),
            kept_by=np.array([KeptBy.DYNAMIC], dtype=np.uint8),
        )
    )


class Bench:
    """A viewer, and somebody who speaks as cameras, robot, policy and controller."""

    def __init__(self, graph: Graph, profile: RobotProfile = PROFILE) -> None:
        self.graph = graph
        self.node = graph.add(TokenViewerNode())
        ear = graph.ear
        self.images = {
            camera: ear.create_publisher(Image, profile.camera_topic(camera), 100)
            for camera in CAMERAS
        }
        self._say = {
            kind: ear.create_publisher(kind, topic, 100)
            for kind, topic in (
                (messages.RetainedTokens, "retained_tokens"),
                (messages.ActionChunk, "action_chunk"),
                (messages.PruningStatus, "pruning_status"),
                (messages.SafetyStatus, "safety_status"),
                (JointState, "joint_targets"),
            )
        }
        self._joints = [
            ear.create_publisher(JointState, topic, 10)
            for topic in profile.follower_joint_state_topics
        ]

    def _heard(self, publisher: Publisher) -> Publisher:
        """A publisher, once the viewer hears it."""
        what = f"a viewer of {publisher.topic_name}"
        self.graph.until(publisher.get_subscription_count, what)
        return publisher

    def say(self, *spoken: object) -> None:
        """Says all this to a viewer that listens."""
        for message in spoken:
            self._heard(self._say[type(message)]).publish(message)

    def speak_targets(self, targets: np.ndarray) -> None:
        """Says where the arms shall be."""
        self.say(targets_to_msg(targets, self.now_ns()))

    def heard(self) -> set[str]:
        """Topics that the viewer hears of all that is said here, however it is matched."""
        said = (*self.images.values(), *self._say.values(), *self._joints)
        return {one.topic_name for one in said if one.get_subscription_count()}

    def show_frames(self, count: int, camera: str = HIGH) -> None:
        """Publishes frames 1 … count and gives them time to arrive."""
        publisher = self._heard(self.images[camera])
        for number in range(1, count + 1):
            publisher.publish(image_to_msg(picture(number), number * FRAME_NS, camera))
        self.graph.listen_in_silence()

    def move(self, joints: np.ndarray, stamp_ns: int) -> None:
        """Says that the arms are here."""
        for publisher, part in zip(self._joints, joints.reshape(2, 7), strict=True):
            servo = PROFILE.gripper.action_to_servo_rad(part[6])
            finger = PROFILE.gripper.finger_m(servo)
            position = np.array([*part[:6], servo, finger, -finger])
            message = joint_state_to_msg(JOINT_STATE_NAMES, position, stamp_ns)
            self._heard(publisher).publish(message)

    def now_ns(self) -> int:
        return int(self.graph.ear.get_clock().now().nanoseconds)


def kept_pixel(overlay: np.ndarray) -> int:
    """Grey in the middle of the kept patch, below the title."""
    middle = round(SIDE_PX * (1 - 0.9**0.5) / 2 + 0.9**0.5 * SIDE_PX * (KEPT + 0.5) / 16)
    top = round(SIDE_PX * (1 - 0.9**0.5) / 2 + 0.9**0.5 * SIDE_PX * 0.5 / 16)
    return int(overlay[STRIP_PX + top, middle, 0])


def chunk(stamp_ns: int, actions: np.ndarray) -> messages.ActionChunk:
    made = ActionChunk(
        actions=actions,
        stamp_ns=stamp_ns,
        dt_ns=FRAME_NS,
        instruction="lift the cube",
        inference_s=0.1,
    )
    return chunk_to_msg(made, ACTION_NAMES)
