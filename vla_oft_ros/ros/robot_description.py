"""Where the robot's looks come from: the meshes of Interbotix where they are installed, else plain
shapes.

Looks into installed packages only; never asks another node.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vla_oft_ros.config import ConfigError
from vla_oft_ros.kinematics import BasePose
from vla_oft_ros.robot_model import merge_arms, plain_description

INTERBOTIX_PACKAGE = "interbotix_xsarm_descriptions"
_ARM = "aloha_vx300s"
_FILES = ("interbotix_arm.urdf.xacro", f"{_ARM}.urdf.xacro")
"""The wrapper of newer branches of interbotix_ros_manipulators, then what older ones have."""


def robot_description(choice: str, bases: Mapping[str, BasePose]) -> tuple[str, str]:
    """URDF of both arms.

    Args:
        choice: "interbotix", "plain", or "auto": the former where it is installed.
        bases: Arm → where it stands.

    Returns:
        The URDF, and one sentence about where it is from.

    Raises:
        ConfigError: if that of Interbotix is asked for and cannot be had.
    """
    if choice == "plain":
        return plain_description(bases), "plain shapes"
    try:
        file = _interbotix_file()
        arms = {arm: _expanded(file, arm) for arm in bases}
    except ImportError as error:
        if choice == "interbotix":
            raise ConfigError(
                f"robot_description: expected {INTERBOTIX_PACKAGE} and xacro to be installed; "
                f"{error}. Build interbotix_ros_manipulators and install ros-jazzy-xacro, or set "
                "it to plain"
            ) from None
        return plain_description(bases), f"plain shapes: {error}"
    return merge_arms(arms, bases), str(file)


def _interbotix_file() -> Path:
    """The file that describes an arm.

    Raises:
        ImportError: if it is not there.
    """
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        folder = Path(get_package_share_directory(INTERBOTIX_PACKAGE)) / "urdf"
    except (PackageNotFoundError, ValueError):
        raise ImportError(f"{INTERBOTIX_PACKAGE} is not installed") from None
    if not (folder / f"{_ARM}.urdf.xacro").is_file():
        raise ImportError(f"{folder} has no {_ARM}.urdf.xacro")
    return next(folder / name for name in _FILES if (folder / name).is_file())


def _expanded(file: Path, arm: str) -> str:
    """The URDF of one arm, its links called `<arm>/…`."""
    try:
        import xacro
    except ImportError:
        raise ImportError("xacro is not installed") from None
    arguments = {
        "robot_model": _ARM,
        "robot_name": arm,
        "base_link_frame": "base_link",
        "use_world_frame": "false",
        "hardware_type": "actual",
    }
    document = xacro.process_file(str(file), mappings=arguments)
    return str(document.toxml())
