"""Starts the viewer, and RViz on request: overlays of the cameras, planned paths, both arms.

    ros2 launch vla_oft_ros aloha_viewer.launch.py rviz:=true profile:=interbotix_main

It only listens, so it may run on another machine than the robot and come and go as it likes.
aloha_policy.launch.py starts it with viewer:=true or rviz:=true.
"""

from __future__ import annotations

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from vla_oft_ros.security.environment import secured

PACKAGE = "vla_oft_ros"
RVIZ = "rviz2"
NO_RVIZ = (
    "rviz:=true: expected rviz2 to be installed and found none; the viewer runs without it. "
    "Install ros-jazzy-rviz2, or open its topics in Foxglove"
)

ARGUMENTS = {
    "sim": ("false", "Use the time of the simulated ALOHA (true or false)."),
    "rviz": ("false", "Start RViz with config/aloha_policy.rviz (true or false)."),
    "profile": ("", "Robot profile of config/aloha.yaml; empty keeps the file."),
    "security": (
        "",
        "Keystore of `vla_oft make-keystore`: every node in its enclave; empty is no security.",
    ),
    "config_dir": ("", "Folder of token_viewer.yaml; empty is the installed one."),
    "log_level": ("info", "Log level of the viewer."),
}


def _is_true(context: LaunchContext, name: str) -> bool:
    text = LaunchConfiguration(name).perform(context).lower()
    if text not in ("true", "false"):
        raise ValueError(f"launch argument {name}: expected true or false; got {text!r}")
    return text == "true"


def _is_installed(package: str) -> bool:
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def _start(context: LaunchContext) -> list:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    share = FindPackageShare(PACKAGE)
    config_dir = argument("config_dir") or PathJoinSubstitution([share, "config"]).perform(context)
    given: dict[str, object] = {"exit_with_parent": True, "use_sim_time": _is_true(context, "sim")}
    if argument("profile"):
        given["profile"] = argument("profile")
    name = "token_viewer_node"
    actions: list = [
        Node(
            package=PACKAGE,
            executable=name,
            name=name,
            output="screen",
            emulate_tty=True,
            parameters=[f"{config_dir}/token_viewer.yaml", given],
            arguments=["--ros-args", "--log-level", f"{name}:={argument('log_level')}"],
            additional_env=secured(argument("security"), name),
        )
    ]
    if _is_true(context, "rviz"):
        if not _is_installed(RVIZ):
            return [*actions, LogInfo(msg=NO_RVIZ)]
        actions.append(
            Node(
                package=RVIZ,
                executable=RVIZ,
                arguments=["-d", f"{config_dir}/aloha_policy.rviz"],
                parameters=[{"use_sim_time": given["use_sim_time"]}],
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
