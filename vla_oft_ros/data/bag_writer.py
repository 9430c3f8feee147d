"""Writes one rosbag2 (MCAP) per episode from serialised messages, as the recorder receives them.

What stands in the bag is what `ros2 bag` would have written: metadata.yaml version 9, offered
QoS, definitions and hashes of the types, the name of the distribution. What is said about the
episode (instruction, profile, outcome) is its custom data. Killed at any moment, all but the
last second can be read (`bag_recovery`); a full disk ends the recording, not the bag.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from vla_oft_ros.data.mcap_writer import McapWriter

logger = logging.getLogger(__name__)

METADATA_FILE = "metadata.yaml"
INFORMATION = "rosbag2_bagfile_information"
EPISODE_METADATA = "vla_oft_ros_episode"
"""Name of the MCAP metadata that hold the custom data from the beginning, for recovery."""
DISTRIBUTION = "jazzy"
VERSION = 9
RESERVE_BYTES = 4 * 2**20
"""Kept free for index and metadata: 10 minutes of three raw cameras need 3 MB."""
_RESERVE_FILE = ".reserve"
INFINITE = {"sec": 9223372036, "nsec": 854775807}
"""rmw's infinite duration."""


class DiskFull(OSError):
    """There is no room for more messages; what was written before stays readable."""


@dataclass(frozen=True)
class OfferedQos:
    """QoS that a publisher of a topic offers, in rosbag2's words; times are infinite."""

    history: str = "keep_last"
    depth: int = 10
    reliability: str = "reliable"
    durability: str = "volatile"
    liveliness: str = "automatic"

    def as_mapping(self) -> dict[str, Any]:
        """As metadata.yaml version 9 has it."""
        times = ("deadline", "lifespan", "liveliness_lease_duration")
        return {
            **asdict(self),
            **{name: dict(INFINITE) for name in times},
            "avoid_ros_namespace_conventions": False,
        }


@dataclass(frozen=True, kw_only=True)
class BagTopic:
    """A topic to record.

    Attributes:
        name: Absolute name.
        type: Message type, e.g. sensor_msgs/msg/Image.
        definition: Its definition (`message_types.MessageTypes.find`).
        type_hash: Its RIHS01 hash; empty if unknown.
        qos: What its publishers offer.
    """

    name: str
    type: str
    definition: str
    type_hash: str
    qos: Sequence[OfferedQos] = ()


@dataclass
class _Recorded:
    topic: BagTopic
    channel: int
    count: int = 0


