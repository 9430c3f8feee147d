"""Facts per tick as `/diagnostics`: rates, ages and latencies go here, not to the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class RollingTimes:
    """Last durations, in seconds, for medians and percentiles over a window of constant size."""

    def __init__(self, window: int = 100) -> None:
        self._values: deque[float] = deque(maxlen=window)

    def add(self, duration_s: float) -> None:
        """Takes one duration."""
        self._values.append(duration_s)

    def quantile(self, fraction: float) -> float:
        """Quantile of the window, seconds; NaN while it is empty."""
        return float(np.quantile(list(self._values), fraction)) if self._values else float("nan")

    @property
    def last(self) -> float:
        """Newest duration, seconds; NaN before the first."""
        return self._values[-1] if self._values else float("nan")


class Diagnostics:
    """Publishes one DiagnosticStatus per part of a node.

    Args:
        node: Node in whose name the statuses are published.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def publish(self, parts: Mapping[str, tuple[bytes, str, Mapping[str, object]]]) -> None:
        """Publishes part → (level, message, values)."""
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        name = self._node.get_fully_qualified_name()
        for part, (level, message, values) in parts.items():
            pairs = [KeyValue(key=key, value=_text(value)) for key, value in values.items()]
            array.status.append(
                DiagnosticStatus(
                    level=level, name=f"{name}: {part}", message=message, values=pairs
                )
            )
        self._publisher.publish(array)

    def teardown(self) -> None:
        """Removes the publisher."""
        self._node.destroy_publisher(self._publisher)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
