"""Checkpoint directory ⇄ policy network: the only place where one is put together from files.

Loading first compares everything that the files offer with everything that the model needs, and
reports all that is wrong in one error. Then tensors stream one by one from disk to the device, so
that the host never holds more than the file being read. No code from a checkpoint is run and its
directory is never written to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_oft_ros.config import PreprocessingConfig
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.model.checkpoint_files import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    TOKENIZER_FILE,
    CheckpointError,
    TensorEntry,
    find_parts,
    find_shards,
    list_entries,
    read_json,
)
from vla_oft_ros.model.checkpoint_record import (
    OFFICIAL_TRAININGS,
    OPENVLA_BASELINE,
    SECTION,
    CheckpointRecord,
)
from vla_oft_ros.model.checkpoint_sizes import read_model_config
from vla_oft_ros.model.checkpoint_stream import read_lora_alpha, stream_tensors
from vla_oft_ros.model.inputs import ImagePipeline, PromptTokenizer
from vla_oft_ros.model.vla import ModelConfig, OpenVLAOFT
from vla_oft_ros.normalization import (
    STATISTICS_FILE,
    Bounds,
    NormStats,
    choose_dataset,
    read_statistics,
)

logger = logging.getLogger(__name__)

TOWERS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        directory: Where it came from.
        model: The network, in evaluation mode, gradients off.
        record: What shapes do not tell, completed.
        dataset: Data set whose statistics apply.
        statistics: All that dataset_statistics.json says of it.
        action_stats: Bounds of the actions.
        proprio_stats: Bounds of the proprio vector; None without a proprio projector.
        images: Image preparation.
        tokenizer: Prompt tokenizer.
    """

    directory: Path
    model: OpenVLAOFT
    record: CheckpointRecord
    dataset: str
    action_stats: NormStats
    proprio_stats: NormStats | None
    images: ImagePipeline
    tokenizer: PromptTokenizer
    statistics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network."""
        return self.model.config


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """Everything known before the first tensor is read."""

    entries: dict[str, TensorEntry]
    config: ModelConfig
    record: CheckpointRecord
    dataset: str
    statistics: Mapping[str, Any]
    action_stats: NormStats
    proprio_stats: NormStats | None
    images: ImagePipeline
    tokenizer: PromptTokenizer
    lora_alpha: float | None


def load_checkpoint(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    unnorm_key: str = "",
    record: CheckpointRecord | None = None,
) -> Checkpoint:
    """Loads any official or own OFT checkpoint.

    Args:
        directory: Checkpoint directory, official layout.
        device: Where the network goes.
        dtype: Format of its weights.
        unnorm_key: Data set in the statistics; empty if there is only one.
        record: Overrides of what the checkpoint says about itself; None for none.

    Raises:
        CheckpointError: listing everything that is missing, unexpected, mis-shaped, truncated or
            unreadable.
    """
    plan = plan_checkpoint(directory, unnorm_key, record or CheckpointRecord())
    with torch.device("meta"):
        model = OpenVLAOFT(plan.config)
    stream_tensors(model, plan.entries, device, dtype, plan.lora_alpha)
    model.eval().requires_grad_(False)
    config = plan.config
    logger.info(
        "loaded %s: %s head, %d actions of %d numbers, proprio %d, FiLM %s, %s on %s",
        directory,
        config.head.value,
        config.chunk_len,
        config.action_dim,
        config.proprio_dim,
        "on" if config.film else "off",
        dtype,
        device,
    )
    return Checkpoint(
        directory=directory,
        model=model,
        record=plan.record,
        dataset=plan.dataset,
        statistics=plan.statistics,
        action_stats=plan.action_stats,
        proprio_stats=plan.proprio_stats,
        images=plan.images,
        tokenizer=plan.tokenizer,
    )


def plan_checkpoint(directory: Path, unnorm_key: str, override: CheckpointRecord) -> _Plan:
    """Reads headers and small files, and refuses the checkpoint if anything is wrong with it.

    Raises:
        CheckpointError: listing everything that is wrong.
    """
    if not directory.is_dir():
        raise CheckpointError(
            directory,
            [
                "expected a local checkpoint directory; it does not exist. Nothing is downloaded "
                "here; for a model of Hugging Face: hf download NAME --local-dir DIR"
            ],
        )
    problems: list[str] = []
    config = read_json(directory / CONFIG_FILE, problems)
    parts = find_parts(directory, problems)
    entries = list_entries(find_shards(directory, problems), parts, problems)
    shapes = {name: entry.shape for name, entry in entries.items()}
    dataset, statistics = _read_dataset(directory, config, unnorm_key, problems)
    record = _complete_record(config, override, entries, parts, statistics, problems)
    problems += [
        f"{part}: its file is missing" for part in record.parts or () if part not in parts
    ]
    head = record.decoding or HeadKind.L1
    bounds = record.bounds or Bounds.MIN_MAX
    action_stats = _norm_stats(statistics, "action", bounds, problems)
    proprio_stats = (
        _norm_stats(statistics, "proprio", bounds, problems)
        if "proprio_projector" in parts
        else None
    )
    tokenizer = _read_tokenizer(directory, problems)
    lora_alpha = read_lora_alpha(directory, entries, problems)
    model_config = None
    if action_stats is not None and entries:
        model_config = read_model_config(shapes, config, record, head, action_stats.dim, problems)
    if model_config is not None:
        _compare(model_config, shapes, problems)
        if proprio_stats is not None and proprio_stats.dim != model_config.proprio_dim:
            problems.append(
                f"{STATISTICS_FILE}: {dataset}: expected {model_config.proprio_dim} proprio "
                f"dimensions, as the proprio_projector has; got {proprio_stats.dim}"
            )
    images = read_image_pipeline(directory, model_config, record, problems)
    if problems or not (model_config and action_stats and images and tokenizer):
        raise CheckpointError(directory, problems)
    return _Plan(
        entries=entries,
        config=model_config,
        record=record,
        dataset=dataset,
        statistics=statistics,
        action_stats=action_stats,
        proprio_stats=proprio_stats,
        images=images,
        tokenizer=tokenizer,
        lora_alpha=lora_alpha,
    )


def _read_dataset(
    directory: Path, config: Mapping[str, Any], unnorm_key: str, problems: list[str]
) -> tuple[str, Mapping[str, Any]]:
    """Name and statistics of the data set; dataset_statistics.json overrides config.json's
    norm_stats.
    """
    try:
        path = directory / STATISTICS_FILE
        embedded = config.get("norm_stats")
        statistics = embedded if embedded and not path.is_file() else read_statistics(path)
        name = choose_dataset(statistics, unnorm_key)
        return name, statistics[name]
    except ValueError as error:
        problems.append(str(error))
        return "", {}


def _complete_record(
    config: Mapping[str, Any],
    override: CheckpointRecord,
    entries: Mapping[str, TensorEntry],
    parts: Mapping[str, Path],
    statistics: Mapping[str, Any],
    problems: list[str],
) -> CheckpointRecord:
    """Override, else the checkpoint's own section, else what is known of official trainings."""
    try:
        own = CheckpointRecord.from_json(config.get(SECTION, {}))
        problems += _swapped_cameras(override.cameras or (), own.cameras or ())
        record = override.or_else(own)
    except (TypeError, ValueError) as error:
        problems.append(f"{CONFIG_FILE}: {SECTION}: {error}")
        record = override
    if record.decoding is None:
        record = record.or_else(
            CheckpointRecord(decoding=_guess_decoding(entries, parts, config, problems))
        )
    action_dim, proprio_dim = (_dim(statistics.get(kind)) for kind in ("action", "proprio"))
    official = (
        OPENVLA_BASELINE
        if record.decoding is HeadKind.AUTOREGRESSIVE
        else OFFICIAL_TRAININGS.get((action_dim, proprio_dim), CheckpointRecord())
    )
    return record.or_else(official).or_else(CheckpointRecord(preprocessing=PreprocessingConfig()))


