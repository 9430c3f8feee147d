"""A process that says or hears chunks or targets, for tests of DDS security: one line per event.

    python speaker.py say|hear chunks|targets NODE WORD

`say` sends messages that bear WORD until it is ended; `hear` prints the word in each that comes.
"""

import sys

import rclpy
from sensor_msgs.msg import JointState
from vla_oft_ros.msg import ActionChunk

TOPICS = {"chunks": (ActionChunk, "/action_chunk"), "targets": (JointState, "/joint_targets")}


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    act, what, name, word = sys.argv[1:]
    kind, topic = TOPICS[what]
    try:
        rclpy.init()
        node = rclpy.create_node(name)
        tell("ready")
        if act == "say":
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

    def hear(message: ActionChunk | JointState) -> None:
        tell(f"heard {message.instruction if kind is ActionChunk else message.name[0]}")

    if act == "say":
        node.create_timer(0.05, say)
    else:
        node.create_subscription(kind, topic, hear, 10)
    rclpy.spin(node)


if __name__ == "__main__":
    main()
