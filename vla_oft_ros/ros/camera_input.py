"""One camera's subscription: raw or compressed, decoded only when somebody looks at the frame.

Has a node, is none: the owner decides its lifetime with `setup` and `teardown`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from vla_oft_ros.ros.conversions import compressed_image_from_msg, stamp_from_msg

LATEST = QoSProfile(
    depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT
)
"""Best effort matches reliable and best-effort publishers; one frame deep, because only the newest
counts."""

Decode = Callable[[], np.ndarray]


class CameraInput:
    """Frames of one camera.

    Args:
        node: Node to subscribe on.
        camera: Camera name.
        topic: Raw image topic; compressed images are expected on `<topic>/compressed`.
        transport: "raw", "compressed", or "auto": the first one that delivers is kept.
        decode: Decoder of raw images.
        on_frame: Called with camera, stamp in ns and a function that decodes the frame.
        qos: Of the subscriptions.
    """

    def __init__(
        self,
        node: Node,
        camera: str,
        topic: str,
        transport: str,
        decode: Callable[[Image], np.ndarray],
        on_frame: Callable[[str, int, Decode], None],
        qos: QoSProfile = LATEST,
    ) -> None:
        self._node, self._camera, self._topic = node, camera, topic
        self._transport, self._decode, self._on_frame = transport, decode, on_frame
        self._qos = qos
        self._subscriptions: dict[str, Subscription] = {}

    def setup(self) -> None:
        """Subscribes."""
        if self._transport in ("auto", "raw"):
            self._subscriptions["raw"] = self._node.create_subscription(
                Image, self._topic, self._on_raw, self._qos
            )
        if self._transport in ("auto", "compressed"):
            self._subscriptions["compressed"] = self._node.create_subscription(
                CompressedImage, f"{self._topic}/compressed", self._on_compressed, self._qos
            )

    def teardown(self) -> None:
        """Unsubscribes."""
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _on_raw(self, message: Image) -> None:
        self._settle("raw")
        self._on_frame(
            self._camera, stamp_from_msg(message.header.stamp), lambda: self._decode(message)
        )

    def _on_compressed(self, message: CompressedImage) -> None:
        self._settle("compressed")
        stamp_ns = stamp_from_msg(message.header.stamp)
        self._on_frame(self._camera, stamp_ns, lambda: compressed_image_from_msg(message))

    def _settle(self, winner: str) -> None:
        if len(self._subscriptions) < 2:
            return
        for kind in [kind for kind in self._subscriptions if kind != winner]:
            self._node.destroy_subscription(self._subscriptions.pop(kind))
        self._node.get_logger().info(f"{self._camera}: {winner} images on {self._topic}")
