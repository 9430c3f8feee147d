"""When each action chunk was where on its way through the nodes: the topic `chunk_trace`.

The policy and the controller each publish one message per chunk, stamped with the chunk's own
stamp, that names instants of the system's clock. `benchmark/end_to_end.py` joins the two to spans,
of its own processes or of a robot that runs. Knows nothing of spans.
"""

from __future__ import annotations

from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from vla_oft_ros.ros.conversions import stamp_from_msg, stamp_to_msg

TOPIC = "chunk_trace"
STAMP, RECEIVED = "stamp ", "received "
"""Before a camera's name: stamp of its image on the nodes' clock, and when it had arrived."""
OBSERVED, STARTED, PREPROCESSED, COMPUTED, SENT = (
    "observed",
    "started",
    "preprocessed",
    "computed",
    "sent",
)
"""Of the policy: observation complete, worker begins, network input ready, actions known, chunk on
the wire."""
QUEUED, PUBLISHED = "queued", "published"
"""Of the controller: chunk joined to the running motion, first target from it on the wire."""


class ChunkTrace:
    """Publishes the instants of one node's share of the way.

    Args:
        node: In whose name.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, TOPIC, 10)

    def publish(self, stamp_ns: int, instants: Mapping[str, int]) -> None:
        """Tells where a chunk was when.

        Args:
            stamp_ns: Stamp of the chunk, nanoseconds.
            instants: Name → nanoseconds of the system's clock; `STAMP` ones on the nodes' clock.
        """
        pairs = [KeyValue(key=name, value=str(value)) for name, value in instants.items()]
        status = DiagnosticStatus(name=self._node.get_fully_qualified_name(), values=pairs)
        message = DiagnosticArray(status=[status])
        message.header.stamp = stamp_to_msg(stamp_ns)
        self._publisher.publish(message)

    def teardown(self) -> None:
        """Removes the publisher."""
        self._node.destroy_publisher(self._publisher)


def trace_from_msg(message: DiagnosticArray) -> tuple[int, dict[str, int]]:
    """Stamp of the chunk, nanoseconds, and the instants."""
    pairs = (pair for status in message.status for pair in status.values)
    return stamp_from_msg(message.header.stamp), {pair.key: int(pair.value) for pair in pairs}
