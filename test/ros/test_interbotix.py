"""The robot behind xs_sdk: what goes on the wire, and the ceremonies around torque."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rclpy.lifecycle import LifecycleNode
from ros.graph import Graph, parameters
from ros.xs_messages import build_xs_messages
from ros.xs_modules import FakeModules
from std_srvs.srv import Trigger

from vla_oft_ros.aloha import (
    ARM_DIM,
    ARM_JOINTS,
    ARMS,
    JOINT_LOWER_RAD,
    JOINT_UPPER_RAD,
    load_profile,
)
from vla_oft_ros.config import ConfigError
from vla_oft_ros.ros import interbotix, xs_bring_up
from vla_oft_ros.ros.controller_node import ControllerNode
from vla_oft_ros.ros.interbotix import InterbotixRobot, import_messages
from vla_oft_ros.ros.xs_ceremonies import CEREMONIES

PROFILES = ("aloha1", "interbotix_main", "interbotix_2_0")
TARGET = np.array([0.1, -0.9, 1.1, 0.2, -0.3, 0.4, 0.25, -0.1, -0.8, 1.2, -0.2, 0.3, -0.4, 0.75])
"""Different in every place, so that no exchange goes unseen."""


def test_a_missing_message_package_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "interbotix_xs_msgs.msg", None)
    with pytest.raises(ConfigError) as refused:
        import_messages("msg")
    assert "interbotix_xs_msgs" in str(refused.value) and "git clone" in str(refused.value)
    assert "robot_interface to joint_state" in str(refused.value)


def test_a_profile_without_xs_sdk_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a profile with xs_namespaces; 'agilex' has"):
        InterbotixRobot(SimpleNamespace(), load_profile("agilex"), lambda: True)


def test_the_controller_does_not_start_without_the_messages(
    make_graph: Callable[..., Graph],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "interbotix_xs_msgs.msg", None)
    graph = make_graph(*parameters(robot_interface="interbotix", profile="interbotix_main"))
    assert not graph.add(ControllerNode()).autostart()
    told = capfd.readouterr().err
    assert "expected the ROS package interbotix_xs_msgs" in told and "Traceback" not in told


# Interbotix' own Python package, in a process of its own.

WANTED = [
    ("reboot_motors", {"cmd_type": "single", "name": "gripper", "enable": True}),
    (
        "set_operating_modes",
        {"cmd_type": "group", "name": "arm", "mode": "position", "profile": ["velocity", 0, 0]},
    ),
    (
        "set_operating_modes",
        {
            "cmd_type": "single",
            "name": "gripper",
            "mode": "current_based_position",
            "profile": ["velocity", 0, 0],
        },
    ),
    (
        "set_motor_registers",
        {"cmd_type": "single", "name": "gripper", "reg": "Current_Limit", "value": 300},
    ),
    ("torque_enable", {"cmd_type": "group", "name": "arm", "enable": True}),
    ("torque_enable", {"cmd_type": "single", "name": "gripper", "enable": True}),
]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModules]:
    """A package like interbotix_xs_modules, importable here and in processes started here."""
    root = tmp_path / "modules"
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("PYTHONPATH", str(root), prepend=os.pathsep)
    yield FakeModules(root)


@pytest.mark.parametrize("ceremony", CEREMONIES)
def test_a_ceremony_through_interbotix_modules_makes_its_requests_in_order(
    own_ros: None, modules: FakeModules, ceremony: str
) -> None:
    command = [sys.executable, "-m", xs_bring_up.__name__, ceremony, "/follower_left"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = modules.asked()
    assert {namespace for _, namespace, _, _ in asked} == {"/follower_left"}
    requests = [(method, fields) for _, _, method, fields in asked]
    enable = ceremony != "torque_off"
    torque = [(method, {**fields, "enable": enable}) for method, fields in WANTED[-2:]]
    shorter = {"torque_on": torque, "torque_off": torque, "reboot_grippers": WANTED[:1]}
    assert requests == shorter.get(ceremony, WANTED)


# With generated messages.


@pytest.fixture(scope="module")
def xs_messages(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The generated package, importable, with its libraries where the middleware finds them."""
    prefix = build_xs_messages(request.config.cache)
    for library in sorted(prefix.glob("lib/*.so")):
        ctypes.CDLL(str(library))  # LD_LIBRARY_PATH is read once, when the process starts
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(next(prefix.glob("lib/python3*/site-packages"))))
        yield SimpleNamespace(msg=import_messages("msg"), srv=import_messages("srv"))


def string_bytes(text: str) -> bytes:
    """CDR of a string, padded to the 4 bytes at which what follows begins."""
    data = struct.pack("<I", len(text) + 1) + text.encode() + b"\0"
    return data + bytes(-len(data) % 4)


LITTLE_ENDIAN = b"\x00\x01\x00\x00"
slow = pytest.mark.slow


@slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PROFILES)
def test_the_bytes_on_the_wire_carry_joints_order_units_and_gripper_angles(
    make_graph: Callable[..., Graph], xs_messages: Any, name: str
) -> None:
    graph = make_graph()
    profile = load_profile(name)
    heard: dict[tuple[str, str], list[bytes]] = {}
    for namespace in profile.xs_namespaces:
        for topic, kind in (
            ("joint_group", xs_messages.msg.JointGroupCommand),
            ("joint_single", xs_messages.msg.JointSingleCommand),
        ):
            messages = heard[namespace, topic] = []
            graph.ear.create_subscription(
                kind, f"{namespace}/commands/{topic}", messages.append, 10, raw=True
            )
    node = graph.add(LifecycleNode("driver_test"))
    robot = InterbotixRobot(node, profile, lambda: True)
    node.trigger_configure()
    node.trigger_activate()
    robot.publish(TARGET, 0)

    def send_until_all_came() -> bool:
        robot.publish(TARGET, 0)
        return all(heard.values())

    graph.until(send_until_all_came, "a message on every command topic")
    for arm, namespace in enumerate(profile.xs_namespaces):
        assert ARMS[arm] in namespace
        joints = TARGET[arm * ARM_DIM : arm * ARM_DIM + 6]
        opening = TARGET[arm * ARM_DIM + 6]
        servo_rad = profile.gripper.action_to_servo_rad(opening)
        group, single = heard[namespace, "joint_group"][0], heard[namespace, "joint_single"][0]
        expected = LITTLE_ENDIAN + string_bytes("arm") + struct.pack("<I6f", 6, *joints)
        assert bytes(group)[: len(expected)] == expected
        expected = LITTLE_ENDIAN + string_bytes("gripper") + struct.pack("<f", servo_rad)
        assert bytes(single)[: len(expected)] == expected
        back_rad = struct.unpack("<f", expected[-4:])[0]
        assert profile.gripper.servo_rad_to_action(back_rad) == pytest.approx(opening, abs=1e-6)


class FakeDriver:
    """The services of one xs_sdk; remembers what it was asked and what it did."""

    def __init__(self, graph: Graph, srv: Any, namespace: str) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.modes = {"arm": "current", "gripper": "linear_position"}
        self.registers: dict[str, int] = {}
        self.torque = {"arm": False, "gripper": False}
        self.deaf = False
        self.limits = [list(JOINT_LOWER_RAD), list(JOINT_UPPER_RAD)]
        types = {
            "torque_enable": srv.TorqueEnable,
            "reboot_motors": srv.Reboot,
            "set_operating_modes": srv.OperatingModes,
            "set_motor_registers": srv.RegisterValues,
            "get_robot_info": srv.RobotInfo,
        }
        for name, kind in types.items():
            graph.ear.create_service(kind, f"{namespace}/{name}", self._answer(name))

    def _answer(self, service: str) -> Callable[[Any, Any], Any]:
        def answer(request: Any, response: Any) -> Any:
            self.asked.append((service, request.cmd_type, request.name))
            if service == "set_operating_modes" and not self.deaf:
                assert (request.profile_type, request.profile_velocity) == ("velocity", 0)
                self.modes[request.name] = request.mode
            elif service == "set_motor_registers":
                self.registers[f"{request.name}.{request.reg}"] = request.value
            elif service == "torque_enable":
                self.torque[request.name] = request.enable
            elif service == "get_robot_info":
                response.mode = self.modes[request.name]
                response.joint_names = list(ARM_JOINTS)
                response.joint_lower_limits = self.limits[0]
                response.joint_upper_limits = self.limits[1]
            return response

        return answer


def controller(graph: Graph) -> ControllerNode:
    node: ControllerNode = graph.add(ControllerNode())
    node.trigger_configure()
    return node


INTERBOTIX = parameters(robot_interface="interbotix", profile="interbotix_main")


@slow
@pytest.mark.timeout(600)
def test_interbotix_modules_prepare_the_arms_beside_the_controller_which_asks_the_drivers(
    make_graph: Callable[..., Graph], xs_messages: Any, modules: FakeModules
) -> None:
    graph = make_graph(*INTERBOTIX)
    drivers = [FakeDriver(graph, xs_messages.srv, f"/follower_{arm}") for arm in ("left", "right")]
    controller(graph)
    answer = graph.call(Trigger, "/controller_node/prepare_arms", Trigger.Request())
    assert not answer.success and "expected arm in mode 'position'" in answer.message
    for driver in drivers:  # the fake package moves no mode of theirs
        driver.modes = {"arm": "position", "gripper": "current_based_position"}
    answer = graph.call(Trigger, "/controller_node/prepare_arms", Trigger.Request())
    assert answer.success, answer.message
    asked = modules.asked()
    assert {namespace for _, namespace, _, _ in asked} == {"/follower_left", "/follower_right"}
    right = [[method, fields] for _, name, method, fields in asked if name == "/follower_right"]
    assert right[: len(WANTED)] == [list(one) for one in WANTED]
    assert os.getpid() not in {process for process, *_ in asked}
    for driver in drivers:
        assert {service for service, *_ in driver.asked} == {"get_robot_info"}


