"""One episode on its way to the disk: a bounded buffer, and a thread that empties it into a bag.

Whoever receives messages never waits for the disk. What does not fit is counted, topic by topic:
received = written + dropped, always. Knows no ROS and no meaning of a message.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_oft_ros.data.bag_storage import open_bag
from vla_oft_ros.data.bag_writer import BagTopic, BagWriter, DiskFull

logger = logging.getLogger(__name__)

FLUSH_S = 0.2
"""Whatever stops us, what was received so long before is on disk. A killed recorder may lose a
second: the rest is for a machine on which a thread that is due must wait for its turn.
"""
_COMPLAIN_EVERY_S = 2.0

OnMessage = Callable[[str, int, bytes], None]


@dataclass(frozen=True)
class _Message:
    topic: str
    log_ns: int
    data: bytes
    publish_ns: int | None


class FlushTimer:
    """When what is in memory is due on the disk: a period after the oldest of it came.

    Args:
        period_s: Seconds that a message may stay in memory.
    """

    def __init__(self, period_s: float = FLUSH_S) -> None:
        self._period_s = period_s
        self._since_s: float | None = None

    def left_s(self, waiting: bool, now_s: float) -> float:
        """Seconds until it is due, at most one period; not above 0 once it is.

        Args:
            waiting: Whether there is something in memory; told behind every message and flush.
            now_s: Present time.
        """
        if not waiting:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
        return self._period_s - (now_s - (now_s if self._since_s is None else self._since_s))


class EpisodeRecording:
    """Writes one episode.

    Args:
        path: Folder of the bag; must not exist.
        custom_data: What is known about the episode at its beginning.
        buffer_bytes: How much may wait for the disk.
        on_message: Called with topic, log time and data of every message that was written, in the
            writing thread.

    Raises:
        OSError: if the bag cannot be begun.
    """

    def __init__(
        self,
        path: Path,
        custom_data: Mapping[str, str],
        buffer_bytes: int,
        on_message: OnMessage | None = None,
    ) -> None:
        self.path = path
        self._writer = BagWriter(path, custom_data)
        self._buffer_bytes, self._on_message = buffer_bytes, on_message
        self._condition = threading.Condition()
        self._queue: list[_Message | BagTopic] = []
        self._waiting_bytes = 0
        self._topics: set[str] = set()
        self._received: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._on_disk: dict[str, int] | None = None
        self._abandoned = False
        self._closing: Callable[[], Mapping[str, str]] | None = None
        self._complained_s = -_COMPLAIN_EVERY_S
        self.failed = ""
        """Why nothing more is written, once that is so."""
        self._thread = threading.Thread(target=self._run, name=f"write {path.name}", daemon=True)
        self._thread.start()

    def take(
        self, topic: BagTopic, log_ns: int, data: bytes, publish_ns: int | None = None
    ) -> bool:
        """Takes one message; never waits for the disk.

        Args:
            topic: Its topic; announced to the bag when it is first seen.
            log_ns: When it was received, nanoseconds.
            data: Its serialised bytes.
            publish_ns: When it was published, if that is known.

        Returns:
            False if it was dropped.
        """
        with self._condition:
            name = topic.name
            if self._closing is not None:
                return False  # it belongs to no episode
            self._received[name] = self._received.get(name, 0) + 1
            full = self._waiting_bytes + len(data) > self._buffer_bytes
            if full or self.failed:
                self._dropped[name] = self._dropped.get(name, 0) + 1
                if full and not self.failed:
                    self._complain()
                return False
            if name not in self._topics:
                self._topics.add(name)
                self._queue.append(topic)
            self._queue.append(_Message(name, log_ns, data, publish_ns))
            self._waiting_bytes += len(data)
            self._condition.notify()
        return True

    def _complain(self) -> None:
        now_s = time.monotonic()
        if now_s - self._complained_s >= _COMPLAIN_EVERY_S:
            self._complained_s = now_s
            logger.error(
                "%s: the disk is too slow, %d messages dropped so far; record compressed images, "
                "use a faster disk, or raise buffer_mb",
                self.path.name,
                sum(self._dropped.values()),
            )

    def finish(self, custom_data: Callable[[], Mapping[str, str]]) -> None:
        """Takes no more messages and lets the thread write the rest; does not wait for that.

        Args:
            custom_data: Called in the writing thread behind the last message; what it returns is
                added to what the bag says about the episode.
        """
        with self._condition:
            if self._closing is None:
                self._closing = custom_data
                self._condition.notify()

    def abandon(self) -> None:
        """Ends the recording without finishing the bag, which is to be deleted; waits for that."""
        with self._condition:
            self._abandoned = True
            self._queue.clear()
            self._closing = dict
            self._condition.notify()
        self._thread.join()

    @property
    def done(self) -> bool:
        """True once everything is on the disk."""
        return not self._thread.is_alive()

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits for the end of a finished recording; False if that takes longer."""
        self._thread.join(timeout_s)
        return self.done

    @property
    def counts(self) -> dict[str, int]:
        """Topic → messages written."""
        if self._on_disk is not None:
            return dict(self._on_disk)
        with self._condition:
            topics = set(self._received)
        written = dict(self._writer.counts)
        return {topic: written.get(topic, 0) for topic in topics}

    @property
    def dropped(self) -> dict[str, int]:
        """Topic → messages received but not written."""
        with self._condition:
            received, dropped = dict(self._received), dict(self._dropped)
        if self._on_disk is not None:
            return {topic: received[topic] - self._on_disk.get(topic, 0) for topic in received}
        return {topic: dropped.get(topic, 0) for topic in received}

    @property
    def bytes_written(self) -> int:
        """Bytes on disk so far."""
        return self._writer.bytes_written

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the disk has not taken yet."""
        return self._waiting_bytes

    def _run(self) -> None:
        """The writing thread."""
        try:
            self._write_all()
        except DiskFull as error:
            self.failed = str(error)
        except Exception:
            logger.error("%s: writing ended:\n%s", self.path.name, traceback.format_exc())
            self.failed = "an error in the recorder, see its log"
        if self.failed:
            self._wait_for_finish()
        if self._abandoned:
            self._writer.abort()
            return
        closing = self._closing
        assert closing is not None
        try:
            self._writer.close(closing())
        except OSError as error:
            self.failed = self.failed or str(error)
        if self.failed:
            self._on_disk = self._count_on_disk()

    def _write_all(self) -> None:
        timer = FlushTimer()
        while True:
            left_s = self._flush_if_due(timer)
            with self._condition:
                if not self._queue and self._closing is None:
                    self._condition.wait(left_s)
                batch, self._queue = self._queue, []
                is_last = self._closing is not None
            for entry in batch:
                if self._abandoned:
                    return
                if isinstance(entry, BagTopic):
                    self._writer.add_topic(entry)
                    continue
                self._writer.write(entry.topic, entry.log_ns, entry.data, entry.publish_ns)
                if self._on_message is not None:
                    self._on_message(entry.topic, entry.log_ns, entry.data)
                with self._condition:
                    self._waiting_bytes -= len(entry.data)
                self._flush_if_due(timer)
            if is_last:
                return

    def _flush_if_due(self, timer: FlushTimer) -> float:
        """Puts on disk what has waited long enough; seconds until that is so again."""
        left_s = timer.left_s(self._writer.pending_messages > 0, time.monotonic())
        if left_s <= 0:
            self._writer.flush()
            left_s = timer.left_s(False, time.monotonic())
        return left_s

    def _wait_for_finish(self) -> None:
        with self._condition:
            self._queue.clear()
            self._condition.wait_for(lambda: self._closing is not None)

    def _count_on_disk(self) -> dict[str, int]:
        try:
            with open_bag(self.path) as bag:
                return bag.counts()
        except (OSError, ValueError) as error:
            logger.error("%s: %s", self.path, error)
            return {}
