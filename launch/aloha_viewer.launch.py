"""Starts the viewer, and RViz on request: overlays of the cameras, planned paths, both arms.

    ros2 launch vla_oft_ros aloha_viewer.launch.py rviz:=true profile:=interbotix_main

It only listens, so it may run on another machine than the robot and come and go as it likes.
aloha_policy.launch.py starts it with viewer:=true or rviz:=true.
"""

from __future__ import annotations

from launch import LaunchDescription

from vla_oft_ros.ros.launch_nodes import describe, switch
from vla_oft_ros.ros.launch_viewer import viewer_actions

ARGUMENTS = {
    "sim": switch("Use the time of the simulated ALOHA"),
    "rviz": switch("Start RViz with config/aloha_policy.rviz"),
}


def generate_launch_description() -> LaunchDescription:
    """Arguments, then everything that depends on them."""
    return describe(ARGUMENTS, viewer_actions)