@slow
@pytest.mark.timeout(600)
def test_what_interbotix_modules_cannot_do_is_told_and_activation_ends_them(
    make_graph: Callable[..., Graph],
    xs_messages: Any,
    modules: FakeModules,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = make_graph(*INTERBOTIX)
    node = controller(graph)
    modules.set_trouble("fails")
    answer = graph.call(Trigger, "/controller_node/torque_on", Trigger.Request())
    assert not answer.success and "the bus does not answer" in answer.message
    assert "interbotix_bring_up: services" in answer.message
    modules.set_trouble("hangs")
    with monkeypatch.context() as patch:
        patch.setattr(interbotix, "_BRING_UP_TIMEOUT_S", 0.5)
        answer = graph.call(Trigger, "/controller_node/torque_on", Trigger.Request())
    assert not answer.success and "is xs_sdk running there" in answer.message
    client = graph.ear.create_client(Trigger, "/controller_node/torque_on")
    graph.until(client.service_is_ready, "the service")
    future = client.call_async(Trigger.Request())
    graph.listen_in_silence(1.0)
    node.trigger_activate()
    graph.until(future.done, "the end of the ceremony")
    assert "deactivate the controller first" in future.result().message


@slow
@pytest.mark.timeout(600)
def test_the_services_are_asked_where_the_parameter_says_so(
    make_graph: Callable[..., Graph], xs_messages: Any, modules: FakeModules
) -> None:
    graph = make_graph(*INTERBOTIX, *parameters(interbotix_bring_up="services"))
    left, right = (FakeDriver(graph, xs_messages.srv, f"/follower_{arm}") for arm in ARMS)
    controller(graph)
    assert graph.call(Trigger, "/controller_node/torque_on", Trigger.Request()).success
    assert left.torque == right.torque == {"arm": True, "gripper": True}
    assert modules.asked() == []


@slow
@pytest.mark.timeout(600)
def test_a_driver_of_another_arm_is_found_out_by_its_narrower_limits(
    make_graph: Callable[..., Graph], xs_messages: Any
) -> None:
    graph = make_graph(*INTERBOTIX)
    left = FakeDriver(graph, xs_messages.srv, "/follower_left")
    FakeDriver(graph, xs_messages.srv, "/follower_right")
    left.limits[1][2] = 1.0
    controller(graph)
    answer = graph.call(Trigger, "/controller_node/prepare_arms", Trigger.Request())
    assert not answer.success and "expected limits of elbow no narrower" in answer.message


@slow
@pytest.mark.timeout(600)
def test_arms_are_prepared_in_the_order_of_the_ceremony_on_both_sides(
    make_graph: Callable[..., Graph], xs_messages: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = make_graph(*INTERBOTIX)
    drivers = [FakeDriver(graph, xs_messages.srv, f"/follower_{arm}") for arm in ("left", "right")]
    controller(graph)
    assert "interbotix_xs_modules is not used: it is not installed" in capfd.readouterr().err
    answer = graph.call(Trigger, "/controller_node/prepare_arms", Trigger.Request())
    assert answer.success, answer.message
    for driver in drivers:
        assert driver.asked == [
            ("reboot_motors", "single", "gripper"),
            ("set_operating_modes", "group", "arm"),
            ("set_operating_modes", "single", "gripper"),
            ("set_motor_registers", "single", "gripper"),
            ("torque_enable", "group", "arm"),
            ("torque_enable", "single", "gripper"),
            ("get_robot_info", "group", "arm"),
            ("get_robot_info", "single", "gripper"),
        ]
        assert driver.modes == {"arm": "position", "gripper": "current_based_position"}
        assert driver.registers == {"gripper.Current_Limit": 300}
        assert driver.torque == {"arm": True, "gripper": True}
    assert graph.call(Trigger, "/controller_node/torque_off", Trigger.Request()).success
    assert [driver.torque for driver in drivers] == [{"arm": False, "gripper": False}] * 2


@slow
@pytest.mark.timeout(600)
def test_a_driver_that_did_not_obey_is_found_out_and_one_that_is_absent_is_named(
    make_graph: Callable[..., Graph], xs_messages: Any
) -> None:
    graph = make_graph(*INTERBOTIX)
    left = FakeDriver(graph, xs_messages.srv, "/follower_left")
    controller(graph)
    left.deaf = True
    answer = graph.call(Trigger, "/controller_node/prepare_arms", Trigger.Request())
    assert not answer.success and "expected arm in mode 'position'" in answer.message
    left.deaf = False
    answer = graph.call(Trigger, "/controller_node/prepare_arms", Trigger.Request())
    assert not answer.success and "is xs_sdk running in /follower_right?" in answer.message


@slow
@pytest.mark.timeout(600)
def test_no_ceremony_runs_while_the_controller_drives_the_arms(
    make_graph: Callable[..., Graph], xs_messages: Any
) -> None:
    graph = make_graph(*INTERBOTIX)
    left = FakeDriver(graph, xs_messages.srv, "/follower_left")
    node = controller(graph)
    node.trigger_activate()
    for name in ("prepare_arms", "torque_on", "torque_off", "reboot_grippers"):
        answer = graph.call(Trigger, f"/controller_node/{name}", Trigger.Request())
        assert not answer.success and "deactivate the controller first" in answer.message
    assert left.asked == []
