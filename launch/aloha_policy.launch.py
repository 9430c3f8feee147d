"""Starts everything that lets a policy move an ALOHA: policy_node, controller_node, and on request
the simulated robot and the viewer.

    ros2 launch vla_oft_ros aloha_policy.launch.py checkpoint:=/path/to/checkpoint
    instruction:="transfer the cube"

The YAML files in config/ are what one edits; the arguments here override only facts of the
deployment, and an empty argument keeps what the file says. The demo without a ROS installation
starts the same nodes from the same files.
"""

from __future__ import annotations

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from vla_oft_ros.security.environment import secured

PACKAGE = "vla_oft_ros"
VIEWER = Path(__file__).parent / "aloha_viewer.launch.py"
KILL_AFTER_S = "30"
"""A policy ends when its inference does; on a busy machine that takes a while."""

ARGUMENTS = {
    "sim": ("false", "Start the simulated ALOHA and use its time (true or false)."),
    "checkpoint": (
        "",
        "Directory of the policy's checkpoint; empty keeps policy.checkpoint_dir of the file.",
    ),
    "device": ("", "Torch device of the policy: auto, cpu, cuda, cuda:1; empty keeps the file."),
    "instruction": ("", "What the robot shall do; empty keeps the file or waits for the topic."),
    "profile": ("", "Robot profile of config/aloha.yaml; empty keeps the file."),
    "viewer": (
        "false",
        "Publish overlays, planned paths and both arms for RViz or Foxglove (true or false).",
    ),
    "rviz": (
        "false",
        "Start the viewer, and RViz with config/aloha_policy.rviz (true or false).",
    ),
    "record": (
        "false",
        "Record a rosbag2 (MCAP) of cameras, joints, chunks and targets (true or false).",
    ),
    "bag": ("", "Folder of the recording; empty names it by date."),
    "security": (
        "",
        "Keystore of `vla_oft make-keystore`: every node in its enclave; empty is no security.",
    ),
    "config_dir": (
        "",
        "Folder of the nodes' YAML files; empty is the installed one.",
    ),
    "log_level": ("info", "Log level of the nodes."),
}


def _is_true(context: LaunchContext, name: str) -> bool:
    text = LaunchConfiguration(name).perform(context).lower()
    if text not in ("true", "false"):
        raise ValueError(f"launch argument {name}: expected true or false; got {text!r}")
    return text == "true"


def _start(context: LaunchContext) -> list:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    share = FindPackageShare(PACKAGE)
    config_dir = argument("config_dir") or PathJoinSubstitution([share, "config"]).perform(context)
    sim = _is_true(context, "sim")

    def node(name: str, yaml: str, overrides: dict[str, object]) -> Node:
        given = {key: value for key, value in overrides.items() if value != ""}
        given |= {"exit_with_parent": True}
        if name != "sim_node":
            given["use_sim_time"] = sim
        return Node(
            package=PACKAGE,
            executable=name,
            name=name,
            output="screen",
            emulate_tty=True,
            sigkill_timeout=KILL_AFTER_S,
            parameters=[f"{config_dir}/{yaml}", given],
            arguments=["--ros-args", "--log-level", f"{name}:={argument('log_level')}"],
            additional_env=secured(argument("security"), name),
        )

    profile = argument("profile")
    nodes = [
        node(
            "policy_node",
            "policy.yaml",
            {
                "policy.checkpoint_dir": argument("checkpoint"),
                "policy.device": argument("device"),
                "instruction": argument("instruction"),
                "profile": profile,
            },
        ),
        node("controller_node", "controller.yaml", {"profile": profile}),
    ]
    if sim:
        nodes.append(node("sim_node", "sim.yaml", {"profile": profile}))
    # One gone, all go: a robot must not be driven by half a system.
    actions: list = [*nodes]
    actions += [
        RegisterEventHandler(
            OnProcessExit(
                target_action=started, on_exit=[EmitEvent(event=Shutdown(reason="a node ended"))]
            )
        )
        for started in nodes
    ]
    rviz = _is_true(context, "rviz")
    if _is_true(context, "viewer") or rviz:
        # Not among those above: the robot goes on when a viewer ends.
        passed = {"sim": str(sim), "rviz": str(rviz), "profile": profile, "config_dir": config_dir}
        passed |= {name: argument(name) for name in ("log_level", "security")}
        actions.append(
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(VIEWER)), launch_arguments=passed.items()
            )
        )
    if _is_true(context, "record"):
        bag = ["-o", argument("bag")] if argument("bag") else []
        sim_time = ["--use-sim-time"] if sim else []
        actions.append(
            ExecuteProcess(
                cmd=["ros2", "bag", "record", "--all", "-s", "mcap", *sim_time, *bag],
                output="screen",
                additional_env=secured(argument("security"), "operator"),
            )
        )
    return actions


def generate_launch_description() -> LaunchDescription:
    """Arguments, then everything that depends on them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=_start)])
