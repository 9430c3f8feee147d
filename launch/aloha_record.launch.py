"""Starts the recorder, and on request the simulated ALOHA with its scripted operator.

    ros2 launch vla_oft_ros aloha_record.launch.py profile:=interbotix_main output:=/data/fold
    instruction:="fold the shirt"

Drivers, cameras and teleoperation of a real robot are started as always. In a second terminal
`vla_oft record --attach` shows the recorder and obeys the keyboard.
"""

from __future__ import annotations

from launch import Action, LaunchDescription

from vla_oft_ros.ros.launch_nodes import Argument, Launch, describe, end_together, switch

ARGUMENTS = {
    "sim": switch("Start the simulated ALOHA and the scripted operator"),
    "output": Argument("Folder of the data set; empty keeps output_dir of the file."),
    "instruction": Argument("What is done; empty keeps the file or waits for the topic."),
    "gripper_trigger": Argument("off, start or start_and_stop; empty keeps the file."),
}


def start(launch: Launch) -> list[Action]:
    recorded: dict[str, object] = {
        "output_dir": launch.text("output"),
        "instruction": launch.text("instruction"),
        "gripper_trigger": launch.text("gripper_trigger"),
    }
    if not launch.is_true("sim"):
        return end_together([launch.node("recorder_node", recorded)])
    # The simulated cameras take one picture per control step.
    recorded["camera_rate_hz"] = launch.says("sim_node", "control_rate_hz")
    others = [launch.node(name) for name in ("sim_node", "teleop_node")]
    return end_together([launch.node("recorder_node", recorded), *others])


def generate_launch_description() -> LaunchDescription:
    """Arguments, then everything that depends on them."""
    return describe(ARGUMENTS, start)
