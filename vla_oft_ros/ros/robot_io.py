"""The robot as JointState topics: followers and leaders in, 14 joint targets out. Any robot that
speaks JointState fits.

Has a node, is none: the owner decides its lifetime with `setup` and `teardown`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import JointState

from vla_oft_ros.aloha import ACTION_DIM, ACTION_NAMES, ARMS, JointStateError, RobotProfile
from vla_oft_ros.ros.conversions import joint_state_to_msg, stamp_from_msg

_COMPLAIN_EVERY_S = 5.0


class ArmStates:
    """Joint states of two arms as (7,) vectors.

    Args:
        node: Node to subscribe on.
        topics: Of the left and the right arm.
        convert: Joint names and positions of a message to (7,); raises JointStateError.
        on_joints: Called with arm, stamp in ns and the (7,) vector (rad, gripper 0 … 1).
    """

    def __init__(
        self,
        node: Node,
        topics: Sequence[str],
        convert: Callable[[Sequence[str], Sequence[float]], np.ndarray],
        on_joints: Callable[[str, int, np.ndarray], None],
    ) -> None:
        self._node, self._topics, self._convert = node, topics, convert
        self._on_joints = on_joints
        self._subscriptions: list[Subscription] = []
        self.refused = 0
        """Messages that could not be used so far."""
        self.problem = ""
        """Why the last one of them could not be used."""

    def setup(self) -> None:
        """Subscribes."""
        for arm, topic in zip(ARMS, self._topics, strict=True):
            self._subscriptions.append(
                self._node.create_subscription(
                    JointState, topic, partial(self._receive, arm, topic), qos_profile_sensor_data
                )
            )

    def teardown(self) -> None:
        """Unsubscribes."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _receive(self, arm: str, topic: str, message: JointState) -> None:
        try:
            joints = self._convert(message.name, message.position)
        except JointStateError as error:
            self.refused += 1
            self.problem = f"{topic}: {error}"
            self._node.get_logger().error(self.problem, throttle_duration_sec=_COMPLAIN_EVERY_S)
            return
        self._on_joints(arm, stamp_from_msg(message.header.stamp), joints)


class FollowerStates(ArmStates):
    """Joint states of both followers: the robot's part of an observation."""

    def __init__(
        self, node: Node, profile: RobotProfile, on_joints: Callable[[str, int, np.ndarray], None]
    ) -> None:
        topics = profile.follower_joint_state_topics
        super().__init__(node, topics, profile.arm_qpos, on_joints)


class LeaderStates(ArmStates):
    """Joint states of both leaders: what the teleoperator does, as an action."""

    def __init__(
        self, node: Node, profile: RobotProfile, on_joints: Callable[[str, int, np.ndarray], None]
    ) -> None:
        topics = profile.leader_joint_state_topics
        super().__init__(node, topics, profile.leader_action, on_joints)


class JointStateRobot:
    """A robot that takes all 14 targets from one JointState topic.

    Args:
        node: Managed node to publish on.
        topic: Where the targets go.
    """

    def __init__(self, node: Node, topic: str) -> None:
        self._node = node
        self._publisher = node.create_lifecycle_publisher(JointState, topic, 10)

    def publish(self, target: np.ndarray, stamp_ns: int) -> None:
        """Tells the robot its (14,) joint targets (rad, gripper 0 … 1)."""
        self._publisher.publish(targets_to_msg(target, stamp_ns))

    def teardown(self) -> None:
        """Removes the publisher."""
        self._node.destroy_lifecycle_publisher(self._publisher)


def targets_to_msg(targets: np.ndarray, stamp_ns: int) -> JointState:
    """(14,) joint targets (rad, gripper 0 … 1) → JointState, left arm first."""
    return joint_state_to_msg(ACTION_NAMES, targets, stamp_ns)


def targets_from_msg(message: JointState) -> np.ndarray:
    """JointState → (14,) joint targets; inverse of `targets_to_msg`, whatever the order of the
    names.

    Raises:
        JointStateError: if a joint is missing or a value is not finite.
    """
    place = {name: index for index, name in enumerate(message.name)}
    missing = [name for name in ACTION_NAMES if name not in place]
    if missing or len(message.position) != len(message.name):
        raise JointStateError(
            f"joint targets: expected {ACTION_DIM} positions named {ACTION_NAMES[0]} … "
            f"{ACTION_NAMES[-1]}; "
            f"missing {', '.join(missing) or 'none'}, got {len(message.name)} names and "
            f"{len(message.position)} positions"
        )
    targets = np.array([message.position[place[name]] for name in ACTION_NAMES], dtype=np.float64)
    if not np.all(np.isfinite(targets)):
        raise JointStateError(f"joint targets: expected finite positions; got {targets.tolist()}")
    return targets
