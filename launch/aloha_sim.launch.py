"""Starts the simulated ALOHA alone: cameras, joint states and /clock, waiting for joint targets.

ros2 launch vla_oft_ros aloha_sim.launch.py
"""

from __future__ import annotations

from launch import Action, LaunchDescription

from vla_oft_ros.ros.launch_nodes import Argument, Launch, describe, end_together

ARGUMENTS = {"seed": Argument("Seed of the objects' poses, an integer; empty keeps the file.")}


def start(launch: Launch) -> list[Action]:
    seed = launch.text("seed")
    if seed and not seed.isdecimal():
        raise ValueError(f"launch argument seed: expected an integer of at least 0; got {seed!r}")
    return end_together([launch.node("sim_node", {"seed": int(seed)} if seed else {})])


def generate_launch_description() -> LaunchDescription:
    """Arguments, then everything that depends on them."""
    return describe(ARGUMENTS, start)
