"""What of the network is trained: LoRA on every linear layer, and the parts that are new.

LoRA wraps what official fine-tuning wraps (openvla-oft `finetune.py`, peft's "all-linear" on the
whole VLA): all linear layers of both towers, patch projector and LLM, the patch convolutions and
lm_head too. FiLM, action head and the projectors of proprio and noisy actions are trained whole.
Parts that no output depends on get LoRA, so that names are complete, but are not trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint_files import ADAPTER_CONFIG_FILE
from vla_oft_ros.model.checkpoint_stream import MAX_LORA_ALPHA, merge_lora
from vla_oft_ros.model.vla import ModelConfig, OpenVLAOFT

ADAPTER_FILE = "lora_adapter/adapter_model.safetensors"
WHOLE_PARTS = ("action_head", "proprio_projector", "noisy_action_projector")
"""Parts without LoRA, trained whole; FiLM is the fourth."""
OFFICIAL_TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    *("qkv", "proj", "fc1", "fc2", "fc3", "q", "kv"),
)
"""Module names that "all-linear" resolves to in official adapters."""


def lora_alpha(rank: int) -> int:
    """OFT's alpha for a rank: min(rank, 16)."""
    return min(rank, MAX_LORA_ALPHA)


def lora_targets(model: OpenVLAOFT) -> list[str]:
    """Full names of all modules that LoRA wraps."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not is_whole(name)
    ]


def is_whole(name: str) -> bool:
    """Whether a module or parameter belongs to a part that is trained whole."""
    return ".film." in name or name.split(".", 1)[0] in WHOLE_PARTS


def is_unused(name: str, config: ModelConfig) -> bool:
    """Whether no output depends on a parameter: the towers' last blocks, final norms and pooling,
    and lm_head unless it decodes the actions.
    """
    if name.startswith("language_model.lm_head."):
        return config.head is not HeadKind.DISCRETE
    depths = {"featurizer": config.dino.depth, "fused_featurizer": config.siglip.depth}
    return any(
        name.startswith(f"vision_backbone.{tower}.{part}.")
        for tower, depth in depths.items()
        for part in ("norm", "attn_pool", f"blocks.{depth - 1}")
    )


def choose_trained(model: OpenVLAOFT, *, rank: int, dropout: float = 0.0) -> None:
    """Adds LoRA and sets which parameters are trained; these become float32.

    Args:
        model: Changed in place. Frozen weights keep their format.
        rank: LoRA rank; 0 adds none and trains everything.
        dropout: LoRA dropout.
    """
    if rank:
        settings = LoraConfig(
            r=rank,
            lora_alpha=lora_alpha(rank),
            lora_dropout=dropout,
            target_modules=lora_targets(model),
            init_lora_weights="gaussian",
        )
        inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        chosen = not rank or is_whole(name) or ".lora_" in name
        parameter.requires_grad_(chosen and not is_unused(name, model.config))
        if chosen:
            parameter.data = parameter.data.float()
    model.train()


def is_vision(name: str) -> bool:
    """Whether a parameter belongs to vision towers or projector, FiLM apart."""
    return name.startswith(("vision_backbone.", "projector.")) and ".film." not in name


def freeze_vision(model: OpenVLAOFT) -> None:
    """Trains vision towers and projector no further."""
    for name, parameter in model.named_parameters():
        if is_vision(name):
            parameter.requires_grad_(False)


def freeze_film(model: OpenVLAOFT) -> None:
    """Trains FiLM and the words that drive it no further; nothing in a network without FiLM."""
    for name, parameter in model.named_parameters():
        if model.config.film and (".film." in name or ".embed_tokens." in name):
            parameter.requires_grad_(False)


def merged_tensors(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Folds LoRA into its base weights: parameters of a network with LoRA → of one without.

    Args:
        tensors: Parameter name → value, as `choose_trained` left the names.
        rank: LoRA rank; 0 where there is none.

    Returns:
        Parameter name → value; merged ones in the format of their base weight.
    """
    merged = {}
    for name, value in tensors.items():
        if ".lora_" in name:
            continue
        stem = name.removesuffix(".base_layer.weight")
        if stem != name:
            a, b = (tensors[f"{stem}.lora_{side}.default.weight"] for side in "AB")
            value = merge_lora(value, a, b, lora_alpha(rank)).to(value.dtype)
        merged[name.replace(".base_layer.", ".")] = value
    return merged


def write_adapter(
    tensors: Mapping[str, Tensor],
    directory: Path,
    *,
    rank: int,
    film: bool,
    base_dir: str,
    dtype: torch.dtype,
) -> None:
    """Writes lora_adapter/ as peft 0.11 does for official trainings.

    Args:
        tensors: Parameter name → value, LoRA included.
        directory: Checkpoint directory.
        rank: LoRA rank.
        film: Whether FiLM wraps the vision tower, which officially changes its names.
        base_dir: What the adapter belongs to.
        dtype: Format on disk.
    """
    content = {}
    for name, value in tensors.items():
        if ".lora_" in name:
            content[_adapter_key(name, film)] = value.detach().to(dtype).contiguous()
    head = "language_model.lm_head.base_layer.weight"  # peft saves wrapped output layers with it
    content[f"base_model.model.{head}"] = tensors[head].detach().to(dtype).contiguous()
    (directory / ADAPTER_FILE).parent.mkdir()
    save_file(content, directory / ADAPTER_FILE, metadata={"format": "pt"})
    text = json.dumps(_adapter_config(rank, base_dir), indent=2) + "\n"
    (directory / ADAPTER_CONFIG_FILE).write_text(text, encoding="utf-8")


def _adapter_key(name: str, film: bool) -> str:
    """Official key of a LoRA matrix."""
    if film and name.startswith("vision_backbone."):
        name = "vision_backbone." + re.sub(r"\.blocks\.(\d+)\.", r".blocks.\1.block.", name)
    return "base_model.model." + name.replace(".default.", ".")


def _adapter_config(rank: int, base_dir: str) -> dict[str, Any]:
    """adapter_config.json with the keys of peft 0.11, which refuses those of later versions."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_dir,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": lora_alpha(rank),
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(OFFICIAL_TARGETS),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
