"""Starts the simulated ALOHA alone: cameras, joint states and /clock, waiting for joint targets.

ros2 launch vla_oft_ros aloha_sim.launch.py
"""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare


def generate_launch_description() -> LaunchDescription:
    """The simulated robot with the parameters of config/sim.yaml."""
    params = PathJoinSubstitution([FindPackageShare("vla_oft_ros"), "config", "sim.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "seed", default_value="0", description="Seed of the object poses."
            ),
            Node(
                package="vla_oft_ros",
                executable="sim_node",
                name="sim_node",
                output="screen",
                emulate_tty=True,
                parameters=[
                    params,
                    {
                        "exit_with_parent": True,
                        "seed": ParameterValue(LaunchConfiguration("seed"), value_type=int),
                    },
                ],
            ),
        ]
    )
