"""Losses: the official training step, padding, ended episodes, and sums that add up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_cases import Case, make_variant
from made_up import CHUNK_LEN, MakeConfig, make_episode
from torch import Tensor

from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.config import FinetuneConfig
from vla_oft_ros.data.dataset import ChunkDataset
from vla_oft_ros.data.statistics import StatisticsCollector
from vla_oft_ros.model.action_head import DdimSchedule
from vla_oft_ros.model.checkpoint import Checkpoint
from vla_oft_ros.model.inputs import ModelInputs, sequence_ids
from vla_oft_ros.train.base import load_base
from vla_oft_ros.train.objectives import Batch, Objective
from vla_oft_ros.train.samples import Preparation, TrainingSamples, collate

LOSS, ACTION_L1, GRADIENT = 1e-5, 5e-5, 1e-4
"""Allowed errors of the fixtures, the last one relative to each tensor's largest value."""


@pytest.fixture(scope="module")
def golden_case(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if not (golden_dir / "golden" / "train_film_l1.npz").is_file():
        pytest.skip("train_film_l1.npz is not in the golden folder")
    directory = make_variant(
        golden_dir, "train_film_l1", tmp_path_factory.mktemp("golden") / "train"
    )
    return Case(golden_dir, "train_film_l1", directory)


def golden_batch(case: Case) -> Batch:
    """The recorded batch of two, the shorter prompt padded."""
    checkpoint, expected = case.checkpoint, case.expected
    prompts = [checkpoint.tokenizer.prompt_ids(str(text)) for text in expected["instructions"]]
    actions = torch.from_numpy(expected["actions_gt"])
    ids = checkpoint.model.bins.encode(actions).flatten(1).numpy()
    images = checkpoint.images
    first = [images.crop(image) for image in case.policy_images()]
    second = [image[::-1] for image in case.policy_images()]
    return Batch(
        inputs=ModelInputs(
            pixel_values=torch.from_numpy(
                np.stack([images.pixel_values(sample) for sample in (first, second)])
            ),
            input_ids=sequence_ids(prompts, list(ids)),
            prompt_lens=tuple(len(prompt) for prompt in prompts),
            proprio=torch.from_numpy(expected["proprio"]),
        ),
        actions=actions,
        valid=torch.ones(actions.shape[:2], dtype=torch.bool),
        noise=torch.zeros_like(actions),
        timesteps=torch.zeros(len(actions), dtype=torch.int64),
    )


def official_name(name: str) -> str:
    """Parameter of a recorded gradient."""
    part, _, rest = name.removeprefix("grad__").partition(".")
    whole = {
        "head": "action_head",
        "proprio": "proprio_projector",
        "dino": "vision_backbone.featurizer",
        "siglip": "vision_backbone.fused_featurizer",
        "projector": "projector",
    }[part]
    rest = rest.replace(".scale.", ".film.scale.").replace(".shift.", ".film.shift.")
    return f"{whole}.{rest}"


def test_the_official_training_step_is_reproduced_with_its_gradients(golden_case: Case) -> None:
    model, expected = golden_case.checkpoint.model, golden_case.expected
    objective = Objective(model, pads_in_film_average=True)
    batch = golden_batch(golden_case)
    model.requires_grad_(True)
    losses = objective(batch)
    (losses.total / objective.count(batch)).backward()
    means = {name: float(total / count) for name, (total, count) in losses.figures.items()}
    gradients = {name: grad for name, grad in expected.items() if name.startswith("grad__")}
    errors = {}
    for name, grad in gradients.items():
        ours = model.get_parameter(official_name(name)).grad
        assert ours is not None, name
        errors[name] = float(np.abs(ours.numpy() - grad).max() / np.abs(grad).max())
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    assert means["l1"] == pytest.approx(float(expected["loss"]), abs=LOSS)
    for name in ("curr_action_l1", "next_actions_l1"):
        assert means[name] == pytest.approx(float(expected[name]), abs=ACTION_L1)
    assert len(errors) == 6 and max(errors.values()) <= GRADIENT, errors


def test_padding_never_drives_film_unless_asked_for(golden_case: Case) -> None:
    """A padded row must answer as it does alone: that is how it is when the policy acts."""
    model, batch = golden_case.checkpoint.model, golden_batch(golden_case)
    lengths = batch.inputs.prompt_lens
    short = int(np.argmin(lengths))
    assert min(lengths) < max(lengths)
    end = lengths[short] + batch.actions[0].numel() + 1
    alone = replace(
        rows(batch, [short]),
        inputs=replace(
            rows(batch, [short]).inputs, input_ids=batch.inputs.input_ids[[short], :end]
        ),
    )

    def loss_of_row(padded: bool) -> tuple[float, float]:
        objective = Objective(model, pads_in_film_average=padded)
        together = batch.valid.clone()
        together[1 - short] = False
        with torch.no_grad():
            return float(objective(alone).total), float(
                objective(replace(batch, valid=together)).total
            )

    single, within = loss_of_row(padded=False)
    assert within == pytest.approx(single, rel=1e-5)
    single, within = loss_of_row(padded=True)
    assert abs(within - single) > 1e-3 * single


def rows(batch: Batch, index: list[int]) -> Batch:
    inputs = batch.inputs
    return Batch(
        inputs=ModelInputs(
            pixel_values=inputs.pixel_values[index],
            input_ids=inputs.input_ids[index],
            prompt_lens=tuple(inputs.prompt_lens[i] for i in index),
            proprio=None if inputs.proprio is None else inputs.proprio[index],
        ),
        actions=batch.actions[index],
        valid=batch.valid[index],
        noise=batch.noise[index],
        timesteps=batch.timesteps[index],
    )


def small(base_dir: Path, config: FinetuneConfig) -> tuple[Checkpoint, Batch]:
    """A small network and four frames, two of them near the end of their episode."""
    episodes = [make_episode(0), make_episode(0, steps=5)]
    collector = StatisticsCollector()
    for episode in episodes:
        collector.add(episode)
    checkpoint = load_base(
        replace(config, base_dir=str(base_dir)),
        collector.finish().content,
        profile="sim",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    windows = ChunkDataset(
        [lambda e=episode: e for episode in episodes], chunk_len=CHUNK_LEN, cameras=CAMERAS
    )
    preparation = Preparation.of(checkpoint, seed=0, augmented=False)
    samples = TrainingSamples(windows, preparation)
    frames = (0, 3, 7, 13)
    batch = collate([preparation.sample(windows[i], i, training=True) for i in frames])
    assert batch.valid.all(dim=1).tolist() == [True, True, False, False]
    assert sorted(samples.frame(i) for i in range(len(windows))) == list(range(len(windows)))
    return checkpoint, batch


DECODINGS = ("l1", "discrete", "diffusion")


@pytest.mark.parametrize("decoding", DECODINGS)
def test_losses_of_halves_add_up_and_ended_steps_count_nothing(
    decoding: str, base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint, batch = small(base_dir, make_config(tmp_path, decoding=decoding))
    objective = Objective(checkpoint.model)
    with torch.no_grad():
        whole = objective(batch).total
        halves = [rows(batch, [0, 1]), rows(batch, [2, 3])]
        assert float(sum(objective(half).total for half in halves)) == pytest.approx(
            float(whole), rel=1e-5
        )
        assert objective.count(batch) == sum(objective.count(half) for half in halves)
        if decoding != "diffusion":  # there, the network reads the noisy actions of all steps
            changed = torch.where(batch.valid[..., None], batch.actions, batch.actions + 0.7)
            other = replace(batch, actions=changed)
            assert float(objective(other).total) == pytest.approx(float(whole), rel=1e-6)
    nothing = replace(batch, valid=torch.zeros_like(batch.valid))
    assert objective.count(nothing) == 0 and float(objective(nothing).total) == 0.0


def test_l1_is_the_mean_over_valid_actions(
    base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint, batch = small(base_dir, make_config(tmp_path))
    objective = Objective(checkpoint.model)
    with torch.no_grad():
        losses = objective(batch)
        predicted = torch.cat(
            [checkpoint.model(rows(batch, [i]).inputs).actions for i in range(4)]
        )
    expected = F.l1_loss(predicted[batch.valid], batch.actions[batch.valid])
    assert float(losses.total) / objective.count(batch) == pytest.approx(float(expected), 1e-5)


def test_discrete_loss_is_the_shifted_cross_entropy_of_actions_and_stop(
    base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint, batch = small(base_dir, make_config(tmp_path, decoding="discrete"))
    model, single = checkpoint.model, rows(batch, [0])
    objective = Objective(model)
    layout = model.config.layout(single.inputs.prompt_lens[0])
    with torch.no_grad():
        context = model.embed(single.inputs)
        sequence = torch.cat(
            [context.prompt[:, :1], context.patches, context.proprio, context.prompt[:, 1:]], 1
        )
        hidden = model.language_model.model(sequence).hidden
        logits = model.language_model.lm_head(hidden)[0, layout.actions.start - 1 : -1]
        labels = single.inputs.input_ids[0, layout.prompt_len :]
        assert len(logits) == len(labels) == CHUNK_LEN * 14 + 1
        expected = F.cross_entropy(logits, labels)
        loss = objective(single).total / objective.count(single)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_diffusion_loss_is_the_error_of_the_noise_at_the_drawn_level(
    base_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint, batch = small(base_dir, make_config(tmp_path, decoding="diffusion"))
    model, single = checkpoint.model, rows(batch, [1])
    alpha = DdimSchedule(torch.device("cpu")).alphas_cumprod[single.timesteps]
    noisy: Tensor = alpha.sqrt() * single.actions + (1 - alpha).sqrt() * single.noise
    with torch.no_grad():
        hidden, _ = model.noisy_hidden(model.embed(single.inputs), noisy, single.timesteps)
        expected = F.mse_loss(model.action_head(hidden), single.noise)
        objective = Objective(model)
        loss = objective(single).total / objective.count(single)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