def _swapped_cameras(wanted: tuple[str, ...], trained: tuple[str, ...]) -> list[str]:
    """Cameras may be given other names, but not each other's."""
    if wanted == trained or set(wanted) != set(trained):
        return []
    return [
        f"cameras: expected the order of training, {', '.join(trained)}; got {', '.join(wanted)}. "
        "Leave the parameter empty"
    ]


def _dim(section: Any) -> int:
    """Length of the vectors in one section of the statistics; 0 if it is malformed, found out
    later.
    """
    bound = section.get("min") if isinstance(section, Mapping) else None
    return len(bound) if isinstance(bound, list) else 0


def _guess_decoding(
    entries: Mapping[str, TensorEntry],
    parts: Mapping[str, Path],
    config: Mapping[str, Any],
    problems: list[str],
) -> HeadKind:
    if any("noise_predictor." in entry.key for entry in entries.values()):
        return HeadKind.DIFFUSION
    if "action_head" in parts:
        return HeadKind.L1
    if "noisy_action_projector" in parts:
        problems.append("action_head: missing, though a noisy_action_projector is there")
        return HeadKind.DIFFUSION
    if parts:
        names = ", ".join(path.name for path in parts.values())
        problems.append(
            f"action_head: missing, though {names} is there; if the checkpoint decodes tokens, "
            f'say so in config.json: "{SECTION}": {{"decoding": "discrete"}}'
        )
        return HeadKind.L1
    return HeadKind.AUTOREGRESSIVE if config.get("norm_stats") else HeadKind.DISCRETE


