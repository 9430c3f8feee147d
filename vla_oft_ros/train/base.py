"""The network that training starts from: any OpenVLA or OFT checkpoint, or a small random one.

What the base has and the training needs is taken over; FiLM, action head and projectors that it
lacks are made anew, with torch's own initialisation as in openvla-oft. Several processes make the
same ones, from the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_oft_ros.config import ConfigError, FinetuneConfig, PreprocessingConfig, SmallModelConfig
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint import Checkpoint, read_image_pipeline
from vla_oft_ros.model.checkpoint_files import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    CheckpointError,
    TensorEntry,
    find_parts,
    find_shards,
    list_entries,
    read_json,
)
from vla_oft_ros.model.checkpoint_record import SECTION, CheckpointRecord
from vla_oft_ros.model.checkpoint_sizes import (
    ACTION_BINS,
    OFFICIAL_HEADS,
    VOCAB_PADDING,
    read_llama_config,
    read_tower_config,
)
from vla_oft_ros.model.checkpoint_stream import read_lora_alpha, stream_tensors
from vla_oft_ros.model.inputs import PromptTokenizer
from vla_oft_ros.model.small_checkpoint import SmallSize, make_random_checkpoint
from vla_oft_ros.model.vision import TowerConfig
from vla_oft_ros.model.vla import ModelConfig, OpenVLAOFT
from vla_oft_ros.normalization import Bounds, NormStats
from vla_oft_ros.train.lora import is_whole

HEAD_BLOCKS = 2
"""Residual blocks of a new action head (openvla-oft `action_heads.py`)."""
SMALL_DIR = "base"
"""Folder in run_dir of the small random checkpoint that a training from scratch starts from."""


def load_base(
    config: FinetuneConfig,
    statistics: Mapping[str, Any],
    *,
    profile: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Checkpoint:
    """Builds the network to train.

    Args:
        config: What to start from and what to train.
        statistics: Statistics of the data set: sections "action" and "proprio".
        profile: Robot profile of the data; empty if unknown.
        device: Where the network goes.
        dtype: Format of the weights that the base has; new ones are float32.

    Returns:
        A checkpoint whose network is in evaluation mode with gradients off; see `lora`.

    Raises:
        ValueError: if the base is incomplete; a `CheckpointError` lists all faults.
    """
    directory = Path(config.base_dir).expanduser()
    if not config.base_dir:
        directory = Path(config.run_dir).expanduser() / SMALL_DIR
    problems: list[str] = []
    content = read_json(directory / CONFIG_FILE, problems)
    if problems:
        raise CheckpointError(directory, problems)
    parts = find_parts(directory, problems)
    entries = list_entries(find_shards(directory, problems), parts, problems)
    bounds = Bounds(config.data.bounds)
    action, proprio = (
        NormStats.from_statistics(statistics[kind], bounds) for kind in ("action", "proprio")
    )
    said = _record(content, problems)
    sizes = _sizes(config, content, entries, said, action.dim, proprio.dim, problems)
    record = CheckpointRecord(
        chunk_len=config.chunk_len,
        cameras=config.data.cameras,
        bounds=bounds,
        decoding=HeadKind(config.decoding),
        vision_heads=(sizes.dino.heads, sizes.siglip.heads) if sizes else None,
        profile=profile or None,
        preprocessing=replace(
            said.preprocessing or PreprocessingConfig(), center_crop=config.data.augment
        ),
    )
    images = read_image_pipeline(directory, sizes, record, problems)
    alpha = read_lora_alpha(directory, entries, problems)
    taken = _taken_over(sizes, entries, problems) if sizes else {}
    if problems or sizes is None or images is None:
        raise CheckpointError(directory, problems)
    with torch.device("meta"):
        model = OpenVLAOFT(sizes)
    stream_tensors(model, taken, device, dtype, alpha)
    _make_missing(model, device, config.seed)
    model.eval().requires_grad_(False)
    if not config.base_dir:
        _blank_unused(model, read_json(directory / TOKENIZER_FILE, problems))
    return Checkpoint(
        directory=directory,
        model=model,
        record=record,
        dataset=config.data.name,
        action_stats=action,
        proprio_stats=proprio,
        images=images,
        tokenizer=PromptTokenizer(directory / TOKENIZER_FILE),
    )


def make_small_base(config: FinetuneConfig) -> None:
    """Writes the small random checkpoint of a training from scratch, unless it is there.

    Raises:
        ValueError: if the sizes do not fit each other.
    """
    directory = Path(config.run_dir).expanduser() / SMALL_DIR
    if (directory / CONFIG_FILE).is_file():
        return
    if config.lora_rank:
        raise ConfigError(
            "lora_rank: expected 0, which trains all weights, where base_dir is empty: random "
            f"weights must not stay frozen; got {config.lora_rank}"
        )
    make_random_checkpoint(directory, size=_small_size(config.small, config), seed=config.seed)


def _small_size(small: SmallModelConfig, config: FinetuneConfig) -> SmallSize:
    return SmallSize(
        width=small.width,
        layers=small.layers,
        heads=small.heads,
        dino_width=small.dino_width,
        siglip_width=small.siglip_width,
        depth=small.depth,
        image_px=small.image_px,
        patch_px=small.patch_px,
        chunk_len=config.chunk_len,
    )


def _record(content: Mapping[str, Any], problems: list[str]) -> CheckpointRecord:
    try:
        return CheckpointRecord.from_json(content.get(SECTION, {}))
    except (TypeError, ValueError) as error:
        problems.append(f"{CONFIG_FILE}: {SECTION}: {error}")
        return CheckpointRecord()


def _sizes(
    config: FinetuneConfig,
    content: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    said: CheckpointRecord,
    action_dim: int,
    proprio_dim: int,
    problems: list[str],
) -> ModelConfig | None:
    """Sizes of the network to train: those of the base, with the heads that are asked for."""
    shapes = {name: entry.shape for name, entry in entries.items()}
    llm = read_llama_config(shapes, content, problems)
    known = OFFICIAL_HEADS.get(str(content.get("vision_backbone_id")), {})
    towers: list[TowerConfig | None] = []
    for index, tower in enumerate(("featurizer", "fused_featurizer")):
        width = shapes.get(f"vision_backbone.{tower}.patch_embed.proj.weight", (0,))[0]
        heads = said.vision_heads[index] if said.vision_heads else known.get(width)
        towers.append(read_tower_config(shapes, tower, heads, problems))
    dino, siglip = towers
    if llm is None or dino is None or siglip is None:
        return None
    film_width = llm.width if config.film else 0
    head = HeadKind(config.decoding)
    has_head = head is not HeadKind.DISCRETE
    return ModelConfig(
        dino=replace(dino, film_width=film_width),
        siglip=replace(siglip, film_width=film_width),
        llm=llm,
        projector_hidden=shapes.get("projector.fc1.weight", (0,))[0],
        head=head,
        head_hidden=llm.width if has_head else 0,
        head_blocks=HEAD_BLOCKS if has_head else 0,
        cameras=len(config.data.cameras),
        chunk_len=config.chunk_len,
        action_dim=action_dim,
        proprio_dim=proprio_dim,
        vocab_end=llm.vocab - int(content.get("pad_to_multiple_of", VOCAB_PADDING)),
        action_bins=int(content.get("n_action_bins", ACTION_BINS)),
    )


def _taken_over(
    sizes: ModelConfig, entries: Mapping[str, TensorEntry], problems: list[str]
) -> dict[str, TensorEntry]:
    """What the base gives. Parts that are trained whole may differ or lack; the rest must fit."""
    with torch.device("meta"):
        needed = {name: tuple(p.shape) for name, p in OpenVLAOFT(sizes).named_parameters()}
    was_diffusion = any("noise_predictor." in entry.key for entry in entries.values())
    other_head = was_diffusion != (sizes.head is HeadKind.DIFFUSION)
    taken = {}
    for name, shape in needed.items():
        entry = entries.get(name)
        if entry is not None and entry.shape == shape:
            if not (other_head and name.startswith("action_head.")):
                taken[name] = entry
        elif not is_whole(name):
            got = "missing" if entry is None else f"got {entry.shape}"
            problems.append(f"{name}: expected shape {shape}; {got}")
    return taken


def _blank_unused(model: OpenVLAOFT, tokenizer: Mapping[str, Any]) -> None:
    """Zeroes what a small network has only for the sake of Llama's vocabulary: embeddings of words
    that its tokenizer does not know, and lm_head where nothing reads it. They stay zero in
    training, and a checkpoint packs to a third of its size.
    """
    known = [*tokenizer["model"]["vocab"].values()]
    known += [added["id"] for added in tokenizer["added_tokens"]]
    embeddings = model.language_model.model.embed_tokens.weight
    blank = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    blank[known] = False
    with torch.no_grad():
        embeddings[blank] = 0.0
        if model.config.head is not HeadKind.DISCRETE:
            model.language_model.lm_head.weight.zero_()


def _make_missing(model: nn.Module, device: torch.device, seed: int) -> None:
    """Initialises modules that no file gave, as torch does, from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if own and any(parameter.is_meta for parameter in own):
                module.to_empty(device="cpu", recurse=False)
                assert isinstance(module, (nn.Linear, nn.LayerNorm))
                module.reset_parameters()
                module.to(device)
