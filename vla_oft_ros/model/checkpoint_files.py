"""What lies in a checkpoint directory: which files, which tensors, of which shape. Nothing is
loaded yet.

Names of files and tensors are known here and in `checkpoint` only. Two formats are read:
safetensors, whose header is checked against the length of the file, and
`torch.load(weights_only=True)`, which refuses to run code. The directory is never written to.
Source: openvla-oft `finetune.py` (save_training_checkpoint) and `openvla_utils.py`.
"""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILE = "tokenizer.json"
ADAPTER_CONFIG_FILE = "lora_adapter/adapter_config.json"
PARTS = ("vision_backbone", "proprio_projector", "noisy_action_projector", "action_head")
"""Parts beside the merged model, each in a file `<part>--<step>_checkpoint.pt`."""

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""safetensors names of the formats that weights may have, with bytes per number."""
_TORCH_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
_IGNORED = re.compile(r"\.rotary_emb\.inv_freq$")
"""Tables that older transformers versions saved; they are computed here."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; lists everything that is wrong with it.

    Attributes:
        problems: One sentence each.
    """

    def __init__(self, directory: Path, problems: list[str]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"{directory}: {len(problems)} problem(s) with this checkpoint:{lines}")


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where the parameter of the model with this name comes from.

    Attributes:
        name: Parameter name in `OpenVLAOFT`.
        shape: Shape of the stored tensor.
        path: File.
        key: Its key in the file.
        lora_a: Key of the LoRA matrix A that must be merged into it, or "".
        lora_b: Key of B.
        lora_rank: r, the rows of A.
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    key: str
    lora_a: str = ""
    lora_b: str = ""
    lora_rank: int = 0


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Reads a JSON mapping; notes a problem and returns {} if it cannot."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"{path.name}: expected a readable file; {error.strerror}")
        return {}
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name}: expected JSON; {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name}: expected a JSON object; got {type(content).__name__}")
        return {}
    return content


def find_shards(directory: Path, problems: list[str]) -> list[Path]:
    """The safetensors files of the merged model, in the order of their names."""
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file() and index.is_file():
        problems.append(f"expected either {SINGLE_FILE} or {INDEX_FILE}; got both")
        return []
    if single.is_file():
        return [single]
    if not index.is_file():
        stray = sorted(path.name for path in directory.glob("model-*.safetensors"))
        problems.append(
            f"expected {SINGLE_FILE} or {INDEX_FILE}; got neither"
            + (f", though {len(stray)} shards are there" if stray else "")
        )
        return []
    weight_map = read_json(index, problems).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problems.append(f"{INDEX_FILE}: expected a weight_map from tensor to file name")
        return []
    shards = []
    for name in sorted({str(name) for name in weight_map.values()}):
        if Path(name).name != name:
            problems.append(f"{INDEX_FILE}: expected plain file names; got {name!r}")
        elif not (directory / name).is_file():
            problems.append(f"{name}: named in {INDEX_FILE}, but missing")
        else:
            shards.append(directory / name)
    return shards


def find_parts(directory: Path, problems: list[str]) -> dict[str, Path]:
    """Part name → its file, for the parts that exist; two files for one part are a problem."""
    found = {}
    for part in PARTS:
        paths = sorted(
            path
            for path in directory.iterdir()
            if path.is_file() and path.name.startswith(part) and "checkpoint" in path.name
        )
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            problems.append(f"{part}: expected one file; got {names}. Keep the one of your step")
        elif paths:
            found[part] = paths[0]
    return found


def safetensors_shapes(path: Path, problems: list[str]) -> dict[str, tuple[int, ...]]:
    """Key → shape from the header of a safetensors file, checked against the file's length."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if size < 8 or header_size > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"header of {header_size} bytes in a file of {size}")
            header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        spans = {key: _span(entry) for key, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems.append(f"{path.name}: expected a safetensors file; {error}")
        return {}
    needed = 8 + header_size + max((end for *_, end in spans.values()), default=0)
    if needed != size:
        state = "truncated" if needed > size else "too long"
        problems.append(f"{path.name}: {state}, expected {needed} bytes; got {size}")
        return {}
    shapes = {}
    for key, (shape, dtype, start, end) in spans.items():
        if dtype not in FLOAT_BYTES:
            problems.append(
                f"{path.name}: {key}: expected one of {', '.join(FLOAT_BYTES)}; got {dtype}"
            )
        elif end - start != FLOAT_BYTES[dtype] * math.prod(shape):
            problems.append(f"{path.name}: {key}: {end - start} bytes do not fit {shape} {dtype}")
        else:
            shapes[key] = shape
    return shapes


def _span(entry: Any) -> tuple[tuple[int, ...], str, int, int]:
    """Shape, format, first byte and end of one tensor.

    Raises:
        ValueError: if they are not what they should be; KeyError or TypeError if they are missing.
    """
    shape, dtype, (start, end) = entry["shape"], entry["dtype"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"expected a shape and offsets as whole numbers; got {entry}")
    return tuple(shape), str(dtype), start, end


def load_pickle(path: Path, problems: list[str]) -> dict[str, Tensor]:
    """Key → tensor of a `.pt` file, mapped from disk where its format allows it; no code in it is
    run.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        problems.append(f"{path.name}: refused or unreadable; {reason}")
        return {}
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        problems.append(f"{path.name}: expected a mapping from names to tensors")
        return {}
    for key, value in content.items():
        claimed, stored = value.numel() * value.element_size(), path.stat().st_size
        if value.layout != torch.strided or claimed > stored:  # one number, repeated at will
            problems.append(
                f"{path.name}: {key}: claims {claimed} bytes in a file of {stored}; expected "
                "tensors that are stored whole"
            )
            return {}
    for key, value in content.items():
        if value.dtype not in _TORCH_NAMES:
            problems.append(
                f"{path.name}: {key}: expected one of {', '.join(FLOAT_BYTES)}; got {value.dtype}"
            )
    return {key: value for key, value in content.items() if value.dtype in _TORCH_NAMES}


def part_parameter(part: str, key: str) -> str:
    """Name in `OpenVLAOFT` of a key in a part's file; LoRA suffixes stay."""
    if part == "vision_backbone":
        # The FiLM wrapper nests each block: blocks.i.{block.*, scale.*, shift.*}.
        key = re.sub(r"\.blocks\.(\d+)\.block\.", r".blocks.\1.", key)
        key = re.sub(r"\.blocks\.(\d+)\.(scale|shift)\.", r".blocks.\1.film.\2.", key)
        return key.replace(".base_layer.", ".")
    key = key.removeprefix("module.")  # saved from DistributedDataParallel
    if part == "action_head":
        key = key.replace("noise_predictor.mlp_resnet.", "model.")
    return f"{part}.{key}"


def part_key(part: str, name: str, *, diffusion: bool, has_lora: bool) -> str:
    """Key in a part's file of a parameter in `OpenVLAOFT`; inverse of `part_parameter`."""
    if part == "vision_backbone":
        key = re.sub(r"\.blocks\.(\d+)\.film\.", r".blocks.\1.", name)
        if key == name:
            key = re.sub(r"\.blocks\.(\d+)\.", r".blocks.\1.block.", name)
        stem, leaf = key.rsplit(".", 1)
        return f"{stem}.base_layer.{leaf}" if has_lora else key
    key = name.removeprefix(f"{part}.")
    if part == "action_head" and diffusion:
        key = key.replace("model.", "noise_predictor.mlp_resnet.", 1)
    return f"module.{key}"


_LORA = re.compile(r"^(?P<stem>.*)\.lora_(?P<side>[AB])\.default\.weight$")


def _part_entries(part: str, path: Path, problems: list[str]) -> Iterator[TensorEntry]:
    shapes = {key: tuple(value.shape) for key, value in load_pickle(path, problems).items()}
    lora = {key: match for key in shapes if (match := _LORA.match(key))}
    for key, match in lora.items():
        if match["side"] == "A" and f"{match['stem']}.lora_B.default.weight" not in shapes:
            problems.append(f"{path.name}: {key}: its lora_B is missing")
        if match["side"] == "B" and f"{match['stem']}.lora_A.default.weight" not in shapes:
            problems.append(f"{path.name}: {key}: its lora_A is missing")
        if f"{match['stem']}.base_layer.weight" not in shapes:
            problems.append(f"{path.name}: {key}: its base_layer.weight is missing")
    for key, shape in shapes.items():
        if key in lora:
            continue
        stem = key.removesuffix(".base_layer.weight")
        a, b = f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight"
        merge = stem != key and a in shapes and b in shapes
        if merge and not _lora_fits(shape, shapes[a], shapes[b]):
            problems.append(
                f"{path.name}: {stem}: LoRA {shapes[a]} and {shapes[b]} do not fit weight {shape}"
            )
        yield TensorEntry(
            name=part_parameter(part, key),
            shape=shape,
            path=path,
            key=key,
            lora_a=a if merge else "",
            lora_b=b if merge else "",
            lora_rank=shapes[a][0] if merge else 0,
        )


def _lora_fits(base: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Linear: A (r, in), B (out, r). Convolution: A (r, in, h, w), B (out, r, 1, 1)."""
    rank = a[0]
    return a[1:] == base[1:] and b[:2] == (base[0], rank) and set(b[2:]) <= {1}


def list_entries(
    shards: list[Path], parts: Mapping[str, Path], problems: list[str]
) -> dict[str, TensorEntry]:
    """Every parameter that the files offer, by its name in `OpenVLAOFT`.

    A vision_backbone file replaces the whole vision tower of the merged model: in a FiLM
    checkpoint the latter is the
    base model's, because the official merge skips it.
    """
    entries: dict[str, TensorEntry] = {}
    for path in shards:
        for key, shape in safetensors_shapes(path, problems).items():
            if _IGNORED.search(key):
                continue
            if key in entries:
                problems.append(f"{path.name}: {key}: already in {entries[key].path.name}")
            entries[key] = TensorEntry(name=key, shape=shape, path=path, key=key)
    if "vision_backbone" in parts:
        entries = {k: e for k, e in entries.items() if not k.startswith("vision_backbone.")}
    for part, path in parts.items():
        for entry in _part_entries(part, path, problems):
            entries[entry.name] = entry
    return entries


def _read_ahead(path: Path) -> None:
    """Asks the kernel to read a file in one go; page by page, as mapped memory is touched, is far
    slower.
    """
    if hasattr(os, "posix_fadvise"):  # not on macOS
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def iterate_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields (key, tensor on the CPU) of one file, one at a time, mapped from disk."""
    _read_ahead(path)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt", device="cpu") as file:
            for key in file.keys():
                yield key, file.get_tensor(key)
    else:
        yield from load_pickle(path, []).items()
