"""The viewer as the launch files start it, with RViz where that is asked for and installed.

It only listens: whatever becomes of it, the robot goes on.
"""

from __future__ import annotations

from launch import Action
from launch.actions import LogInfo
from launch_ros.actions import Node

from vla_oft_ros.ros.launch_nodes import Launch, is_installed

RVIZ = "rviz2"
NO_RVIZ = (
    "rviz:=true: expected rviz2 to be installed and found none; the viewer runs without it. "
    "Install ros-jazzy-rviz2, or open its topics in Foxglove"
)


def viewer_actions(launch: Launch) -> list[Action]:
    """token_viewer_node, and RViz or a word about why there is none."""
    actions: list[Action] = [launch.node("token_viewer_node")]
    if not launch.is_true("rviz"):
        return actions
    if not is_installed(RVIZ):
        return [*actions, LogInfo(msg=NO_RVIZ)]
    rviz = Node(
        package=RVIZ,
        executable=RVIZ,
        namespace=launch.text("namespace") or None,
        arguments=["-d", str(launch.config_dir / "aloha_policy.rviz")],
        parameters=[{"use_sim_time": launch.is_true("sim")}],
        additional_env=launch.enclave("operator"),
    )
    return [*actions, rviz]
