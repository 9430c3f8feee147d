"""Tensors from files to the device, one at a time, with live LoRA merged on the way.

The host never holds more than the file being read, mapped, and a few rows of one weight in
float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_oft_ros.model.checkpoint_files import (
    ADAPTER_CONFIG_FILE,
    TensorEntry,
    iterate_tensors,
    read_json,
)
from vla_oft_ros.model.vla import OpenVLAOFT

MAX_LORA_ALPHA = 16
"""alpha = min(rank, 16) in OFT's fine-tuning (openvla-oft `finetune.py`)."""
MERGED_ROWS = 256
"""Rows of a weight into which LoRA is merged at once."""


def read_lora_alpha(
    directory: Path, entries: Mapping[str, TensorEntry], problems: list[str]
) -> float | None:
    """lora_alpha of adapter_config.json where it is there and live LoRA needs it; None means
    min(r, 16).
    """
    path = directory / ADAPTER_CONFIG_FILE
    if not path.is_file() or not any(entry.lora_a for entry in entries.values()):
        return None
    alpha = read_json(path, problems).get("lora_alpha")
    return float(alpha) if isinstance(alpha, (int, float)) else None


def stream_tensors(
    model: OpenVLAOFT,
    entries: Mapping[str, TensorEntry],
    device: torch.device,
    dtype: torch.dtype,
    lora_alpha: float | None,
) -> None:
    """Fills the parameters of a model that files offer, file by file; LoRA is merged on the way.

    Args:
        model: Its parameters are replaced.
        entries: From `list_entries`.
        device: Where they go.
        dtype: Their format there.
        lora_alpha: From `read_lora_alpha`.
    """
    by_file: dict[Path, list[TensorEntry]] = {}
    for entry in entries.values():
        by_file.setdefault(entry.path, []).append(entry)
    for path, of_file in by_file.items():
        _stream_file(model, path, of_file, lora_alpha, device, dtype)


def _stream_file(
    model: OpenVLAOFT,
    path: Path,
    entries: list[TensorEntry],
    lora_alpha: float | None,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Fills the parameters that one file holds; lets go of the file when it returns."""
    by_key = {entry.key: entry for entry in entries}
    lora_keys = {key for entry in entries for key in (entry.lora_a, entry.lora_b) if key}
    lora: dict[str, Tensor] = {}
    waiting: list[tuple[TensorEntry, Tensor]] = []
    for key, tensor in iterate_tensors(path):
        if key in lora_keys:
            lora[key] = tensor.to(device)
        elif key in by_key and by_key[key].lora_a:
            waiting.append((by_key[key], tensor))  # mapped from disk, not yet in memory
        elif key in by_key:
            _assign(model, by_key[key], _moved(tensor, device, dtype))
    for entry, base in waiting:
        merged = torch.empty(base.shape, dtype=dtype, device=device)
        a, b = lora[entry.lora_a], lora[entry.lora_b]
        # Some rows at a time: float32 copies of whole weights would fragment the host's heap.
        for start in range(0, len(base), MERGED_ROWS):
            rows = slice(start, start + MERGED_ROWS)
            merged[rows] = merge_lora(base[rows].to(device), a, b[rows], lora_alpha)
        _assign(model, entry, merged)


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy on the device, never a view of the file: that may change under a running policy."""
    return tensor.to(device=device, dtype=dtype, copy=True)


def _assign(model: nn.Module, entry: TensorEntry, value: Tensor) -> None:
    module_name, _, leaf = entry.name.rpartition(".")
    model.get_submodule(module_name).register_parameter(
        leaf, nn.Parameter(value.contiguous(), requires_grad=False)
    )


def merge_lora(base: Tensor, a: Tensor, b: Tensor, alpha: float | None = None) -> Tensor:
    """Folds a LoRA into its base weight: W + (alpha / r)·B·A, in float32.

    Args:
        base: (out, in) linear or (out, in, h, w) convolution.
        a: (r, in) or (r, in, h, w).
        b: (out, r) or (out, r, 1, 1).
        alpha: None for OFT's min(r, 16).

    Returns:
        float32, shape of `base`.
    """
    rank = a.shape[0]
    scale = (min(rank, MAX_LORA_ALPHA) if alpha is None else alpha) / rank
    delta = b.float().reshape(-1, rank) @ a.float().reshape(rank, -1)  # (out, in·h·w)
    return base.float() + scale * delta.reshape(base.shape)
