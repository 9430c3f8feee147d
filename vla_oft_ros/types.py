"""The values that travel through the package: what a policy sees, what it answers, what it kept.

Plain frozen records over numpy; they know nothing of ROS, torch or files. Arrays are not copied on
construction, so treat them as read-only.

Shape letters used in every docstring and shape comment:
    B batch · N cameras · P patches per camera (256) · L prompt tokens · S sequence · D LLM width
    (4096) · K chunk length · A action dimension (14) · T episode steps · H W pixels
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntFlag

import numpy as np


class KeptBy(IntFlag):
    """Why a patch was kept; one patch may be kept for several reasons (SpecPrune, static
    pruning).
    """

    GLOBAL = 1
    """Among the highest scores of the previous inference."""
    LOCAL = 2
    """Among the highest scores of the first layers of this inference."""
    DYNAMIC = 4
    """Its pixels changed against the reference frame."""
    FILL = 8
    """Filled a free place of a fixed budget."""
    DENSE = 16
    """Nothing was pruned: every patch is kept."""


class MotionMode(Enum):
    """How delicate the motion under way is; fine motion keeps more tokens (SpecPrune, action-aware
    controller).
    """

    COARSE = "coarse"
    FINE = "fine"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the policy sees at one instant.

    Attributes:
        images: Camera name → (H, W, 3) uint8 RGB, in the order in which the policy expects the
            cameras.
        image_stamps_ns: Camera name → time of exposure in nanoseconds.
        proprio: (A,) float64 measured joint state, left arm first: six joint angles in rad and the
            gripper opening, 0 (closed) … 1 (open), per arm.
        proprio_stamp_ns: Time at which the joints were read, nanoseconds; the older one of the two
            arms.
        instruction: What the operator asks for, as typed.
        reference_images: Camera name → image some control ticks before that of `images`, or None
            where there is none; token pruning compares the two. Absent where nobody keeps frames.
    """

    images: Mapping[str, np.ndarray]
    image_stamps_ns: Mapping[str, int]
    proprio: np.ndarray
    proprio_stamp_ns: int
    instruction: str
    reference_images: Mapping[str, np.ndarray | None] | None = None

    def __post_init__(self) -> None:
        if set(self.images) != set(self.image_stamps_ns):
            raise ValueError(
                f"Observation: expected one stamp per image, got images {sorted(self.images)} "
                f"and stamps {sorted(self.image_stamps_ns)}"
            )
        references = self.reference_images or {}
        for camera, image in (*self.images.items(), *references.items()):
            if image is None:
                continue
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(
                    f"Observation: image {camera!r} must be (H, W, 3) uint8 RGB, got shape "
                    f"{image.shape} {image.dtype}"
                )
        if self.proprio.ndim != 1:
            raise ValueError(
                f"Observation: proprio must be one vector (A,), got shape {self.proprio.shape}"
            )

    @property
    def stamp_ns(self) -> int:
        """The oldest stamp in it, nanoseconds: what was predicted from it is counted from here."""
        return min([self.proprio_stamp_ns, *self.image_stamps_ns.values()])


@dataclass(frozen=True, kw_only=True)
class RetainedTokens:
    """Which patches of one camera were still in the sequence after one layer.

    Attributes:
        camera: Camera name.
        stamp_ns: Stamp of the image, nanoseconds.
        grid: (rows, columns) of the patch grid; patch index = row · columns + column.
        layer: Number of transformer layers (counted from 1) after which the set holds; 0 = before
            the first layer.
        patch_indices: (n,) int32, ascending, unique, always in the original layout of this camera.
        kept_by: (n,) uint8, `KeptBy` flags of each patch.
    """

    camera: str
    stamp_ns: int
    grid: tuple[int, int]
    layer: int
    patch_indices: np.ndarray
    kept_by: np.ndarray

    def __post_init__(self) -> None:
        if self.patch_indices.shape != self.kept_by.shape or self.patch_indices.ndim != 1:
            raise ValueError(
                "RetainedTokens: expected one flag per patch index, got "
                f"{self.patch_indices.shape} indices and {self.kept_by.shape} flags"
            )
        if min(self.grid) < 1:
            raise ValueError(
                f"RetainedTokens: expected a grid of at least 1x1 patches, got {self.grid}"
            )
        count = self.grid[0] * self.grid[1]
        indices = self.patch_indices
        if indices.size and (
            indices[0] < 0 or indices[-1] >= count or np.any(indices[1:] <= indices[:-1])
        ):
            raise ValueError(
                f"RetainedTokens: patch indices must be ascending, unique and within 0 … "
                f"{count - 1}"
            )

    @property
    def retain_ratio(self) -> float:
        """Share of this camera's patches that is kept, 0 … 1."""
        return self.patch_indices.size / (self.grid[0] * self.grid[1])


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """K joint targets predicted from one observation; row k is meant for `stamp_ns + k · dt_ns`.

    Attributes:
        actions: (K, A) float64 absolute joint targets in robot units (rad; gripper 0 closed … 1
            open), left arm first.
        stamp_ns: Stamp of the observation (its oldest part), nanoseconds.
        dt_ns: Time between two rows, nanoseconds.
        instruction: The instruction it answers.
        inference_s: Wall time that the policy needed, seconds.
        preprocess_s: Its first part, until images and words were network input, seconds; 0 if the
            policy does not say.
        retained: What was kept of each camera, after each pruning stage; empty if the policy does
            not say.
    """

    actions: np.ndarray
    stamp_ns: int
    dt_ns: int
    instruction: str
    inference_s: float
    retained: tuple[RetainedTokens, ...] = ()
    preprocess_s: float = 0.0

    def __post_init__(self) -> None:
        if self.actions.ndim != 2 or self.actions.shape[0] == 0:
            raise ValueError(
                f"ActionChunk: actions must be (K, A) with K ≥ 1, got shape {self.actions.shape}"
            )
        if self.dt_ns <= 0:
            raise ValueError(f"ActionChunk: dt_ns must be positive, got {self.dt_ns}")

    @property
    def chunk_len(self) -> int:
        """K, the number of actions in the chunk."""
        return int(self.actions.shape[0])
