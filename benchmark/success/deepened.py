"""A policy with one layer more that changes nothing, so that a shallow network has the layers that
a comparison needs.

The new layer is a copy of the one that follows it, with output projections of zero: what the
network answers to all tokens stays the same bit for bit, while the layer's attention, which
pruning reads, is that of its twin on the same input.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vla_oft_ros.config import ConfigError

_LAYER = re.compile(r"(?P<stack>language_model\.model\.layers\.)(?P<index>\d+)(?P<weight>\..+)")
_OUTPUTS = (".self_attn.o_proj.weight", ".mlp.down_proj.weight")


def write_deepened(source: Path, directory: Path, layer: int) -> None:
    """Writes the checkpoint with a layer inserted.

    Args:
        source: A checkpoint with its weights in one file.
        directory: A new directory.
        layer: Number of the new layer, counted from 1; its twin comes after it.

    Raises:
        ConfigError: if the weights are split, or the network has no such layer.
    """
    weights = source / "model.safetensors"
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    depth = config["text_config"]["num_hidden_layers"]
    if not weights.is_file() or not 1 <= layer <= depth:
        raise ConfigError(
            f"checkpoint: expected a model.safetensors of at least {layer} layers; {source} has "
            f"{depth} layers and {'one' if weights.is_file() else 'none'}"
        )
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("training_state*"))
    deeper: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(weights).items():
        found = _LAYER.fullmatch(name)
        if found is None:
            deeper[name] = tensor
            continue
        index = int(found["index"]) + 1
        moved = index + 1 if index >= layer else index
        deeper[f"{found['stack']}{moved - 1}{found['weight']}"] = tensor
        if index == layer:
            silent = found["weight"] in _OUTPUTS
            twin = torch.zeros_like(tensor) if silent else tensor.clone()
            deeper[f"{found['stack']}{layer - 1}{found['weight']}"] = twin
    save_file(deeper, directory / "model.safetensors", metadata={"format": "pt"})
    config["text_config"]["num_hidden_layers"] = depth + 1
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "config.json").write_text(f"{text}\n", encoding="utf-8")
