"""A small OFT+ checkpoint with random weights: the real architecture and file layout, megabytes
instead of gigabytes.

There is no public OFT+ checkpoint; this one lets every node, test and tutorial run without one,
and is the start of training from scratch in simulation. Its statistics keep both arms near the
start pose, so that even random actions move a simulated robot gently.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vla_oft_ros.aloha import ACTION_DIM, CAMERAS, GRIPPERS, start_pose
from vla_oft_ros.config import PreprocessingConfig
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint import load_checkpoint
from vla_oft_ros.model.checkpoint_files import CONFIG_FILE, PREPROCESSOR_FILE
from vla_oft_ros.model.checkpoint_record import SECTION, CheckpointRecord
from vla_oft_ros.model.checkpoint_save import create_directory, saved_parts, write_weights
from vla_oft_ros.model.checkpoint_sizes import ACTION_BINS, LLAMA_RMS_EPS, VOCAB_PADDING
from vla_oft_ros.model.llm import LlamaConfig
from vla_oft_ros.model.self_test import write_fingerprint
from vla_oft_ros.model.small_tokenizer import write_small_tokenizer
from vla_oft_ros.model.tokens import PAD_ID
from vla_oft_ros.model.vision import TowerConfig
from vla_oft_ros.model.vla import ModelConfig, OpenVLAOFT
from vla_oft_ros.normalization import STATISTICS_FILE, Bounds

DATASET = "aloha_sim_random"
"""Key of the statistics of a random checkpoint."""
PROFILE = "sim"


@dataclass(frozen=True, kw_only=True)
class SmallSize:
    """Sizes of a small checkpoint; the defaults make about 4 million parameters, most of them word
    embeddings.

    Attributes:
        width: LLM width D.
        layers: LLM layers.
        heads: Attention heads of the LLM and of both towers.
        dino_width: Width of the first tower.
        siglip_width: Width of the second tower.
        depth: Blocks of the first tower; the second has one more.
        image_px: Side of the input image.
        patch_px: Side of a patch.
        chunk_len: K.
    """

    width: int = 48
    layers: int = 8
    heads: int = 4
    dino_width: int = 64
    siglip_width: int = 48
    depth: int = 4
    image_px: int = 112
    patch_px: int = 14
    chunk_len: int = 25


ROPE_THETA = 1e6
"""Slower than Llama's 1e4: neighbouring time steps of an untrained network then differ little, and
arms glide.
"""
VOCAB = PAD_ID + VOCAB_PADDING
JOINT_RANGE_RAD = 0.35
"""Random actions stay about this near the start pose."""
HEAD_SPREAD = 0.6
"""Standard deviation of an untrained head's normalised actions."""


def make_random_checkpoint(
    directory: Path,
    *,
    size: SmallSize | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a random OFT+ checkpoint in the official layout: FiLM, three cameras, proprio, L1
    head.

    Args:
        directory: New or empty directory.
        size: Sizes; None for the defaults.
        seed: Seed of the weights: the same seed gives the same checkpoint.
        dtype: Format of the weights on disk.

    Raises:
        ValueError: if the directory holds something already, or sizes do not fit each other.
    """
    size = size or SmallSize()
    config = _model_config(size)
    model = OpenVLAOFT(config)
    _randomize(model, torch.Generator().manual_seed(seed))
    create_directory(directory)
    record = CheckpointRecord(
        chunk_len=size.chunk_len,
        cameras=CAMERAS,
        bounds=Bounds.MIN_MAX,
        decoding=HeadKind.L1,
        vision_heads=(size.heads, size.heads),
        profile=PROFILE,
        preprocessing=PreprocessingConfig(),
        parts=saved_parts(model),
    )
    _write(directory / CONFIG_FILE, _config_json(config, record, dtype))
    _write(directory / PREPROCESSOR_FILE, _preprocessor_json(size.image_px))
    _write(directory / STATISTICS_FILE, _statistics_json())
    write_small_tokenizer(directory)
    write_weights(model.to(dtype), directory, step=0)
    checkpoint = load_checkpoint(directory, device=torch.device("cpu"), dtype=torch.float32)
    write_fingerprint(checkpoint, directory)


def _model_config(size: SmallSize) -> ModelConfig:
    for name in ("width", "dino_width", "siglip_width"):
        if getattr(size, name) % (2 * size.heads):
            raise ValueError(
                f"SmallSize.{name}: expected a multiple of twice the {size.heads} heads; got "
                f"{getattr(size, name)}"
            )
    if size.image_px % size.patch_px:
        raise ValueError(
            f"SmallSize.image_px: expected a multiple of patch_px {size.patch_px}; got "
            f"{size.image_px}"
        )

    def tower(width: int, depth: int, dino: bool) -> TowerConfig:
        return TowerConfig(
            width=width,
            depth=depth,
            heads=size.heads,
            mlp_hidden=4 * width,
            patch_px=size.patch_px,
            grid=size.image_px // size.patch_px,
            class_token=dino,
            registers=4 if dino else 0,
            layer_scale=dino,
            pooling=not dino,
            film_width=size.width,
        )

    return ModelConfig(
        dino=tower(size.dino_width, size.depth, dino=True),
        siglip=tower(size.siglip_width, size.depth + 1, dino=False),
        llm=LlamaConfig(
            vocab=VOCAB,
            width=size.width,
            layers=size.layers,
            heads=size.heads,
            kv_heads=size.heads,
            mlp_hidden=8 * size.width // 3,
            rms_eps=LLAMA_RMS_EPS,
            rope_theta=ROPE_THETA,
        ),
        projector_hidden=4 * (size.dino_width + size.siglip_width),
        head=HeadKind.L1,
        head_hidden=size.width,
        head_blocks=2,
        cameras=len(CAMERAS),
        chunk_len=size.chunk_len,
        action_dim=ACTION_DIM,
        proprio_dim=ACTION_DIM,
        vocab_end=PAD_ID,
        action_bins=ACTION_BINS,
    )


def _randomize(model: OpenVLAOFT, generator: torch.Generator) -> None:
    """Weights N(0, 1/fan in), norms and LayerScale at identity, everything else small."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, 1 / math.sqrt(fan_in), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(
                    0.0, 1 / math.sqrt(module.embedding_dim), generator=generator
                )
        for name, parameter in model.named_parameters():
            if name.endswith(("pos_embed", "cls_token", "reg_token", "latent")):
                parameter.normal_(0.0, 0.5, generator=generator)
        if model.action_head is not None:
            last = model.action_head.model.fc2
            last.weight.mul_(HEAD_SPREAD)


