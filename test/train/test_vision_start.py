"""What vision towers learn before all else: where things are, from images alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import CHUNK_LEN, SIZE_PX, STEPS, MakeConfig, make_episode
from rich.console import Console
from safetensors.torch import load_file

from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.config import ConfigError
from vla_oft_ros.data.dataset import ChunkDataset
from vla_oft_ros.data.episode import Episode
from vla_oft_ros.data.statistics import StatisticsCollector
from vla_oft_ros.model.checkpoint import load_checkpoint
from vla_oft_ros.train.base import load_base, make_small_base
from vla_oft_ros.train.finetune import VISION_START_FILE, finetune
from vla_oft_ros.train.lora import choose_trained, is_unused
from vla_oft_ros.train.objectives import Objective
from vla_oft_ros.train.samples import Preparation
from vla_oft_ros.train.vision_start import seen_by, start_vision

PLACES = SIZE_PX // 14
BLIND = 0.8
"""Mean square error above which nothing was learned; 1 is the mean of the targets."""


def reaching(number: int, *, visible: bool = True) -> Episode:
    """An episode whose actions are told by where a white square is, and by nothing else."""
    episode = make_episode(0)
    row, column = divmod(number % PLACES**2, PLACES)
    first = np.full((SIZE_PX, SIZE_PX, 3), 60, dtype=np.uint8)
    if visible:
        first[14 * row + 4 : 14 * row + 10, 14 * column + 4 : 14 * column + 10] = 255
    images = {camera: np.stack([first] * STEPS) for camera in CAMERAS}
    reach = np.zeros(14)
    reach[7:9] = row, column
    qpos = np.tile(episode.qpos[0], (STEPS, 1))
    return replace(episode, images=images, qpos=qpos, action=qpos + 0.3 * reach)


def told_to(number: int) -> Episode:
    """Of every two episodes one is told to reach for the square, the other to the other side."""
    episode = reaching(number // 2)
    sign = 1.0 - 2.0 * (number % 2)
    reach = sign * (episode.action - episode.qpos)
    asked = f"reach {'for' if sign > 0 else 'away from'} the square"
    return replace(episode, action=episode.qpos + reach, instruction=asked)


def learned(
    episodes: list[Episode],
    make_config: MakeConfig,
    run_dir: Path,
) -> tuple[float, set[str]]:
    """Error at the end, and which weights have changed."""
    config = make_config(run_dir)
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
    choose_trained(checkpoint.model, rank=0, dropout=0.0)
    windows = ChunkDataset(
        [lambda episode=episode: episode for episode in episodes],
        chunk_len=CHUNK_LEN,
        cameras=CAMERAS,
    )
    before = {name: value.clone() for name, value in checkpoint.model.named_parameters()}
    error = start_vision(
        Objective(checkpoint.model),
        windows,
        None,
        Preparation.of(checkpoint, seed=7, augmented=False),
        steps=150,
        say=lambda line: None,
    )
    changed = {
        name
        for name, value in checkpoint.model.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert all(value.grad is None for value in checkpoint.model.parameters())
    return error, changed


def towers_alone(changed: set[str]) -> bool:
    return bool(changed) and all(
        name.startswith(("vision_backbone.", "projector.")) and ".film." not in name
        for name in changed
    )


def test_the_towers_learn_where_a_thing_is_if_they_can_see_it_and_only_then(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    seen, changed = learned(
        [reaching(number) for number in range(8)], make_config, tmp_path / "seen"
    )
    hidden, _ = learned(
        [reaching(number, visible=False) for number in range(8)], make_config, tmp_path / "hidden"
    )
    assert seen < 0.2 and hidden > BLIND
    assert towers_alone(changed)


def test_where_instructions_differ_each_is_answered_on_its_own(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    told = [told_to(number) for number in range(8)]
    deaf = [replace(episode, instruction="reach") for episode in told]
    heard, changed = learned(told, make_config, tmp_path / "told")
    unheard, _ = learned(deaf, make_config, tmp_path / "deaf")
    assert heard < 0.3 and unheard > BLIND
    assert towers_alone(changed)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("film", [True, False])
def test_frozen_film_and_its_words_stay_and_words_that_drive_no_film_learn(
    film: bool, frozen: bool, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(tmp_path, film=film, freeze_film=frozen, save_every=1)
    quiet = Console(quiet=True)
    paths = [finetune(replace(config, max_steps=n), quiet).checkpoint_dir for n in (1, 3)]
    models = [
        load_checkpoint(path, device=torch.device("cpu"), dtype=torch.float32).model
        for path in paths
    ]
    before, after = (dict(model.named_parameters()) for model in models)
    words = "language_model.model.embed_tokens.weight"
    assert torch.equal(before[words], after[words]) == (film and frozen)
    films = [name for name in before if ".film." in name]
    assert bool(films) == film
    for name in films:
        if not is_unused(name, models[0].config):
            assert torch.equal(before[name], after[name]) == frozen, name


def test_a_training_begins_with_it_once_and_a_resumed_one_does_not(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    said: list[str] = []

    class Ear(Console):
        def print(self, *parts: object, **options: object) -> None:
            said.extend(str(part) for part in parts)

    config = make_config(tmp_path, vision_start_steps=2, max_steps=1)
    finetune(config, Ear(quiet=True))
    assert [line for line in said if "vision start: step 2 of 2" in line]
    said.clear()
    finetune(replace(config, max_steps=2), Ear(quiet=True))
    assert not [line for line in said if "vision start" in line]


def test_frozen_towers_keep_what_they_learned_through_checkpoints_and_resumption(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    quiet = Console(quiet=True)
    config = make_config(tmp_path, vision_start_steps=2, freeze_vision=True, save_every=1)
    finetune(replace(config, max_steps=1), quiet)
    last = finetune(replace(config, max_steps=3), quiet).checkpoint_dir
    started = load_file(tmp_path / VISION_START_FILE)
    model = load_checkpoint(last, device=torch.device("cpu"), dtype=torch.float32).model
    reloaded = seen_by(model)
    used = [name for name in started if not is_unused(name, model.config)]
    assert len(used) > 30
    for name in used:
        assert torch.equal(reloaded[name], started[name]), name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora_rank": 4}, "lora_rank"),
        ({"sharding": "fsdp"}, "sharding ddp"),
        ({"freeze_vision": True, "vision_probe": 0.5}, "nobody to be taught"),
    ],
)
def test_it_is_refused_where_it_cannot_train_the_towers(
    changes: dict, expected: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=expected):
        finetune(make_config(tmp_path, vision_start_steps=2, **changes), Console(quiet=True))


def test_demonstrations_that_all_begin_alike_are_refused(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="begin differently"):
        learned([make_episode(0, steps=1)] * 2, make_config, tmp_path)
