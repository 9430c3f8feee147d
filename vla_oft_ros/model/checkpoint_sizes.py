"""The sizes of a model from its files: tensor shapes first, config.json for what shapes do not
tell.

What neither tells is a `CheckpointRecord`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint_record import SECTION, CheckpointRecord
from vla_oft_ros.model.llm import LlamaConfig
from vla_oft_ros.model.vision import TowerConfig
from vla_oft_ros.model.vla import ModelConfig

Shapes = Mapping[str, tuple[int, ...]]


OFFICIAL_HEADS = {"dinosiglip-vit-so-224px": {1024: 16, 1152: 16}}
"""vision_backbone_id → tower width → attention heads (timm: ViT-L/14 reg4 DINOv2, SigLIP
so400m/14).
"""

# Defaults of Hugging Face's LlamaConfig: OpenVLA's config.json leaves out whatever equals them. In
# particular the RMSNorm epsilon is 1e-6 here, not Llama-2's own 1e-5.
LLAMA_HEADS = 32
LLAMA_RMS_EPS = 1e-6
LLAMA_ROPE_THETA = 10000.0
# Defaults of OpenVLAConfig (openvla-oft `configuration_prismatic.py`).
VOCAB_PADDING = 64
ACTION_BINS = 256


class _Shapes:
    """Looks up shapes and notes a problem, once each, where one is missing or has another rank."""

    def __init__(self, shapes: Shapes, problems: list[str]) -> None:
        self.shapes, self.problems = shapes, problems

    def __call__(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None:
            self.problems.append(f"{name}: missing; the model's sizes are read from it")
        elif len(shape) != rank:
            self.problems.append(f"{name}: expected {rank} dimensions; got shape {shape}")
        else:
            return shape
        raise _Unreadable

    def count(self, prefix: str) -> int:
        """Number of modules `prefix.<i>.`, from the highest index; gaps show up as missing tensors
        later.
        """
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        found = [int(match[1]) for name in self.shapes if (match := pattern.match(name))]
        if not found:
            self.problems.append(f"{prefix}.0: missing; the model's sizes are read from it")
            raise _Unreadable
        return max(found) + 1


class _Unreadable(Exception):
    """A size cannot be read; the reason is among the problems."""


def _positive(config: Mapping[str, Any], key: str, default: float, problems: list[str]) -> float:
    """A number of config.json; notes a problem and gives the default if it is none."""
    value = config.get(key, default)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    problems.append(f"config.json: {key}: expected a positive number; got {value!r}")
    return default


def read_llama_config(
    shapes: Shapes, config: Mapping[str, Any], problems: list[str]
) -> LlamaConfig | None:
    """Sizes of the language model; None if they cannot be read, with the reasons in `problems`."""
    shape = _Shapes(shapes, problems)
    text = config.get("text_config", {})
    if not isinstance(text, Mapping):
        problems.append(f"config.json: text_config: expected a JSON object; got {text!r}")
        return None
    prefix = "language_model.model"
    try:
        vocab, width = shape(f"{prefix}.embed_tokens.weight", 2)
        kv_width, _ = shape(f"{prefix}.layers.0.self_attn.k_proj.weight", 2)
        mlp_hidden, _ = shape(f"{prefix}.layers.0.mlp.gate_proj.weight", 2)
        layers = shape.count(f"{prefix}.layers")
    except _Unreadable:
        return None
    heads = text.get("num_attention_heads", LLAMA_HEADS)
    nested = text.get("rope_parameters")  # where transformers 5 writes rope_theta
    rope = nested if isinstance(nested, Mapping) else text
    if not isinstance(heads, int) or heads < 1 or width % heads or (width // heads) % 2:
        problems.append(
            f"config.json: text_config.num_attention_heads: expected an even share of width "
            f"{width}; got {heads}"
        )
        return None
    head_dim = width // heads
    if kv_width % head_dim or heads % max(kv_width // head_dim, 1):
        problems.append(
            f"{prefix}.layers.0.self_attn.k_proj.weight: {kv_width} rows do not fit {heads} heads"
        )
        return None
    stated = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "intermediate_size": mlp_hidden,
        "num_key_value_heads": kv_width // head_dim,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rope_scaling": None,
    }
    for key, ours in stated.items():
        if text.get(key, ours) not in (ours, None):
            problems.append(
                f"config.json: text_config.{key} is {text[key]}; the tensors need {ours}"
            )
    return LlamaConfig(
        vocab=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_width // head_dim,
        mlp_hidden=mlp_hidden,
        rms_eps=_positive(text, "rms_norm_eps", LLAMA_RMS_EPS, problems),
        rope_theta=_positive(rope, "rope_theta", LLAMA_ROPE_THETA, problems),
    )


def read_tower_config(
    shapes: Shapes, tower: str, heads: int | None, problems: list[str]
) -> TowerConfig | None:
    """Sizes of one vision tower, "featurizer" or "fused_featurizer"; None if unreadable."""
    shape = _Shapes(shapes, problems)
    prefix = f"vision_backbone.{tower}"
    try:
        width, _, patch_px, _ = shape(f"{prefix}.patch_embed.proj.weight", 4)
        _, patches, _ = shape(f"{prefix}.pos_embed", 3)
        mlp_hidden, _ = shape(f"{prefix}.blocks.0.mlp.fc1.weight", 2)
        depth = shape.count(f"{prefix}.blocks")
    except _Unreadable:
        return None
    grid = math.isqrt(patches)
    if grid * grid != patches:
        problems.append(f"{prefix}.pos_embed: expected a square number of patches; got {patches}")
        return None
    if heads is None:
        problems.append(
            f"config.json: the attention heads of {prefix} (width {width}) cannot be read from "
            f'shapes; add "{SECTION}": {{"vision_heads": [DINOv2, SigLIP]}}'
        )
        return None
    if heads < 1 or width % heads:
        problems.append(f"config.json: {prefix}: width {width} cannot be shared by {heads} heads")
        return None
    if depth < 2:
        problems.append(f"{prefix}: expected at least two blocks; got {depth}")
        return None
    film = shapes.get(f"{prefix}.blocks.0.film.scale.weight", (0, 0))
    return TowerConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_hidden=mlp_hidden,
        patch_px=patch_px,
        grid=grid,
        class_token=f"{prefix}.cls_token" in shapes,
        registers=shapes.get(f"{prefix}.reg_token", (1, 0, width))[1],
        layer_scale=f"{prefix}.blocks.0.ls1.scale_factor" in shapes,
        pooling=f"{prefix}.attn_pool.latent" in shapes,
        film_width=film[-1],
    )


def read_model_config(
    shapes: Shapes,
    config: Mapping[str, Any],
    record: CheckpointRecord,
    head: HeadKind,
    action_dim: int,
    problems: list[str],
) -> ModelConfig | None:
    """Puts all sizes together.

    Args:
        shapes: Parameter name → shape, all files together.
        config: config.json.
        record: Facts that shapes do not tell; chunk_len and cameras must be said.
        head: How actions are decoded.
        action_dim: A, from the statistics.
        problems: Gets one sentence for everything that is wrong.

    Returns:
        The sizes, or None if they cannot be read.
    """
    shape = _Shapes(shapes, problems)
    known = OFFICIAL_HEADS.get(str(config.get("vision_backbone_id")), {})
    towers = []
    for index, tower in enumerate(("featurizer", "fused_featurizer")):
        width = shapes.get(f"vision_backbone.{tower}.patch_embed.proj.weight", (0,))[0]
        heads = record.vision_heads[index] if record.vision_heads else known.get(width)
        towers.append(read_tower_config(shapes, tower, heads, problems))
    llm = read_llama_config(shapes, config, problems)
    dino, siglip = towers
    head_hidden = head_blocks = proprio_dim = projector_hidden = 0
    try:
        projector_hidden, _ = shape("projector.fc1.weight", 2)
        if head in (HeadKind.L1, HeadKind.DIFFUSION):
            head_hidden, head_inputs = shape("action_head.model.fc1.weight", 2)
            head_dim, _ = shape("action_head.model.fc2.weight", 2)
            head_blocks = shape.count("action_head.model.mlp_resnet_blocks")
            if llm is not None and (head_dim, head_inputs) != (action_dim, action_dim * llm.width):
                problems.append(
                    f"action_head: expected {action_dim}·{llm.width} inputs and {action_dim} "
                    f"outputs, as the statistics have {action_dim} dimensions; got {head_inputs} "
                    f"and {head_dim}"
                )
        if any(name.startswith("proprio_projector.") for name in shapes):
            _, proprio_dim = shape("proprio_projector.fc1.weight", 2)
    except _Unreadable:
        return None
    if dino is None or siglip is None or llm is None:
        return None
    if (dino.grid, dino.patch_px) != (siglip.grid, siglip.patch_px):
        problems.append(
            f"vision towers: expected one patch grid; got {dino.grid}x{dino.grid} of "
            f"{dino.patch_px} px and {siglip.grid}x{siglip.grid} of {siglip.patch_px} px"
        )
    if not record.chunk_len or not record.cameras:
        problems.append(
            f"config.json: chunk length and cameras are neither official ({action_dim} action "
            f'dimensions) nor recorded; add "{SECTION}": {{"chunk_len": K, "cameras": [names in '
            "order]}"
        )
        return None
    padding = int(_positive(config, "pad_to_multiple_of", VOCAB_PADDING, problems))
    return ModelConfig(
        dino=dino,
        siglip=siglip,
        llm=llm,
        projector_hidden=projector_hidden,
        head=head,
        head_hidden=head_hidden,
        head_blocks=head_blocks,
        cameras=len(record.cameras),
        chunk_len=record.chunk_len,
        action_dim=action_dim,
        proprio_dim=proprio_dim,
        vocab_end=llm.vocab - padding,
        action_bins=int(_positive(config, "n_action_bins", ACTION_BINS, problems)),
    )
