"""The dependency rule: who may import what, checked in the syntax trees, imports inside functions
included.
"""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

import vla_oft_ros

PACKAGE = Path(vla_oft_ros.__file__).parent
NAME = "vla_oft_ros"


@dataclass(frozen=True)
class Layer:
    """Modules with the same rights: which of our own they may import (themselves included), and
    what from outside the standard library. "*" is everything.
    """

    modules: tuple[str, ...]
    own: tuple[str, ...]
    outside: tuple[str, ...]


VALUES = ("types", "config", "config.*", "aloha", "kinematics", "normalization")
STREAMS = (
    *("sync", "chunk_*", "safety*", "motion_limits", "clearance", "action_aware", "overlay"),
    *("frame_checks", "frame_ring", "parking", "shadow", "recording_traps", "motion_watch"),
    *("robot_model", "token_frames"),
)
MODEL_LIBRARIES = ("numpy", "torch", "safetensors", "tokenizers", "einops", "PIL", "cv2")
MODEL_LIBRARIES += ("simplejpeg",)
COMMAND_LINES = ("cli", "cli_record", "cli_replay")
"""The only modules outside ros/ that may start something of it, inside functions."""
DATA_LIBRARIES = ("yaml", "rosbags", "zstandard", "lz4", "h5py", "pyarrow", "av", "google_crc32c")
DATA_LIBRARIES += ("matplotlib",)

LAYERS = (
    Layer(("",), (), ()),
    Layer(("config", "config.*"), ("config", "config.*"), ("yaml",)),
    Layer(VALUES, VALUES, ("numpy",)),
    Layer(STREAMS, VALUES + STREAMS, ("numpy",)),
    Layer(("image_decoding",), (), ("numpy", "cv2")),
    Layer(("overlay_caption",), (*VALUES, *STREAMS), ("numpy", "cv2")),
    Layer(("model", "model.*"), (*VALUES, *STREAMS, "model", "model.*"), MODEL_LIBRARIES),
    Layer(("shipped_policies",), (), ()),
    Layer(("policy",), (*VALUES, *STREAMS, "shipped_policies", "model.*"), MODEL_LIBRARIES),
    Layer(
        ("data", "data.*"),
        (*VALUES, *STREAMS, "image_decoding", "model.*", "data", "data.*"),
        (*MODEL_LIBRARIES, *DATA_LIBRARIES),
    ),
    Layer(
        ("train.demonstrations",),
        (*VALUES, "model.*", "data.*", "sim.*"),
        ("numpy",),
    ),
    Layer(
        ("train", "train.*"),
        (*VALUES, *STREAMS, "model.*", "policy", "data.*", "train", "train.*"),
        (*MODEL_LIBRARIES, "peft", "rich"),
    ),
    Layer(("sim", "sim.*"), (*VALUES, *STREAMS, "sim", "sim.*"), ("numpy", "cv2", "mujoco")),
    Layer(
        ("token_view",),
        (*VALUES, *STREAMS, "overlay_caption", "model.*", "policy", "sim.*"),
        ("numpy", "cv2"),
    ),
    Layer(
        ("replay_in_sim",),
        (*VALUES, "data.*", "sim.*"),
        ("numpy", "cv2"),
    ),
    Layer(("check",), ("config.system",), ("rich",)),
    Layer(("security", "security.*"), ("config", "security", "security.*"), ("cryptography",)),
    Layer(("cli_security",), ("security.*",), ("rich",)),
    Layer(("cli_bench",), (), ("rich",)),
    Layer(COMMAND_LINES, ("*",), ("rich",)),
    Layer(("cli_data", "cli_review"), (*VALUES, "data.*"), ("rich",)),
    Layer(("cli_train",), (*VALUES, "train.*"), ("rich",)),
    Layer(("cli_eval",), (*VALUES, "evaluation", "sim.*"), ("rich",)),
    Layer(
        ("evaluation",),
        (*VALUES, *STREAMS, "shipped_policies", "model.shuffled", "policy", "sim.*"),
        ("numpy",),
    ),
    Layer(("ros", "ros.*"), ("*",), ("*",)),
)
"""The first layer that matches a module counts."""


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, and where."""

    module: str
    line: int
    lazy: bool


def imports_of(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import of a file: statements at any depth, and `import_module` of a literal.

    Args:
        tree: The parsed file.
        package: Package that relative imports start from.
    """
    lazy = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            start = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (start, node.module)))
            # `from package import name` may name a module: both are looked at.
            modules = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            literal = node.args[0] if node.args else None
            if not isinstance(literal, ast.Constant):
                continue
            modules = [str(literal.value)]
        else:
            continue
        yield from (Import(module, node.lineno, node in lazy) for module in modules)


