"""Nodes as processes of this machine, from the same YAML files as the launch file, where `launch`
is not installed.

All traffic of what is started here stays on loopback. Knows which environment that needs; knows
nothing of topics.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOG_TAIL_LINES = 15
_STOP_TIMEOUT_S = 30.0
"""A node finishes its inference first, which takes seconds where many others compute."""


def keep_on_loopback(environment: MutableMapping[str, str], config_dir: Path) -> None:
    """Makes ROS in this environment stay on this machine, in a domain of its own.

    Sets the discovery range, a domain id derived from the process, and the Fast DDS profile with
    shared-memory segments large enough for raw images.
    """
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    # Domains above 101 collide with ephemeral ports on Linux (ROS 2 documentation, The
    # ROS_DOMAIN_ID).
    environment["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 101)
    environment["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(config_dir / "fastdds_loopback.xml")
    environment.setdefault("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")


class NodeProcesses:
    """Started nodes with a log file each; a context manager that leaves none behind.

    Args:
        config_dir: Folder of the YAML files.
        log_dir: Folder for the log files.
        environment: Environment of the processes.
    """

    def __init__(self, config_dir: Path, log_dir: Path, environment: Mapping[str, str]) -> None:
        self._config_dir, self._log_dir = config_dir, log_dir
        self._environment = dict(environment)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        yaml: str,
        overrides: Mapping[str, object],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts `vla_oft_ros.ros.<name>` with its YAML file and overrides on top.

        Args:
            name: Module of the node.
            yaml: File in the folder of the YAML files.
            overrides: Parameters that override the file.
            environment: What this process needs beside the common environment.
        """
        command = [sys.executable, "-m", f"vla_oft_ros.ros.{name}", "--ros-args"]
        command += ["--params-file", str(self._config_dir / yaml)]
        for key, value in overrides.items():
            command += ["-p", f"{key}:={_yaml_scalar(value)}"]
        with self.log_path(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment, **(environment or {})},
                preexec_fn=_die_with_parent,
            )

    def log_path(self, name: str) -> Path:
        """Where the output of a node goes."""
        return self._log_dir / f"{name}.log"

    def send_signal(self, name: str, number: int) -> None:
        """Sends a signal to one node."""
        self._processes[name].send_signal(number)

    def wait(self, name: str) -> int:
        """Waits until one node has ended; returns its exit code."""
        return self._processes[name].wait(_STOP_TIMEOUT_S)

    def pids(self) -> dict[str, int]:
        """Name → process id of every node that was started."""
        return {name: process.pid for name, process in self._processes.items()}

    def ended(self) -> dict[str, int]:
        """Name → exit code of every node that has ended by itself."""
        codes = {name: process.poll() for name, process in self._processes.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def log_tail(self, name: str) -> str:
        """Last lines that a node wrote."""
        lines = self.log_path(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def stop(self) -> dict[str, int]:
        """Asks every node to end, in the order of starting reversed; returns name → exit code."""
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return {name: process.returncode for name, process in self._processes.items()}

    def __enter__(self) -> NodeProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _die_with_parent() -> None:
    """In the child before exec: SIGTERM when the starter dies, so that not even SIGKILL leaves
    nodes behind.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _yaml_scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, Sequence):
        return "[" + ", ".join(_yaml_scalar(entry) for entry in value) + "]"
    return repr(value)
