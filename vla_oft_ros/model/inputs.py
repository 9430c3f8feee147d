"""Observation → what the network reads: images → pixel_values, instruction → input_ids.

The same code serves the live policy, recorded episodes and training batches, so that none can
drift from another.
Source: openvla-oft `openvla_utils.py`, `processing_prismatic.py`, RLDSBatchTransform and its
collator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vla_oft_ros.config import PreprocessingConfig
from vla_oft_ros.model import image_ops, image_ops_torch
from vla_oft_ros.model.jpeg import jpeg_round_trip
from vla_oft_ros.model.tokens import BOS_ID, EMPTY_ID, IGNORE_LABEL, PAD_ID, STOP_ID, TokenLayout

DATASET_PX = 256
"""Side of images in the official data sets."""
PROMPT = "In: What action should the robot take to {}?\nOut:"
"""OpenVLA's prompt; only the instruction is lower-cased."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePipeline:
    """Camera image → network input, with the numbers a checkpoint was trained with.

    Attributes:
        size_px: Side of the network's input image.
        mean: (2, 3) float32 per tower and colour, DINOv2 first.
        std: (2, 3) float32.
        options: Which optional steps run.
    """

    size_px: int
    mean: np.ndarray
    std: np.ndarray
    options: PreprocessingConfig

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resizes one camera image as the training data were: bicubic 256, JPEG round trip,
        Lanczos.

        Args:
            image: (H, W, 3) uint8 RGB; one that already has the network's size passes unchanged.

        Returns:
            (size, size, 3) uint8 RGB.
        """
        if image.shape[:2] == (self.size_px, self.size_px):
            return image
        if self.options.resize_to_256:
            image = image_ops.resize_bicubic(image, DATASET_PX)
        if self.options.jpeg_roundtrip:
            image = image_ops.jpeg_round_trip(image)
        return image_ops.resize_lanczos(image, self.size_px)

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Centre crop, if it is on: (size, size, 3) uint8 → the same."""
        return image_ops.center_crop(image) if self.options.center_crop else image

    def prepare(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Resizes and crops the images of all cameras: what the network sees, as uint8 RGB."""
        return [self.crop(self.resize(image)) for image in images]

    def to_device(self, images: Sequence[np.ndarray], device: torch.device) -> Tensor:
        """Camera images of one observation → pixel values on the device where the network runs.

        On a CPU this is `pixel_values(prepare(images))`; on a GPU the same arithmetic runs there.

        Args:
            images: N images (H, W, 3) uint8 RGB, in the order of the checkpoint's cameras.
            device: Where the result shall be.

        Returns:
            (6·N, size, size) float32.
        """
        if device.type == "cpu":
            return torch.from_numpy(self.pixel_values(self.prepare(images)))
        frames = self.prepare_on_device([torch.tensor(image, device=device) for image in images])
        return image_ops_torch.normalize_pixels(frames, self.mean, self.std)

    def prepare_on_device(self, images: Sequence[Tensor]) -> Tensor:
        """`prepare` in torch, where the images are: N × (H, W, 3) uint8 → (N, size, size, 3)
        uint8.
        """
        resized = torch.stack([self._resize_on_device(image) for image in images])
        return image_ops_torch.center_crop(resized) if self.options.center_crop else resized

    def _resize_on_device(self, image: Tensor) -> Tensor:
        """`resize` in torch: (H, W, 3) uint8 → (size, size, 3) uint8."""
        if image.shape[:2] == (self.size_px, self.size_px):
            return image
        batch = image[None]  # (1, H, W, 3)
        if self.options.resize_to_256:
            batch = image_ops_torch.resize_bicubic(batch, DATASET_PX)
        if self.options.jpeg_roundtrip:
            batch = jpeg_round_trip(batch)
        return image_ops_torch.resize_lanczos(batch, self.size_px)[0]

    def pixel_values(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Normalises prepared images of one observation.

        Args:
            prepared: N images (size, size, 3) uint8 RGB, in the order of the checkpoint's cameras.

        Returns:
            (6·N, size, size) float32.
        """
        return np.concatenate(
            [image_ops.normalize_pixels(image, self.mean, self.std) for image in prepared]
        )


class PromptTokenizer:
    """Instruction → token ids, with the tokenizer.json of a checkpoint.

    Args:
        path: tokenizer.json.

    Raises:
        ValueError: if the file is missing or is no tokenizer.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises bare Exception for every fault
            raise ValueError(f"{path}: expected a tokenizer.json; {error}") from None

    def prompt_ids(self, instruction: str) -> np.ndarray:
        """(L,) int64: BOS, the prompt around the lower-cased instruction, `EMPTY_ID`."""
        ids = self._tokenizer.encode(
            PROMPT.format(instruction.lower()), add_special_tokens=False
        ).ids
        return close_prompt(np.array([BOS_ID, *ids], dtype=np.int64))

    def instruction_span(self, instruction: str) -> slice:
        """Which of `prompt_ids` are tokens of the instruction itself, not of the template around
        it.
        """
        start = PROMPT.index("{}")
        stop = start + len(instruction.lower())
        encoding = self._tokenizer.encode(
            PROMPT.format(instruction.lower()), add_special_tokens=False
        )
        inside = [
            index
            for index, (first, last) in enumerate(encoding.offsets, start=1)  # 0 is BOS
            if last > start and first < stop
        ]
        return slice(inside[0], inside[-1] + 1) if inside else slice(0, 0)


def close_prompt(ids: np.ndarray) -> np.ndarray:
    """Appends `EMPTY_ID` unless it is already last: (L,) int64."""
    return ids if ids[-1] == EMPTY_ID else np.append(ids, EMPTY_ID)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInputs:
    """One batch for `OpenVLAOFT`.

    Attributes:
        pixel_values: (B, 6·N, H, W) float.
        input_ids: (B, ids) int64: prompt, K·A action ids, stop, then PAD up to the longest row.
        prompt_lens: L of each row, BOS and `EMPTY_ID` included.
        proprio: (B, A) float, normalised; None for checkpoints without a proprio projector.
    """

    pixel_values: Tensor
    input_ids: Tensor
    prompt_lens: tuple[int, ...]
    proprio: Tensor | None

    def to(self, device: torch.device, dtype: torch.dtype) -> ModelInputs:
        """Moves everything to a device, floats in `dtype`."""
        return ModelInputs(
            pixel_values=self.pixel_values.to(device, dtype),
            input_ids=self.input_ids.to(device),
            prompt_lens=self.prompt_lens,
            proprio=None if self.proprio is None else self.proprio.to(device, dtype),
        )


def sequence_ids(prompts: Sequence[np.ndarray], action_ids: Sequence[np.ndarray] | int) -> Tensor:
    """Puts prompts, actions and stop together and pads to the longest row.

    Args:
        prompts: B prompts from `PromptTokenizer.prompt_ids`.
        action_ids: B × (K·A,) int64 action tokens, or their number K·A where they do not matter:
            the network blanks their embeddings, so at inference any id serves.

    Returns:
        (B, ids) int64.
    """
    rows = []
    for index, prompt in enumerate(prompts):
        actions = (
            np.full(action_ids, BOS_ID, dtype=np.int64)
            if isinstance(action_ids, int)
            else action_ids[index]
        )
        rows.append(torch.from_numpy(np.concatenate([prompt, actions, [STOP_ID]])))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD_ID)


def action_labels(input_ids: Tensor, layouts: Sequence[TokenLayout]) -> Tensor:
    """Labels of the discrete loss: action and stop ids stay, everything else is ignored. (B, ids)
    int64.
    """
    labels = torch.full_like(input_ids, IGNORE_LABEL)
    for row, layout in enumerate(layouts):
        supervised = slice(layout.prompt_len, layout.input_ids_len)
        labels[row, supervised] = input_ids[row, supervised]
    return labels
