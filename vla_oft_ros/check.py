"""Looks at the machine and says, for each thing the package needs, what is there and what to do
about it.

Every probe that could crash or load much runs in a process of its own. Knows no ROS: it only looks
for it.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vla_oft_ros.config.system import limits_hint

_PROBE_TIMEOUT_S = 60
_MIN_DEMO_MEMORY_GIB = 3.0
_MEMORY_7B_GIB = 20.0
"""16 GB of bf16 weights (7.5e9 parameters, and FiLM) with room for activations."""
_WITH_SECURITY = "built with DDS security"
_WITHOUT_SECURITY = "SECURITY=ON"
"""CMake's option, which rmw_fastrtps and rmw_cyclonedds name when they were built without it."""
_GL_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        good: True if nothing need be done.
        found: What is there.
        advice: What to do if it is not good.
        needed: True if the simulated demo cannot do without it.
    """

    name: str
    good: bool
    found: str
    advice: str = ""
    needed: bool = False


def check_machine() -> list[Finding]:
    """Runs every probe, cheap ones first."""
    probes: list[Callable[[], Finding]] = [
        _python,
        _ros,
        _messages,
        _security,
        _torch,
        _gpu,
        _mujoco,
        _opengl,
        _memory,
        _disk,
        _real_time,
    ]
    return [probe() for probe in probes]


def print_findings(findings: list[Finding], console: Console) -> None:
    """Prints a table of what was found and, below it, what to do."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = (
            "[green]ok[/]"
            if finding.good
            else ("[red]missing[/]" if finding.needed else "[yellow]note[/]")
        )
        table.add_row(mark, finding.name, escape(finding.found))
    console.print(table)
    for finding in findings:
        if not finding.good and finding.advice:
            console.print(f"{finding.name}: {escape(finding.advice)}", soft_wrap=True)