def module_name(path: Path, package_dir: Path) -> str:
    """Dotted name below the package; "" is the package itself."""
    parts = path.relative_to(package_dir).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str, package_dir: Path) -> bool:
    path = package_dir.joinpath(*name.split("."))
    return name == "msg" or path.is_dir() or path.with_suffix(".py").is_file()


def violations(package_dir: Path) -> list[str]:
    """Breaches of the rule as "file:line: what"; empty if there are none."""
    found = []
    for path in sorted(package_dir.rglob("*.py")):
        name = module_name(path, package_dir)
        layer = next((layer for layer in LAYERS if matches(name, layer.modules)), None)
        where = path.relative_to(package_dir.parent)
        if layer is None:
            found.append(f"{where}:1: {name} belongs to no layer of test_architecture.py")
            continue
        package = (
            f"{NAME}.{name}" if path.name == "__init__.py" else f"{NAME}.{name}".rpartition(".")[0]
        )
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for imported in imports_of(tree, package.rstrip(".")):
            problem = breach(name, layer, imported, package_dir)
            if problem:
                found.append(f"{where}:{imported.line}: {problem}")
    return sorted(set(found))


def breach(name: str, layer: Layer, imported: Import, package_dir: Path) -> str | None:
    """What is wrong with one import, if anything."""
    root, _, below = imported.module.partition(".")
    if root != NAME:
        allowed = root in sys.stdlib_module_names or matches(root, layer.outside)
        return None if allowed else f"{name or NAME} may not import {imported.module}"
    if not below or not is_module(below, package_dir):
        return None  # the package itself, or a name inside a module that was looked at already
    if matches(below, ("ros", "ros.*", "msg", "msg.*")) and not matches(name, ("ros", "ros.*")):
        if name not in COMMAND_LINES:
            return f"only ros/ and cli.py may import {imported.module}"
        if not imported.lazy:
            return f"{name}.py may import {imported.module} only inside a function"
    elif name == "cli" and not imported.lazy:
        return f"cli.py may import {imported.module} only inside a function"
    if not matches(below, layer.own):
        return f"{name or NAME} may not import {imported.module}"
    return None


def test_every_import_keeps_the_dependency_rule() -> None:
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("model/vla.py", "    import rclpy", "model.vla may not import rclpy"),
        (
            "model/vla.py",
            "    from sensor_msgs.msg import Image",
            "may not import sensor_msgs.msg",
        ),
        (
            "model/vla.py",
            "    from vla_oft_ros import msg",
            "only ros/ and cli.py may import vla_oft_ros.msg",
        ),
        (
            "model/vla.py",
            "    from ..ros import conversions",
            "only ros/ and cli.py may import vla_oft_ros.ros",
        ),
        ("model/vla.py", "    from ..policy import Policy", "may not import vla_oft_ros.policy"),
        ("sync.py", "    import torch", "sync may not import torch"),
        (
            "types.py",
            "    from .sync import StreamBuffer",
            "types may not import vla_oft_ros.sync",
        ),
        (
            "policy.py",
            "    import importlib; importlib.import_module('rclpy')",
            "policy may not import rclpy",
        ),
        ("__init__.py", "    import numpy", "vla_oft_ros may not import numpy"),
    ],
)
def test_a_forbidden_import_inside_a_function_is_found_and_its_line_named(
    tmp_path: Path, file: str, line: str, expected: str
) -> None:
    copy = tmp_path / NAME
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / file).read_text(encoding="utf-8")
    (copy / file).write_text(f"{source}\n\ndef late():\n{line}\n", encoding="utf-8")
    number = source.count("\n") + 4
    found = violations(copy)
    assert any(entry.startswith(f"{NAME}/{file}:{number}: ") for entry in found), found
    assert any(expected in entry for entry in found), found


