"""A package with the names and signatures of interbotix_xs_modules; writes down what it is asked.

It speaks to nobody: what the requests do on the wire is tested with generated messages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROBOT = """
import rclpy
from rclpy.node import Node


class InterbotixRobotNode(Node):
    def __init__(self, node_name="interbotix_robot_manipulation", namespace=None, *args, **kwargs):
        super().__init__(node_name=node_name, namespace=namespace, *args, **kwargs)


def create_interbotix_global_node(
    node_name="interbotix_robot_manipulation", namespace=None, *args, **kwargs
):
    if not rclpy.ok():
        rclpy.init(*args, **kwargs)
    return InterbotixRobotNode(node_name=node_name, namespace=namespace)
"""
CORE = """
import json
import os
import time
from pathlib import Path


class InterbotixRobotXSCore:
    def __init__(
        self,
        robot_model,
        robot_name=None,
        topic_joint_states="joint_states",
        logging_level=None,
        node_name="interbotix_robot_manipulation",
        node=None,
        args=None,
    ):
        self._namespace = f"/{robot_name}"
        if (Path(__file__).parent / "hangs").exists():
            time.sleep(600)  # as without a driver

    def _write(self, method, **fields):
        if (Path(__file__).parent / "fails").exists():
            raise RuntimeError("the bus does not answer")
        with (Path(__file__).parent / "asked.jsonl").open("a") as file:
            file.write(json.dumps([os.getpid(), self._namespace, method, fields]) + "\\n")

    def robot_set_operating_modes(
        self, cmd_type, name, mode, profile_type="velocity", profile_velocity=0,
        profile_acceleration=0,
    ):
        fields = {"cmd_type": cmd_type, "name": name, "mode": mode}
        fields["profile"] = [profile_type, profile_velocity, profile_acceleration]
        self._write("set_operating_modes", **fields)

    def robot_set_motor_registers(self, cmd_type, name, reg, value):
        self._write("set_motor_registers", cmd_type=cmd_type, name=name, reg=reg, value=value)

    def robot_torque_enable(self, cmd_type, name, enable):
        self._write("torque_enable", cmd_type=cmd_type, name=name, enable=enable)

    def robot_reboot_motors(self, cmd_type, name, enable, smart_reboot=False):
        self._write("reboot_motors", cmd_type=cmd_type, name=name, enable=enable)
"""
"""Signatures of interbotix_ros_toolboxes (jazzy): common_robot/robot.py, xs_robot/core.py."""


class FakeModules:
    """The package, written below a folder that is to be on the import path."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "interbotix_xs_modules" / "xs_robot"
        for path, text in {
            "interbotix_common_modules/common_robot/robot.py": ROBOT,
            "interbotix_xs_modules/xs_robot/core.py": CORE,
        }.items():
            file = root / path
            file.parent.mkdir(parents=True)
            file.write_text(text, encoding="utf-8")
            for folder in (file.parent, file.parent.parent):
                (folder / "__init__.py").touch()

    def set_trouble(self, name: str) -> None:
        """`hangs`: no driver ever answers; `fails`: its first request raises."""
        (self._folder / name).touch()

    def asked(self) -> list[Any]:
        """Process, namespace, method and arguments of every request so far."""
        file = self._folder / "asked.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [json.loads(line) for line in lines]
