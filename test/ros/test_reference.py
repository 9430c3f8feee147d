"""docs/reference/topics.md is what the running nodes have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def reference_graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The tool that starts the nodes and asks them."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import reference_graph

    yield reference_graph
    for name in ("make_docs", "reference_graph"):
        sys.modules.pop(name, None)


@pytest.mark.sim
def test_the_page_of_topics_is_what_the_nodes_have(reference_graph: ModuleType) -> None:
    if any(find_spec(name) is None for name in ("torch", "mujoco", "gym_aloha")):
        pytest.skip("needs torch, MuJoCo and the meshes of gym-aloha")
    ends = reference_graph.all_ends()
    assert not reference_graph.unused_meanings(ends), "MEANINGS names what no node has"
    committed = (ROOT / "docs" / "reference" / "topics.md").read_text(encoding="utf-8")
    assert committed == reference_graph.topics_page(ends), "topics.md is old: type `make docs`"


def test_a_topic_that_nobody_describes_is_an_error(reference_graph: ModuleType) -> None:
    with pytest.raises(ValueError, match="/rumour: expected a description"):
        reference_graph.meaning("/rumour")
