"""Fixtures of the launch tests; `launch` comes with a ROS installation only, so they are skipped
elsewhere.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ros.conftest import HAS_ROS, make_graph, needs_security, own_ros, start

__all__ = [
    "make_graph",
    "needs_security",
    "own_ros",
    "start",
]  # pytest finds fixtures by these names

# `launch` alone would also be found: the folders of this name are namespace packages.
HAS_LAUNCH = HAS_ROS and find_spec("launch_ros") is not None
NO_LAUNCH = "needs launch and launch_ros, which come with a ROS installation"


class SkippedModule(pytest.Module):
    """A test file that is not even imported, since its imports would fail."""

    def collect(self) -> Any:
        pytest.skip(NO_LAUNCH, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module:
    kind = pytest.Module if HAS_LAUNCH else SkippedModule
    module: pytest.Module = kind.from_parent(parent, path=module_path)
    module.add_marker("ros_launch")
    return module
