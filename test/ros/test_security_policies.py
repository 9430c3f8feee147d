"""config/security/ and running nodes: what they have is allowed, and nothing else is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from ros.graph import Graph

from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.controller_node import ControllerNode

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The tool that starts the nodes and writes down what they need."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import security_policies

    yield security_policies
    for name in ("make_docs", "reference_graph", "security_policies"):
        sys.modules.pop(name, None)


@pytest.mark.sim
@pytest.mark.parametrize("profile", ["sim", "aloha1", "agilex"])
def test_a_policy_is_what_the_running_nodes_have(profile: str, tool: ModuleType) -> None:
    if any(find_spec(name) is None for name in ("torch", "mujoco", "gym_aloha")):
        pytest.skip("needs torch, MuJoCo and the meshes of gym-aloha")
    path = tool.FOLDER / f"{profile}{tool.SUFFIX}"
    assert path.read_text(encoding="utf-8") == tool.policy(profile), "old: type `make docs`"


def test_the_network_shows_of_a_node_what_its_rights_are_made_of(
    make_graph: type, tool: ModuleType
) -> None:
    """Another participant sees the same names as the tool: nothing is made behind its back."""
    yaml = ["--params-file", str(config_dir() / "controller.yaml")]
    graph: Graph = make_graph(*yaml)
    node = graph.add(ControllerNode())
    assert node.autostart()
    rights, ear = tool.rights_of(node), graph.ear
    asked = {
        "publish": ear.get_publisher_names_and_types_by_node,
        "subscribe": ear.get_subscriber_names_and_types_by_node,
        "reply": ear.get_service_names_and_types_by_node,
        "request": ear.get_client_names_and_types_by_node,
    }

    def shown() -> dict[str, set[str]]:
        return {
            right: {name for name, _ in ask(node.get_name(), "/")} for right, ask in asked.items()
        }

    graph.until(lambda: shown() == rights, f"{rights} on the network")
