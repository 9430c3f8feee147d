"""A message package with the names and fields of interbotix_xs_msgs, made by rosidl for the tests.

Only what the package speaks. The build takes about a minute; pytest's cache keeps it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

DEFINITIONS = {
    "msg/JointGroupCommand.msg": "string name\nfloat32[] cmd\n",
    "msg/JointSingleCommand.msg": "string name\nfloat32 cmd\n",
    "srv/TorqueEnable.srv": "string cmd_type\nstring name\nbool enable\n---\n",
    "srv/Reboot.srv": "string cmd_type\nstring name\nbool enable\nbool smart_reboot\n---\n",
    "srv/OperatingModes.srv": "string cmd_type\nstring name\nstring mode\nstring profile_type\n"
    "int32 profile_velocity\nint32 profile_acceleration\n---\n",
    "srv/RegisterValues.srv": "string cmd_type\nstring name\nstring reg\nint32 value\n---\n"
    "int32[] values\n",
    "srv/RobotInfo.srv": "string cmd_type\nstring name\n---\nstring mode\nstring profile_type\n"
    "string[] joint_names\nint16[] joint_ids\nfloat32[] joint_lower_limits\n"
    "float32[] joint_upper_limits\nfloat32[] joint_velocity_limits\n"
    "float32[] joint_sleep_positions\nint16[] joint_state_indices\nint16 num_joints\n"
    "string[] name\n",
}
"""Fields of interbotix_ros_core, interbotix_xs_msgs (branch jazzy)."""

MANIFEST = """<package format="3">
  <name>interbotix_xs_msgs</name><version>0.0.0</version><description>test</description>
  <maintainer email="a@example.org">test</maintainer><license>Apache-2.0</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <build_depend>rosidl_default_generators</build_depend>
  <exec_depend>rosidl_default_runtime</exec_depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
</package>
"""


def _project() -> str:
    """CMake project of the definitions; the function that drops directories of another machine is
    that of our own CMakeLists.txt.
    """
    ours = (Path(__file__).parents[2] / "CMakeLists.txt").read_text(encoding="utf-8")
    start = ours.index("function(vla_oft_ros_drop_missing_include_directories)")
    end = ours.index("\n", ours.index("cmake_language(DEFER")) + 1
    files = "\n".join(f"  {name}" for name in DEFINITIONS)
    return (
        "cmake_minimum_required(VERSION 3.20)\nproject(interbotix_xs_msgs)\n"
        "find_package(ament_cmake REQUIRED)\nfind_package(rosidl_default_generators REQUIRED)\n"
        f"{ours[start:end]}"
        f"rosidl_generate_interfaces(${{PROJECT_NAME}}\n{files}\n)\nament_package()\n"
    )


def build_xs_messages(cache: pytest.Cache) -> Path:
    """Builds the package once; returns its installation prefix. Skips where it cannot be built."""
    if shutil.which("cmake") is None or find_spec("rosidl_adapter") is None:
        pytest.skip("needs cmake and the rosidl generators")
    key = hashlib.sha256(repr((_project(), DEFINITIONS, sys.version)).encode()).hexdigest()[:12]
    root = cache.mkdir(f"interbotix_xs_msgs_{key}")
    prefix = root / "install"
    if (prefix / "done").is_file():
        return prefix
    source = root / "source"
    for name, text in {
        **DEFINITIONS,
        "CMakeLists.txt": _project(),
        "package.xml": MANIFEST,
    }.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    prefixes = os.environ.get("CMAKE_PREFIX_PATH") or os.environ.get("AMENT_PREFIX_PATH", "")
    configure = [
        *("cmake", "-S", str(source), "-B", str(root / "build")),
        *(f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DBUILD_TESTING=OFF"),
        f"-DCMAKE_PREFIX_PATH={prefixes.replace(os.pathsep, ';')}",
        *(f"-DPython3_EXECUTABLE={sys.executable}", f"-DCMAKE_INSTALL_RPATH={prefix}/lib"),
        "-DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON",
    ]
    if shutil.which("ninja"):
        configure += ["-G", "Ninja"]
    for command in (configure, ["cmake", "--build", str(root / "build"), "--target", "install"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    (prefix / "done").touch()
    return prefix
