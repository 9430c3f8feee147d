"""The robot as two Interbotix xs_sdk drivers: joint groups and gripper angles out, and the
ceremonies before and after torque.

xs_sdk checks nothing but array lengths, holds the last goal for ever and answers every service
with an empty message; so nothing goes there but through the safety gate, and each ceremony ends by
asking the driver what became of it. `interbotix_xs_msgs` is looked for at run time only. Names,
modes and order: Interbotix/aloha (real_env.py, robot_utils.py), interbotix_xs_sdk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_srvs.srv import Trigger

from vla_oft_ros.aloha import ARM_DIM, ARM_JOINTS, ARMS, RobotProfile
from vla_oft_ros.config import ConfigError

PACKAGE = "interbotix_xs_msgs"
ARM_GROUP, GRIPPER = "arm", "gripper"
ARM_MODE, GRIPPER_MODE = "position", "current_based_position"
GRIPPER_CURRENT_LIMIT = 300
"""Register Current_Limit of the follower's gripper, as teleoperation sets it on both arms
(dual_side_teleop.py); about 0.8 A."""
_ANSWER_TIMEOUT_S = 10.0
"""A reboot of a motor takes about a second."""
_INSTALL = (
    "build it from source beside this package: `git clone -b jazzy "
    "https://github.com/Interbotix/interbotix_ros_core src/interbotix_ros_core && colcon build "
    "--packages-up-to interbotix_xs_msgs`, source install/setup.bash; or set robot_interface to "
    "joint_state"
)


class CeremonyFailed(RuntimeError):
    """A step of a ceremony that did not happen; says which one and on which arm."""


def import_messages(name: str) -> ModuleType:
    """`msg` or `srv` of interbotix_xs_msgs.

    Raises:
        ConfigError: if the package is not there; says how to get it.
    """
    try:
        return import_module(f"{PACKAGE}.{name}")
    except ImportError as error:
        raise ConfigError(
            f"robot_interface interbotix: expected the ROS package {PACKAGE}; {error}. {_INSTALL}"
        ) from None


@dataclass(frozen=True)
class _Driver:
    """Publishers and service clients of one arm."""

    namespace: str
    group: Any
    single: Any
    clients: dict[str, Any]


class InterbotixRobot:
    """Both followers behind xs_sdk.

    Offers the ceremonies as services (std_srvs/Trigger) of its node: `~/prepare_arms` reboots the
    grippers, sets the operating modes and the grippers' current limit, and switches torque on;
    `~/torque_on`, `~/torque_off`, `~/reboot_grippers` do what they say. None of them runs while
    the node is active.

    Args:
        node: Managed node to speak through.
        profile: Namespaces and gripper constants.
        is_idle: Says whether the node gives no targets now.

    Raises:
        ConfigError: if the messages are missing or the profile has no xs_sdk.
    """

    def __init__(self, node: Node, profile: RobotProfile, is_idle: Callable[[], bool]) -> None:
        if not profile.xs_namespaces:
            raise ConfigError(
                f"robot_interface interbotix: expected a profile with xs_namespaces; "
                f"{profile.name!r} has none. Choose another profile, or set robot_interface to "
                "joint_state"
            )
        self._msg, self._srv = import_messages("msg"), import_messages("srv")
        self._node, self._profile, self._is_idle = node, profile, is_idle
        # A ceremony awaits answers in a callback; in the node's own group none could come.
        self._group = ReentrantCallbackGroup()
        self._drivers = [self._driver(namespace) for namespace in profile.xs_namespaces]
        ceremonies = {
            "prepare_arms": self._prepare,
            "torque_on": partial(self._torque, enable=True),
            "torque_off": partial(self._torque, enable=False),
            "reboot_grippers": self._reboot_gripper,
        }
        self._services = [
            node.create_service(
                Trigger,
                f"~/{name}",
                partial(self._run, name, ceremony),
                callback_group=self._group,
            )
            for name, ceremony in ceremonies.items()
        ]

    def publish(self, target: np.ndarray, stamp_ns: int) -> None:
        """Tells both drivers their part of the (14,) joint targets (rad, gripper 0 … 1)."""
        for arm, driver in enumerate(self._drivers):
            command = self._profile.arm_command(target[arm * ARM_DIM : (arm + 1) * ARM_DIM])
            joints, servo_rad = command[:-1].tolist(), float(command[-1])
            driver.group.publish(self._msg.JointGroupCommand(name=ARM_GROUP, cmd=joints))
            driver.single.publish(self._msg.JointSingleCommand(name=GRIPPER, cmd=servo_rad))

    def teardown(self) -> None:
        """Removes publishers, clients and services."""
        for driver in self._drivers:
            self._node.destroy_lifecycle_publisher(driver.group)
            self._node.destroy_lifecycle_publisher(driver.single)
            for client in driver.clients.values():
                self._node.destroy_client(client)
        for service in self._services:
            self._node.destroy_service(service)

    def _driver(self, namespace: str) -> _Driver:
        node = self._node
        types = {
            "torque_enable": self._srv.TorqueEnable,
            "reboot_motors": self._srv.Reboot,
            "set_operating_modes": self._srv.OperatingModes,
            "set_motor_registers": self._srv.RegisterValues,
            "get_robot_info": self._srv.RobotInfo,
        }
        return _Driver(
            namespace=namespace,
            group=node.create_lifecycle_publisher(
                self._msg.JointGroupCommand, f"{namespace}/commands/joint_group", 10
            ),
            single=node.create_lifecycle_publisher(
                self._msg.JointSingleCommand, f"{namespace}/commands/joint_single", 10
            ),
            clients={
                name: node.create_client(kind, f"{namespace}/{name}", callback_group=self._group)
                for name, kind in types.items()
            },
        )

    async def _run(
        self,
        name: str,
        ceremony: Callable[[_Driver], Awaitable[None]],
        request: Trigger.Request,
        response: Trigger.Response,
    ) -> Trigger.Response:
        if not self._is_idle():
            response.message = f"{name}: deactivate the controller first; it is driving the arms"
            return response
        try:
            for driver in self._drivers:
                await ceremony(driver)
        except CeremonyFailed as error:
            self._node.get_logger().error(f"{name}: {error}")
            response.message = str(error)
            return response
        response.success = True
        response.message = f"{name}: done on {' and '.join(ARMS)}"
        return response

    async def _prepare(self, driver: _Driver) -> None:
        await self._reboot_gripper(driver)
        await self._set_mode(driver, "group", ARM_GROUP, ARM_MODE)
        await self._set_mode(driver, "single", GRIPPER, GRIPPER_MODE)
        await self._call(
            driver,
            "set_motor_registers",
            cmd_type="single",
            name=GRIPPER,
            reg="Current_Limit",
            value=GRIPPER_CURRENT_LIMIT,
        )
        await self._torque(driver, enable=True)
        arm = await self._call(driver, "get_robot_info", cmd_type="group", name=ARM_GROUP)
        if tuple(arm.joint_names) != ARM_JOINTS:
            raise CeremonyFailed(
                f"{driver.namespace}: expected the joints {', '.join(ARM_JOINTS)} in group "
                f"{ARM_GROUP!r}; the driver has {', '.join(arm.joint_names) or 'none'}"
            )
        gripper = await self._call(driver, "get_robot_info", cmd_type="single", name=GRIPPER)
        for what, mode, wanted in (
            (ARM_GROUP, arm.mode, ARM_MODE),
            (GRIPPER, gripper.mode, GRIPPER_MODE),
        ):
            if mode != wanted:
                raise CeremonyFailed(
                    f"{driver.namespace}: expected {what} in mode {wanted!r}; the driver says "
                    f"{mode!r}"
                )

    async def _reboot_gripper(self, driver: _Driver) -> None:
        gripper = {"cmd_type": "single", "name": GRIPPER}
        await self._call(driver, "reboot_motors", **gripper, enable=True, smart_reboot=False)

    async def _set_mode(self, driver: _Driver, kind: str, name: str, mode: str) -> None:
        # Profile 0 / 0: every command is taken as it is; the gate has limited it already.
        await self._call(
            driver,
            "set_operating_modes",
            cmd_type=kind,
            name=name,
            mode=mode,
            profile_type="velocity",
            profile_velocity=0,
            profile_acceleration=0,
        )

    async def _torque(self, driver: _Driver, *, enable: bool) -> None:
        for kind, name in (("group", ARM_GROUP), ("single", GRIPPER)):
            await self._call(driver, "torque_enable", cmd_type=kind, name=name, enable=enable)

    async def _call(self, driver: _Driver, service: str, **fields: object) -> Any:
        client = driver.clients[service]
        if not client.service_is_ready():
            raise CeremonyFailed(
                f"{driver.namespace}/{service}: nobody offers this service; is xs_sdk running "
                f"in {driver.namespace}?"
            )
        future = client.call_async(client.srv_type.Request(**fields))
        watchdog = self._node.create_timer(
            _ANSWER_TIMEOUT_S,
            future.cancel,
            callback_group=self._group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        answer = await future
        self._node.destroy_timer(watchdog)
        if answer is None:  # cancelled
            raise CeremonyFailed(
                f"{driver.namespace}/{service}: no answer within {_ANSWER_TIMEOUT_S:g} s; are the "
                "motors powered?"
            )
        return answer
