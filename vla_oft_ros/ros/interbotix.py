"""The robot as two Interbotix xs_sdk drivers: joint groups and gripper angles out, and the
ceremonies before and after torque.

xs_sdk checks nothing but array lengths, holds the last goal for ever and answers every service
with an empty message; so nothing goes there but through the safety gate, and preparing the arms
ends by asking the driver what became of it. Ceremonies go through `interbotix_xs_modules`, in a
process of its own, where that is installed, else straight to the driver's services.
`interbotix_xs_msgs` is looked for at run time only. Names: Interbotix/aloha, interbotix_xs_sdk.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future
from rclpy.timer import Timer
from std_srvs.srv import Trigger

from vla_oft_ros.aloha import (
    ARM_DIM,
    ARM_JOINTS,
    ARMS,
    JOINT_LOWER_RAD,
    JOINT_UPPER_RAD,
    RobotProfile,
)
from vla_oft_ros.config import ConfigError
from vla_oft_ros.ros import xs_bring_up
from vla_oft_ros.ros.xs_ceremonies import (
    ARM_GROUP,
    ARM_MODE,
    ASK_ARM,
    ASK_GRIPPER,
    CEREMONIES,
    GRIPPER,
    GRIPPER_MODE,
    Request,
)

PACKAGE = "interbotix_xs_msgs"
_ANSWER_TIMEOUT_S = 10.0
"""A reboot of a motor takes about a second."""
_BRING_UP_TIMEOUT_S = 60.0
"""Start of a Python process, discovery, and a ceremony of six requests."""
_BRING_UP_POLL_S = 0.05
_LIMIT_TOLERANCE_RAD = 0.02
"""The margin that the gate keeps by default (safety.position_margin_rad)."""
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
        bring_up: "auto" or "services", see `ControllerConfig.interbotix_bring_up`.

    Raises:
        ConfigError: if the messages are missing or the profile has no xs_sdk.
    """

    def __init__(
        self,
        node: Node,
        profile: RobotProfile,
        is_idle: Callable[[], bool],
        bring_up: str = "auto",
    ) -> None:
        if not profile.xs_namespaces:
            raise ConfigError(
                f"robot_interface interbotix: expected a profile with xs_namespaces; "
                f"{profile.name!r} has none. Choose another profile, or set robot_interface to "
                "joint_state"
            )
        self._msg, self._srv = import_messages("msg"), import_messages("srv")
        self._node, self._profile, self._is_idle = node, profile, is_idle
        self._uses_modules = bring_up == "auto" and xs_bring_up.is_installed()
        node.get_logger().info(
            f"bring-up through {xs_bring_up.PACKAGE}"
            if self._uses_modules
            else f"bring-up through the services of xs_sdk ({xs_bring_up.PACKAGE} is not used: "
            + ("interbotix_bring_up says so)" if bring_up != "auto" else "it is not installed)")
        )
        # A ceremony awaits answers in a callback; in the node's own group none could come.
        self._group = ReentrantCallbackGroup()
        self._busy: Future | None = None
        self._drivers = [self._driver(namespace) for namespace in profile.xs_namespaces]
        self._services = [
            node.create_service(
                Trigger, f"~/{name}", partial(self._run, name), callback_group=self._group
            )
            for name in CEREMONIES
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
        self, ceremony: str, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        while self._busy is not None:  # one at a time
            await self._busy
        self._busy = Future()
        try:
            for driver in self._drivers:
                self._check_idle()
                if self._uses_modules:
                    await self._run_process(ceremony, driver.namespace)
                else:
                    for one in CEREMONIES[ceremony]:
                        await self._call(driver, one)
                if ceremony == "prepare_arms":
                    await self._verify(driver)
        except CeremonyFailed as error:
            self._node.get_logger().error(f"{ceremony}: {error}")
            response.message = f"{ceremony}: {error}"
            return response
        finally:
            done, self._busy = self._busy, None
            done.set_result(None)
        response.success = True
        response.message = f"{ceremony}: done on {' and '.join(ARMS)}"
        return response

    def _check_idle(self) -> None:
        if not self._is_idle():
            raise CeremonyFailed("deactivate the controller first; it is driving the arms")

    async def _verify(self, driver: _Driver) -> None:
        """Asks the driver whether it obeyed, and whether it drives the arm that the gate knows."""
        arm = await self._call(driver, ASK_ARM)
        if tuple(arm.joint_names) != ARM_JOINTS:
            raise CeremonyFailed(
                f"{driver.namespace}: expected the joints {', '.join(ARM_JOINTS)} in group "
                f"{ARM_GROUP!r}; the driver has {', '.join(arm.joint_names) or 'none'}"
            )
        gripper = await self._call(driver, ASK_GRIPPER)
        for what, mode, wanted in (
            (ARM_GROUP, arm.mode, ARM_MODE),
            (GRIPPER, gripper.mode, GRIPPER_MODE),
        ):
            if mode != wanted:
                raise CeremonyFailed(
                    f"{driver.namespace}: expected {what} in mode {wanted!r}; the driver says "
                    f"{mode!r}"
                )
        for joint, lower, upper, own_lower, own_upper in zip(
            ARM_JOINTS,
            arm.joint_lower_limits,
            arm.joint_upper_limits,
            JOINT_LOWER_RAD,
            JOINT_UPPER_RAD,
            strict=True,
        ):
            if (
                lower > own_lower + _LIMIT_TOLERANCE_RAD
                or upper < own_upper - _LIMIT_TOLERANCE_RAD
            ):
                raise CeremonyFailed(
                    f"{driver.namespace}: expected limits of {joint} no narrower than "
                    f"{own_lower:.3f} … {own_upper:.3f} rad (ViperX-300 S); the driver has "
                    f"{lower:.3f} … {upper:.3f}. Is xs_sdk started with another robot_model?"
                )

    async def _run_process(self, ceremony: str, namespace: str) -> None:
        """Lets `xs_bring_up` do it, without ever blocking the executor."""
        command = [sys.executable, "-m", xs_bring_up.__name__, ceremony, namespace]
        with tempfile.TemporaryFile() as told:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=told, stderr=subprocess.STDOUT
            )
            ended = Future()
            deadline_s = time.monotonic() + _BRING_UP_TIMEOUT_S

            def poll() -> None:
                if time.monotonic() > deadline_s or not self._is_idle():
                    process.kill()
                if process.poll() is not None and not ended.done():
                    ended.set_result(process.returncode)

            timer = self._timer(_BRING_UP_POLL_S, poll)
            try:
                code = await ended
            finally:
                process.kill()
                process.wait()
                self._node.destroy_timer(timer)
            told.seek(0)
            lines = told.read().decode(errors="replace").strip().splitlines()
        self._check_idle()
        if code == -signal.SIGKILL:
            raise CeremonyFailed(
                f"{namespace}: {xs_bring_up.PACKAGE} was not done within "
                f"{_BRING_UP_TIMEOUT_S:g} s; is xs_sdk running there, and are the motors powered?"
            )
        if code != 0:
            raise CeremonyFailed(
                f"{namespace}: {xs_bring_up.PACKAGE}: {lines[-1] if lines else f'exit {code}'}; "
                "interbotix_bring_up: services goes without it"
            )

    def _timer(self, period_s: float, callback: Callable[[], object]) -> Timer:
        return self._node.create_timer(
            period_s,
            callback,
            callback_group=self._group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    async def _call(self, driver: _Driver, request: Request) -> Any:
        self._check_idle()
        where = f"{driver.namespace}/{request.service}"
        client = driver.clients[request.service]
        if not client.service_is_ready():
            raise CeremonyFailed(
                f"{where}: nobody offers this service; is xs_sdk running in {driver.namespace}?"
            )
        future = client.call_async(client.srv_type.Request(**request.fields))
        watchdog = self._timer(_ANSWER_TIMEOUT_S, future.cancel)
        answer = await future
        self._node.destroy_timer(watchdog)
        if answer is None:  # cancelled
            raise CeremonyFailed(
                f"{where}: no answer within {_ANSWER_TIMEOUT_S:g} s; are the motors powered?"
            )
        return answer
