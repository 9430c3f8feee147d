"""config/security/ and running nodes: what they have is allowed, and nothing else is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

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
