"""The last half second of camera frames, so that token pruning can look back.

SpecPrune compares an image with one some control ticks earlier, which the policy itself need not
have seen: it is asked every 15 ticks or so. `FrameRing` therefore takes every frame that arrives,
decoded or not, and keeps what can still be asked for. Time is handed in; knows nothing of ROS.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from vla_oft_ros.sync import CLOCK_BACK_NS, ImageSource

LONGEST_LOOK_BACK_TICKS = 11
"""T of a robot at rest, see `reference_ticks`."""
_SPARSEST = 0.6
"""Frames that follow each other within this many ticks are not all kept: twice the camera's rate
must not cost twice the memory."""


def reference_ticks(speed: float) -> int:
    """How many control ticks before an image its reference lies: T = ⌊7 - v⌋ + 4 (SpecPrune).

    Args:
        speed: v, translational speed of the faster gripper, normalised (`action_aware`); values
            beyond 2 count as 2, negative ones as 0.

    Returns:
        9, 10 or 11.
    """
    return math.floor(7.0 - min(max(speed, 0.0), 2.0)) + 4


class FrameRing:
    """Recent frames of every camera; memory does not grow with time.

    Args:
        cameras: Camera names.
        tick_ns: Control period, nanoseconds.
        ticks: How far back frames may be asked for.
    """

    def __init__(
        self, cameras: Sequence[str], *, tick_ns: int, ticks: int = LONGEST_LOOK_BACK_TICKS
    ) -> None:
        if tick_ns <= 0 or ticks < 1:
            raise ValueError(
                f"FrameRing: expected a positive tick and at least 1 of them; got {tick_ns} ns "
                f"and {ticks}"
            )
        self.tick_ns = tick_ns
        # One tick more than asked for: the nearest frame may lie on the far side.
        self._keep_ns = (ticks + 1) * tick_ns
        self._frames: dict[str, deque[tuple[int, ImageSource]]] = {
            camera: deque() for camera in cameras
        }

    def add(self, camera: str, stamp_ns: int, image: ImageSource) -> None:
        """Takes a frame as it arrives; frames that are out of order or crowd are not kept. One
        that is older by `sync.CLOCK_BACK_NS` begins anew.

        Args:
            camera: One of the cameras announced.
            stamp_ns: Time of exposure, nanoseconds.
            image: (H, W, 3) uint8 RGB, or a function that decodes one when it is asked for.

        Raises:
            KeyError: if the camera was not announced.
        """
        frames = self._frames[camera]
        if frames and frames[-1][0] - stamp_ns >= CLOCK_BACK_NS:
            frames.clear()
        if frames and stamp_ns - frames[-1][0] < _SPARSEST * self.tick_ns:
            return
        frames.append((stamp_ns, image))
        while frames[0][0] < stamp_ns - self._keep_ns:
            frames.popleft()

    def at(self, camera: str, stamp_ns: int) -> np.ndarray | None:
        """The frame nearest to a time, at most one tick from it.

        Returns:
            (H, W, 3) uint8 RGB, or None if no frame is that near.

        Raises:
            KeyError: if the camera was not announced.
        """
        frames = self._frames[camera]
        nearest = min(frames, key=lambda frame: abs(frame[0] - stamp_ns), default=None)
        if nearest is None or abs(nearest[0] - stamp_ns) > self.tick_ns:
            return None
        image = nearest[1]
        return np.asarray(image() if callable(image) else image)

    def reference_images(
        self, image_stamps_ns: Mapping[str, int], ticks: int
    ) -> dict[str, np.ndarray | None]:
        """References of one observation: `Observation.reference_images`.

        Args:
            image_stamps_ns: `Observation.image_stamps_ns`; cameras without a ring are left out.
            ticks: From `reference_ticks`.
        """
        return {
            camera: self.at(camera, stamp_ns - ticks * self.tick_ns)
            for camera, stamp_ns in image_stamps_ns.items()
            if camera in self._frames
        }

    def clear(self) -> None:
        """Forgets all frames: a new episode, or a clock that jumped."""
        for frames in self._frames.values():
            frames.clear()
