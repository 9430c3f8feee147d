"""What a diffusion policy learns before all else: where the noise of each joint stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import CHUNK_LEN, SMALL, MakeConfig, make_episode
from rich.console import Console
from safetensors.torch import load_file

from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.config import ConfigError
from vla_oft_ros.data.dataset import ChunkDataset
from vla_oft_ros.data.statistics import StatisticsCollector
from vla_oft_ros.train.base import load_base, make_small_base
from vla_oft_ros.train.finetune import finetune
from vla_oft_ros.train.lora import choose_trained, is_vision
from vla_oft_ros.train.noise_start import lengths_to, start_noise
from vla_oft_ros.train.objectives import Objective
from vla_oft_ros.train.samples import Preparation


def started(
    make_config: MakeConfig, run_dir: Path, steps: int, **sizes: int
) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Error of the last joint's noise at the end, and the weights before and after."""
    episodes = [make_episode(number) for number in range(4)]
    config = make_config(run_dir, decoding="diffusion", small=replace(SMALL, **sizes))
    config = replace(config, data=replace(config.data, augment=False))
    make_small_base(config)
    collector = StatisticsCollector()
    for episode in episodes:
        collector.add(episode)
    checkpoint = load_base(
        config,
        collector.finish().content,
        profile="sim",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    model = checkpoint.model
    choose_trained(model, rank=0, dropout=0.0)
    windows = ChunkDataset(
        [lambda episode=episode: episode for episode in episodes],
        chunk_len=CHUNK_LEN,
        cameras=CAMERAS,
    )
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    error = start_noise(
        Objective(model),
        windows,
        Preparation.of(checkpoint, seed=7, augmented=False),
        steps=steps,
        say=lambda line: None,
    )
    assert all(value.grad is None for value in model.parameters())
    return error, before, dict(model.named_parameters())


@pytest.mark.slow
def test_the_network_finds_the_noise_of_the_last_joint(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Its value stands one token behind all that the head reads."""
    blind, _, _ = started(make_config, tmp_path / "blind", 1, width=64)
    seeing, _, _ = started(make_config, tmp_path / "seeing", 600, width=64)
    assert blind > 0.9 and seeing < 0.5


def test_the_towers_stay_and_all_that_handles_noise_learns(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    _, before, after = started(make_config, tmp_path, 2)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert not [name for name in changed if is_vision(name) or ".film." in name]
    parts = ("action_head.", "noisy_action_projector.", "proprio_projector.", "language_model.")
    for part in parts:
        assert [name for name in changed if name.startswith(part)], part


def test_chunks_grow_from_two_control_steps_to_the_whole() -> None:
    assert lengths_to(25) == [2, 4, 8, 16, 25]
    assert lengths_to(2) == [2] and lengths_to(1) == [1]


def test_a_training_begins_with_it_once_and_goes_on_as_if_never_interrupted(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    said: list[str] = []

    class Ear(Console):
        def print(self, *parts: object, **options: object) -> None:
            said.extend(str(part) for part in parts)

    def trained(run_dir: Path, *stops: int) -> dict[str, torch.Tensor]:
        config = make_config(run_dir, decoding="diffusion", noise_start_steps=2)
        results = [finetune(replace(config, max_steps=stop), Ear(quiet=True)) for stop in stops]
        return load_file(results[-1].checkpoint_dir / "model.safetensors")

    whole = trained(tmp_path / "whole", 3)
    assert len([line for line in said if "noise start: step 2 of 2" in line]) == 1
    said.clear()
    parts = trained(tmp_path / "parts", 1, 3)
    assert len([line for line in said if "noise start" in line]) == 1
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_another_start_is_another_training(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path, decoding="diffusion", noise_start_steps=1, max_steps=1)
    finetune(config, Console(quiet=True))
    with pytest.raises(ConfigError, match="noise_start_steps was 1, is None"):
        finetune(replace(config, noise_start_steps=0), Console(quiet=True))


@pytest.mark.parametrize("decoding", ["l1", "discrete"])
def test_it_is_refused_where_there_is_no_noise(
    decoding: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="only diffusion has noise"):
        finetune(
            make_config(tmp_path, decoding=decoding, noise_start_steps=2), Console(quiet=True)
        )
