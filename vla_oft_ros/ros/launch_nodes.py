"""What the launch files share: how their arguments are declared and read, and how a node of this
package is started with its YAML file, in its namespace and its enclave.

Only launch files import it, since `launch` comes with a ROS installation. The YAML files are what
one edits; an argument overrides a fact of the deployment, and an empty one keeps the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.logging import get_logger
from launch_ros.actions import Node
from launch_ros.utilities import make_namespace_absolute, prefix_namespace

from vla_oft_ros.config import config_dir, node_section
from vla_oft_ros.security.environment import secured

PACKAGE = "vla_oft_ros"
SWITCH = ("true", "false")
_END_WITHIN_S = "60"
"""Of a node after Ctrl-C: a policy ends when its inference does, the recorder when its episode is
saved, and on a busy machine that takes a while. SIGTERM, which comes next, asks for the same."""


@dataclass(frozen=True)
class Argument:
    """One argument of a launch file.

    Attributes:
        description: One sentence, shown by `ros2 launch … --show-args`.
        default: Its value when it is not given.
        choices: What it may be, in lower case; empty is anything.
    """

    description: str
    default: str = ""
    choices: tuple[str, ...] = ()


def switch(description: str) -> Argument:
    """An argument that is true or false, and false when it is not given."""
    return Argument(f"{description} (true or false).", "false", SWITCH)


LEVELS = ("debug", "info", "warn", "error", "fatal")
SHARED = {
    "profile": Argument("Robot profile of config/aloha.yaml; empty keeps the file."),
    "namespace": Argument("Namespace of the nodes, for more than one robot on a network."),
    "config_dir": Argument("Folder of the YAML files; empty is the installed one."),
    "security": Argument(
        "Keystore of `vla_oft make-keystore`: every node in its enclave; empty is no security."
    ),
    "log_level": Argument(f"Log level of the nodes ({', '.join(LEVELS)}).", "info", LEVELS),
}
"""Arguments of every launch file."""


def describe(
    arguments: Mapping[str, Argument], start: Callable[[Launch], Sequence[Action]]
) -> LaunchDescription:
    """A launch file: its arguments, then what is started once they are known.

    Args:
        arguments: By name, beside the shared ones.
        start: What to start; a ValueError of it ends the launch before anything runs.
    """
    known = {**arguments, **SHARED}
    declared = [
        DeclareLaunchArgument(name, default_value=one.default, description=one.description)
        for name, one in known.items()
    ]

    def begin(context: LaunchContext) -> Sequence[Action]:
        return start(Launch(context, known))

    return LaunchDescription([*declared, OpaqueFunction(function=begin)])


class Launch:
    """The arguments of one launch, and nodes that are started as they say.

    Args:
        context: Of the running launch.
        arguments: Everything the launch file takes.

    Raises:
        ValueError: for an argument outside of its choices, or a configuration folder that is none.
    """

    def __init__(self, context: LaunchContext, arguments: Mapping[str, Argument]) -> None:
        self._given = {name: context.launch_configurations.get(name, "") for name in arguments}
        _warn_of_misspelt(context.argv, arguments)
        for name, argument in arguments.items():
            text = self._given[name]
            if argument.choices and text.lower() not in argument.choices:
                raise ValueError(
                    f"launch argument {name}: expected {_listed(argument.choices)}; got {text!r}"
                )
        pushed = context.launch_configurations.get("ros_namespace")
        own = prefix_namespace(pushed, self.text("namespace"))
        self._namespace = (make_namespace_absolute(own) or "").strip("/")
        folder = self.text("config_dir")
        self.config_dir = Path(folder).expanduser().resolve() if folder else config_dir()
        """Folder of the YAML files."""
        if not self.config_dir.is_dir():
            raise ValueError(
                f"launch argument config_dir: expected a folder; {self.config_dir} is none"
            )

    def text(self, name: str) -> str:
        """An argument as it was typed; empty keeps what the file says."""
        return self._given[name]

    def is_true(self, name: str) -> bool:
        """An argument that is a switch."""
        return self._given[name].lower() == "true"

    def enclave(self, name: str) -> dict[str, str]:
        """Environment of a process that speaks in this enclave, where security is asked for."""
        return secured(self.text("security"), name)

    def says(self, name: str, key: str) -> object:
        """What a node's YAML file says for one of its parameters; None if it does not."""
        return self._section(name).get(key)

    def need(self, name: str, *packages: str) -> None:
        """Refuses an argument whose ROS packages are not installed.

        Raises:
            ValueError: if one of them is missing; says how to install it.
        """
        missing = [package for package in packages if not is_installed(package)]
        if missing:
            debian = " ".join(f"ros-jazzy-{package.replace('_', '-')}" for package in missing)
            raise ValueError(
                f"launch argument {name}: expected {' and '.join(packages)} to be installed; "
                f"missing {', '.join(missing)}. Install {debian}"
            )

    def node(self, name: str, overrides: Mapping[str, object] | None = None) -> Node:
        """A node of this package, under the name of its executable and its YAML section.

        Args:
            name: Executable, e.g. policy_node; its file is policy.yaml.
            overrides: Parameters on top of the file; an empty text or None keeps it.

        Raises:
            ConfigError: if the file is missing, or holds no section that this node would read.
        """
        section = self._section(name)
        given = {"profile": self.text("profile"), **(overrides or {}), "exit_with_parent": True}
        profiles = self.config_dir / "aloha.yaml"
        if self.text("config_dir") and profiles.is_file() and not section.get("profiles_path"):
            given["profiles_path"] = str(profiles)
        if name != "sim_node":  # that one makes the time
            given["use_sim_time"] = self.is_true("sim")
        return Node(
            **_program(name),
            name=name,
            namespace=self.text("namespace") or None,
            output="screen",
            # A terminal of its own keeps the colours of warnings; in a file they would be noise.
            emulate_tty=sys.stdout.isatty(),
            sigterm_timeout=_END_WITHIN_S,
            parameters=[
                str(self._file(name)),
                {key: value for key, value in given.items() if value not in ("", None)},
            ],
            ros_arguments=["--log-level", f"{self._logger(name)}:={self.text('log_level')}"],
            additional_env=self.enclave(name),
        )

    def _logger(self, name: str) -> str:
        """Name of a node's logger: with its namespace, in dots."""
        return ".".join([*filter(None, self._namespace.split("/")), name])

    def _file(self, name: str) -> Path:
        return self.config_dir / f"{name.removesuffix('_node')}.yaml"

    def _section(self, name: str) -> Mapping[str, object]:
        return node_section(self._file(name), name, in_namespace=bool(self._namespace))


