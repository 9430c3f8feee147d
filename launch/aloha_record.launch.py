"""Starts the recorder, and on request the simulated ALOHA with its scripted operator.

    ros2 launch vla_oft_ros aloha_record.launch.py profile:=interbotix_main output:=/data/fold
    instruction:="fold the shirt"

Drivers, cameras and teleoperation of a real robot are started as always. In a second terminal
`vla_oft record --attach` shows the recorder and obeys the keyboard.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from vla_oft_ros.security.environment import secured

PACKAGE = "vla_oft_ros"

ARGUMENTS = {
    "sim": ("false", "Start the simulated ALOHA and the scripted operator (true or false)."),
    "output": ("", "Folder of the data set; empty keeps output_dir of the file."),
    "profile": ("", "Robot profile of config/aloha.yaml; empty keeps the file."),
    "instruction": ("", "What is done; empty keeps the file or waits for the topic."),
    "gripper_trigger": ("", "off, start or start_and_stop; empty keeps the file."),
    "security": (
        "",
        "Keystore of `vla_oft make-keystore`: every node in its enclave; empty is no security.",
    ),
    "config_dir": ("", "Folder of recorder.yaml; empty is the installed one."),
    "log_level": ("info", "Log level of the nodes."),
}


def _start(context: LaunchContext) -> list:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    share = FindPackageShare(PACKAGE)
    config_dir = argument("config_dir") or PathJoinSubstitution([share, "config"]).perform(context)
    sim = argument("sim").lower()
    if sim not in ("true", "false"):
        raise ValueError(f"launch argument sim: expected true or false; got {sim!r}")

    def node(name: str, yaml: str, overrides: dict[str, object]) -> Node:
        # As strings they would be read as YAML: off is a word here, and so is an instruction.
        given: dict[str, object] = {
            key: ParameterValue(value, value_type=str) if isinstance(value, str) else value
            for key, value in overrides.items()
            if value != ""
        }
        given |= {"exit_with_parent": True}
        if name != "sim_node":
            given["use_sim_time"] = sim == "true"
        return Node(
            package=PACKAGE,
            executable=name,
            name=name,
            output="screen",
            emulate_tty=True,
            parameters=[f"{config_dir}/{yaml}", given],
            arguments=["--ros-args", "--log-level", f"{name}:={argument('log_level')}"],
            additional_env=secured(argument("security"), name),
            # A large episode takes its time to be saved.
            sigterm_timeout="60",
        )

    profile = argument("profile")
    recorded: dict[str, object] = {
        "output_dir": argument("output"),
        "profile": profile,
        "instruction": argument("instruction"),
        "gripper_trigger": argument("gripper_trigger"),
    }
    if sim == "true":
        recorded["camera_rate_hz"] = 25.0
    nodes = [node("recorder_node", "recorder.yaml", recorded)]
    if sim == "true":
        nodes.append(node("sim_node", "sim.yaml", {"profile": profile}))
        nodes.append(node("teleop_node", "teleop.yaml", {"profile": profile}))
    actions: list = [*nodes]
    actions += [
        RegisterEventHandler(
            OnProcessExit(
                target_action=started, on_exit=[EmitEvent(event=Shutdown(reason="a node ended"))]
            )
        )
        for started in nodes
    ]
    return actions


def generate_launch_description() -> LaunchDescription:
    """Arguments, then everything that depends on them."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=_start)])
