"""docs/troubleshooting.md quotes the program's own words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
BLANK = "…"
"""What the page writes where the program puts a name or a number."""


def quotations() -> list[str]:
    """Messages in the first column of the page's tables."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        first = re.match(r"\| (``(?P<long>.+?)``|`(?P<short>[^`]+)`)(?= )", line)
        if first:
            found.append((first["long"] or first["short"]).strip())
    return found


def texts(path: Path) -> Iterator[str]:
    """String literals of a file, with BLANK for what is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (
                part.value if isinstance(part, ast.Constant) else BLANK for part in node.values
            )
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@cache
def all_texts() -> frozenset[str]:
    files = sorted((ROOT / "vla_oft_ros").rglob("*.py"))
    return frozenset(" ".join(text.split()) for path in files for text in texts(path))


def is_said(quotation: str, text: str) -> bool:
    """Whether the parts between the blanks stand in a text, in their order."""
    place = 0
    for part in filter(None, (part.strip() for part in quotation.split(BLANK))):
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_the_page_quotes_many_messages() -> None:
    assert len(quotations()) > 50


@pytest.mark.parametrize("quotation", quotations())
def test_a_quoted_message_is_one_that_the_program_says(quotation: str) -> None:
    assert any(len(part.strip()) > 8 for part in quotation.split(BLANK)), "too little is quoted"
    assert any(is_said(quotation, text) for text in all_texts())
