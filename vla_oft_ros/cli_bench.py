"""The subcommand of `vla_oft` that runs the measurements of `benchmark/`.

They belong to the source tree, not to the package: an installed copy says where to find them.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

_BENCH = """\
Runs one measurement of benchmark/ with the options that follow its name; without a name it lists
them. Needs the source tree. Options of one of them: vla_oft bench NAME --help. Ends with what the
measurement ends with; with 2 if there is none of that name."""

FOLDER = Path(__file__).resolve().parent.parent / "benchmark"


def add_bench_command(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Adds the command; `add` takes a name, a summary and a description."""
    bench = add("bench", "run a measurement of benchmark/, or list them", _BENCH)
    bench.add_argument("name", nargs="?", default="", help="which one (default: list them)")
    bench.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="...", help="options handed on to it"
    )
    bench.set_defaults(run=_run_bench)


def benchmarks(folder: Path) -> dict[str, Path]:
    """Name → file of every measurement.

    Args:
        folder: Where they are, `benchmark/` of a source tree.

    Raises:
        ValueError: if the folder is not there, as in an installed package.
    """
    if not folder.is_dir():
        raise ValueError(
            f"bench: expected the measurements in {folder}; there is no such folder. They come "
            "with the source tree only: clone the repository, and run `make bench` or "
            "`vla_oft bench` there"
        )
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def _run_bench(arguments: argparse.Namespace, console: Console) -> int:
    files = benchmarks(FOLDER)
    if not arguments.name:
        width = max(len(name) for name in files)
        for name, path in files.items():
            console.print(f"{name:<{width}}  {escape(_first_line(path))}", soft_wrap=True)
        return 0
    if arguments.name not in files:
        raise ValueError(f"bench: expected one of {', '.join(files)}; got {arguments.name!r}")
    return subprocess.call([sys.executable, str(files[arguments.name]), *arguments.options])


def _first_line(path: Path) -> str:
    """What a measurement says that it measures."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
