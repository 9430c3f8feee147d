"""Subscriptions that hand over serialised bytes, made when somebody publishes, or before.

Type, QoS and type hash are taken from the publishers themselves, so that nothing about a topic
must be known before it exists, and a bag says what was really offered. Topics of which not even
the first message may be missed are waited for with a subscription. Messages that were sent but
never arrived are counted by their sequence numbers. Has a node, is none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from vla_oft_ros.ros.arrival_clock import ArrivalClock

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_IMAGE_DEPTH, _DEPTH = 30, 1000
"""Messages that may wait in the middleware while the machine is busy: a second of images, whose
memory counts, and ten of joint states."""
_CAMERA_SETTLE_S = 1.0
"""How long a raw image topic may appear after the compressed one and still be preferred."""

_DRAIN_S = 3.0
"""How long an operator's stop may take because of what still waits; the rest is counted."""

_EXPECTED_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=_DEPTH)
"""Reliable and volatile, as this package's own nodes publish; others are found by looking."""

OnRaw = Callable[["RawTopic", int, bytes, "int | None"], None]


@dataclass
class RawTopic:
    """One topic that is heard.

    Attributes:
        bag_topic: What a bag says about it.
        last_ns: When the last message came, on the node's clock; None before the first one.
        latest: That message.
        received: Messages so far.
        lost: Messages that were sent meanwhile and never arrived.
    """

    bag_topic: BagTopic
    subscription: Subscription | None = None
    last_ns: int | None = None
    latest: bytes = b""
    received: int = 0
    lost: int = 0
    _sequence: int | None = None
    publishers: frozenset = frozenset()

    @property
    def name(self) -> str:
        """Absolute name."""
        return self.bag_topic.name

    def is_alive(self, now_ns: int, limit_s: float) -> bool:
        """Whether it was heard in the last seconds of the node's clock: where simulated time
        crawls, nobody speaks for real seconds, and nothing is wrong.
        """
        return self.last_ns is not None and 0 <= now_ns - self.last_ns <= limit_s * 1e9

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
        expected: Topic → type of those, among the wanted ones, that are subscribed to before
            anybody publishes them, so that their first message is heard as well.
    """

    def __init__(
        self,
        node: Node,
        wanted: Iterable[Sequence[str]],
        on_message: OnRaw,
        on_lost: Callable[[RawTopic, int], None],
        expected: Mapping[str, str] | None = None,
    ) -> None:
        self._node, self._on_message, self._on_lost = node, on_message, on_lost
        resolve = node.resolve_topic_name
        self._wanted = [tuple(resolve(name) for name in names) for names in wanted]
        self._types = MessageTypes(share_dirs())
        self._expected = {resolve(name): kind for name, kind in (expected or {}).items()}
        self._awaited: dict[str, RawTopic] = {}
        self._arrivals: ArrivalClock | None = None
        self._refused: set[str] = set()
        self._since_s: dict[tuple[str, ...], float] = {}
        self.heard: dict[str, RawTopic] = {}
        """Topic → what is known about it, of those that are heard."""

    def poll(self) -> None:
        """Subscribes to what has appeared. Call it about once per second."""
        if self._arrivals is None:
            self._arrivals = ArrivalClock(self._node)
            for name, kind in self._expected.items():
                self._await(name, kind)
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

    def now_ns(self) -> int:
        """Present time on the clock of arrivals, however far behind the executor is."""
        if self._arrivals is None:
            return int(self._node.get_clock().now().nanoseconds)
        return self._arrivals.at(time.time_ns())

    def drain(self, end_ns: int) -> list[str]:
        """Hands over what arrived until an instant and still waits, in at most three seconds.

        Returns:
            Topics on which that was not enough.
        """
        deadline_s = time.monotonic() + _DRAIN_S
        topics = [*self.heard.values(), *self._awaited.values()]
        return [topic.name for topic in topics if not self._catch_up(topic, end_ns, deadline_s)]

    def teardown(self) -> None:
        """Unsubscribes."""
        for topic in (*self.heard.values(), *self._awaited.values()):
            self._node.destroy_subscription(topic.subscription)
        self.heard.clear()
        self._awaited.clear()
        if self._arrivals is not None:
            self._arrivals.teardown()
            self._arrivals = None

    def _await(self, name: str, kind: str) -> None:
        """Subscribes to what nobody publishes yet."""
        topic = RawTopic(BagTopic(name=name, type=kind, definition="", type_hash=""))
        self._subscribe(topic, message_class(kind), _EXPECTED_QOS)
        self._awaited[name] = topic

    def _hear(self, name: str, publishers: list[TopicEndpointInfo]) -> None:
        kinds = sorted({info.topic_type for info in publishers})
        if name in self._refused:
            return
        early = self._awaited.pop(name, None)
        if early is not None and not publishers:  # it has spoken and gone
            kinds = [early.bag_topic.type]
        elif early is not None and (
            kinds != [early.bag_topic.type] or not _is_expected(publishers)
        ):
            self._node.destroy_subscription(early.subscription)
            early = None
        try:
            if len(kinds) != 1:
                raise ValueError(f"publishers disagree about its type: {', '.join(kinds)}")
            cls, found = message_class(kinds[0]), self._types.find(kinds[0])
        except (ValueError, ImportError, AttributeError) as error:
            self._refused.add(name)
            self._node.get_logger().error(f"{name} is not recorded: {error}")
            return
        hashes = {str(info.topic_type_hash) for info in publishers}
        described = BagTopic(
            name=name,
            type=kinds[0],
            definition=found.definition,
            type_hash=hashes.pop() if len(hashes) == 1 else found.type_hash,
            qos=[_offered(info.qos_profile) for info in publishers],
        )
        topic = early or RawTopic(described)
        topic.bag_topic, topic.publishers = described, _identities(publishers)
        if early is None:
            self._subscribe(topic, cls, _matching(kinds[0], publishers))
        self.heard[name] = topic

    def _subscribe(self, topic: RawTopic, cls: type, qos: QoSProfile) -> None:
        topic.subscription = self._node.create_subscription(
            cls, topic.name, partial(self._receive, topic), qos, raw=True
        )

    def _receive(self, topic: RawTopic, data: bytes, info: dict[str, Any]) -> None:
        """Takes a message, and what else of its topic has come meanwhile: being woken up by the
        executor costs far more than taking one, so that a busy machine would never catch up.
        """
        self._take(topic, data, info)
        self._catch_up(topic)

    def _catch_up(
        self, topic: RawTopic, end_ns: int | None = None, deadline_s: float = float("inf")
    ) -> bool:
        """Takes what waits of a topic; False if there was no time for all of it."""
        known = self.heard.get(topic.name) or self._awaited.get(topic.name)
        if known is not topic:
            return True  # it is heard in another way now
        waiting, kind = topic.subscription.handle, topic.subscription.msg_type
        with waiting:
            for _ in range(_DEPTH):
                if (more := waiting.take_message(kind, True)) is None:
                    return True
                arrived_ns = self._take(topic, *more)
                if arrived_ns is None or (end_ns is not None and arrived_ns > end_ns):
                    return True
                if time.monotonic() >= deadline_s:
                    return False
        return True

    def _take(self, topic: RawTopic, data: bytes, info: dict[str, Any]) -> int | None:
        """Takes a message; returns when it arrived, or None if its topic is not heard so."""
        if self._awaited.get(topic.name) is topic:
            # Its publisher must be there, even if nobody has looked for it yet.
            self._hear(topic.name, self._node.get_publishers_info_by_topic(topic.name))
            if self.heard.get(topic.name) is not topic:
                return None
        assert self._arrivals is not None  # there is no subscription without it
        now_ns = self._arrivals.at(info["received_timestamp"])
        published_ns = None
        if not self._node.get_clock().ros_time_is_active:
            published_ns = info["source_timestamp"] or None
        topic.received += 1
        topic.last_ns, topic.latest = now_ns, data
        lost = topic.count_lost(info["publication_sequence_number"])
        if lost:
            self._on_lost(topic, lost)
        self._on_message(topic, now_ns, data, published_ns)
        return now_ns


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


def _is_expected(publishers: list[TopicEndpointInfo]) -> bool:
    """Whether a subscription made for what was expected hears all that they have to say."""
    best = _matching("", publishers)
    expected = _EXPECTED_QOS
    return (best.reliability, best.durability) == (expected.reliability, expected.durability)


def _offered(qos: QoSProfile) -> OfferedQos:
    """As rosbag2 writes it; history and depth of a remote publisher are unknown."""
    return OfferedQos(
        history=qos.history.short_key,
        depth=qos.depth,
        reliability=qos.reliability.short_key,
        durability=qos.durability.short_key,
        liveliness=qos.liveliness.short_key,
    )
