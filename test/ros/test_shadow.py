"""Shadow mode: nothing reaches the robot, and the difference to the teleoperator is told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from ros.graph import Graph, parameters
from sensor_msgs.msg import JointState

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES, JOINT_STATE_NAMES, load_profile, start_pose
from vla_oft_ros.ros.controller_node import ControllerNode
from vla_oft_ros.ros.conversions import chunk_to_msg, joint_state_to_msg
from vla_oft_ros.ros.robot_io import targets_from_msg, targets_to_msg
from vla_oft_ros.types import ActionChunk

TELEOP = start_pose(0.5)
WANTED = TELEOP + 0.1


class Teleoperation:
    """Leaders and followers at rest in one pose, and a policy that wants another one."""

    def __init__(self, graph: Graph, profile_name: str = "sim") -> None:
        self._node = graph.ear
        self.profile = profile = load_profile(profile_name)
        topics = (*profile.follower_joint_state_topics, *profile.leader_joint_state_topics)
        self._states = [self._node.create_publisher(JointState, topic, 10) for topic in topics]
        self._targets = self._node.create_publisher(JointState, "teleop", 10)
        self._chunks = self._node.create_publisher(messages.ActionChunk, "action_chunk", 10)
        self._node.create_timer(0.01, self._publish)
        self._node.create_timer(0.2, self._ask_policy)

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _publish(self) -> None:
        gripper = self.profile.gripper
        span = gripper.leader_joint_open_rad - gripper.leader_joint_closed_rad
        leader_rad = gripper.leader_joint_closed_rad + 0.5 * span
        servo = [gripper.action_to_servo_rad(0.5)] * 2 + [leader_rad] * 2
        for publisher, servo_rad in zip(self._states, servo, strict=True):
            values = np.array([*TELEOP[:6], servo_rad, 0.03, -0.03])
            names = self.profile.joint_names
            if len(names) == 7 and names[0] == JOINT_STATE_NAMES[0]:
                names = JOINT_STATE_NAMES
            message = joint_state_to_msg(names, values[: len(names)], self._now_ns())
            publisher.publish(message)
        self._targets.publish(targets_to_msg(TELEOP, self._now_ns()))

    def _ask_policy(self) -> None:
        chunk = ActionChunk(
            actions=np.tile(WANTED, (25, 1)),
            stamp_ns=self._now_ns(),
            dt_ns=40_000_000,
            instruction="",
            inference_s=0.0,
        )
        self._chunks.publish(chunk_to_msg(chunk, ACTION_NAMES))


@pytest.mark.parametrize(
    ("profile", "teleop_topic"), [("sim", ""), ("sim", "teleop"), ("agilex", "")]
)
def test_a_shadow_moves_nothing_and_tells_the_difference_to_the_teleoperator(
    make_graph: Callable[..., Graph], profile: str, teleop_topic: str
) -> None:
    topic = {"teleop_topic": teleop_topic} if teleop_topic else {}
    graph = make_graph(*parameters(shadow="true", profile=profile, **topic))
    Teleoperation(graph, profile)
    told = graph.hear(JointState, "joint_targets")
    shadow = graph.hear(JointState, "/controller_node/shadow")
    diagnostics = graph.hear(DiagnosticArray, "/diagnostics")
    node = graph.add(ControllerNode())
    assert node.autostart()

    def there() -> bool:
        return bool(shadow) and np.abs(targets_from_msg(shadow[-1]) - WANTED).max() < 1e-6

    graph.until(there, "the shadow's target")

    def values() -> dict[str, str]:
        parts = {status.name: status for array in diagnostics for status in array.status}
        part = parts.get("/controller_node: shadow")
        return {pair.key: pair.value for pair in part.values} if part else {}

    graph.until(
        lambda: abs(float(values().get("arm_difference_rad_p95", "0")) - 0.1) < 1e-3,
        "the difference of 0.1 rad",
    )
    assert told == []
    assert graph.ear.get_publishers_info_by_topic("/joint_targets") == []
    assert float(values()["gripper_difference_p50"]) == pytest.approx(0.1, abs=0.05)


def test_a_robot_that_does_not_follow_its_shadow_is_no_tracking_error(
    make_graph: Callable[..., Graph],
) -> None:
    graph = make_graph(
        *parameters(shadow="true", safety__max_tracking_error_rad=0.05, safety__ease_in_s=0.1)
    )
    Teleoperation(graph)
    states = graph.hear(messages.SafetyStatus, "safety_status")
    shadow = graph.hear(JointState, "/controller_node/shadow")
    assert graph.add(ControllerNode()).autostart()
    graph.until(lambda: len(shadow) > 40, "more than a second of targets")
    assert messages.SafetyStatus.ESTOP not in {status.state for status in states}