class BagWriter:
    """One bag. Not for several threads at once.

    Args:
        path: Folder to make; must not exist.
        custom_data: What is known about the episode at its beginning: `episode_data`.
        distribution: Name of the ROS 2 distribution.
        chunk_bytes: Bytes, and
        chunk_ns: log time in nanoseconds after which messages go to disk. A recorder whose topics
            may fall silent calls `flush` besides.

    Raises:
        FileExistsError: if the folder exists.
    """

    def __init__(
        self,
        path: Path,
        custom_data: Mapping[str, str],
        distribution: str = DISTRIBUTION,
        chunk_bytes: int = 4 * 2**20,
        chunk_ns: int = 200_000_000,
    ) -> None:
        self.path = path
        self._custom_data = dict(custom_data)
        self._distribution = distribution
        self._topics: dict[str, _Recorded] = {}
        self._first_ns, self._last_ns = 2**63 - 1, 0
        self.failed: DiskFull | None = None
        """Why nothing more can be written, once that is so."""
        self.lost = 0
        """Messages that were taken but did not reach the disk."""
        path.mkdir(parents=True)
        try:
            _reserve(path / _RESERVE_FILE)
            self._mcap = McapWriter(
                path / f"{path.name}_0.mcap",
                {EPISODE_METADATA: self._custom_data},
                chunk_bytes,
                chunk_ns,
            )
        except OSError as error:
            raise self._explained(error) from None

    def add_topic(self, topic: BagTopic) -> None:
        """Announces a topic; before its first message.

        Raises:
            ValueError: if it was announced with another type.
        """
        known = self._topics.get(topic.name)
        if known is not None:
            if known.topic.type != topic.type:
                raise ValueError(
                    f"{topic.name}: expected one type per topic; got {known.topic.type} and "
                    f"{topic.type}. Two publishers disagree"
                )
            return
        schema = self._mcap.add_schema(topic.type, "ros2msg", topic.definition)
        metadata = {
            "offered_qos_profiles": to_yaml([qos.as_mapping() for qos in topic.qos]).strip(),
            "topic_type_hash": topic.type_hash,
        }
        channel = self._mcap.add_channel(schema, topic.name, metadata)
        self._topics[topic.name] = _Recorded(topic, channel)

    def write(
        self, topic: str, log_ns: int, data: bytes | memoryview, publish_ns: int | None = None
    ) -> None:
        """Takes one message. The data are not copied, so they must not change.

        Args:
            topic: Name of an announced topic.
            log_ns: When it was received, nanoseconds, on the clock of the messages' stamps.
            data: Its serialised bytes, as received.
            publish_ns: When it was published; without it, as received.

        Raises:
            DiskFull: once there is no room; from then on at every call.
            KeyError: if the topic was not announced.
        """
        self._refuse_if_failed()
        recorded = self._topics[topic]
        published = log_ns if publish_ns is None else publish_ns
        recorded.count += 1
        self._first_ns = min(self._first_ns, log_ns)
        self._last_ns = max(self._last_ns, log_ns)
        try:
            self._mcap.write(recorded.channel, recorded.count, log_ns, published, data)
        except OSError as error:
            raise self._fail(error) from None

    def flush(self) -> None:
        """Puts on disk what is in memory.

        Raises:
            DiskFull: if there is no room.
        """
        self._refuse_if_failed()
        try:
            self._mcap.flush()
        except OSError as error:
            raise self._fail(error) from None

    @property
    def counts(self) -> dict[str, int]:
        """Topic → messages taken."""
        return {name: recorded.count for name, recorded in self._topics.items()}

    @property
    def pending_messages(self) -> int:
        """Messages taken that are still in memory."""
        return self._mcap.pending_messages

    @property
    def bytes_written(self) -> int:
        """Bytes on disk so far."""
        return self._mcap.bytes_written

    @property
    def duration_ns(self) -> int:
        """Time between first and last message, nanoseconds."""
        return max(0, self._last_ns - self._first_ns)

    def close(self, custom_data: Mapping[str, str] | None = None) -> None:
        """Finishes the bag, also after `DiskFull`: index, metadata.yaml.

        Args:
            custom_data: What is known about the episode now; added to that of the beginning.

        Raises:
            DiskFull: if even that does not fit; `bag_recovery.recover_bag` finishes it later.
        """
        self._custom_data.update(custom_data or {})
        if self.failed is None:
            try:
                self._mcap.flush()
            except OSError as error:
                self._fail(error)
        (self.path / _RESERVE_FILE).unlink(missing_ok=True)
        if self.failed is not None:
            self._finish_from_disk()
            return
        information = self._information()
        try:
            self._mcap.close({"rosbag2": {"serialized_metadata": to_yaml(information).strip()}})
            write_metadata(self.path, information)
        except OSError as error:
            raise self._fail(error) from None

    def abort(self) -> None:
        """Leaves the bag as if the process had been killed."""
        self._mcap.abort()

    def _finish_from_disk(self) -> None:
        """Counts what is really there: the last messages taken are not."""
        from vla_oft_ros.data.bag_recovery import recover_bag

        self._mcap.abort()
        try:
            recover_bag(self.path, self._custom_data, self._distribution)
        except OSError as error:
            raise self._explained(error) from None

    def _information(self) -> dict[str, Any]:
        topics = [(recorded.topic, recorded.count) for recorded in self._topics.values()]
        return bag_information(
            self._mcap.path.name,
            [
                (topic_metadata(t.name, t.type, t.type_hash, [q.as_mapping() for q in t.qos]), n)
                for t, n in topics
            ],
            (self._first_ns, self._last_ns),
            self._custom_data,
            self._distribution,
        )

    def _refuse_if_failed(self) -> None:
        if self.failed is not None:
            raise self.failed

    def _fail(self, error: OSError) -> DiskFull:
        self.lost = self._mcap.pending_messages
        self.failed = self._explained(error)
        logger.error("%s", self.failed)
        return self.failed

    def _explained(self, error: OSError) -> DiskFull:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        return DiskFull(
            error.errno or errno.EIO,
            f"cannot write the bag: {reason}; what was recorded before stays readable. Free "
            "space or choose another folder for recordings",
            str(self.path),
        )


def _reserve(path: Path) -> None:
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)


def topic_metadata(
    name: str, type_name: str, type_hash: str, qos: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One topic as metadata.yaml has it."""
    return {
        "name": name,
        "type": type_name,
        "serialization_format": "cdr",
        "offered_qos_profiles": [dict(entry) for entry in qos],
        "type_description_hash": type_hash,
    }


def bag_information(
    file_name: str,
    topics: Sequence[tuple[Mapping[str, Any], int]],
    span_ns: tuple[int, int],
    custom_data: Mapping[str, str],
    distribution: str,
) -> dict[str, Any]:
    """The content of metadata.yaml, version 9.

    Args:
        file_name: Name of the MCAP file.
        topics: Each topic's metadata and number of messages.
        span_ns: Log time of the first and the last message.
        custom_data: What is said about the episode.
        distribution: Name of the ROS 2 distribution.
    """
    count = sum(number for _, number in topics)
    start_ns = span_ns[0] if count else 0
    duration = {"nanoseconds": max(0, span_ns[1] - span_ns[0]) if count else 0}
    start = {"nanoseconds_since_epoch": start_ns}
    return {
        "version": VERSION,
        "storage_identifier": "mcap",
        "duration": duration,
        "starting_time": start,
        "message_count": count,
        "topics_with_message_count": [
            {"topic_metadata": dict(topic), "message_count": number} for topic, number in topics
        ],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [file_name],
        "files": [
            {
                "path": file_name,
                "starting_time": dict(start),
                "duration": dict(duration),
                "message_count": count,
            }
        ],
        "custom_data": dict(custom_data) or None,
        "ros_distro": distribution,
    }


def write_metadata(path: Path, information: Mapping[str, Any]) -> None:
    """Writes metadata.yaml whole or not at all."""
    part = path / f".{METADATA_FILE}.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(to_yaml({INFORMATION: dict(information)}))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path / METADATA_FILE)


def to_yaml(content: Any) -> str:
    """YAML text in the order of the content, one line per value."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10**6)