def test_the_command_line_may_import_the_rim_only_inside_a_function(tmp_path: Path) -> None:
    copy = tmp_path / NAME
    copy.mkdir()
    (copy / "ros").mkdir()
    (copy / "cli.py").write_text("def run():\n    import vla_oft_ros.ros\n", encoding="utf-8")
    assert violations(copy) == []
    (copy / "cli.py").write_text("import vla_oft_ros.ros\n", encoding="utf-8")
    assert violations(copy) == [
        f"{NAME}/cli.py:1: cli.py may import vla_oft_ros.ros only inside a function"
    ]


def test_a_new_module_must_be_given_a_layer(tmp_path: Path) -> None:
    copy = tmp_path / NAME
    copy.mkdir()
    (copy / "utils.py").write_text("", encoding="utf-8")
    assert violations(copy) == [
        f"{NAME}/utils.py:1: utils belongs to no layer of test_architecture.py"
    ]


def import_time_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when a file is imported: everything but the bodies of functions, and but what
    stands under `if __name__ == "__main__"`.
    """
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        for field, value in ast.iter_fields(node):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if function and field == "body":
                continue
            entries = value if isinstance(value, list) else [value]
            pending += [
                entry
                for entry in entries
                if isinstance(entry, ast.AST)
                and not (isinstance(entry, ast.If) and "__name__" in ast.unparse(entry.test))
            ]


def environment_reads(tree: ast.Module) -> list[int]:
    """Lines that look at the environment or the command line at import."""
    return sorted(
        node.lineno
        for node in import_time_nodes(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("os.environ", "os.getenv", "sys.argv", "os.environb")
    )


def print_calls(tree: ast.Module) -> list[int]:
    return sorted(
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    )


def test_nothing_is_decided_by_environment_or_arguments_at_import() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in environment_reads(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_a_look_at_the_environment_is_found_at_import_and_let_pass_inside_a_function() -> None:
    source = """
import os, sys
A = os.environ.get("A")
class C:
    b = os.getenv("B")
def f(x=len(sys.argv)):
    return os.environ
"""
    assert environment_reads(ast.parse(source)) == [3, 5, 6]


def test_the_package_never_prints() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in print_calls(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []
    assert print_calls(ast.parse("def f():\n    print(1)\nconsole.print(2)")) == [2]


def loaded_by(statement: str) -> set[str]:
    """Top-level names in sys.modules after a statement, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


HEAVY = {"numpy", "torch", "rclpy", "cv2", "mujoco", "yaml", "rich"}


def test_importing_the_package_imports_nothing_else() -> None:
    assert not loaded_by(f"import {NAME}") & HEAVY


def test_the_values_and_streams_come_without_torch_and_ros() -> None:
    loaded = loaded_by(f"import {NAME}.sync, {NAME}.chunk_queue, {NAME}.normalization")
    assert not loaded & (HEAVY - {"numpy", "yaml"})


def test_the_command_line_shows_its_help_without_torch_and_ros() -> None:
    assert not loaded_by(f"from {NAME}.cli import build_parser; build_parser()") & (
        HEAVY - {"rich"}
    )


@pytest.mark.ros
@pytest.mark.parametrize(
    "node",
    [
        *("controller_node", "sim_node", "policy_node", "recorder_node", "teleop_node"),
        "token_viewer_node",
    ],
)
def test_a_node_module_is_imported_without_torch_and_mujoco(node: str) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    assert not loaded_by(f"import {NAME}.ros.{node}") & {"torch", "mujoco"}
