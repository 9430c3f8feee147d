"""Checkpoints from strangers, beyond those that are merely broken: any bytes give a list of
problems, and nothing is allocated for numbers that no file holds.
"""

from __future__ import annotations

import ast
import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from safetensors.torch import save  # noqa: E402

from vla_oft_ros.model.checkpoint_files import (  # noqa: E402
    find_shards,
    load_pickle,
    read_json,
    safetensors_shapes,
)
from vla_oft_ros.normalization import read_statistics  # noqa: E402

PACKAGE = Path(__file__).resolve().parent.parent / "vla_oft_ros"
FUZZ = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NESTED = "[" * 100_000


def header(entry: object) -> bytes:
    text = json.dumps({"a": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@FUZZ
@given(place=st.integers(0, 200), octets=st.binary(max_size=9), cut=st.integers(0, 9))
def test_a_damaged_safetensors_file_gives_shapes_or_a_problem(
    place: int, octets: bytes, cut: int, tmp_path: Path
) -> None:
    whole = save({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[:place] + octets + whole[place + cut :])
    problems: list[str] = []
    shapes = safetensors_shapes(path, problems)
    assert problems or shapes == {"a": (2, 3), "b": (4,)} or set(map(len, shapes)) <= {1}


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": ["2"], "dtype": "F32", "data_offsets": [0, 8]},
        {"shape": [2.0], "dtype": "F32", "data_offsets": [0, 8]},
        {"shape": [-2], "dtype": "F32", "data_offsets": [0, -8]},
        {"shape": [2**70, 2**70], "dtype": "F32", "data_offsets": [0, 8]},
        {"shape": [2], "dtype": ["F32"], "data_offsets": [0, 8]},
        {"shape": [2], "dtype": "F32", "data_offsets": [0, 8, 9]},
        {"shape": 2, "dtype": "F32", "data_offsets": [0, 8]},
        [],
        7,
    ],
    ids=range(9),
)
def test_a_header_of_another_kind_is_a_problem(entry: object, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header(entry))
    problems: list[str] = []
    assert safetensors_shapes(path, problems) == {} and len(problems) == 1


def test_text_that_is_nested_without_end_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "dataset_statistics.json"
    path.write_text(NESTED, encoding="utf-8")
    problems: list[str] = []
    assert read_json(path, problems) == {} and "expected JSON" in problems[0]
    with pytest.raises(ValueError, match="expected JSON"):
        read_statistics(path)
    path.write_bytes(struct.pack("<Q", len(NESTED)) + NESTED.encode())
    assert safetensors_shapes(path, problems) == {} and len(problems) == 2


def test_one_number_repeated_at_will_is_no_weight(tmp_path: Path) -> None:
    """A tensor of 4 TB in a file of a kilobyte: filling a device with it would end the machine."""
    path = tmp_path / "action_head--1_checkpoint.pt"
    torch.save({"a": torch.zeros(1).expand(2**20, 2**20)}, path)
    problems: list[str] = []
    assert load_pickle(path, problems) == {}
    assert "expected tensors that are stored whole" in problems[0]
    torch.save({"a": torch.arange(6.0).reshape(2, 3).T}, path)
    assert load_pickle(path, problems)["a"].shape == (3, 2) and len(problems) == 1


@FUZZ
@given(place=st.integers(0, 900), octets=st.binary(min_size=1, max_size=9), cut=st.integers(0, 9))
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_pickle_gives_tensors_or_a_problem(
    place: int, octets: bytes, cut: int, zipped: bool, tmp_path: Path
) -> None:
    path = tmp_path / "action_head--1_checkpoint.pt"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + octets + whole[place + cut :])
    problems: list[str] = []
    found = load_pickle(path, problems)
    assert problems or all(value.numel() <= len(whole) for value in found.values())


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.pt", "..", ""])
def test_an_index_names_files_of_its_own_folder_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (tmp_path / "model.safetensors").write_bytes(header([]))
    content = {"weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")
    problems: list[str] = []
    assert find_shards(folder, problems) == [] and problems


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def unsafe(source: str) -> list[int]:
    """Lines that would run what a file says."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            if {name.split(".")[0] for name in names} & {"pickle", "marshal", "shelve", "dill"}:
                found.append(node.lineno)
    for call in calls(tree):
        name = ast.unparse(call.func)
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if (
            name in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load")
            or (name == "torch.load" and keywords.get("weights_only") != "True")
            or keywords.get("allow_pickle", "False") != "False"
            or keywords.get("shell", "False") != "False"
        ):
            found.append(call.lineno)
    return sorted(found)


def test_nothing_in_the_package_runs_what_a_file_says() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        assert unsafe(path.read_text(encoding="utf-8")) == [], path
    bad = ["import pickle", "torch.load(p)", "eval(x)", "np.load(p, allow_pickle=True)"]
    assert unsafe("\n".join([*bad, "run(x, shell=True)"])) == [1, 2, 3, 4, 5]
