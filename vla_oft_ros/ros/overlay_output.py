"""One camera's overlay: hears the camera only while somebody looks at it.

Has a node, is none: the owner says when to look and hands over what to draw.
"""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from vla_oft_ros.config import TokenViewerConfig
from vla_oft_ros.overlay import paint_retained
from vla_oft_ros.overlay_caption import SHORT_LEGEND, with_legend, with_title
from vla_oft_ros.ros.camera_input import CameraInput, Decode
from vla_oft_ros.ros.conversions import compressed_image_to_msg, image_decoder, image_to_msg
from vla_oft_ros.ros.watched_inputs import WatchedInputs
from vla_oft_ros.token_frames import KeptFrame

_HEARD = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Ten deep: the very frame that the policy used must not be lost while another one is drawn."""
_SHOWN = QoSProfile(depth=2)


class OverlayOutput:
    """Overlay of one camera, raw and compressed.

    Args:
        node: Node to publish on.
        camera: Camera name.
        topic: Where the camera publishes.
        config: Of the viewer.
        on_frame: Called with camera, stamp in ns and a function that decodes the frame.
    """

    def __init__(
        self,
        node: Node,
        camera: str,
        topic: str,
        config: TokenViewerConfig,
        on_frame: Callable[[str, int, Decode], None],
    ) -> None:
        self._camera, self._config = camera, config
        name = f"{config.overlay_topic}/{camera}"
        self._raw = node.create_publisher(Image, name, _SHOWN)
        self._jpeg = node.create_publisher(CompressedImage, f"{name}/compressed", _SHOWN)
        decode = image_decoder(config.image_decoder)
        heard = CameraInput(node, camera, topic, config.image_transport, decode, on_frame, _HEARD)
        self.outputs = (self._raw, self._jpeg)
        """Publishers of the two kinds."""
        self.camera_input = WatchedInputs(self.outputs, [heard])
        self.drawn = 0
        """Overlays published so far."""

    def publish(self, kept: KeptFrame) -> None:
        """Draws one answer of the policy and publishes it in the kinds that are listened to.

        Raises:
            ValueError: if the image is too small for its grid of patches.
        """
        config, stage = self._config, kept.stage(self._config.layer)
        painted = paint_retained(kept.image, stage, crop_area=config.crop_area)
        count, patches = stage.patch_indices.size, stage.grid[0] * stage.grid[1]
        where = f"after layer {stage.layer}" if stage.layer else "dense"
        title = f"{self._camera}, {where}: {count} of {patches} patches kept"
        picture = with_legend(with_title(painted, title), SHORT_LEGEND)
        stamp_ns, frame = kept.stamp_ns, f"{self._camera}_color_optical_frame"
        if self._raw.get_subscription_count():
            self._raw.publish(image_to_msg(picture, stamp_ns, frame))
        if self._jpeg.get_subscription_count():
            quality = config.jpeg_quality
            self._jpeg.publish(compressed_image_to_msg(picture, stamp_ns, frame, quality))
        self.drawn += 1
