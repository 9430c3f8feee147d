"""Windows → batches: the same preparation as when the policy acts, plus augmentation.

Training samples are numbered 0, 1, 2, … for ever. The number decides which frame is shown, how it
is augmented and which noise it gets, so any process can make any sample, and a resumed training
goes on with the very next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vla_oft_ros.data.dataset import ChunkDataset, Window
from vla_oft_ros.model.action_head import TRAIN_STEPS, ActionBins
from vla_oft_ros.model.checkpoint import Checkpoint
from vla_oft_ros.model.image_ops import center_crop
from vla_oft_ros.model.inputs import ImagePipeline, ModelInputs, PromptTokenizer, sequence_ids
from vla_oft_ros.normalization import NormStats, normalize
from vla_oft_ros.train.augmentation import augment
from vla_oft_ros.train.objectives import Batch

_STARTS = 99
"""Keeps the draw of beginnings apart from other random numbers of the same sample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One row of a `Batch`.

    Attributes:
        pixel_values: (6·N, size, size) float32.
        prompt: (L,) int64.
        action_ids: (K·A,) int64.
        proprio: (A,) float32 normalised.
        actions: (K, A) float32 normalised.
        valid: (K,) bool.
        noise: (K, A) float32.
        timestep: Noise level.
    """

    pixel_values: np.ndarray
    prompt: np.ndarray
    action_ids: np.ndarray
    proprio: np.ndarray
    actions: np.ndarray
    valid: np.ndarray
    noise: np.ndarray
    timestep: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Preparation:
    """What turns a window into a sample; travels to the processes that prepare samples.

    Attributes:
        images: Image preparation of the checkpoint.
        tokenizer: Its prompt tokenizer.
        bins: Its action tokens.
        action_stats: Bounds of the actions.
        proprio_stats: Bounds of proprio; None where the network reads none.
        seed: Of augmentation and noise.
        augmented: Whether training images are augmented.
        diagonal_crops: See `augment`.
    """

    images: ImagePipeline
    tokenizer: PromptTokenizer
    bins: ActionBins
    action_stats: NormStats
    proprio_stats: NormStats | None
    seed: int
    augmented: bool
    diagonal_crops: bool = False

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, *, seed: int, augmented: bool, diagonal_crops: bool = False
    ) -> Preparation:
        """The preparation that a checkpoint will be run with."""
        return cls(
            images=checkpoint.images,
            tokenizer=checkpoint.tokenizer,
            bins=checkpoint.model.bins,
            action_stats=checkpoint.action_stats,
            proprio_stats=checkpoint.proprio_stats,
            seed=seed,
            augmented=augmented,
            diagonal_crops=diagonal_crops,
        )

    def sample(self, window: Window, number: int, *, training: bool) -> Sample:
        """Prepares one window; `number` seeds augmentation and noise."""
        generator = np.random.default_rng([self.seed, int(training), number])
        resized = [self.images.resize(image) for image in window.images]
        if training and self.augmented:
            shown = [
                augment(image, generator, diagonal_crops=self.diagonal_crops) for image in resized
            ]
        elif self.augmented:
            shown = [center_crop(image) for image in resized]
        else:
            shown = resized
        # A dimension that never moved is 0 in training targets, as officially; proprio is
        # normalised exactly as it will be when the policy acts.
        actions = normalize(window.actions, self.action_stats, still_to_zero=True)
        actions = actions.astype(np.float32)
        proprio = np.zeros(0)
        if self.proprio_stats is not None:
            proprio = normalize(window.proprio, self.proprio_stats)
        return Sample(
            pixel_values=self.images.pixel_values(shown),
            prompt=self.tokenizer.prompt_ids(window.instruction),
            action_ids=self.bins.encode(torch.from_numpy(actions)).flatten().numpy(),
            proprio=proprio.astype(np.float32),
            actions=actions,
            valid=window.valid,
            noise=generator.standard_normal(actions.shape, dtype=np.float32),
            timestep=int(generator.integers(TRAIN_STEPS)),
        )


class TrainingSamples(Dataset[Sample]):
    """The endless sequence: every frame once per epoch, in an order of its own; beginnings more
    often, if asked for.

    Args:
        windows: Training frames.
        preparation: How they are prepared.
        start_share: Share of the samples that are taken from the beginnings of episodes instead.
        start_frames: How many frames are the beginning.
    """

    def __init__(
        self,
        windows: ChunkDataset,
        preparation: Preparation,
        *,
        start_share: float = 0.0,
        start_frames: int = 1,
    ) -> None:
        self.windows = windows
        self.preparation = preparation
        self.start_share = start_share
        self._starts = windows.starts(start_frames) if start_share else None
        self._order: tuple[int, np.ndarray] | None = None

    def frame(self, number: int) -> int:
        """Which window sample `number` shows."""
        if self._starts is not None:
            draw = np.random.default_rng([self.preparation.seed, _STARTS, number])
            if draw.random() < self.start_share:
                return int(draw.choice(self._starts))
        epoch, place = divmod(number, len(self.windows))
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self.preparation.seed, epoch])
            self._order = epoch, generator.permutation(len(self.windows))
        return int(self._order[1][place])

    def __getitem__(self, number: int) -> Sample:
        return self.preparation.sample(self.windows[self.frame(number)], number, training=True)


class ValidationSamples(Dataset[Sample]):
    """Evenly spread frames of the held-out episodes, never augmented, always the same.

    Args:
        windows: Held-out frames.
        preparation: How they are prepared.
        frames: How many; 0 is all.
    """

    def __init__(self, windows: ChunkDataset, preparation: Preparation, frames: int) -> None:
        self.windows = windows
        self.preparation = preparation
        count = len(windows) if frames == 0 else min(frames, len(windows))
        self._frames = np.linspace(0, len(windows) - 1, count).round().astype(int)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`; beyond the last one the last again with nothing valid, to fill up."""
        place = min(number, len(self) - 1)
        window = self.windows[int(self._frames[place])]
        sample = self.preparation.sample(window, place, training=False)
        if number > place:
            sample.valid[:] = False
        return sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Puts samples side by side; shorter prompts are padded on the right."""

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    proprio = stack("proprio")
    return Batch(
        inputs=ModelInputs(
            pixel_values=stack("pixel_values"),
            input_ids=sequence_ids(
                [sample.prompt for sample in samples], [sample.action_ids for sample in samples]
            ),
            prompt_lens=tuple(len(sample.prompt) for sample in samples),
            proprio=proprio if proprio.shape[1] else None,
        ),
        actions=stack("actions"),
        valid=stack("valid"),
        noise=stack("noise"),
        timesteps=torch.tensor([sample.timestep for sample in samples]),
    )


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Which samples of each step this process computes, batch by batch.

    Attributes:
        batch_size: Samples per process and forward pass.
        accumulate: Forward passes per step.
        rank: Number of this process.
        world: Number of processes.
    """

    batch_size: int
    accumulate: int = 1
    rank: int = 0
    world: int = 1
    start: int = field(default=0)
    stop: int = field(default=0)

    @property
    def per_step(self) -> int:
        """Samples of one step, all processes together."""
        return self.batch_size * self.accumulate * self.world

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of steps `start` … `stop` − 1."""
        for batch in range(self.start * self.accumulate, self.stop * self.accumulate):
            first = (batch * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


def loader(samples: Dataset[Sample], shares: Shares, workers: int) -> DataLoader[Batch]:
    """Batches in order, prepared ahead by `workers` processes."""
    # torch's types take the dataset's items for the loader's: collate_fn changes them.
    return DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=shares,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_quiet_worker if workers else None,
    )


def _quiet_worker(number: int) -> None:
    """One thread per worker: they are many already."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
