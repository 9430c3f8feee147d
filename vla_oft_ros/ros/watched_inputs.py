"""Inputs that are heard only while somebody subscribes to what is made of them.

To whom nobody listens, a message is only work: it is received, taken apart and thrown away. Has a
node, is none: the owner asks now and then who looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

from vla_oft_ros.aloha import JointStateError

_COMPLAIN_EVERY_S = 5.0
_LISTEN = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Deep enough for all stages of some inferences, which come at once."""


class Input(Protocol):
    """What can be heard or not."""

    def setup(self) -> None:
        """Subscribes."""

    def teardown(self) -> None:
        """Unsubscribes."""


class TopicInput:
    """One topic, best effort; a message that cannot be used is told and dropped.

    Args:
        node: Node to subscribe on.
        kind: Message type.
        topic: Topic name.
        take: Called with each message; may raise ValueError or JointStateError.
    """

    def __init__(self, node: Node, kind: type, topic: str, take: Callable[[Any], object]) -> None:
        self._node, self._kind, self._topic, self._take = node, kind, topic, take
        self._subscription: Subscription | None = None

    def setup(self) -> None:
        """Subscribes."""
        self._subscription = self._node.create_subscription(
            self._kind, self._topic, self._receive, _LISTEN
        )

    def teardown(self) -> None:
        """Unsubscribes."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = None

    def _receive(self, message: object) -> None:
        try:
            self._take(message)
        except (ValueError, JointStateError) as error:
            self._node.get_logger().error(
                f"{self._topic}: {error}", throttle_duration_sec=_COMPLAIN_EVERY_S
            )


class WatchedInputs:
    """Inputs of some outputs, heard while at least one of those is subscribed to.

    Args:
        outputs: Publishers of what is made of the inputs.
        inputs: What is heard for them, and for nothing else.
    """

    def __init__(self, outputs: Sequence[Publisher], inputs: Sequence[Input]) -> None:
        self._outputs, self._inputs = tuple(outputs), tuple(inputs)
        self.is_watched = False
        """True while the inputs are heard."""

    def look(self) -> bool:
        """Begins to hear when somebody subscribes and ends when nobody does; True while heard."""
        self.hear(any(output.get_subscription_count() for output in self._outputs))
        return self.is_watched

    def hear(self, wanted: bool) -> None:
        """Begins or ends to hear, whoever subscribes."""
        if wanted == self.is_watched:
            return
        self.is_watched = wanted
        for each in self._inputs:
            if wanted:
                each.setup()
            else:
                each.teardown()
