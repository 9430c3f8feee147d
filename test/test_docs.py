"""The pages of docs/: the reference is what the code says, links lead somewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def make_docs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The tool that writes docs/reference/."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_docs

    yield make_docs
    for name in ("make_docs", "reference_graph"):
        sys.modules.pop(name, None)


def python_blocks() -> list[tuple[str, str]]:
    """(page, code) of every block of Python."""
    return [
        (page.name, code)
        for page in PAGES
        for code in re.findall(
            r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S
        )
    ]


def links(page: Path) -> Iterator[str]:
    """Targets of a page's links and pictures within this repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            yield target


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.strip().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("name", ["parameters.md", "messages.md", "command_line.md"])
def test_the_reference_is_what_the_code_says(name: str, make_docs: ModuleType) -> None:
    committed = (make_docs.REFERENCE / name).read_text(encoding="utf-8")
    assert committed == make_docs.pages()[name], f"{name} is old: type `make docs`"


def test_every_parameter_of_every_node_is_on_its_page(make_docs: ModuleType) -> None:
    page = (make_docs.REFERENCE / "parameters.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "config").glob("*.yaml")):
        for node, section in make_docs.load_yaml(path).items():
            if not isinstance(section, dict) or "ros__parameters" not in section:
                continue
            part = page.split(f"\n## {node.removeprefix('/**/')}\n")[1].split("\n## ")[0]
            for name in make_docs.flatten(section["ros__parameters"]):
                assert f"| `{name}` |" in part, f"{node}: {name} is missing on parameters.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: there is no {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {there.name} has no heading {anchor}"


def test_every_page_is_linked_from_the_readme_or_from_a_page_that_is() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        names = [target.partition("#")[0] for target in links(page)]
        waiting += [(page.parent / name).resolve() for name in names if name]
    lost = {page.relative_to(ROOT) for page in PAGES} - {
        page.relative_to(ROOT) for page in reached
    }
    assert not lost, f"no link leads to {sorted(map(str, lost))}"


def test_the_architecture_names_files_that_exist_and_every_node() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    places = (ROOT / "vla_oft_ros", ROOT)
    named = set(re.findall(r"`([\w/.]+\.(?:py|yaml|xml))`", page))
    assert len(named) > 30
    lost = {name for name in named if not any((place / name).is_file() for place in places)}
    assert not lost, f"docs/architecture.md names {sorted(lost)}"
    for node in (ROOT / "vla_oft_ros" / "ros").glob("*_node.py"):
        assert f"| `{node.stem}`" in page or f", `{node.stem}`" in page, node.stem


@pytest.mark.parametrize(("page", "code"), python_blocks(), ids=lambda value: value[:12])
def test_python_on_a_page_does_what_it_says(
    page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch", "h5py"):
        pytest.importorskip(module)
    from data.episode_samples import make_episode

    from vla_oft_ros.data.hdf5 import write_hdf5

    (tmp_path / "set").mkdir()
    for number in range(2):
        write_hdf5(make_episode(seed=number), tmp_path / "set" / f"episode_{number}.hdf5")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {})
