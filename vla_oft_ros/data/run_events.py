"""What happened during a run, as a list of events with times: what a timeline marks.

Fed with what a bag holds, message by message in order of arrival. Conserves: every chunk is one
event, every tick with an intervention belongs to exactly one, every hold, stop, fault and silence
is one from its first to its last moment. Knows no files and no pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from vla_oft_ros.data.policy_messages import (
    RECORDING,
    Diagnosis,
    RecorderReport,
    SafetyReport,
)
from vla_oft_ros.safety_report import SafetyState
from vla_oft_ros.types import ActionChunk

EPISODE, INSTRUCTION, REWARD = "episode", "instruction", "reward"
CHUNK, INTERVENTION, HOLD, ESTOP = "chunk", "intervention", "hold", "e-stop"
SILENCE, WARNING, FAULT = "silence", "warning", "fault"
KINDS = (
    *(EPISODE, INSTRUCTION, REWARD, CHUNK, INTERVENTION, HOLD, ESTOP, SILENCE, WARNING, FAULT),
)
TROUBLE = (ESTOP, FAULT, SILENCE)
"""Kinds of which the first is the first place to look."""
_STATES = {SafetyState.HOLD: HOLD, SafetyState.ESTOP: ESTOP}
_LEVELS = {1: WARNING, 2: FAULT, 3: FAULT}
_SAME_S = 0.2
"""Interventions of one kind with no more time between them are one event."""


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """One thing that happened.

    Attributes:
        kind: One of `KINDS`.
        start_s: When it began, seconds since the run's first message.
        end_s: When it ended; `start_s` for what has no length.
        text: What it was.
        times: How often: ticks of an intervention, else 1.
        latency_s: Of a chunk: from its observation to its arrival, else None.
        inference_s: Of a chunk: what the policy needed, else None.
    """

    kind: str
    start_s: float
    end_s: float
    text: str
    times: int = 1
    latency_s: float | None = None
    inference_s: float | None = None

    @property
    def duration_s(self) -> float:
        """How long it lasted, seconds."""
        return self.end_s - self.start_s

    def as_mapping(self) -> dict[str, object]:
        """For JSON and CSV, times in milliseconds' precision."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run in a few words.

    Attributes:
        duration_s: Its length, seconds.
        counts: Kind → events; of interventions the ticks.
        longest_hold: None if there was none.
        worst_chunk: The chunk with the highest latency; None without chunks.
        first_trouble: The first e-stop, fault or silence; None if there was none.
    """

    duration_s: float
    counts: dict[str, int]
    longest_hold: RunEvent | None
    worst_chunk: RunEvent | None
    first_trouble: RunEvent | None

    def as_mapping(self) -> dict[str, object]:
        """For JSON."""
        events = {
            name: event.as_mapping() if event else None
            for name, event in (
                ("longest_hold", self.longest_hold),
                ("worst_chunk", self.worst_chunk),
                ("first_trouble", self.first_trouble),
            )
        }
        return {"duration_s": round(self.duration_s, 4), "counts": self.counts, **events}


class EventCollector:
    """Makes events of messages; times in seconds since the start, never going back."""

    def __init__(self) -> None:
        self._done: list[RunEvent] = []
        self._open: dict[tuple[str, str], RunEvent] = {}
        self._counts: dict[str, int] | None = None
        self._best_reward = 0.0

    def chunk(self, time_s: float, chunk: ActionChunk, latency_s: float) -> None:
        """An action chunk has arrived."""
        self._done.append(
            RunEvent(
                kind=CHUNK,
                start_s=time_s,
                end_s=time_s,
                text=f"{chunk.chunk_len} actions for {chunk.instruction!r}",
                latency_s=latency_s,
                inference_s=chunk.inference_s,
            )
        )

    def instruction(self, time_s: float, text: str) -> None:
        """The robot is asked for something else."""
        self._moment(INSTRUCTION, time_s, text)

    def reward(self, time_s: float, reward: float) -> None:
        """The simulation's reward; a new best is an event."""
        if reward > self._best_reward:
            self._best_reward = reward
            self._moment(REWARD, time_s, f"reward {reward:g}")

    def safety(self, time_s: float, report: SafetyReport) -> None:
        """The safety gate has spoken."""
        kind = _STATES.get(report.state)
        for other in _STATES.values():
            self._follow(other, "", time_s, other == kind, report.reason)
        # What was counted before the first report happened before the run.
        known = report.counts if self._counts is None else self._counts
        for name, count in report.counts.items():
            before = known.get(name, 0)
            more = count - before if count >= before else count  # activated anew: counts from 0
            if more:
                self._intervene(name, time_s, more)
        self._counts = dict(report.counts)

    def diagnostics(self, time_s: float, statuses: Sequence[Diagnosis]) -> None:
        """Diagnostics of some nodes."""
        for status in statuses:
            kind = _LEVELS.get(status.level)
            for level in (WARNING, FAULT):
                text = f"{status.name}: {status.message}" if status.message else status.name
                self._follow(level, status.name, time_s, level == kind, text)

    def recorder(self, time_s: float, report: RecorderReport) -> None:
        """The recorder's own status."""
        text = f"episode {report.episode_index}"
        self._follow(EPISODE, "", time_s, report.state == RECORDING, text)

    def silence(self, start_s: float, end_s: float, what: str) -> None:
        """A stream said nothing from one time to another."""
        text = f"nothing from {what} for {end_s - start_s:.2f} s"
        self._done.append(RunEvent(kind=SILENCE, start_s=start_s, end_s=end_s, text=text))

    def finish(self, end_s: float) -> list[RunEvent]:
        """All events by time; what was still so at the end ends there."""
        still = [
            event if event.kind == INTERVENTION else replace(event, end_s=end_s)
            for event in self._open.values()
        ]
        self._open = {}
        self._done += still
        return sorted(self._done, key=lambda event: (event.start_s, KINDS.index(event.kind)))

    def _moment(self, kind: str, time_s: float, text: str) -> None:
        self._done.append(RunEvent(kind=kind, start_s=time_s, end_s=time_s, text=text))

    def _follow(self, kind: str, what: str, time_s: float, is_so: bool, text: str) -> None:
        """Opens an event, lets it go on, or closes it."""
        key = kind, what
        if key in self._open:
            self._open[key] = replace(self._open[key], end_s=time_s)
            if not is_so:
                self._done.append(self._open.pop(key))
        elif is_so:
            self._open[key] = RunEvent(kind=kind, start_s=time_s, end_s=time_s, text=text)

    def _intervene(self, name: str, time_s: float, ticks: int) -> None:
        key = INTERVENTION, name
        last = self._open.get(key)
        if last is not None and time_s - last.end_s <= _SAME_S:
            self._open[key] = replace(last, end_s=time_s, times=last.times + ticks)
            return
        if last is not None:
            self._done.append(last)
        self._open[key] = RunEvent(
            kind=INTERVENTION, start_s=time_s, end_s=time_s, text=name, times=ticks
        )


def summarize(events: Sequence[RunEvent], duration_s: float) -> RunSummary:
    """Counts, and the events to look at first."""
    counts = {
        kind: sum(
            event.times if kind == INTERVENTION else 1 for event in events if event.kind == kind
        )
        for kind in KINDS
    }
    holds = [event for event in events if event.kind == HOLD]
    chunks = [event for event in events if event.kind == CHUNK]
    troubles = (event for event in events if event.kind in TROUBLE)
    return RunSummary(
        duration_s=duration_s,
        counts=counts,
        longest_hold=max(holds, key=lambda event: event.duration_s, default=None),
        worst_chunk=max(chunks, key=lambda event: event.latency_s or 0.0, default=None),
        first_trouble=next(troubles, None),
    )
