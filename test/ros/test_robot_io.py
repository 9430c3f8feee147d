"""The robot on the wire: joints by name in any order, and what cannot be used is refused."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from ros.graph import Graph
from sensor_msgs.msg import JointState

from vla_oft_ros.aloha import (
    ACTION_DIM,
    ACTION_NAMES,
    ARMS,
    JOINT_STATE_NAMES,
    JointStateError,
    load_profile,
)
from vla_oft_ros.ros.conversions import joint_state_to_msg, stamp_from_msg
from vla_oft_ros.ros.robot_io import FollowerStates, targets_from_msg, targets_to_msg

PROFILE = load_profile("sim")
POSITIONS = np.linspace(-0.4, 0.4, len(JOINT_STATE_NAMES))

targets = st.lists(st.floats(-3.0, 3.0), min_size=ACTION_DIM, max_size=ACTION_DIM).map(np.array)


@given(targets=targets, stamp_ns=st.integers(0, 2**31 * 10**9 - 1))
def test_joint_targets_come_back_from_their_message(targets: np.ndarray, stamp_ns: int) -> None:
    message = deserialize_message(serialize_message(targets_to_msg(targets, stamp_ns)), JointState)
    np.testing.assert_array_equal(targets_from_msg(message), targets)
    assert stamp_from_msg(message.header.stamp) == stamp_ns
    assert message.name == list(ACTION_NAMES) and message.name[0].startswith("left/")


@given(targets=targets, order=st.permutations(range(ACTION_DIM)))
def test_the_order_of_the_names_does_not_matter(targets: np.ndarray, order: list[int]) -> None:
    message = JointState(
        name=[ACTION_NAMES[place] for place in order], position=targets[order].tolist()
    )
    np.testing.assert_array_equal(targets_from_msg(message), targets)


@pytest.mark.parametrize(
    ("names", "count", "expected"),
    [
        (ACTION_NAMES[1:], 13, "missing left/waist, got 13 names and 13 positions"),
        (ACTION_NAMES, 13, "missing none, got 14 names and 13 positions"),
        ((), 0, "got 0 names and 0 positions"),
        (JOINT_STATE_NAMES, 9, "missing left/waist"),
    ],
)
def test_targets_that_are_not_all_fourteen_are_refused(
    names: tuple[str, ...], count: int, expected: str
) -> None:
    with pytest.raises(JointStateError) as refused:
        targets_from_msg(JointState(name=list(names), position=[0.0] * count))
    assert expected in str(refused.value)
    assert "expected 14 positions named left/waist … right/gripper" in str(refused.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_targets_that_are_no_numbers_are_refused(value: float) -> None:
    position = np.zeros(ACTION_DIM)
    position[5] = value
    with pytest.raises(JointStateError, match="expected finite positions; got"):
        targets_from_msg(targets_to_msg(position, 0))


class Followers:
    """Both joint_states topics, and what `FollowerStates` made of them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.heard: list[tuple[str, int, np.ndarray]] = []
        self.states = FollowerStates(graph.ear, PROFILE, self.on_joints)
        self.states.setup()
        self._publishers = {
            arm: graph.ear.create_publisher(JointState, topic, 10)
            for arm, topic in zip(ARMS, PROFILE.follower_joint_state_topics, strict=True)
        }

    def on_joints(self, arm: str, stamp_ns: int, qpos: np.ndarray) -> None:
        self.heard.append((arm, stamp_ns, qpos))

    def send(self, arm: str, message: JointState) -> None:
        self._publishers[arm].publish(message)

    def until_heard(self, arm: str, message: JointState) -> tuple[str, int, np.ndarray]:
        before = len(self.heard)

        def arrived() -> bool:
            self.send(arm, message)
            return len(self.heard) > before

        self.graph.until(arrived, "joint states")
        return self.heard[-1]


@pytest.fixture
def followers(make_graph: Callable) -> Followers:
    return Followers(make_graph())


@pytest.mark.parametrize("arm", ARMS)
def test_joint_states_arrive_by_arm_with_their_stamp_whatever_the_order_of_the_names(
    arm: str, followers: Followers
) -> None:
    order = np.random.default_rng(0).permutation(len(JOINT_STATE_NAMES))
    names = [JOINT_STATE_NAMES[place] for place in order]
    message = joint_state_to_msg(names, POSITIONS[order], 4_000_000_002)
    got_arm, stamp_ns, qpos = followers.until_heard(arm, message)
    assert (got_arm, stamp_ns) == (arm, 4_000_000_002)
    np.testing.assert_array_equal(qpos, PROFILE.arm_qpos(JOINT_STATE_NAMES, POSITIONS))


def test_a_message_without_waist_is_refused_and_told_with_its_topic(
    followers: Followers, capfd: pytest.CaptureFixture[str]
) -> None:
    good = joint_state_to_msg(JOINT_STATE_NAMES, POSITIONS, 1)
    bad = joint_state_to_msg(JOINT_STATE_NAMES[1:], POSITIONS[1:], 2)
    followers.until_heard("left", good)
    count = len(followers.heard)
    capfd.readouterr()

    def refused() -> bool:
        followers.send("left", bad)
        return followers.states.refused > 0

    followers.graph.until(refused, "a refusal")
    assert all(stamp_ns == 1 for _, stamp_ns, _ in followers.heard[count:])
    told = capfd.readouterr().err
    assert PROFILE.follower_joint_state_topics[0] in told
    assert "waist missing, got shoulder" in told and "config/aloha.yaml" in told
    # One bad message stops nothing.
    followers.until_heard("left", good)


def test_after_teardown_nothing_is_heard(followers: Followers) -> None:
    message = joint_state_to_msg(JOINT_STATE_NAMES, POSITIONS, 1)
    followers.until_heard("right", message)
    followers.states.teardown()
    followers.graph.listen_in_silence()
    count = len(followers.heard)
    followers.send("right", message)
    followers.graph.listen_in_silence()
    assert len(followers.heard) == count