def write_findings(findings: list[Finding], path: Path) -> None:
    """Writes what was found as a JSON list."""
    path.write_text(
        json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", encoding="utf-8"
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "installed"


def _probe(code: str) -> tuple[bool, str]:
    """Runs a line of Python in a process of its own; returns success and its last line of
    output.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {_PROBE_TIMEOUT_S} s"
    output = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, output[-1] if output else f"exit code {done.returncode}"


def _python() -> Finding:
    return Finding(
        name="Python",
        good=sys.version_info >= (3, 10),
        found=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        advice="install Python 3.10 to 3.13",
        needed=True,
    )


def _ros() -> Finding:
    there = find_spec("rclpy") is not None
    distribution = os.environ.get("ROS_DISTRO", "unknown distribution")
    return Finding(
        name="ROS 2",
        good=there,
        found=f"rclpy, {distribution}" if there else "no rclpy",
        advice="run `make demo`, which installs ROS 2 Jazzy from wheels, or source "
        "/opt/ros/jazzy/setup.bash",
        needed=True,
    )


def _messages() -> Finding:
    good, text = _probe(
        "import vla_oft_ros.msg as m; print(', '.join(n for n in dir(m) if n[0].isupper()))"
    )
    return Finding(
        name="Messages",
        good=good,
        found=text,
        advice="build them: `make demo` does, or `colcon build` in a ROS workspace and source "
        "install/setup.bash",
        needed=True,
    )


def _security() -> Finding:
    """Asks the middleware for a secured node without keys: what it says tells whether it could."""
    _, text = _probe(
        "import os, tempfile, rclpy\n"
        "with tempfile.TemporaryDirectory() as keys:\n"
        "    os.makedirs(keys + '/enclaves/probe')\n"
        "    os.environ.update(ROS_SECURITY_ENABLE='true', ROS_SECURITY_STRATEGY='Enforce',\n"
        "        ROS_SECURITY_KEYSTORE=keys, ROS_SECURITY_ENCLAVE_OVERRIDE='/probe',\n"
        "        ROS_AUTOMATIC_DISCOVERY_RANGE='OFF')\n"
        "    told = 'ignores DDS security'\n"
        "    try:\n"
        "        rclpy.init(); rclpy.create_node('probe')\n"
        "    except Exception as error:\n"
        f"        told = 'built without DDS security' if {_WITHOUT_SECURITY!r} in str(error) \\\n"
        f"            else {_WITH_SECURITY!r}\n"
        "    print(f'{rclpy.get_rmw_implementation_identifier()}, {told}')"
    )
    return Finding(
        name="Security",
        good=text.endswith(_WITH_SECURITY),
        found=text,
        advice="on this machine anybody on the robot's network can command it: keep that network "
        "to yourself, or use the ROS 2 Jazzy packages of Ubuntu; see docs/security.md",
    )


def _torch() -> Finding:
    there = find_spec("torch") is not None
    return Finding(
        name="PyTorch",
        good=there,
        found=_version("torch") if there else "not installed",
        advice="pip install 'vla_oft_ros'; only the policy's own machine needs it",
        needed=True,
    )


def _gpu() -> Finding:
    good, text = _probe(
        "import torch\n"
        "p = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None\n"
        "print(f'{p.name}, {p.total_memory / 2**30:.0f} GiB' if p else 'none')"
    )
    found = good and text != "none"
    return Finding(
        name="GPU",
        good=found,
        found=text,
        advice=f"a 7B policy needs one with about {_MEMORY_7B_GIB:.0f} GiB; the demo's small "
        f"policy runs on the CPU",
    )


def _mujoco() -> Finding:
    mujoco, assets = find_spec("mujoco") is not None, find_spec("gym_aloha") is not None
    missing = [
        name
        for name, there in (("mujoco", mujoco), ("gym-aloha (its robot meshes)", assets))
        if not there
    ]
    return Finding(
        name="MuJoCo",
        good=not missing,
        found=f"{_version('mujoco')}, ViperX meshes"
        if not missing
        else f"missing {', '.join(missing)}",
        advice="pip install 'vla_oft_ros[sim]' && pip install --no-deps gym-aloha==0.1.5",
        needed=True,
    )


def _opengl() -> Finding:
    code = (
        "import mujoco\n"
        "r = mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco><worldbody/></mujoco>'), "
        "16, 16)\n"
        "r.close(); print('renders off screen')"
    )
    texts = []
    for backend in ("egl", "osmesa"):
        good, text = _probe(f"import os; os.environ['MUJOCO_GL'] = {backend!r}\n{code}")
        if good:
            return Finding(name="OpenGL", good=True, found=f"{backend}: {text}", needed=True)
        texts.append(f"{backend}: {text}")
    return Finding(
        name="OpenGL",
        good=False,
        found="; ".join(texts),
        advice=f"sudo apt-get install {_GL_PACKAGES}",
        needed=True,
    )


def _memory() -> Finding:
    available_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    total_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return Finding(
        name="Memory",
        good=available_gib >= _MIN_DEMO_MEMORY_GIB,
        found=f"{available_gib:.1f} of {total_gib:.1f} GiB free, {os.cpu_count()} cores",
        advice=f"the demo wants {_MIN_DEMO_MEMORY_GIB:.0f} GiB; close other programs",
    )


def _disk() -> Finding:
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding(
        name="Disk",
        good=free_gib >= 10,
        found=f"{free_gib:.0f} GiB free here",
        advice="a minute of three raw cameras is 5 GB; record to a larger disk",
    )


def _real_time() -> Finding:
    priority, _ = resource.getrlimit(resource.RLIMIT_RTPRIO)
    memory, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    root = os.geteuid() == 0
    unlimited = memory == resource.RLIM_INFINITY
    return Finding(
        name="Real-time class",
        good=root or (priority != 0 and unlimited),  # RLIM_INFINITY is -1
        found=f"rtprio limit {'unlimited' if priority == resource.RLIM_INFINITY else priority}, "
        f"memlock {'unlimited' if unlimited else f'{memory >> 10} KiB'}"
        + (", running as root" if root else ""),
        advice=f"{limits_hint()}; without it a busy machine delays the 25 Hz tick by some "
        "milliseconds",
    )
