"""One ceremony on one arm through Interbotix' own Python package, in a process of its own.

    python -m vla_oft_ros.ros.xs_bring_up CEREMONY NAMESPACE

`interbotix_xs_modules` makes a global node, spins it while it waits, and waits for ever for a
driver that is not there; so `interbotix.py` starts this beside the controller, before that is
active, and ends it when it takes too long. Its pose functions are not used: they bypass the safety
gate, refuse a whole arm for one joint and write motor profiles, see docs/safety.md. API:
interbotix_ros_toolboxes, branches humble, jazzy and rolling, which agree.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

import rclpy

from vla_oft_ros.ros.lifecycle import exit_with_parent
from vla_oft_ros.ros.xs_ceremonies import CEREMONIES

PACKAGE = "interbotix_xs_modules"
ROBOT_MODEL = "aloha_vx300s"
"""Only a label here: `InterbotixRobotXSCore` looks nothing up by it."""


def is_installed() -> bool:
    """True if Interbotix' package can be imported."""
    return find_spec(PACKAGE) is not None


def bring_up(ceremony: str, namespace: str) -> None:
    """Makes the requests of a ceremony; blocks until the driver has answered each.

    Args:
        ceremony: One of `CEREMONIES`.
        namespace: Namespace of the driver, as /follower_left.
    """
    robot = import_module("interbotix_common_modules.common_robot.robot")
    core_module = import_module(f"{PACKAGE}.xs_robot.core")
    name = namespace.strip("/")
    node = robot.create_interbotix_global_node(node_name=f"bring_up_{name.replace('/', '_')}")
    try:
        core = core_module.InterbotixRobotXSCore(
            robot_model=ROBOT_MODEL, robot_name=name, node=node
        )
        for request in CEREMONIES[ceremony]:
            getattr(core, f"robot_{request.service}")(**request.fields)
    finally:
        node.destroy_node()


def main() -> int:
    """Runs one ceremony; returns the exit code."""
    exit_with_parent()
    ceremony, namespace = sys.argv[1:3]
    rclpy.init(args=sys.argv[3:])
    try:
        bring_up(ceremony, namespace)
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
