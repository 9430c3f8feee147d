"""Writes docs/reference/ from the code: `python3 tools/ros_env.py python tools/make_docs.py`.

Parameters come from the configuration classes, messages from msg/, commands from the parser,
topics and services from the nodes themselves, which are started for it. Nothing on these pages is
written by hand, and a test holds the committed pages to what this gives.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from rich.console import Console

from vla_oft_ros import config
from vla_oft_ros.aloha import RobotProfile
from vla_oft_ros.cli import build_parser
from vla_oft_ros.config import (
    FinetuneConfig,
    config_dir,
    default_of,
    flat_fields,
    flatten,
    load_yaml,
    node_section,
)

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
MADE_BY = "<!-- Written by `make docs` from the code; change it there. -->"


def cell(text: object) -> str:
    """Text for one cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def prose(text: str) -> str:
    """A paragraph, broken as the other pages are."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def table(titles: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    lines += [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


# Parameters


def node_configs() -> dict[str, type]:
    """Node → configuration class, as the first line of the class says.

    Raises:
        ValueError: if a node has no class, or more than one.
    """
    found: dict[str, type] = {}
    for cls in (getattr(config, name) for name in config.__all__):
        said = re.match(r"Parameters of `(\w+)`", cls.__doc__ or "")
        if said is None or not isinstance(cls, type):
            continue
        if said[1] in found:
            raise ValueError(f"{said[1]}: expected one configuration class; got two")
        found[said[1]] = cls
    nodes = {path.stem for path in (ROOT / "vla_oft_ros" / "ros").glob("*_node.py")}
    if nodes != set(found):
        raise ValueError(
            "vla_oft_ros.config: expected, for every ros/*_node.py, one class whose docstring "
            f"begins with 'Parameters of `…_node`'; they differ in {sorted(nodes ^ set(found))}"
        )
    return found


def shipped_values(name: str) -> dict[str, Any]:
    """Dotted parameter → value of one node in the shipped YAML files."""
    for path in sorted(config_dir().glob("*.yaml")):
        if f"/**/{name}" in load_yaml(path):
            return {"": path.name, **_shown(node_section(path, name))}
    return {"": ""}


def _shown(nested: dict[str, Any]) -> dict[str, Any]:
    """Dotted names; ROS 2 knows no empty list of texts, so that files say [""] for it."""
    return {name: [] if value == [""] else value for name, value in flatten(nested).items()}


def type_text(kind: Any) -> str:
    """Name of a parameter's type."""
    if get_origin(kind) is tuple:
        return f"list of {get_args(kind)[0].__name__}"
    return str(kind.__name__)


def limits_text(item: Field[Any]) -> str:
    """Range or choices of a parameter."""
    low, high = item.metadata.get("ge"), item.metadata.get("le")
    if item.metadata.get("choices"):
        return ", ".join(f"`{choice}`" for choice in item.metadata["choices"])
    if low is not None and high is not None:
        return f"{low:g} … {high:g}"
    return f"≥ {low:g}" if low is not None else f"≤ {high:g}" if high is not None else ""


