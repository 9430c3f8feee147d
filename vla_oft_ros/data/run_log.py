"""A recorded run as tracks over time: what was seen, planned and done at any of its moments.

Everything but the images is in memory; those are fetched from the bag one by one when they are
asked for, so that ten minutes are some 100 MB. A run may lack anything (a teleoperation has no
chunks); what it lacks is said in `notes`. `run_reader` makes it of a bag.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from vla_oft_ros.aloha import ARMS, CAMERAS, RobotProfile
from vla_oft_ros.data.bag_storage import Bag, BagEntry
from vla_oft_ros.data.policy_messages import (
    Diagnosis,
    PruningReport,
    RecorderReport,
    SafetyReport,
)
from vla_oft_ros.data.run_events import RunEvent
from vla_oft_ros.data.stream_checks import decode_message
from vla_oft_ros.types import ActionChunk, RetainedTokens

_BELONGS_NS = 1_000_000_000
"""Images of one observation are not further apart (policy_node refuses long before)."""

T = TypeVar("T")


@dataclass
class Track(Generic[T]):
    """Values by time.

    Attributes:
        times_s: When each arrived, ascending, seconds since the start of the run.
        values: One per time.
    """

    times_s: list[float] = field(default_factory=list)
    values: list[T] = field(default_factory=list)

    def add(self, time_s: float, value: T) -> None:
        """Takes the next value."""
        self.times_s.append(time_s)
        self.values.append(value)

    def index(self, time_s: float) -> int:
        """Place of the last value at or before a time; -1 if there is none."""
        return bisect_right(self.times_s, time_s) - 1

    def at(self, time_s: float) -> T | None:
        """The last value at or before a time."""
        place = self.index(time_s)
        return self.values[place] if place >= 0 else None


@dataclass(frozen=True)
class Picture:
    """One image in the bag.

    Attributes:
        stamp_ns: Its stamp.
        entry: Where it is.
    """

    stamp_ns: int
    entry: BagEntry


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One chunk as it arrived, and what was kept for it.

    Attributes:
        time_s: When it arrived.
        latency_s: From its observation to its arrival.
        chunk: The chunk.
        retained: Camera → what was left after the last stage, where the bag says.
        pruning: Mode and speeds, where the bag says.
    """

    time_s: float
    latency_s: float
    chunk: ActionChunk
    retained: Mapping[str, RetainedTokens] = field(default_factory=dict)
    pruning: PruningReport | None = None


def _per_arm() -> dict[str, Track[np.ndarray]]:
    return {arm: Track() for arm in ARMS}


