"""Subscriptions that hand over serialised bytes, made when somebody publishes.

Type, QoS and type hash are taken from the publishers themselves, so that nothing about a topic
must be known before it exists, and a bag says what was really offered. Messages that were sent
but never arrived are counted by their sequence numbers. Has a node, is none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

from vla_oft_ros.data.bag_writer import BagTopic, OfferedQos
from vla_oft_ros.data.message_types import MessageTypes

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_IMAGE_DEPTH, _DEPTH = 30, 200
"""About a second of messages may wait in the middleware; an executor is never that late."""
_CAMERA_SETTLE_S = 1.0
"""How long a raw image topic may appear after the compressed one and still be preferred."""

OnRaw = Callable[["RawTopic", int, bytes, "int | None"], None]


@dataclass
class RawTopic:
    """One topic that is heard.

    Attributes:
        bag_topic: What a bag says about it.
        last_s: When the last message came, `time.monotonic`.
        latest: That message.
        received: Messages so far.
        lost: Messages that were sent meanwhile and never arrived.
    """

    bag_topic: BagTopic
    subscription: Subscription | None = None
    last_s: float = float("-inf")
    latest: bytes = b""
    received: int = 0
    lost: int = 0
    _sequence: int | None = None
    publishers: frozenset = frozenset()

    @property
    def name(self) -> str:
        """Absolute name."""
        return self.bag_topic.name

    def count_lost(self, sequence: int | None) -> int:
        """Messages between this one and the one before, if they can be told."""
        before, self._sequence = self._sequence, sequence
        # Publishers count each by themselves: only a single one can be followed.
        if sequence is None or before is None or len(self.publishers) != 1 or sequence <= before:
            return 0
        self.lost += sequence - before - 1
        return sequence - before - 1


class RawTopics:
    """Everything that is to be heard, by name.

    Args:
        node: Node to subscribe on.
        wanted: Topics in question, each with those that serve instead: the first one that is
            published is heard.
        on_message: Called with topic, time of reception (the node's clock, ns), bytes, and time
            of publication if that is on the same clock.
        on_lost: Called with topic and how many messages have not arrived.
    """

    def __init__(
        self,
        node: Node,
        wanted: Iterable[Sequence[str]],
        on_message: OnRaw,
        on_lost: Callable[[RawTopic, int], None],
    ) -> None:
        self._node, self._on_message, self._on_lost = node, on_message, on_lost
        resolve = node.resolve_topic_name
        self._wanted = [tuple(resolve(name) for name in names) for names in wanted]
        self._types = MessageTypes(share_dirs())
        self._refused: set[str] = set()
        self._since_s: dict[tuple[str, ...], float] = {}
        self.heard: dict[str, RawTopic] = {}
        """Topic → what is known about it, of those that are heard."""

    def poll(self) -> None:
        """Subscribes to what has appeared. Call it about once per second."""
        for names in self._wanted:
            known = next((name for name in names if name in self.heard), None)
            if known is not None:
                publishers = self._node.get_publishers_info_by_topic(known)
                self.heard[known].publishers = _identities(publishers)
                continue
            for preference, name in enumerate(names):
                publishers = self._node.get_publishers_info_by_topic(name)
                if not publishers:
                    continue
                first_s = self._since_s.setdefault(names, time.monotonic())
                if preference and time.monotonic() - first_s < _CAMERA_SETTLE_S:
                    break  # what is preferred may be about to appear
                self._hear(name, publishers)
                break

    def teardown(self) -> None:
        """Unsubscribes."""
        for topic in self.heard.values():
            self._node.destroy_subscription(topic.subscription)
        self.heard.clear()

    def _hear(self, name: str, publishers: list[TopicEndpointInfo]) -> None:
        kinds = sorted({info.topic_type for info in publishers})
        if name in self._refused:
            return
        try:
            if len(kinds) != 1:
                raise ValueError(f"publishers disagree about its type: {', '.join(kinds)}")
            cls, found = message_class(kinds[0]), self._types.find(kinds[0])
        except (ValueError, ImportError, AttributeError) as error:
            self._refused.add(name)
            self._node.get_logger().error(f"{name} is not recorded: {error}")
            return
        hashes = {str(info.topic_type_hash) for info in publishers}
        topic = RawTopic(
            BagTopic(
                name=name,
                type=kinds[0],
                definition=found.definition,
                type_hash=hashes.pop() if len(hashes) == 1 else found.type_hash,
                qos=[_offered(info.qos_profile) for info in publishers],
            ),
            publishers=_identities(publishers),
        )
        topic.subscription = self._node.create_subscription(
            cls, name, partial(self._receive, topic), _matching(kinds[0], publishers), raw=True
        )
        self.heard[name] = topic

    def _receive(self, topic: RawTopic, data: bytes, info: dict[str, Any]) -> None:
        clock = self._node.get_clock()
        now_ns = int(clock.now().nanoseconds)
        published_ns = None
        if not clock.ros_time_is_active:
            # When the middleware received it, not when this thread came round to take it.
            now_ns = info["received_timestamp"] or now_ns
            published_ns = info["source_timestamp"] or None
        topic.received += 1
        topic.last_s, topic.latest = time.monotonic(), data
        lost = topic.count_lost(info["publication_sequence_number"])
        if lost:
            self._on_lost(topic, lost)
        self._on_message(topic, now_ns, data, published_ns)


def share_dirs() -> list[Path]:
    """Folders of this ROS environment that hold message definitions."""
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    return [Path(prefix) / "share" for prefix in prefixes if prefix]


def message_class(type_name: str) -> type:
    """Class of a message type such as sensor_msgs/msg/Image.

    Raises:
        ImportError, AttributeError: if it is not built in this environment.
    """
    package, _, name = type_name.split("/")
    cls: type = getattr(import_module(f"{package}.msg"), name)
    return cls


def _identities(publishers: list[TopicEndpointInfo]) -> frozenset:
    return frozenset(tuple(info.endpoint_gid) for info in publishers)


def _matching(type_name: str, publishers: list[TopicEndpointInfo]) -> QoSProfile:
    """The most that every one of the publishers grants."""
    offered = [info.qos_profile for info in publishers]
    reliable = all(qos.reliability is ReliabilityPolicy.RELIABLE for qos in offered)
    latched = all(qos.durability is DurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=_IMAGE_DEPTH if type_name in IMAGE_TYPES else _DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def _offered(qos: QoSProfile) -> OfferedQos:
    """As rosbag2 writes it; history and depth of a remote publisher are unknown."""
    return OfferedQos(
        history=qos.history.short_key,
        depth=qos.depth,
        reliability=qos.reliability.short_key,
        durability=qos.durability.short_key,
        liveliness=qos.liveliness.short_key,
    )
