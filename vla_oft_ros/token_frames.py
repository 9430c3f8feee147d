"""Joins what was kept of an image with that very image, which came long before.

The policy answers a few hundred milliseconds after a frame; meanwhile newer ones arrive. Frames
wait here, undecoded, until the tokens with their stamp come; tokens wait until all their stages
have come. Never the newest frame with old tokens. Time is handed in; knows nothing of ROS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_oft_ros.sync import ImageSource
from vla_oft_ros.types import RetainedTokens


@dataclass(frozen=True, kw_only=True)
class KeptFrame:
    """One frame that the policy used, and what it kept of it.

    Attributes:
        camera: Camera name.
        stamp_ns: Stamp of the frame, nanoseconds.
        image: (H, W, 3) uint8 RGB.
        stages: What was kept, by ascending layer.
    """

    camera: str
    stamp_ns: int
    image: np.ndarray
    stages: tuple[RetainedTokens, ...]

    def stage(self, layer: int) -> RetainedTokens:
        """What the given transformer layer was left with; 0 asks for the last one."""
        before = [stage for stage in self.stages if not layer or stage.layer <= layer]
        return before[-1] if before else self.stages[0]


@dataclass
class _Camera:
    frames: deque[tuple[int, ImageSource]]
    stamp_ns: int = -1
    stages: dict[int, RetainedTokens] = field(default_factory=dict)
    changed: bool = False
    waiting: bool = False


class TokenFrames:
    """Frames and tokens of all cameras; memory does not grow with time.

    Args:
        cameras: Camera names.
        frames: How many frames of a camera may wait for their tokens.
    """

    def __init__(self, cameras: Sequence[str], *, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"frames: expected at least 1; got {frames}")
        self._cameras = {camera: _Camera(deque(maxlen=frames)) for camera in cameras}
        self.missed = 0
        """Answers whose frame was not there."""

    def add_frame(self, camera: str, stamp_ns: int, image: ImageSource) -> None:
        """Takes a frame.

        Args:
            camera: One of the cameras announced.
            stamp_ns: Its stamp, nanoseconds.
            image: (H, W, 3) uint8 RGB, or a function that decodes one when it is asked for.
        """
        frames = self._cameras[camera].frames
        if frames and stamp_ns < frames[-1][0]:
            self.clear(camera)  # time began anew
        self._cameras[camera].frames.append((stamp_ns, image))

    def add_retained(self, retained: RetainedTokens) -> None:
        """Takes one stage of an answer; cameras that nobody announced are passed over."""
        here = self._cameras.get(retained.camera)
        if here is None:
            return
        if retained.stamp_ns != here.stamp_ns:
            self.missed += here.waiting
            here.stamp_ns, here.stages = retained.stamp_ns, {}
        here.stages[retained.layer] = retained
        here.changed = here.waiting = True

    def settled(self, camera: str) -> KeptFrame | None:
        """The newest answer about a camera, once, and only if nothing came since the last call.

        Call it every few control steps; the stages of an answer arrive within one of them.

        Returns:
            The frame with its stages, or None if there is nothing new or its frame is not there.

        Raises:
            ImageError: or whatever else decoding the frame raises.
        """
        here = self._cameras[camera]
        changed, here.changed = here.changed, False
        if changed or not here.waiting:
            return None
        source = next((image for stamp, image in here.frames if stamp == here.stamp_ns), None)
        if source is None:
            return None
        here.waiting = False
        while here.frames[0][0] < here.stamp_ns:  # answers never go back
            here.frames.popleft()
        return KeptFrame(
            camera=camera,
            stamp_ns=here.stamp_ns,
            image=np.asarray(source() if callable(source) else source),
            stages=tuple(here.stages[layer] for layer in sorted(here.stages)),
        )

    def clear(self, camera: str) -> None:
        """Forgets frames and tokens of one camera."""
        self._cameras[camera] = _Camera(deque(maxlen=self._cameras[camera].frames.maxlen))
