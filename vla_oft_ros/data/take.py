"""One take: its recording, its checks, and what is known to be missing in it.

Messages are judged in the thread that writes them, and findings are asked for in that of the
operator's wishes. Knows neither folders nor wishes; those are `recorder`'s.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field

from vla_oft_ros.data.quality import EpisodeQuality, Stream
from vla_oft_ros.data.recording import EpisodeRecording
from vla_oft_ros.data.verdict import Finding, Verdict

logger = logging.getLogger(__name__)


@dataclass
class Take:
    """One episode, from its start until the next one.

    Attributes:
        index: Its number.
        start_ns: Log time of its beginning.
        instruction: What is done in it.
        recording: Where its messages go.
        quality: The checks.
        streams: Topic → what it is for, of those that are judged.
        lost: Topic → messages that were sent and did not get into it.
        last_ns: Log time of its last message.
        end_ns: Log time at which it was stopped; None before.
        cut: Topics whose last messages still waited when time was up.
        late: Those of them whose waiting messages may still come.
        outcome: success, failure, or empty.
        written_outcome: What its bag says.
        is_kept: False once it is discarded.
        judged: False once a check has failed.
    """

    index: int
    start_ns: int
    instruction: str
    recording: EpisodeRecording
    quality: EpisodeQuality
    streams: Mapping[str, Stream]
    lost: dict[str, int] = field(default_factory=dict)
    last_ns: int = 0
    end_ns: int | None = None
    cut: tuple[str, ...] = ()
    late: set[str] = field(default_factory=set)
    outcome: str = ""
    written_outcome: str = ""
    is_kept: bool = True
    judged: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def judge(self, topic: str, log_ns: int, data: bytes) -> None:
        """Looks at a message that was written; called in the writing thread."""
        stream = self.streams.get(topic)
        if stream is None or not self.judged:
            return
        try:
            with self.lock:
                self.quality.add(stream, log_ns, data)
        except Exception:  # a check must never cost an episode
            self.judged = False
            logger.error("the quality checks ended:\n%s", traceback.format_exc())

    def miss(self, topic: str, log_ns: int) -> None:
        """Counts a message of an ended episode that had arrived before the end."""
        assert self.end_ns is not None  # nothing is late for what has not ended
        if log_ns > self.end_ns:
            self.late.discard(topic)
        else:
            self.lost[topic] = self.lost.get(topic, 0) + 1

    def findings(self) -> list[Finding]:
        """What is wrong with it so far."""
        missing = dict(self.lost)
        for topic, count in self.recording.dropped.items():
            missing[topic] = missing.get(topic, 0) + count
        with self.lock:
            found = self.quality.findings(missing)
        if self.cut:
            found.append(Finding(Verdict.SUSPECT, f"the end of {', '.join(self.cut)} is missing"))
        if not self.judged:
            found.append(Finding(Verdict.SUSPECT, "the quality checks failed, see the log"))
        return found

    def verdict(self, findings: list[Finding]) -> Verdict:
        """The verdict that findings make."""
        with self.lock:
            return self.quality.verdict(findings)
