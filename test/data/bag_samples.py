"""Bags for tests, made without ROS: messages are serialised by rosbags, another implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from vla_oft_ros.aloha import (
    ACTION_NAMES,
    ARMS,
    CAMERAS,
    JOINT_STATE_NAMES,
    RobotProfile,
    load_profile,
)
from vla_oft_ros.data.bag_writer import BagTopic, BagWriter, OfferedQos
from vla_oft_ros.data.message_types import MessageTypes

NS = 1_000_000_000
START_NS = 1_700_000_000 * NS


@lru_cache(maxsize=1)
def types() -> MessageTypes:
    return MessageTypes()


def bag_topic(name: str, type_name: str, depth: int = 10) -> BagTopic:
    found = types().find(type_name)
    return BagTopic(
        name=name,
        type=type_name,
        definition=found.definition,
        type_hash=found.type_hash,
        qos=[OfferedQos(depth=depth)],
    )


def _header(stamp_ns: int) -> object:
    known = types().types
    stamp = known["builtin_interfaces/msg/Time"](sec=stamp_ns // NS, nanosec=stamp_ns % NS)
    return known["std_msgs/msg/Header"](stamp=stamp, frame_id="frame")


def joint_state(
    stamp_ns: int,
    names: tuple[str, ...],
    position: np.ndarray,
    velocity: np.ndarray | None = None,
    effort: np.ndarray | None = None,
) -> bytes:
    name = "sensor_msgs/msg/JointState"
    empty = np.zeros(0)
    return types().serialize(
        name,
        types().types[name](
            header=_header(stamp_ns),
            name=list(names),
            position=np.asarray(position, dtype=np.float64),
            velocity=empty if velocity is None else velocity,
            effort=empty if effort is None else effort,
        ),
    )


def raw_image(stamp_ns: int, image: np.ndarray, encoding: str = "rgb8", padding: int = 0) -> bytes:
    name = "sensor_msgs/msg/Image"
    height, width, _ = image.shape
    pixels = image[..., ::-1] if encoding == "bgr8" else image
    rows = np.zeros((height, 3 * width + padding), dtype=np.uint8)
    rows[:, : 3 * width] = pixels.reshape(height, -1)
    return types().serialize(
        name,
        types().types[name](
            header=_header(stamp_ns),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=3 * width + padding,
            data=rows.reshape(-1),
        ),
    )


def jpeg_image(stamp_ns: int, image: np.ndarray) -> bytes:
    name = "sensor_msgs/msg/CompressedImage"
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return types().serialize(
        name,
        types().types[name](
            header=_header(stamp_ns), format="rgb8; jpeg compressed bgr8", data=data.reshape(-1)
        ),
    )


def pose(stamp_ns: int, values: np.ndarray) -> bytes:
    """A PoseStamped of position and quaternion (w, x, y, z)."""
    known, kind = types().types, "geometry_msgs/msg/PoseStamped"
    x, y, z, w, *turn = values.tolist()
    place = known["geometry_msgs/msg/Point"](x=x, y=y, z=z)
    turned = known["geometry_msgs/msg/Quaternion"](**dict(zip("xyz", turn, strict=True)), w=w)
    stood = known["geometry_msgs/msg/Pose"](position=place, orientation=turned)
    return types().serialize(kind, known[kind](header=_header(stamp_ns), pose=stood))


def text(content: str) -> bytes:
    return types().serialize(
        "std_msgs/msg/String", types().types["std_msgs/msg/String"](data=content)
    )


@dataclass(frozen=True)
class Sent:
    """One message as it would arrive."""

    log_ns: int
    topic: str
    type: str
    data: bytes


@dataclass
class Take:
    """Everything that is sent during a synthetic demonstration.

    The left arm and its wrist camera move together, so do the right ones: image content tells
    cameras apart, and its changes tell whose they are.
    """

    seconds: float = 2.0
    camera_hz: float = 30.0
    joint_hz: float = 100.0
    size: tuple[int, int] = (24, 32)
    compressed: bool = False
    leaders: bool = True
    targets: bool = False
    instruction: str = "transfer the cube"
    seed: int = 0
    profile: RobotProfile = field(default_factory=lambda: load_profile("sim"))
    encoding: str = "rgb8"
    padding: int = 0
    missing: tuple[str, ...] = ()
    camera_delay_s: Mapping[str, float] = field(default_factory=dict)
    objects: tuple[str, ...] = ()

    def arm_positions(self, arm: str, time_s: float, lag_s: float) -> np.ndarray:
        """Nine joint_states entries."""
        phase = {"left": 0.0, "right": 1.3}[arm] + self.seed
        t = max(0.0, time_s - lag_s - 0.3)
        wave = np.sin(np.arange(6) + phase + 1.5 * t) - np.sin(np.arange(6) + phase)
        joints = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0]) + 0.2 * wave
        grip = self.profile.gripper
        opening = 0.5 - 0.5 * np.cos(2.0 * t + phase)
        low, high = grip.joint_closed_rad, grip.joint_open_rad
        if lag_s == 0.0:
            low, high = grip.leader_joint_closed_rad, grip.leader_joint_open_rad
        servo = low + opening * (high - low)
        return np.array([*joints, servo, 0.04, -0.04])

    def image(self, camera: str, index: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, CAMERAS.index(camera), index])
        base = np.full((*self.size, 3), (40, 90, 150), dtype=np.int64)
        base += 25 * CAMERAS.index(camera)
        base[:, (3 * index) % self.size[1]] = 220
        return np.clip(base + rng.integers(-6, 7, base.shape), 0, 255).astype(np.uint8)

    def messages(self) -> list[Sent]:
        rng = np.random.default_rng(self.seed)
        sent = []
        jitter = lambda: int(rng.integers(200_000, 4_000_000))  # noqa: E731
        sent.append(Sent(START_NS, "/instruction", "std_msgs/msg/String", text(self.instruction)))
        for camera in CAMERAS:
            topic = self.profile.camera_topic(camera)
            delay = round(self.camera_delay_s.get(camera, 0.0) * NS)
            for index in range(round(self.seconds * self.camera_hz)):
                stamp = START_NS + round(index / self.camera_hz * NS)
                image = self.image(camera, index)
                if self.compressed:
                    data, kind = jpeg_image(stamp, image), "sensor_msgs/msg/CompressedImage"
                    name = f"{topic}/compressed"
                else:
                    data = raw_image(stamp, image, self.encoding, self.padding)
                    kind, name = "sensor_msgs/msg/Image", topic
                sent.append(Sent(stamp + delay + jitter(), name, kind, data))
        kind = "sensor_msgs/msg/JointState"
        for place, arm in enumerate(ARMS):
            for index in range(round(self.seconds * self.joint_hz)):
                time_s = index / self.joint_hz
                stamp = START_NS + round(time_s * NS)
                position = self.arm_positions(arm, time_s, 0.08)
                data = joint_state(
                    stamp, JOINT_STATE_NAMES, position, 0.1 * position, 10 * position
                )
                topic = self.profile.follower_joint_state_topics[place]
                sent.append(Sent(stamp + jitter() // 4, topic, kind, data))
                if self.leaders:
                    position = self.arm_positions(arm, time_s, 0.0)
                    topic = self.profile.leader_joint_state_topics[place]
                    data = joint_state(stamp, JOINT_STATE_NAMES, position)
                    sent.append(Sent(stamp + jitter() // 4, topic, kind, data))
        if self.targets:
            for index in range(round(self.seconds * 25)):
                stamp = START_NS + round((index + 0.4) / 25 * NS)
                data = joint_state(stamp, ACTION_NAMES, self.targets_at(index))
                sent.append(Sent(stamp, "/joint_targets", kind, data))
        for place, name in enumerate(self.objects):
            for index in range(round(self.seconds * 25)):
                stamp = START_NS + round(index / 25 * NS)
                data = pose(stamp, self.object_pose(place, index))
                kind, topic = "geometry_msgs/msg/PoseStamped", f"/object_poses/{name}"
                sent.append(Sent(stamp + jitter(), topic, kind, data))
        kept = [one for one in sent if not any(part in one.topic for part in self.missing)]
        return sorted(kept, key=lambda one: one.log_ns)

    @staticmethod
    def object_pose(place: int, index: int) -> np.ndarray:
        return np.array([place, 0.01 * index, 0.02, 0.5, -0.5, 0.1, 0.7])

    @staticmethod
    def targets_at(index: int) -> np.ndarray:
        return np.linspace(0.0, 0.3, 14) + 0.001 * index

    def write(self, path: Path, **custom: str) -> Path:
        """As the recorder writes it."""
        told = {"profile": self.profile.name, "instruction": self.instruction, **custom}
        writer = BagWriter(path, {key: value for key, value in told.items() if value})
        known: set[str] = set()
        for one in self.messages():
            if one.topic not in known:
                writer.add_topic(bag_topic(one.topic, one.type))
                known.add(one.topic)
            writer.write(one.topic, one.log_ns, one.data)
        writer.close()
        return path