def end_together(nodes: Sequence[Node]) -> list[Action]:
    """One gone, all go: a robot must not be driven by half a system.

    Returns:
        The nodes, and what ends the launch with the first of them.
    """
    end = EmitEvent(event=Shutdown(reason="a node ended"))
    ends = [
        RegisterEventHandler(OnProcessExit(target_action=node, on_exit=[end])) for node in nodes
    ]
    return [*nodes, *ends]


def is_installed(package: str) -> bool:
    """True if the ROS environment has a package of this name."""
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def _program(name: str) -> dict[str, object]:
    """What runs a node: its executable, or its module where pip has installed the package, since
    pip knows no folder for the executables of a ROS package.
    """
    if is_installed(PACKAGE):
        executable = Path(get_package_prefix(PACKAGE)) / "lib" / PACKAGE / name
        if executable.is_file():
            return {"package": PACKAGE, "executable": name}
    return {
        "executable": sys.executable,
        "arguments": ["-m", f"{PACKAGE}.ros.{name}"],
        "exec_name": name,
    }


def _warn_of_misspelt(argv: Sequence[str], arguments: Mapping[str, Argument]) -> None:
    """Tells of `chekpoint:=…`: `ros2 launch` itself ignores what no file has declared.

    Only of what looks like one of ours, because the rest may be meant for a file that includes
    this one.
    """
    for word in argv:
        name, given, _ = word.partition(":=")
        near = get_close_matches(name, arguments, 1, 0.75)
        if given and name not in arguments and near:
            get_logger(PACKAGE).warning(
                f"launch argument {name} is not known and without effect; did you mean {near[0]}?"
            )


def _listed(choices: Sequence[str]) -> str:
    *others, last = (choice or "empty" for choice in choices)
    return f"{', '.join(others)} or {last}"
