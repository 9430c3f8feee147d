"""Shows vision towers that start from random weights where things are, before all else learns.

In the first frames of demonstrations the arms rest: only the images tell what will be done. A
network from random weights finds that out last. What the arms do in later frames tells it sooner
where they go, and an object is one patch of hundreds, about a hundredth of what attention mixes at
first. Here it is magnified: the mean patch token, compared with that of the batch, must tell the
principal components of the chunks, for each instruction on its own. Not part of OpenVLA-OFT, whose
towers come trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vla_oft_ros.config import ConfigError
from vla_oft_ros.data.dataset import ChunkDataset
from vla_oft_ros.model.vla import OpenVLAOFT
from vla_oft_ros.train.lora import is_vision
from vla_oft_ros.train.objectives import Batch, Objective
from vla_oft_ros.train.samples import Preparation, Sample, collate

FRAMES = 4
"""Of each episode, from its first one on."""
_MOST_SAMPLES = 1200
_BATCH = 48
_RATE = 3e-4
"""Of AdamW. At 1e-3 the towers were seen to silence every patch instead."""
_WARMUP_STEPS = 50
_EXPLAINED = 0.8
"""Share of the chunks' variance that the principal components to be told have."""
_GAIN = 3.0
_SAY_EVERY = 100


class _Reader(nn.Module):
    """(B, P, D) patch tokens → (B, C) components, from how their means differ in the batch.

    One answer for each of I instructions, of which that of the (B, I) one-hot row counts.
    """

    def __init__(self, width: int, instructions: int, components: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, instructions * components)

    def forward(self, patches: Tensor, instructions: Tensor) -> Tensor:
        pooled = patches.float().mean(dim=1)  # (B, D)
        pooled = F.rms_norm(pooled, pooled.shape[-1:])
        told = self.fc2(F.gelu(self.fc1(_GAIN * (pooled - pooled.mean(dim=0)))))  # (B, I·C)
        answers = rearrange(told, "b (i c) -> b i c", i=instructions.shape[1])
        counted: Tensor = (answers * instructions[:, :, None]).sum(dim=1)
        return counted


class _Instructions:
    """The distinct prompts of samples, each a one-hot row."""

    def __init__(self, samples: list[Sample]) -> None:
        distinct = sorted({sample.prompt.tobytes() for sample in samples})
        self._numbers = {prompt: number for number, prompt in enumerate(distinct)}

    def __len__(self) -> int:
        return len(self._numbers)

    def __call__(self, samples: list[Sample]) -> Tensor:
        """(S, I) float32; a prompt that was not among them is a row of zeros."""
        rows = torch.zeros(len(samples), len(self))
        for row, sample in zip(rows, samples, strict=True):
            number = self._numbers.get(sample.prompt.tobytes())
            if number is not None:
                row[number] = 1.0
        return rows


class _Components:
    """The principal components of chunks, each with mean 0 and deviation 1 over the samples."""

    def __init__(self, chunks: Tensor) -> None:
        flat = chunks.flatten(1)  # (S, K·A)
        self._mean = flat.mean(dim=0)
        _, values, rows = torch.linalg.svd(flat - self._mean, full_matrices=False)
        variance = values.square().cumsum(0)
        if not float(variance[-1]) > 0.0:
            raise ConfigError(
                "vision_start_steps: expected demonstrations that begin differently; got the same "
                "first chunk in all. Set it to 0"
            )
        self.count = 1 + int((variance < _EXPLAINED * variance[-1]).sum())
        self._rows = rows[: self.count]
        self._deviation = ((flat - self._mean) @ self._rows.T).std(dim=0)

    def __call__(self, chunks: Tensor) -> Tensor:
        """(S, K, A) → (S, C)."""
        told: Tensor = ((chunks.flatten(1) - self._mean) @ self._rows.T) / self._deviation
        return told


def start_vision(
    objective: Objective,
    windows: ChunkDataset,
    held_out: ChunkDataset | None,
    preparation: Preparation,
    *,
    steps: int,
    say: Callable[[str], None],
) -> float:
    """Trains vision towers and projector on the first frames of episodes, by the first camera.

    Where instructions differ, what reads the patches is told which one was given. FiLM is left to
    the training: by this way it was seen to learn episodes by heart instead.

    Args:
        objective: Whose network learns; FiLM, LLM and head stay as they are.
        windows: Training frames.
        held_out: Frames of other episodes, to tell what was learned; None takes training frames.
        preparation: How frames are prepared.
        steps: How many.
        say: Takes a line of progress now and then.

    Returns:
        Mean square error of the held-out components at the end; 1 is knowing nothing.

    Raises:
        ConfigError: if the chunks that demonstrations begin with are all the same.
    """
    model = objective.model
    device = next(model.parameters()).device
    generator = np.random.default_rng(preparation.seed)
    samples = _first_samples(windows, preparation, generator)
    checked = _first_samples(held_out, preparation, generator) if held_out else samples
    components = _Components(_chunks(samples))
    instructions = _Instructions(samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preparation.seed)
        reader = _Reader(model.config.llm.width, len(instructions), components.count).to(device)
    taught = [parameter for parameter in _seeing(model).values() if parameter.requires_grad]
    parameters = [*taught, *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, fused=True)

    def error(chosen: list[Sample]) -> Tensor:
        batch = collate(chosen)
        patches = _patches(objective, batch.to(device))
        wanted = components(batch.actions).to(device)
        squares: Tensor = (reader(patches, instructions(chosen).to(device)) - wanted).square()
        return squares.mean()

    told = 1.0
    which = "episodes held out" if held_out else "the episodes themselves"
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, step / _WARMUP_STEPS)
        numbers = generator.integers(len(samples), size=min(_BATCH, len(samples)))
        loss = error([samples[number] for number in numbers])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % _SAY_EVERY == 0 or step == steps:
            with torch.no_grad():
                told = float(error(checked[: 2 * _BATCH]))
            say(
                f"vision start: step {step} of {steps}, error {told:.3f} at the beginning of "
                f"{which} (1 is blind)"
            )
    model.zero_grad(set_to_none=True)
    return told


def seen_by(model: OpenVLAOFT) -> dict[str, Tensor]:
    """Name → weight of what `start_vision` teaches, on the CPU."""
    return {name: value.detach().cpu() for name, value in _seeing(model).items()}


def _seeing(model: OpenVLAOFT) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if is_vision(name)}


def _first_samples(
    windows: ChunkDataset, preparation: Preparation, generator: np.random.Generator
) -> list[Sample]:
    """Of the first frames, those of the first camera only: they stay in memory."""
    firsts = generator.permutation(windows.starts(FRAMES))[:_MOST_SAMPLES]
    samples = []
    for number in firsts:
        sample = preparation.sample(windows[int(number)], int(number), training=False)
        one_camera = sample.pixel_values[: len(sample.pixel_values) // len(windows.cameras)]
        samples.append(replace(sample, pixel_values=one_camera.copy()))
    return samples


def _chunks(samples: list[Sample]) -> Tensor:
    return torch.from_numpy(np.stack([sample.actions for sample in samples]))


def _patches(objective: Objective, batch: Batch) -> Tensor:
    """(B, P, D) patch tokens as the LLM gets them."""
    model = objective.model
    with torch.no_grad():
        modulations = objective.film(batch.inputs)
    kind = batch.actions.device.type
    with torch.autocast(kind, objective.autocast, enabled=objective.autocast is not None):
        features = model.vision_backbone(batch.inputs.pixel_values, modulations)
        patches: Tensor = model.projector(features)
    return patches