def _norm_stats(
    statistics: Mapping[str, Any], kind: str, bounds: Bounds, problems: list[str]
) -> NormStats | None:
    if not statistics:
        return None  # already a problem
    try:
        return NormStats.from_statistics(statistics.get(kind, {}), bounds)
    except (TypeError, ValueError) as error:
        problems.append(f"{STATISTICS_FILE}: {kind}: {error}")
        return None


def _read_tokenizer(directory: Path, problems: list[str]) -> PromptTokenizer | None:
    try:
        return PromptTokenizer(directory / TOKENIZER_FILE)
    except ValueError as error:
        problems.append(str(error))
        return None


def read_image_pipeline(
    directory: Path,
    config: ModelConfig | None,
    record: CheckpointRecord,
    problems: list[str],
) -> ImagePipeline | None:
    """Means and deviations per tower. What training used stands under tvf_normalize_params,
    rounded to bfloat16; the lists "means" and "stds" beside it are not what the released
    processors apply.
    """
    path = directory / PREPROCESSOR_FILE
    content = read_json(path, problems)
    if not content:
        return None
    towers = content.get("tvf_normalize_params")
    try:
        means = [t["mean"] for t in towers] if towers else content["means"]
        stds = [t["std"] for t in towers] if towers else content["stds"]
        mean, std = (np.array(values, dtype=np.float32) for values in (means, stds))
    except (KeyError, TypeError, ValueError) as error:
        problems.append(f"{path.name}: expected tvf_normalize_params or means and stds; {error!r}")
        return None
    if mean.shape != (TOWERS, 3) or std.shape != (TOWERS, 3) or not np.all(std > 0):
        problems.append(
            f"{path.name}: expected three means and three positive deviations for each of "
            f"{TOWERS} towers; got shapes {mean.shape} and {std.shape}"
        )
        return None
    if config is None or record.preprocessing is None:
        return None
    return ImagePipeline(
        size_px=config.dino.image_px, mean=mean, std=std, options=record.preprocessing
    )


def _compare(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], problems: list[str]
) -> None:
    """Holds what the files offer against what the model needs."""
    with torch.device("meta"):
        needed = {name: tuple(p.shape) for name, p in OpenVLAOFT(config).named_parameters()}
    for name, shape in needed.items():
        if name not in shapes:
            problems.append(f"{name}: missing, expected shape {shape}")
        elif shapes[name] != shape:
            problems.append(f"{name}: expected shape {shape}; got {shapes[name]}")
    problems += [f"{name}: unexpected tensor" for name in shapes if name not in needed]
