"""What an operator does with a recorder: start, stop, look, keep, label, discard, again.

Owns the present episode and the folder; is told time, topics and messages. Knows no ROS: the
recorder node turns topics and services into calls of this class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from vla_oft_ros.aloha import RobotProfile
from vla_oft_ros.config import ConfigError, RecorderConfig
from vla_oft_ros.data.bag_writer import BagTopic
from vla_oft_ros.data.episode import FAILURE, SUCCESS
from vla_oft_ros.data.episode_folder import EpisodeFolder, dataset_facts
from vla_oft_ros.data.quality import EpisodeQuality, Stream
from vla_oft_ros.data.recording import EpisodeRecording
from vla_oft_ros.data.take import Take
from vla_oft_ros.data.verdict import Verdict

logger = logging.getLogger(__name__)

_MB, _GB = 2**20, 2**30
_LEAST_FREE_BYTES = 16 * _MB
"""Below this a bag cannot even be begun and ended."""


class State(IntEnum):
    """Values of EpisodeStatus.state."""

    INACTIVE = 0
    IDLE = 1
    RECORDING = 2
    REVIEW = 3
    SAVING = 4
    FAILED = 5


class Refused(ValueError):
    """Something that cannot be done now; says why and what can."""


class Arrivals(Protocol):
    """What has arrived in the process and still waits for its turn."""

    def now_ns(self) -> int:
        """Present time on the clock of the messages' log times."""
        ...

    def drain(self, end_ns: int) -> Sequence[str]:
        """Hands over, to `EpisodeRecorder.take`, what arrived until an instant; takes bounded
        time. Returns the topics on which that was not enough.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RecorderStatus:
    """What is shown to the operator; fields as in EpisodeStatus."""

    state: State
    reason: str
    episode_index: int
    episodes_on_disk: int
    instruction: str
    label: str
    duration_s: float
    message_counts: Mapping[str, int]
    dropped_counts: Mapping[str, int]
    bytes: int
    free_disk_bytes: int
    quality: Verdict
    quality_reasons: tuple[str, ...]


class EpisodeRecorder:
    """The recorder without its topics.

    Args:
        folder: Where the episodes go.
        profile: The robot.
        config: Limits.
        arrivals: What waits while the machine is busy; an episode has it all, up to the instant
            at which it is stopped. Without it, nothing waits.
    """

    def __init__(
        self,
        folder: EpisodeFolder,
        profile: RobotProfile,
        config: RecorderConfig,
        arrivals: Arrivals | None = None,
    ) -> None:
        self._folder, self._profile, self._config = folder, profile, config
        self._arrivals = arrivals
        self.state, self._reason = State.IDLE, ""
        self._take: Take | None = None

    @property
    def is_recording(self) -> bool:
        """True while messages are taken."""
        return self.state is State.RECORDING

    def start(
        self,
        now_ns: int,
        instruction: str,
        streams: Mapping[str, Stream],
        cameras: Mapping[str, Mapping[str, Any]],
    ) -> int:
        """Begins an episode.

        Args:
            now_ns: Present time on the clock of the messages.
            instruction: What the operator is going to do.
            streams: Topic → what it is for, of those that are judged.
            cameras: Camera → topic, width_px, height_px.

        Returns:
            The number of the episode.

        Raises:
            Refused: if it cannot begin now.
        """
        if self.state not in (State.IDLE, State.REVIEW):
            raise Refused(self._instead())
        free = self._folder.free_bytes()
        if free < self._needed_bytes:
            raise Refused(
                f"{free / _GB:.1f} GB are free at {self._folder.path}, expected "
                f"{self._needed_bytes / _GB:.1f} GB (min_free_disk_gb). Free some space"
            )
        facts = dataset_facts(self._profile, self._config.camera_rate_hz, cameras)
        index = self._folder.next_index()
        try:
            self._folder.require(facts)
            quality = EpisodeQuality(
                self._profile, self._config.quality, self._config.camera_rate_hz
            )
            recording = EpisodeRecording(
                self._folder.episode_path(index),
                {
                    "instruction": instruction,
                    "profile": self._profile.name,
                    "color_order": self._profile.color_order,
                    "camera_rate_hz": f"{self._config.camera_rate_hz:g}",
                },
                self._config.buffer_mb * _MB,
                lambda *message: take.judge(*message),
            )
        except (ConfigError, OSError) as error:
            raise Refused(str(error)) from None
        take = Take(index, now_ns, instruction, recording, quality, streams, last_ns=now_ns)
        self._take = take
        self._enter(State.RECORDING)
        return index

    def take(
        self, topic: BagTopic, log_ns: int, data: bytes, publish_ns: int | None = None
    ) -> None:
        """Takes one message if an episode is being recorded."""
        take = self._take
        if self.state is not State.RECORDING or take is None:
            if take is not None and topic.name in take.late:
                take.miss(topic.name, log_ns)
            return
        if take.end_ns is not None and log_ns > take.end_ns:
            return
        take.last_ns = max(take.last_ns, log_ns)
        take.recording.take(topic, log_ns, data, publish_ns)
        limit_s = self._config.max_episode_s
        if limit_s and log_ns - take.start_ns >= limit_s * 1e9:
            self.stop(f"ended after {limit_s:g} s (max_episode_s)", log_ns)

    def note_lost(self, topic: str, count: int) -> None:
        """Counts messages that were sent but never arrived here."""
        if self.state is State.RECORDING and self._take is not None:
            self._take.lost[topic] = self._take.lost.get(topic, 0) + count

    def set_instruction(self, instruction: str) -> None:
        """Changes what is done in the present episode, if there is one."""
        if self.state is State.RECORDING and self._take is not None:
            self._take.instruction = instruction

    def stop(self, reason: str = "", end_ns: int | None = None) -> int:
        """Ends the episode; it is saved in the background, `poll` says when that is done.

        Args:
            reason: Why, if nobody asked for it.
            end_ns: Log time at which it ends; without it, now.

        Raises:
            Refused: if none is being recorded.
        """
        take = self._take
        if self.state is not State.RECORDING or take is None:
            raise Refused(self._instead())
        if take.end_ns is not None:
            return take.index  # it is ending: a message that waited asks for the same
        if self._arrivals is not None:
            take.end_ns = self._arrivals.now_ns() if end_ns is None else end_ns
            take.cut = tuple(sorted(self._arrivals.drain(take.end_ns)))
            take.late = set(take.cut)
        if take.cut:
            logger.error(
                "episode %d: the end of %s is missing; the machine is too busy",
                take.index,
                ", ".join(take.cut),
            )
        take.recording.finish(self._facts)
        self._enter(State.SAVING, reason)
        return take.index

    def label(self, success: bool) -> int:
        """Says how the present or the last episode ended.

        Raises:
            Refused: if there is none.
        """
        take = self._take
        if take is None or not take.is_kept:
            raise Refused("no episode to label: start one")
        take.outcome = SUCCESS if success else FAILURE
        if self.state in (State.REVIEW, State.IDLE, State.FAILED):
            self._write_outcome(take)
            if self.state is State.REVIEW:
                self._enter(State.IDLE)
        return take.index

    def discard(self) -> int:
        """Deletes the present or the last episode.

        Raises:
            Refused: if there is none, or it is just being saved.
        """
        take = self._take
        if take is None or not take.is_kept:
            raise Refused("no episode to discard: start one")
        if self.state is State.SAVING:
            raise Refused("the episode is being saved; discard it in a moment")
        if self.state is State.RECORDING:
            take.recording.abandon()
        take.is_kept = False
        try:
            self._folder.discard(take.index)
        except OSError as error:
            raise Refused(f"episode {take.index} cannot be deleted: {error}") from None
        finally:
            if self.state is not State.FAILED:
                self._enter(State.IDLE)
        return take.index

    def poll(self) -> None:
        """Finds out what has happened meanwhile: saved, failed, disk full, space again."""
        take = self._take
        if self.state is State.RECORDING and take is not None:
            if take.recording.failed:
                self.stop(take.recording.failed)
            elif self._folder.free_bytes() < self._needed_bytes:
                self.stop(f"ended because the disk is almost full ({self._folder.path})")
        elif self.state is State.SAVING and take is not None and take.recording.done:
            failed = take.recording.failed
            self._enter(State.FAILED if failed else State.REVIEW, failed or self._reason)
            if take.outcome != take.written_outcome:
                try:
                    self._write_outcome(take)
                except Refused as error:
                    logger.error("%s", error)
            if take.outcome and not failed:
                self._enter(State.IDLE, self._reason)
        elif self.state is State.FAILED and self._folder.free_bytes() >= self._needed_bytes:
            self._enter(State.IDLE)

    def close(self) -> None:
        """Ends and saves what is being recorded; waits for it."""
        if self.state is State.RECORDING:
            self.stop("the recorder was stopped")
        if self.state is State.SAVING and self._take is not None:
            self._take.recording.join()
            self.poll()

    def status(self) -> RecorderStatus:
        """What is shown to the operator."""
        take = self._take
        if take is None or not take.is_kept:
            counts, dropped, findings, verdict = {}, {}, [], Verdict.UNKNOWN
        else:
            counts, dropped = take.recording.counts, take.recording.dropped
            findings = take.findings()
            verdict = take.verdict(findings)
        return RecorderStatus(
            state=self.state,
            reason=self._reason,
            episode_index=take.index if take else -1,
            episodes_on_disk=len(self._folder.episodes()),
            instruction=take.instruction if take else "",
            label=take.outcome if take else "",
            duration_s=(take.last_ns - take.start_ns) * 1e-9 if take else 0.0,
            message_counts=counts,
            dropped_counts=dropped,
            bytes=take.recording.bytes_written if take else 0,
            free_disk_bytes=self._folder.free_bytes(),
            quality=verdict,
            quality_reasons=tuple(finding.text for finding in findings),
        )

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the disk has not taken yet."""
        return self._take.recording.waiting_bytes if self._take else 0

    @property
    def _needed_bytes(self) -> int:
        return max(_LEAST_FREE_BYTES, round(self._config.min_free_disk_gb * _GB))

    def _enter(self, state: State, reason: str = "") -> None:
        self.state, self._reason = state, reason

    def _instead(self) -> str:
        return {
            State.IDLE: "nothing is being recorded: start an episode first",
            State.REVIEW: "nothing is being recorded: start an episode first",
            State.RECORDING: "an episode is being recorded: stop or discard it first",
            State.SAVING: "the episode before is being saved; try again in a moment",
            State.FAILED: self._reason,
        }.get(self.state, "the recorder is not active")

    def _facts(self) -> dict[str, str]:
        """What is known about the episode at its end; called in the writing thread."""
        take = self._take
        assert take is not None
        findings = take.findings()
        take.written_outcome = take.outcome
        facts = {
            "instruction": take.instruction,
            "outcome": take.outcome,
            "quality": take.verdict(findings).name.lower(),
            "quality_reasons": "; ".join(finding.text for finding in findings),
            "dropped": str(sum(take.recording.dropped.values())),
            "lost": str(sum(take.lost.values())),
            "cut": ", ".join(take.cut),
        }
        return {name: value for name, value in facts.items() if value}

    def _write_outcome(self, take: Take) -> None:
        try:
            self._folder.label(take.index, take.outcome)
        except (ValueError, OSError) as error:
            raise Refused(f"episode {take.index} cannot be labelled: {error}") from None
        take.written_outcome = take.outcome