@dataclass(kw_only=True)
class RunLog:
    """A run; closes its bag with `with`.

    Attributes:
        bag: Where it is recorded.
        profile: The robot.
        start_ns: Arrival of the first message, nanoseconds.
        duration_s: From there to the last message.
        pictures: Camera → its images; a camera without any is missing.
        joints: Arm → (7,) measured joints.
        leaders: Arm → (7,) what its leader said.
        targets: (14,) executed joint targets.
        answers: Chunks as they arrived.
        instructions: What was asked for.
        safety: What the safety gate said.
        rewards: Of the simulation.
        recorder: What the recorder said.
        diagnostics: Name → what is not fine, as it changed.
        events: Everything that happened, by time.
        notes: What is missing, damaged or was assumed, one sentence each.
    """

    bag: Bag
    profile: RobotProfile
    start_ns: int = 0
    duration_s: float = 0.0
    pictures: dict[str, Track[Picture]] = field(default_factory=dict)
    joints: dict[str, Track[np.ndarray]] = field(default_factory=_per_arm)
    leaders: dict[str, Track[np.ndarray]] = field(default_factory=_per_arm)
    targets: Track[np.ndarray] = field(default_factory=Track)
    answers: Track[Answer] = field(default_factory=Track)
    instructions: Track[str] = field(default_factory=Track)
    safety: Track[SafetyReport] = field(default_factory=Track)
    rewards: Track[float] = field(default_factory=Track)
    recorder: Track[RecorderReport] = field(default_factory=Track)
    diagnostics: Track[dict[str, Diagnosis]] = field(default_factory=Track)
    events: list[RunEvent] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _by_stamp: dict[str, dict[int, Picture]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where it is recorded."""
        return self.bag.path

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.bag.close()

    def time_s(self, stamp_ns: int) -> float:
        """A stamp as seconds since the start of the run."""
        return (stamp_ns - self.start_ns) / 1e9

    def add_picture(self, time_s: float, camera: str, picture: Picture) -> None:
        """Takes the next image of a camera."""
        self.pictures.setdefault(camera, Track()).add(time_s, picture)
        self._by_stamp.setdefault(camera, {})[picture.stamp_ns] = picture

    def picture_with_stamp(self, camera: str, stamp_ns: int) -> Picture | None:
        """The very image of a camera with this stamp, if the bag has it."""
        return self._by_stamp.get(camera, {}).get(stamp_ns)

    def decode(self, picture: Picture) -> np.ndarray:
        """Reads and decodes an image.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            ValueError: if it is no colour image.
        """
        entry = picture.entry
        return decode_message(self.bag.types[entry.topic], self.bag.read(entry))

    def silences(self, limit_s: float) -> list[tuple[float, float, str]]:
        """Start, end and name of every time for which a stream said nothing.

        Args:
            limit_s: Shorter times are none, nor are times within five periods of the stream.
        """
        streams: dict[str, list[float]] = {
            **{camera: track.times_s for camera, track in self.pictures.items()},
            **{f"{arm} follower": track.times_s for arm, track in self.joints.items()},
            "joint targets": self.targets.times_s,
            "safety gate": self.safety.times_s,
        }
        found = []
        for what, times_s in streams.items():
            if len(times_s) < 2:
                continue
            gaps = np.diff([*times_s, self.duration_s])
            longest_s = max(limit_s, 5.0 * float(np.median(gaps)))
            for place in np.flatnonzero(gaps > longest_s):
                found.append((times_s[place], times_s[place] + float(gaps[place]), what))
        return found

    def link_retained(
        self, retained: Track[RetainedTokens], pruning: Mapping[int, PruningReport]
    ) -> None:
        """Gives each chunk what was kept for it.

        Args:
            retained: What was kept, of every camera and stage, as it arrived.
            pruning: Stamp of the observation → how its motion was judged.
        """
        groups: dict[str, list[tuple[float, RetainedTokens]]] = {}
        for time_s, record in zip(retained.times_s, retained.values, strict=True):
            stages = groups.setdefault(record.camera, [])
            # Stages of one pass follow each other in order of their layers.
            if stages and _goes_on(stages[-1][1], record):
                stages[-1] = stages[-1][0], record
            else:
                stages.append((time_s, record))
        for stages in groups.values():
            stages.sort(key=_stamp_of)
        for place, answer in enumerate(self.answers.values):
            kept = {}
            first_ns = answer.chunk.stamp_ns
            for camera, stages in groups.items():
                begin = bisect_left(stages, first_ns, key=_stamp_of)
                end = bisect_right(stages, first_ns + _BELONGS_NS, key=_stamp_of)
                if begin < end:
                    # Of the images after the oldest part of the observation, the one whose
                    # tokens came with the chunk.
                    near = min(stages[begin:end], key=lambda one: abs(one[0] - answer.time_s))
                    kept[camera] = near[1]
            self.answers.values[place] = replace(
                answer, retained=kept, pruning=pruning.get(first_ns)
            )

    def note_what_is_missing(self) -> None:
        """Adds to `notes` what a run of a policy has and this one has not."""
        profile = self.profile
        for camera in CAMERAS:
            if camera not in self.pictures:
                topic = profile.camera_topic(camera)
                self.notes.append(f"no images of {camera} ({topic}[/compressed])")
        followers = zip(ARMS, profile.follower_joint_state_topics, strict=True)
        self.notes += [
            f"no joint states of the {arm} follower ({topic})"
            for arm, topic in followers
            if not self.joints[arm].values
        ]
        if not self.answers.values:
            self.notes.append("no action chunks: a teleoperation, or the policy never answered")
        elif not any(answer.retained for answer in self.answers.values):
            self.notes.append("no retained tokens: what the policy kept is not known")


def _goes_on(before: RetainedTokens, after: RetainedTokens) -> bool:
    return before.stamp_ns == after.stamp_ns and before.layer < after.layer


def _stamp_of(stage: tuple[float, RetainedTokens]) -> int:
    return stage[1].stamp_ns
