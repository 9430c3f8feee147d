"""Shows a small network where the noise of the last joint stands, before it denoises chunks.

An action is read from the hidden state of the token before its own, and the head reads those of
all A joints of a control step at once. So every joint finds its noisy value among them but the
last one, whose value stands one token behind: attention must bring it. Among the six hundred
tokens of a whole question a small network was not seen to find it; without images and in chunks of
two control steps it does, and keeps it when chunks grow again. Not part of OpenVLA-OFT, whose
language model comes trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from vla_oft_ros.data.dataset import ChunkDataset
from vla_oft_ros.model.action_head import TRAIN_STEPS
from vla_oft_ros.model.inputs import sequence_ids
from vla_oft_ros.train.objectives import Batch, Objective
from vla_oft_ros.train.samples import Preparation, Sample, collate

_SHORTEST = 2
"""Control steps. In a chunk of one the last joint's value would also be the last of all."""
_SHORT_SHARE = 0.5
"""Of the steps: those with the shortest chunks alone."""
_ROWS = 128
"""Control steps of a batch, in however many chunks."""
_FEWEST = 6
"""Chunks in a batch, however long."""
_MOST_SAMPLES = 1500
_CHECKED = 32
_RATE = 8e-4
"""Of AdamW, and a third of it for the last fifth of the steps."""
_WARMUP_STEPS = 100
_SAY_EVERY = 200


def start_noise(
    objective: Objective,
    windows: ChunkDataset,
    preparation: Preparation,
    *,
    steps: int,
    say: Callable[[str], None],
) -> float:
    """Trains LLM, head and projectors to predict noise without images, in chunks that grow.

    Args:
        objective: Whose network learns, one with a diffusion head; vision towers stay as they are.
        windows: Training frames; the network does not see their images.
        preparation: How frames are prepared.
        steps: How many.
        say: Takes a line of progress now and then.

    Returns:
        Mean square error of the last joint's noise in whole chunks, at the middle noise level; 1
        is not seeing it.
    """
    generator = np.random.default_rng(preparation.seed)
    numbers = np.sort(generator.permutation(len(windows))[:_MOST_SAMPLES])
    samples = [_blind(windows, int(number), preparation) for number in numbers]
    checked = [samples[number] for number in generator.integers(len(samples), size=_CHECKED)]
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, fused=True)
    lengths = lengths_to(objective.model.config.chunk_len)
    told = 1.0
    for step in range(1, steps + 1):
        rate = _RATE * min(1.0, step / _WARMUP_STEPS) * (0.3 if step > 0.8 * steps else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        length = lengths[0] if step <= _SHORT_SHARE * steps else int(generator.choice(lengths))
        chosen = generator.integers(len(samples), size=max(_FEWEST, _ROWS // length))
        batch = _first_rows([samples[number] for number in chosen], length, generator)
        squares = _squares(objective, batch)
        count = int(batch.valid.sum()) * squares.shape[-1]
        (squares.sum() / count).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % _SAY_EVERY == 0 or step == steps:
            short, told = (
                _last_joint(objective, checked, rows, np.random.default_rng(preparation.seed))
                for rows in (lengths[0], lengths[-1])
            )
            say(
                f"noise start: step {step} of {steps}, error of the last joint's noise "
                f"{short:.3f} in {lengths[0]} control steps, {told:.3f} in {lengths[-1]} "
                "(1 is blind)"
            )
    return told


def lengths_to(chunk_len: int) -> list[int]:
    """Chunk lengths to learn from: doubled from the shortest one up to the whole."""
    lengths = [min(_SHORTEST, chunk_len)]
    while lengths[-1] < chunk_len:
        lengths.append(min(2 * lengths[-1], chunk_len))
    return lengths


def _blind(windows: ChunkDataset, number: int, preparation: Preparation) -> Sample:
    sample = preparation.sample(windows[number], number, training=False)
    return replace(sample, pixel_values=sample.pixel_values[:0])


def _first_rows(samples: Sequence[Sample], length: int, generator: np.random.Generator) -> Batch:
    """The first control steps of chunks, with fresh noise."""
    batch = collate(samples)
    prompts = [sample.prompt for sample in samples]
    shape = (len(samples), length, batch.actions.shape[-1])
    return replace(
        batch,
        inputs=replace(batch.inputs, input_ids=sequence_ids(prompts, length * shape[-1])),
        actions=batch.actions[:, :length],
        valid=batch.valid[:, :length],
        noise=torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)),
        timesteps=torch.from_numpy(generator.integers(TRAIN_STEPS, size=len(samples))),
    )


def _squares(objective: Objective, batch: Batch) -> Tensor:
    """(B, K', A) squared errors of the predicted noise, without a look at the images."""
    model = objective.model
    device = next(model.parameters()).device
    batch = batch.to(device)
    length = batch.actions.shape[1]
    layouts = [
        replace(model.config.layout(words), cameras=0, chunk_len=length)
        for words in batch.inputs.prompt_lens
    ]
    with torch.autocast(device.type, objective.autocast, enabled=objective.autocast is not None):
        none = torch.zeros(len(layouts), 0, model.config.llm.width, device=device)
        return objective.noise_squares(model.context(batch.inputs, none, layouts), batch)


@torch.no_grad()
def _last_joint(
    objective: Objective, samples: Sequence[Sample], length: int, generator: np.random.Generator
) -> float:
    batch = _first_rows(samples, length, generator)
    batch.timesteps.fill_(TRAIN_STEPS // 2)
    squares = _squares(objective, batch)[..., -1]  # (B, K')
    return float(squares.sum() / batch.valid.sum())
