"""One demonstration: T steps at a fixed rate, the value between every source and every format.

Images are sequences that may decode a frame when it is asked for: a minute of three raw cameras is
4 GB. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM

SUCCESS, FAILURE = "success", "failure"
RGB, UNKNOWN = "rgb", "unknown"
"""Colour order of an episode's images: stated by the source, or taken to be RGB."""


class EpisodeError(ValueError):
    """An episode that cannot be used; says which, what was expected and what came."""


class LazyImages(Sequence[np.ndarray]):
    """T images that are decoded when they are asked for.

    Args:
        frames: What names the frame of each step; steps with the same name show the same frame.
        load: Decodes a frame by its name to (H, W, 3) uint8 RGB.
    """

    def __init__(self, frames: Sequence[Hashable], load: Callable[[Hashable], np.ndarray]) -> None:
        self.frames = tuple(frames)
        self._load = load
        self._last: tuple[Hashable, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> LazyImages: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | LazyImages:
        if isinstance(index, slice):
            return LazyImages(self.frames[index], self._load)
        frame = self.frames[index]
        if self._last is None or self._last[0] != frame:
            self._last = frame, self._load(frame)
        return self._last[1]

    def taken(self, steps: Sequence[int]) -> LazyImages:
        """The images of some steps."""
        return LazyImages([self.frames[step] for step in steps], self._load)


Images = LazyImages | np.ndarray
"""(T, H, W, 3) uint8 RGB, in memory or decoded on demand."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One demonstration.

    Attributes:
        images: Camera name → T images, (H, W, 3) uint8 RGB.
        qpos: (T, 14) float64 measured joint state: rad, gripper openings 0 (closed) … 1 (open),
            left arm first; what a policy calls proprio.
        action: (T, 14) float64 joint targets, sampled with the observation of the same row.
        stamps_ns: (T,) int64, when each step was sampled, ascending.
        rate_hz: Steps per second.
        instruction: What was asked for; empty if nobody said.
        profile: Name of the robot profile that recorded it; empty if unknown.
        qvel: (T, 14) float64 measured velocities, rad/s; 0 for grippers, as every ALOHA recorder
            has it. None if they were not recorded.
        effort: (T, 14) float64 measured motor currents, mA, or None.
        image_stamps_ns: Camera name → (T,) int64, when each image was exposed; cameras without
            stamps are absent.
        color_order: "rgb" if the source says how its colours are ordered, else "unknown".
        outcome: "success", "failure" or another label; empty if nobody judged.
        object_poses: Object → (7,) float64 world pose at the first step, position in m and
            quaternion (w, x, y, z), which only a simulation knows; else None.
        source: Where it comes from, for people.
        notes: What was assumed or repaired on the way here, one sentence each.
    """

    images: Mapping[str, Images]
    qpos: np.ndarray
    action: np.ndarray
    stamps_ns: np.ndarray
    rate_hz: float
    instruction: str = ""
    profile: str = ""
    qvel: np.ndarray | None = None
    effort: np.ndarray | None = None
    image_stamps_ns: Mapping[str, np.ndarray] | None = None
    color_order: str = UNKNOWN
    outcome: str = ""
    object_poses: Mapping[str, np.ndarray] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        steps = len(self.stamps_ns)
        if steps == 0:
            raise self._error("expected at least one step; got none")
        if not 1.0 <= self.rate_hz <= 1000.0:
            raise self._error(f"expected rate_hz from 1 to 1000; got {self.rate_hz!r}")
        for name in ("qpos", "action", "qvel", "effort"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != (steps, ACTION_DIM):
                raise self._error(f"expected {name} ({steps}, {ACTION_DIM}); got {values.shape}")
            if not np.all(np.isfinite(values)):
                step = int(np.argmin(np.isfinite(values).all(axis=1)))
                raise self._error(f"expected finite {name}; step {step} has NaN or infinity")
        if np.any(np.diff(self.stamps_ns) <= 0):
            raise self._error("expected ascending stamps_ns; some step is not later than the last")
        for camera, images in self.images.items():
            if len(images) != steps:
                raise self._error(f"expected {steps} images of {camera}; got {len(images)}")
        for camera, stamps in (self.image_stamps_ns or {}).items():
            if camera not in self.images or len(stamps) != steps:
                raise self._error(f"expected {steps} stamps of a known camera; {camera}: no")
        if self.color_order not in (RGB, UNKNOWN):
            raise self._error(
                f"expected color_order {RGB} or {UNKNOWN}: readers convert bgr images; got "
                f"{self.color_order!r}"
            )

    def _error(self, text: str) -> EpisodeError:
        return EpisodeError(f"episode {self.source or 'without source'}: {text}")

    def __len__(self) -> int:
        return len(self.stamps_ns)

    @property
    def duration_s(self) -> float:
        """T steps at the episode's rate, seconds."""
        return len(self) / self.rate_hz

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names, in order."""
        return tuple(self.images)

    def noted(self, *notes: str) -> Episode:
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def taken(self, steps: Sequence[int]) -> Episode:
        """Some of its steps, ascending."""
        index = np.asarray(steps, dtype=np.int64)
        images = {
            camera: taken_images(images, index.tolist()) for camera, images in self.images.items()
        }
        stamps = {camera: stamps[index] for camera, stamps in (self.image_stamps_ns or {}).items()}
        return replace(
            self,
            images=images,
            image_stamps_ns=stamps if self.image_stamps_ns else None,
            object_poses=self.object_poses if index[:1].tolist() == [0] else None,
            qpos=self.qpos[index],
            action=self.action[index],
            qvel=None if self.qvel is None else self.qvel[index],
            effort=None if self.effort is None else self.effort[index],
            stamps_ns=self.stamps_ns[index],
        )

    def resampled(self, rate_hz: float) -> Episode:
        """The same at a lower or equal rate: each new step takes the newest old one.

        Raises:
            EpisodeError: if `rate_hz` is above the episode's own: nothing is made up.
        """
        if rate_hz > self.rate_hz * 1.001:
            raise self._error(
                f"expected at least {rate_hz:g} steps per second; got {self.rate_hz:g}"
            )
        if rate_hz == self.rate_hz:
            return self
        count = int((len(self) - 1) / self.rate_hz * rate_hz + 1e-9) + 1
        steps = np.floor(np.arange(count) / rate_hz * self.rate_hz + 1e-9).astype(int)
        note = f"resampled from {self.rate_hz:g} to {rate_hz:g} Hz"
        return replace(self.taken(steps.tolist()), rate_hz=rate_hz).noted(note)


def taken_images(images: Images, steps: Sequence[int]) -> Images:
    """The images of some steps."""
    return images.taken(steps) if isinstance(images, LazyImages) else images[list(steps)]
