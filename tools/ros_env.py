"""Runs a command in the project's own environment: `python3 tools/ros_env.py COMMAND [ARG …]`.

Does for the ROS 2 wheels in `.venv` what `source setup.bash` does for a ROS installation, and
keeps every packet on this machine. A ROS installation or workspace that is sourced already is left
out, since two of them in one process do not mix. Nothing here is used by the nodes themselves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
GL_CHOICE = VENV / "vla_oft_mujoco_gl"
"""Holds the OpenGL that set-up found to work: egl, osmesa or glfw."""
LOOPBACK_PROFILE = ROOT / "config" / "fastdds_loopback.xml"


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with which the wheels in `.venv` are a ROS installation.

    Args:
        base: Variables to start from; a discovery range, DDS profile or MUJOCO_GL in it is kept.

    Returns:
        A new set of variables; `base` is left alone.
    """
    env = dict(base)
    sourced = [Path(entry) for entry in _entries(base, "AMENT_PREFIX_PATH")]
    own_libraries = [VENV / "lib", *sorted(VENV.glob("lib/python3.*/site-packages/ros_*.libs"))]
    other_libraries = _without(sourced, _entries(base, "LD_LIBRARY_PATH"))
    libraries = list(dict.fromkeys([str(path) for path in own_libraries] + other_libraries))
    env.update(
        VIRTUAL_ENV=str(VENV),
        PATH=os.pathsep.join([str(VENV / "bin"), *_without(sourced, _entries(base, "PATH"))]),
        AMENT_PREFIX_PATH=str(VENV),
        CMAKE_PREFIX_PATH=str(VENV),
        LD_LIBRARY_PATH=os.pathsep.join(libraries),
        # Else a .pth file of the wheels starts every Python process twice, to set LD_LIBRARY_PATH.
        _ROS_WHEELS_BOOTSTRAP_COMPLETE="1",
        ROS_DISTRO="jazzy",
        ROS_VERSION="2",
        ROS_PYTHON_VERSION="3",
        RMW_IMPLEMENTATION="rmw_fastrtps_cpp",
    )
    python_path = _without(sourced, _entries(base, "PYTHONPATH"))
    env.pop("PYTHONHOME", None)
    env.pop("PYTHONPATH", None)
    if python_path:
        env["PYTHONPATH"] = os.pathsep.join(python_path)

    env.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if LOOPBACK_PROFILE.is_file():
        # One name for Fast DDS 2 (Jazzy), one for Fast DDS 3.
        env.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(LOOPBACK_PROFILE))
        env.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(LOOPBACK_PROFILE))
    if GL_CHOICE.is_file():
        env.setdefault("MUJOCO_GL", GL_CHOICE.read_text(encoding="utf-8").strip())
    return env


def _entries(env: Mapping[str, str], name: str) -> list[str]:
    return [entry for entry in env.get(name, "").split(os.pathsep) if entry]


def _without(prefixes: list[Path], entries: list[str]) -> list[str]:
    """Entries of a path variable that do not lie in one of the prefixes."""
    return [
        entry
        for entry in entries
        if not any(prefix == Path(entry) or prefix in Path(entry).parents for prefix in prefixes)
    ]


def main() -> None:
    """Replaces this process by the command."""
    if len(sys.argv) < 2:
        sys.exit("usage: python3 tools/ros_env.py COMMAND [ARG …]")
    if not (VENV / "bin" / "python").exists():
        sys.exit(f"{VENV} is missing: make setup")
    env = environment(os.environ)
    os.environ["PATH"] = env["PATH"]  # where execvpe looks for the command
    try:
        os.execvpe(sys.argv[1], sys.argv[1:], env)
    except FileNotFoundError:
        sys.exit(f"{sys.argv[1]}: no such command in {VENV}/bin or on PATH")


if __name__ == "__main__":
    main()
