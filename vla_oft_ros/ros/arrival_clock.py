"""When a message reached this process, on the node's clock, however late its callback comes.

The middleware stamps what it receives with the time of the system; in simulated time that instant
is looked up among the ticks of /clock, which were stamped in the same way. A busy executor then
delays the writing of a recording and not what the recording says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock

from vla_oft_ros.ros.conversions import stamp_from_msg

_TICKS = 1000
"""Ticks of /clock that are remembered: at least a second of the fastest simulation, and longer
than a message may wait."""


class ArrivalClock:
    """Instants of arrival.

    Args:
        node: Whose clock counts.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._ticks: deque[tuple[int, int]] = deque(maxlen=_TICKS)
        self._subscription = None
        if node.get_parameter("use_sim_time").value:
            self._subscription = node.create_subscription(
                Clock, "/clock", self._on_clock, QoSProfile(depth=_TICKS)
            )

    def teardown(self) -> None:
        """Listens no longer."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def at(self, received_ns: int) -> int:
        """The node's time when the middleware received something.

        Args:
            received_ns: When that was on the system's clock, nanoseconds; 0 if it does not say.
        """
        if self._subscription is None:
            return received_ns or self._now_ns()
        # Not when their own turn comes: a backlog of ticks would put everything into the past.
        waiting = self._subscription.handle
        with waiting:
            while (tick := waiting.take_message(Clock, False)) is not None:
                self._on_clock(*tick)
        place = bisect_right(self._ticks, (received_ns, 2**63))
        if not received_ns or place == 0:
            return self._now_ns()
        return self._ticks[place - 1][1]

    def _on_clock(self, message: Clock, info: dict[str, Any]) -> None:
        received_ns = info["received_timestamp"]
        if self._ticks and received_ns < self._ticks[-1][0]:
            self._ticks.clear()  # the system's clock was put back
        if received_ns:
            self._ticks.append((received_ns, stamp_from_msg(message.clock)))

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)
