"""Fixtures of the rim's tests: a ROS of their own on loopback, the graph of a test, a policy.

Everything here needs rclpy and the messages; without them each file of this folder is skipped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.processes import keep_on_loopback

if TYPE_CHECKING:
    from ros.enclaves import Speakers
    from ros.fakes import FakePolicy
    from ros.graph import Graph
    from ros.viewer_bench import Bench

HAS_ROS = find_spec("rclpy") is not None and find_spec("vla_oft_ros.msg") is not None
NO_ROS = (
    "needs ROS 2 and the messages of this package: run `make test`, or colcon build and source"
)


class SkippedModule(pytest.Module):
    """A test file that is not even imported, since its imports would fail."""

    def collect(self) -> Any:
        pytest.skip(NO_ROS, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module:
    kind = pytest.Module if HAS_ROS else SkippedModule
    module: pytest.Module = kind.from_parent(parent, path=module_path)
    module.add_marker("ros")
    return module


@pytest.fixture(scope="session", autouse=True)
def own_ros(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps every packet on loopback and in a domain of this pytest process."""
    with pytest.MonkeyPatch.context() as patch:
        # Another middleware may be asked for: `RMW_IMPLEMENTATION=rmw_cyclonedds_cpp make test`.
        chosen = os.environ.get("RMW_IMPLEMENTATION")
        environment = {"RMW_IMPLEMENTATION": chosen} if chosen else {}
        keep_on_loopback(environment, config_dir())
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("ROS_LOG_DIR", str(tmp_path_factory.mktemp("log")))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        yield


@pytest.fixture
def make_graph() -> Iterator[Callable[..., Graph]]:
    """Initialises ROS with the given ROS arguments and makes the test's graph; ends both."""
    import rclpy
    from ros.graph import Graph

    made: list[Graph] = []

    def make(*arguments: str) -> Graph:
        rclpy.init(args=["--ros-args", *arguments] if arguments else [])
        made.append(Graph())
        return made[0]

    yield make
    for graph in made:
        graph.close()
    rclpy.try_shutdown()


@pytest.fixture
def make_bench(make_graph: Callable[..., Graph]) -> Callable[..., Bench]:
    """A viewer with these parameters, and somebody who speaks to it."""
    from ros.graph import parameters
    from ros.viewer_bench import Bench

    return lambda **values: Bench(make_graph(*parameters(**values)))


@pytest.fixture(scope="session")
def needs_security() -> None:
    """Skips where the middleware cannot do it, with what it says."""
    from vla_oft_ros import check

    pytest.importorskip("cryptography", reason="needs cryptography, of the extra security")
    finding = check._security()
    if not finding.good:
        pytest.skip(f"needs a middleware built with DDS security; here {finding.found}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Speakers]:
    """Starts processes that say or hear something, in an enclave or without security."""
    from ros.enclaves import Speakers

    speakers = Speakers(tmp_path)
    yield speakers
    speakers.end()


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> FakePolicy:
    """A policy that `load_policy` hands out instead of a network; `loaded_with` holds what it was
    asked for.
    """
    from ros.fakes import FakePolicy

    fake = FakePolicy()
    module = ModuleType("vla_oft_ros.policy")

    def load_policy(config: object, **keywords: object) -> FakePolicy:
        fake.loaded_with = (config, keywords)  # type: ignore[attr-defined]
        return fake

    module.load_policy = load_policy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vla_oft_ros.policy", module)
    return fake