def _config_json(
    config: ModelConfig, record: CheckpointRecord, dtype: torch.dtype
) -> dict[str, Any]:
    dtype_name = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [config.dino.image_px, config.siglip.image_px],
        "llm_max_length": 2048,
        "model_type": "openvla",
        "n_action_bins": config.action_bins,
        "norm_stats": {},
        "output_projector_states": False,
        "pad_to_multiple_of": VOCAB_PADDING,
        "pad_token_id": PAD_ID,
        "text_config": {
            "model_type": "llama",
            "hidden_size": config.llm.width,
            "intermediate_size": config.llm.mlp_hidden,
            "num_attention_heads": config.llm.heads,
            "num_hidden_layers": config.llm.layers,
            "num_key_value_heads": config.llm.kv_heads,
            "pad_token_id": PAD_ID,
            "rope_theta": config.llm.rope_theta,
            "torch_dtype": dtype_name,
            "vocab_size": config.llm.vocab,
        },
        "torch_dtype": dtype_name,
        "use_fused_vision_backbone": True,
        SECTION: record.to_json(),
    }


def _preprocessor_json(image_px: int) -> dict[str, Any]:
    # Means and deviations of the released processors: ImageNet's, rounded to bfloat16, and
    # SigLIP's.
    dino = {
        "mean": [0.484375, 0.455078125, 0.40625],
        "std": [0.228515625, 0.2236328125, 0.224609375],
    }
    siglip = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, image_px, image_px]] * 2,
        "interpolations": ["bicubic", "bicubic"],
        "means": [dino["mean"], siglip["mean"]],
        "stds": [dino["std"], siglip["std"]],
        "processor_class": "PrismaticProcessor",
        "tvf_normalize_params": [{"inplace": False, **dino}, {"inplace": False, **siglip}],
        "use_fused_vision_backbone": True,
    }


def _statistics_json() -> dict[str, Any]:
    centre = start_pose(0.5)
    reach = np.full(ACTION_DIM, JOINT_RANGE_RAD)
    reach[list(GRIPPERS)] = 0.5  # the whole opening, 0 … 1

    def section(scale: float) -> dict[str, Any]:
        lower, upper = centre - scale * reach, centre + scale * reach
        return {
            "mean": centre.tolist(),
            "std": (scale * reach / 2).tolist(),
            "min": lower.tolist(),
            "max": upper.tolist(),
            "q01": lower.tolist(),
            "q99": upper.tolist(),
        }

    return {
        DATASET: {
            "action": {**section(1.0), "mask": [True] * ACTION_DIM},
            "proprio": section(2.0),  # wider: followers overshoot their targets
            "num_transitions": 0,
            "num_trajectories": 0,
        }
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
