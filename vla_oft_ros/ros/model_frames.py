"""The robot model on the wire: its description, its joints, and its frames on /tf.

Takes the place of robot_state_publisher, once for what is measured and once, under the prefix
`target`, for what is wanted. Where tf2_msgs is not installed (the ROS wheels have none), there
are no frames. Has a node, is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from vla_oft_ros.robot_model import LinkPose, RobotModel
from vla_oft_ros.ros.conversions import stamp_to_msg

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TARGET_PREFIX = "target"
"""Frames of what is wanted are called `target/left/…`: RViz' RobotModel has a field TF Prefix."""
_TF_DEPTH = 100


def transform_to_msg(pose: LinkPose, stamp_ns: int, prefix: str = "") -> TransformStamped:
    """LinkPose → TransformStamped; a prefix goes before both names, with a slash."""
    start = f"{prefix}/" if prefix else ""
    message = TransformStamped(child_frame_id=start + pose.child)
    message.header.frame_id = start + pose.parent
    message.header.stamp = stamp_to_msg(stamp_ns)
    place, turn = message.transform.translation, message.transform.rotation
    place.x, place.y, place.z = pose.position_m.tolist()
    turn.w, turn.x, turn.y, turn.z = pose.quaternion.tolist()
    return message


class ModelFrames:
    """Publishes one robot model in two states.

    Args:
        node: Node to publish on.
        urdf: Its description.
        description_topic: Where the description goes.
        joint_topics: Prefix of the frames ("" is measured, `TARGET_PREFIX` wanted) → where its
            joint states go.
        tf: Publish frames, if that is possible.
    """

    def __init__(
        self,
        node: Node,
        urdf: str,
        description_topic: str,
        joint_topics: Mapping[str, str],
        *,
        tf: bool,
    ) -> None:
        self._node, self._model = node, RobotModel(urdf)
        self._description = node.create_publisher(String, description_topic, LATCHED)
        self._description.publish(String(data=urdf))
        self._joints = {
            prefix: node.create_publisher(JointState, topic, 10)
            for prefix, topic in joint_topics.items()
        }
        self._stamps_ns = dict.fromkeys(joint_topics, -1)
        self._tf_type = _tf_message() if tf else None
        self._tf: Any = None
        if tf and self._tf_type is None:
            node.get_logger().info(
                "no frames on /tf, since tf2_msgs is not installed: RViz shows the arms as "
                "markers. On a ROS installation: apt install ros-jazzy-tf2-msgs"
            )
        if self._tf_type is not None:
            self._tf = node.create_publisher(self._tf_type, "/tf", QoSProfile(depth=_TF_DEPTH))
            self._fixed = node.create_publisher(self._tf_type, "/tf_static", LATCHED)
            self._fixed.publish(self._tf_type(transforms=self._fixed_frames()))
        self.outputs = tuple(filter(None, (*self._joints.values(), self._tf)))
        """Publishers of what moves."""

    def _fixed_frames(self) -> list[TransformStamped]:
        frames = []
        for prefix in self._joints:
            frames += [transform_to_msg(pose, 0, prefix) for pose in self._model.fixed_links()]
            if prefix:  # a second tree, whose root stands where the first one's does
                root = TransformStamped(child_frame_id=f"{prefix}/{self._model.root}")
                root.header.frame_id = self._model.root
                root.transform.rotation.w = 1.0
                frames.append(root)
        return frames

    def publish(self, prefix: str, stamp_ns: int, positions: Mapping[str, float]) -> None:
        """Publishes one state, if anybody listens and it is newer than the last one.

        Args:
            prefix: Of the frames.
            stamp_ns: Of the joint states, nanoseconds.
            positions: Joint name → rad or m.
        """
        if stamp_ns == self._stamps_ns[prefix]:
            return
        self._stamps_ns[prefix] = stamp_ns
        if self._joints[prefix].get_subscription_count():
            self._joints[prefix].publish(_joint_state(positions, stamp_ns))
        if self._tf is not None and self._tf.get_subscription_count():
            poses = self._model.moving_links(positions)
            frames = [transform_to_msg(pose, stamp_ns, prefix) for pose in poses]
            self._tf.publish(self._tf_type(transforms=frames))


def _joint_state(positions: Mapping[str, float], stamp_ns: int) -> JointState:
    message = JointState(name=list(positions), position=list(positions.values()))
    message.header.stamp = stamp_to_msg(stamp_ns)
    return message


def _tf_message() -> Any:
    """tf2_msgs/TFMessage, or None where it is not installed."""
    try:
        from tf2_msgs.msg import TFMessage
    except ImportError:
        return None
    return TFMessage
