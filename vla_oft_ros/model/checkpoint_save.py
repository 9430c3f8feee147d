"""Writes a network as a checkpoint in the official layout, so that `checkpoint` and the official
code can read it.

The merged model goes to safetensors shards, every other part to its own
`<part>--<step>_checkpoint.pt`. Shards are written one after the other, so the host never holds
more than one of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint import Checkpoint
from vla_oft_ros.model.checkpoint_files import (
    CONFIG_FILE,
    INDEX_FILE,
    PARTS,
    PREPROCESSOR_FILE,
    SINGLE_FILE,
    TOKENIZER_FILE,
    part_key,
)
from vla_oft_ros.model.checkpoint_record import SECTION, CheckpointRecord
from vla_oft_ros.model.self_test import write_fingerprint
from vla_oft_ros.model.vla import OpenVLAOFT
from vla_oft_ros.normalization import STATISTICS_FILE

MAX_SHARD_BYTES = 5_000_000_000
"""transformers' default shard size, as in official checkpoints."""
OFFICIAL_LORA_RANK = 32
"""Rank that the official loader expects of a FiLM vision tower by default (openvla-oft
`finetune.py`).
"""
_COPIED = (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    TOKENIZER_FILE,
    STATISTICS_FILE,
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "added_tokens.json",
)
"""Small files that a new checkpoint takes over from the one that it was trained from."""


def save_checkpoint(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    step: int,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Saves a (fine-tuned) checkpoint to a new directory.

    Args:
        checkpoint: What to save; its configuration and tokenizer files are copied from where it
            came from.
        directory: New or empty directory.
        step: Training step, part of the file names.
        max_shard_bytes: Largest safetensors file.

    Raises:
        ValueError: if the directory holds something already.
    """
    create_directory(directory)
    for name in _COPIED:
        if (checkpoint.directory / name).is_file():
            shutil.copyfile(checkpoint.directory / name, directory / name)
    write_record(directory, replace(checkpoint.record, parts=saved_parts(checkpoint.model)))
    write_weights(checkpoint.model, directory, step=step, max_shard_bytes=max_shard_bytes)
    write_fingerprint(checkpoint, directory)


def create_directory(directory: Path) -> None:
    """Makes a new directory, parents included.

    Raises:
        ValueError: if it exists and is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(
            f"{directory}: expected a new or empty directory; it holds something already"
        )
    directory.mkdir(parents=True, exist_ok=True)


def write_record(directory: Path, record: CheckpointRecord) -> None:
    """Adds the section with what shapes do not tell to config.json; official code ignores it."""
    path = directory / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config[SECTION] = record.to_json()
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_weights(
    model: OpenVLAOFT, directory: Path, *, step: int, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes all tensors of a model.

    Args:
        model: On any device; tensors are saved in their own format.
        directory: Existing directory.
        step: Training step, part of the file names.
        max_shard_bytes: Largest safetensors file.
    """
    parameters = dict(model.named_parameters())
    parts = saved_parts(model)
    merged = {name: p for name, p in parameters.items() if not _is_apart(name)}
    _write_shards(merged, directory, max_shard_bytes)
    diffusion = model.config.head is HeadKind.DIFFUSION
    for part in parts:
        named = {name: p for name, p in parameters.items() if name.startswith(f"{part}.")}
        content = dict(_part_tensors(part, named, diffusion))
        torch.save(content, directory / f"{part}--{step}_checkpoint.pt")


def saved_parts(model: OpenVLAOFT) -> tuple[str, ...]:
    """Parts that get a file of their own; the vision tower does so only with FiLM."""
    present = {name.split(".", 1)[0] for name, _ in model.named_parameters()}
    if not model.config.film:
        present.discard("vision_backbone")
    return tuple(part for part in PARTS if part in present)


def _is_apart(name: str) -> bool:
    """Whether a tensor lives in a part's file only; a FiLM checkpoint's vision tower lives in
    both.
    """
    part = name.split(".", 1)[0]
    return ".film." in name or (part in PARTS and part != "vision_backbone")


def _part_tensors(
    part: str, named: dict[str, torch.nn.Parameter], diffusion: bool
) -> Iterator[tuple[str, Tensor]]:
    """Keys and tensors of one part's file. LoRA is merged, so the official loader gets matrices of
    zeros for it.
    """
    for name, parameter in named.items():
        value = parameter.detach().cpu().contiguous()
        stem, _, leaf = name.rpartition(".")
        has_lora = part == "vision_backbone" and stem.endswith(_LORA_TARGETS)
        key = part_key(part, name, diffusion=diffusion, has_lora=has_lora)
        yield key, value
        if has_lora and leaf == "weight":
            rank = OFFICIAL_LORA_RANK
            stem = key.removesuffix(".base_layer.weight")
            ones = (1,) * (value.ndim - 2)
            yield f"{stem}.lora_A.default.weight", value.new_zeros(rank, *value.shape[1:])
            yield f"{stem}.lora_B.default.weight", value.new_zeros(value.shape[0], rank, *ones)


_LORA_TARGETS = (".qkv", ".proj", ".fc1", ".fc2", ".q", ".kv")
"""Vision layers that official LoRA wraps: every linear layer and the patch convolution."""


def _write_shards(
    merged: dict[str, torch.nn.Parameter], directory: Path, max_shard_bytes: int
) -> None:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, parameter in merged.items():
        size = parameter.numel() * parameter.element_size()
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map = {}
    for index, names in enumerate(shards, start=1):
        file = (
            SINGLE_FILE
            if len(shards) == 1
            else f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        )
        tensors = {name: merged[name].detach().cpu().contiguous() for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(p.numel() * p.element_size() for p in merged.values())
        index_content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX_FILE).write_text(json.dumps(index_content, indent=2) + "\n", "utf-8")
