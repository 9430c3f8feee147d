"""From asynchronous streams to one `Observation` per question.

Cameras and joint states arrive when they like. `ObservationBuilder` keeps the newest of each and
puts them together on demand, or says exactly why it cannot: a stream is missing, too old, from the
future, or too far from the others. Nothing is ever filled in. The same class serves the live node
and the reading of recordings. Time is handed in, never asked for; knows nothing of ROS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_oft_ros.aloha import ARMS
from vla_oft_ros.config import SyncConfig
from vla_oft_ros.types import Observation

ImageSource = np.ndarray | Callable[[], np.ndarray]
"""An (H, W, 3) uint8 RGB image, or a function that decodes one: undecoded frames cost nothing
until they are used."""

FUTURE_TOLERANCE_NS = 20_000_000
"""How far ahead of the asking clock a stamp may lie: stamps of other processes and hosts jitter by
a few ms."""
CLOCK_BACK_NS = 500_000_000
"""A sample this far behind the newest one was not overtaken on its way: its clock was put back."""


class ObservationNotReady(RuntimeError):
    """No observation can be made now. `reasons` says why, one sentence per stream."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


@dataclass
class StreamBuffer:
    """The newest sample of one stream and what is known about its arrivals.

    Attributes:
        name: Name used in messages to people.
        stamp_ns: Stamp of the newest sample; None before the first one.
        received: Samples accepted so far.
        refused: Samples dropped because they were a little older than one already held.
    """

    name: str
    stamp_ns: int | None = None
    value: object = None
    received: int = 0
    refused: int = 0

    def push(self, stamp_ns: int, value: object) -> bool:
        """Takes a sample unless a newer one is already here (reordered delivery); says whether it
        was taken. One that is older by `CLOCK_BACK_NS` is taken: else a single stamp from before
        a step of the clock would shut everything out until the clock has caught up.
        """
        if self.stamp_ns is not None and 0 < self.stamp_ns - stamp_ns < CLOCK_BACK_NS:
            self.refused += 1
            return False
        self.stamp_ns, self.value = stamp_ns, value
        self.received += 1
        return True

    def problem(self, now_ns: int, max_age_s: float) -> str | None:
        """Why the newest sample cannot be used at `now_ns`, or None if it can."""
        if self.stamp_ns is None:
            return f"{self.name}: nothing received yet"
        age_ns = now_ns - self.stamp_ns
        if age_ns > max_age_s * 1e9:
            limit_ms = max_age_s * 1e3
            return f"{self.name}: {age_ns / 1e6:.0f} ms old, expected at most {limit_ms:.0f} ms"
        if age_ns < -FUTURE_TOLERANCE_NS:
            ahead_ms = -age_ns / 1e6
            return f"{self.name}: {ahead_ms:.0f} ms in the future; are the clocks synchronised?"
        return None


@dataclass
class ObservationBuilder:
    """Holds the newest of every stream and makes observations of them.

    Args:
        cameras: Camera names in the order in which the policy sees them.
        config: Age and skew limits.
    """

    cameras: Sequence[str]
    config: SyncConfig = field(default_factory=SyncConfig)
    _images: dict[str, StreamBuffer] = field(init=False)
    _arms: dict[str, StreamBuffer] = field(init=False)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything, as after a new episode or a jump of the clock."""
        self._images = {camera: StreamBuffer(camera) for camera in self.cameras}
        self._arms = {arm: StreamBuffer(f"joint states {arm}") for arm in ARMS}

    @property
    def streams(self) -> Mapping[str, StreamBuffer]:
        """Every stream by name, for diagnostics."""
        return {buffer.name: buffer for buffer in (*self._images.values(), *self._arms.values())}

    def add_image(self, camera: str, stamp_ns: int, image: ImageSource) -> bool:
        """Takes a camera frame, decoded or not; says whether it was newer than the one held.

        Raises:
            KeyError: if the camera was not announced.
        """
        return self._images[camera].push(stamp_ns, image)

    def add_joints(self, arm: str, stamp_ns: int, qpos: np.ndarray) -> bool:
        """Takes one arm's (7,) joint state (rad, gripper 0 … 1); says whether it was newer than
        the one held.

        Raises:
            KeyError: if the arm is neither left nor right.
        """
        return self._arms[arm].push(stamp_ns, qpos)

    def problems(self, now_ns: int) -> list[str]:
        """Why no observation can be made at `now_ns`; empty if one can."""
        found = [b.problem(now_ns, self.config.max_image_age_s) for b in self._images.values()]
        found += [b.problem(now_ns, self.config.max_joint_age_s) for b in self._arms.values()]
        reasons = [reason for reason in found if reason]
        stamps = {c: b.stamp_ns for c, b in self._images.items() if b.stamp_ns is not None}
        if not reasons and stamps:
            oldest, newest = (
                min(stamps, key=stamps.__getitem__),
                max(stamps, key=stamps.__getitem__),
            )
            skew_ns = stamps[newest] - stamps[oldest]
            if skew_ns > self.config.max_skew_s * 1e9:
                reasons.append(
                    f"{oldest} is {skew_ns / 1e6:.0f} ms older than {newest}, "
                    f"expected at most {self.config.max_skew_s * 1e3:.0f} ms"
                )
        return reasons

    def build(self, now_ns: int, instruction: str) -> Observation:
        """Makes one observation of the newest samples.

        Args:
            now_ns: Present time on the clock of the stamps, nanoseconds.
            instruction: What the operator asks for.

        Raises:
            ObservationNotReady: with every reason at once.
        """
        reasons = self.problems(now_ns)
        if reasons:
            raise ObservationNotReady(reasons)
        stamps = {camera: _stamp(buffer) for camera, buffer in self._images.items()}
        images = {camera: _decoded(buffer) for camera, buffer in self._images.items()}
        arms = [self._arms[arm] for arm in ARMS]
        return Observation(
            images=images,
            image_stamps_ns=stamps,
            proprio=np.concatenate(
                [np.asarray(buffer.value, dtype=np.float64) for buffer in arms]
            ),
            proprio_stamp_ns=min(_stamp(buffer) for buffer in arms),
            instruction=instruction,
        )


def _stamp(buffer: StreamBuffer) -> int:
    assert buffer.stamp_ns is not None  # `problems` has refused empty streams
    return buffer.stamp_ns


def _decoded(buffer: StreamBuffer) -> np.ndarray:
    if callable(buffer.value):
        buffer.value = buffer.value()
    return np.asarray(buffer.value)
