"""Starts everything that lets a policy move an ALOHA: policy_node, controller_node, and on request
the simulated robot, the viewer and a recording.

    ros2 launch vla_oft_ros aloha_policy.launch.py checkpoint:=/path/to/checkpoint
    instruction:="transfer the cube"

The demo without a ROS installation starts the same nodes from the same files.
"""

from __future__ import annotations

from pathlib import Path

from launch import Action, LaunchDescription
from launch.actions import ExecuteProcess

from vla_oft_ros.ros.launch_nodes import Argument, Launch, describe, end_together, switch
from vla_oft_ros.ros.launch_viewer import viewer_actions

ARGUMENTS = {
    "sim": switch("Start the simulated ALOHA and use its time"),
    "checkpoint": Argument(
        "Directory of the policy's checkpoint, or shipped:<name>; empty keeps "
        "policy.checkpoint_dir of the file."
    ),
    "device": Argument("Torch device: auto, cpu, cuda, cuda:1; empty keeps policy.device."),
    "instruction": Argument(
        "What the robot shall do; empty keeps the file, else waits for the topic, or in the "
        "simulation does what its task asks for."
    ),
    "shadow": Argument(
        "Move nothing and compare the policy with the teleoperator (true or false); empty keeps "
        "the file.",
        choices=("", "true", "false"),
    ),
    "viewer": switch("Publish overlays, planned paths and both arms for RViz or Foxglove"),
    "rviz": switch("Start the viewer, and RViz with config/aloha_policy.rviz"),
    "record": switch("Record a rosbag2 (MCAP) of cameras, joints, chunks and targets"),
    "bag": Argument("Folder of the recording; empty names it by date."),
}


def start(launch: Launch) -> list[Action]:
    nodes = [
        launch.node(
            "policy_node",
            {
                "policy.checkpoint_dir": launch.text("checkpoint"),
                "policy.device": launch.text("device"),
                "instruction": launch.text("instruction"),
            },
        ),
        launch.node(
            "controller_node",
            {"shadow": launch.is_true("shadow")} if launch.text("shadow") else {},
        ),
    ]
    if launch.is_true("sim"):
        told = launch.text("instruction") or launch.says("policy_node", "instruction")
        nodes.append(launch.node("sim_node", {} if told else {"instruction_topic": "instruction"}))
    actions = end_together(nodes)
    if launch.is_true("viewer") or launch.is_true("rviz"):
        actions += viewer_actions(launch)  # not among those above: the robot goes on without it
    if launch.is_true("record"):
        actions.append(bag(launch))
    return actions


def bag(launch: Launch) -> ExecuteProcess:
    launch.need("record", "ros2bag", "rosbag2_storage_mcap")
    folder = launch.text("bag")
    if folder and Path(folder).expanduser().exists():
        raise ValueError(
            f"launch argument bag: expected a folder that is to be made; {folder} exists"
        )
    return ExecuteProcess(
        cmd=[
            *("ros2", "bag", "record", "--all", "--storage", "mcap"),
            *(["--use-sim-time"] if launch.is_true("sim") else []),
            *(["--output", folder] if folder else []),
        ],
        output="screen",
        additional_env=launch.enclave("operator"),
    )


def generate_launch_description() -> LaunchDescription:
    """Arguments, then everything that depends on them."""
    return describe(ARGUMENTS, start)
