"""A viewer hears and makes what somebody looks at, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rclpy.node import Node
from ros.viewer_bench import FRAME_NS, HIGH, PROFILE, Bench, tokens
from sensor_msgs.msg import CompressedImage, Image, JointState
from visualization_msgs.msg import MarkerArray

from vla_oft_ros.aloha import CAMERAS, start_pose

ROS_OWN = {"/clock", "/parameter_events"}
SPOKEN = {"/action_chunk", "/pruning_status", "/safety_status"}
JOINTS = {"/joint_targets", *PROFILE.follower_joint_state_topics}
OVERLAY = f"/viewer/overlay/{HIGH}"
CAMERA = PROFILE.camera_topic(HIGH)
OUTPUTS = {
    "/viewer/markers": (MarkerArray, SPOKEN | JOINTS),
    "/viewer/joint_states": (JointState, JOINTS),
    "/viewer/joint_targets": (JointState, JOINTS),
    OVERLAY: (Image, {"/retained_tokens", CAMERA}),
    f"{OVERLAY}/compressed": (CompressedImage, {"/retained_tokens", CAMERA}),
}
"""What somebody may look at → its type, and what has to be heard for it."""


def ears(node: Node) -> set[str]:
    """Topics that a node has subscriptions of; a camera is heard as raw or as compressed."""
    names = {one.topic_name.removesuffix("/compressed") for one in node.subscriptions}
    return names - ROS_OWN


def is_idle(bench: Bench) -> bool:
    return not ears(bench.node) and not bench.heard() and bench.node._rounds.is_canceled()


@pytest.mark.parametrize("topic", OUTPUTS)
def test_what_is_looked_at_decides_what_is_heard_and_published(
    topic: str, make_bench: Callable[..., Bench]
) -> None:
    bench = make_bench()
    kind, needed = OUTPUTS[topic]
    sent: set[str] = set()
    for publisher in bench.node.publishers:
        if publisher.topic_name.startswith("/viewer"):
            publisher.publish = lambda message, name=publisher.topic_name: sent.add(name)
    bench.graph.hear(kind, topic)
    bench.graph.until(lambda: bench.heard() == needed, "what is needed")
    assert ears(bench.node) == needed
    if CAMERA in needed:
        bench.show_frames(2)
        bench.say(tokens(FRAME_NS))
    else:
        bench.move(start_pose(), bench.now_ns())
        bench.speak_targets(start_pose())
    bench.graph.until(lambda: sent, "an output")
    bench.graph.listen_in_silence()
    assert sent == {topic}


def test_a_viewer_at_which_nobody_looks_hears_nothing_and_does_nothing(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    bench.graph.listen_in_silence()
    assert is_idle(bench)
    bench.node.hear_everything()
    everything = {PROFILE.camera_topic(camera) for camera in CAMERAS} | {"/retained_tokens"}
    assert ears(bench.node) == everything | SPOKEN | JOINTS
    bench.graph.until(lambda: is_idle(bench), "the end of listening")


def test_who_comes_back_sees_the_overlays_of_now_and_none_of_before(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    for _ in range(2):
        shown: list[Image] = []
        looking = bench.graph.ear.create_subscription(Image, OVERLAY, shown.append, 10)
        bench.graph.until(lambda: CAMERA in bench.heard(), "a viewer of the camera")
        bench.say(tokens(2 * FRAME_NS))
        bench.graph.listen_in_silence()
        assert shown == []  # its frame came to the one who looked before
        bench.show_frames(3)
        bench.say(tokens(3 * FRAME_NS))
        bench.graph.until(lambda shown=shown: shown, "an overlay")
        bench.graph.ear.destroy_subscription(looking)
        bench.graph.until(lambda: is_idle(bench), "the end of listening")


def test_nobody_is_called_silent_who_was_not_listened_to(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(stale_after_s=1.0)
    texts: list[str] = []

    def look() -> object:
        return bench.graph.ear.create_subscription(
            MarkerArray, "viewer/markers", lambda shown: texts.append(shown.markers[0].text), 10
        )

    for _ in range(2):
        texts.clear()
        looking = look()
        bench.graph.until(lambda: texts, "words")
        assert texts[0] == "policy not heard yet\ncontroller not heard yet"
        bench.graph.until(lambda: texts[-1] == "policy silent\ncontroller silent", "silence")
        bench.graph.ear.destroy_subscription(looking)
        bench.graph.until(lambda: is_idle(bench), "the end of listening")
