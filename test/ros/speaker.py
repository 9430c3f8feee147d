"""A process that says or hears topics of the robot, for tests of DDS security: one line per event.

    python speaker.py say|hear WHAT[,WHAT …] NODE WORD

`say` sends messages that bear WORD until it is ended; `hear` prints the word in each that comes,
and what it is where there are several.
"""

import sys
from functools import partial

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from visualization_msgs.msg import MarkerArray
from vla_oft_ros.msg import ActionChunk, EpisodeStatus, PruningStatus, RetainedTokens, SafetyStatus

TOPICS = {
    "chunks": (ActionChunk, "/action_chunk"),
    "targets": (JointState, "/joint_targets"),
    "tokens": (RetainedTokens, "/retained_tokens"),
    "pruning": (PruningStatus, "/pruning_status"),
    "safety": (SafetyStatus, "/safety_status"),
    "episodes": (EpisodeStatus, "/episode_status"),
    "joints": (JointState, "/follower_left/joint_states"),
    "camera": (Image, "/cam_high/camera/color/image_rect_raw"),
    "markers": (MarkerArray, "/viewer/markers"),
    "overlay": (Image, "/viewer/overlay/cam_high"),
}
_LISTEN = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def word_of(message: object) -> str:
    """What tells who said it."""
    if isinstance(message, ActionChunk):
        return str(message.instruction)
    return str(message.name[0]) if isinstance(message, JointState) else "something"


def main() -> None:
    act, what, name, word = sys.argv[1:]
    kinds = what.split(",")
    try:
        rclpy.init()
        node = rclpy.create_node(name)
        tell("ready")
        if act == "say":
            kind, topic = TOPICS[what]
            publisher = node.create_publisher(kind, topic, 10)
    except Exception as error:  # whatever the middleware says
        tell(f"refused {' '.join(str(error).split())}")
        return

    def say() -> None:
        if kind is ActionChunk:
            publisher.publish(ActionChunk(instruction=word))
        else:
            publisher.publish(JointState(name=[word]))
        tell("said")

    def hear(start: str, message: object) -> None:
        tell(f"heard {start}{word_of(message)}")

    if act == "say":
        node.create_timer(0.05, say)
    else:
        for each in kinds:
            start = f"{each} " if len(kinds) > 1 else ""
            node.create_subscription(*TOPICS[each], partial(hear, start), _LISTEN)
    rclpy.spin(node)


if __name__ == "__main__":
    main()