def value_text(value: Any) -> str:
    """A value as it is written in YAML."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def parameter_table(cls: type, shipped: dict[str, Any]) -> str:
    """All leaf fields of a class."""
    rows: list[tuple[object, ...]] = []
    for name, item, kind in flat_fields(cls):
        required = item.default is MISSING and item.default_factory is MISSING
        default = "must be given" if required else value_text(default_of(item))
        if name in shipped and value_text(shipped[name]) != default:
            default += f"; {value_text(shipped[name])} in {shipped['']}"
        meaning = item.metadata.get("description", "")
        if item.metadata.get("live"):
            meaning += " Can be changed while the node runs."
        unit = item.metadata.get("unit", "")
        rows.append((f"`{name}`", type_text(kind), default, limits_text(item), unit, meaning))
    return table(("parameter", "type", "default", "limits", "unit", "meaning"), rows)


def first_paragraph(text: str | None) -> str:
    """First paragraph of a docstring, on one line."""
    return " ".join((text or "").split("\n\n")[0].split())


def parameters_page() -> str:
    """Every parameter of every node, of training and of a robot profile."""
    parts = [
        "# Parameters",
        MADE_BY,
        prose(
            "Set them in the YAML files of `config/`. A misspelt key, a wrong type or a value out "
            "of range is refused at start, with what was expected. A running node tells the same "
            "with `ros2 param describe /NODE NAME`. Those that are not said to be changeable are "
            "read once, when the node starts."
        ),
    ]
    for name, cls in sorted(node_configs().items()):
        shipped = shipped_values(name)
        where = f"File: `config/{shipped['']}`." if shipped[""] else "In no file of `config/`."
        text = first_paragraph(cls.__doc__).removeprefix(f"Parameters of `{name}`: ")
        parts += [f"## {name}", prose(f"{text[0].upper()}{text[1:]} {where}")]
        parts.append(parameter_table(cls, shipped))
    where = "File: `config/finetune.yaml`; `--set NAME=VALUE` overrides one."
    parts += ["## vla_oft train", prose(f"{first_paragraph(FinetuneConfig.__doc__)} {where}")]
    finetune = _shown(load_yaml(config_dir() / "finetune.yaml"))
    parts.append(parameter_table(FinetuneConfig, {"": "finetune.yaml", **finetune}))
    where = "One section each of `config/aloha.yaml`; nodes choose one by their `profile`."
    parts += ["## Robot profiles", prose(f"{first_paragraph(RobotProfile.__doc__)} {where}")]
    parts.append(parameter_table(RobotProfile, {}))
    return "\n\n".join(parts) + "\n"


# Messages


def message_fields(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(kind, name, meaning, unit) of each field or constant; constants are `NAME = value`."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        code, _, behind = line.partition("#")
        if not code.strip():
            comment = [*comment, behind.strip()] if behind else []
            continue
        text = behind.strip() or " ".join(comment)
        comment = []
        kind, name = code.split(None, 1)
        meaning, _, unit = text.rpartition("[")
        yield kind, " = ".join(name.split("=")).strip(), meaning.strip(), unit.strip().rstrip("]")


def messages_page() -> str:
    """Every message of the package."""
    parts = [
        "# Messages",
        MADE_BY,
        "The same text is shown by `ros2 interface show vla_oft_ros/msg/NAME`.",
    ]
    for path in sorted((ROOT / "msg").glob("*.msg")):
        head = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        about = " ".join(line.lstrip("# ") for line in head)
        about = about.replace(
            "The square brackets of each comment hold the unit and the range.", ""
        )
        fields = list(message_fields(path))
        constants = [entry for entry in fields if " = " in entry[1]]
        parts += [f"## {path.stem}", prose(about)]
        rows: list[tuple[object, ...]] = [
            (f"`{n}`", f"`{k}`", unit, text) for k, n, text, unit in fields if " = " not in n
        ]
        parts.append(table(("field", "type", "unit and range", "meaning"), rows))
        if constants:
            rows = [(f"`{n}`", unit, text) for _, n, text, unit in constants]
            parts.append(table(("constant", "is a", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


# Command line


def argument_rows(parser: argparse.ArgumentParser) -> list[tuple[object, ...]]:
    """Every argument of one command, but --help."""
    rows: list[tuple[object, ...]] = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or action.metavar or action.dest
        takes = action.nargs != 0 and bool(action.option_strings)
        value = f" {action.metavar or action.dest.upper()}" if takes else ""
        meaning = (action.help or "").replace("%%", "%")
        if action.choices:
            meaning += f"; one of {', '.join(f'`{choice}`' for choice in action.choices)}"
        if action.required and action.option_strings:
            meaning += "; must be given"
        rows.append((f"`{name}{value}`", meaning))
    return rows


def command_line_page() -> str:
    """Every subcommand of `vla_oft`."""
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    summaries = {choice.dest: choice.help for choice in commands._choices_actions}
    parts = [
        "# Command line",
        MADE_BY,
        prose(
            "The same is said by `vla_oft COMMAND --help`. Exit codes: 0 done, 1 done but not "
            "well, 2 a mistake that you can mend, 130 interrupted."
        ),
        table(
            ("command", "what it does"),
            [(f"[{name}](#{name})", summaries[name]) for name in commands.choices],
        ),
    ]
    for name, command in commands.choices.items():
        text = command.description or ""
        parts += [f"## {name}", f"```text\n{text}\n```" if "\n  " in text else text]
        rows = argument_rows(command)
        if rows:
            parts.append(table(("argument", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """File name → content of every page that needs no ROS."""
    return {
        "parameters.md": parameters_page(),
        "messages.md": messages_page(),
        "command_line.md": command_line_page(),
    }


def main() -> int:
    """Writes all pages, and the policies of config/security, which are made of the same graph;
    topics and policies need ROS, the messages and MuJoCo.
    """
    from reference_graph import all_ends, topics_page
    from security_policies import policies

    console = Console(highlight=False)
    written = {**pages(), "topics.md": topics_page(all_ends())}
    files = {REFERENCE / name: text for name, text in written.items()}
    for path, text in {**files, **dict(policies())}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        changed = not path.is_file() or path.read_text(encoding="utf-8") != text
        path.write_text(text, encoding="utf-8")
        console.print(f"{path.relative_to(ROOT)}: {'written' if changed else 'as it was'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
