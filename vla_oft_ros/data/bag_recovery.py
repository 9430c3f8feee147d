"""Finishes a bag whose recording ended suddenly: the index and metadata.yaml that are missing.

The messages stay where they are; only what was cut off at the end is removed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vla_oft_ros.data.bag_writer import (
    DISTRIBUTION,
    EPISODE_METADATA,
    INFORMATION,
    METADATA_FILE,
    bag_information,
    to_yaml,
    topic_metadata,
    write_metadata,
)
from vla_oft_ros.data.mcap_reader import McapContent, McapReader
from vla_oft_ros.data.mcap_records import MAGIC, Opcode, pack_map, pack_summary, pack_text, record


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What became of a bag.

    Attributes:
        path: The bag.
        was_whole: True if there was nothing to do.
        messages: Messages that are in it.
        last_ns: Log time of the last one, nanoseconds; 0 if there is none.
        dropped_bytes: What was cut off.
        damage: What was wrong; empty if nothing.
    """

    path: Path
    was_whole: bool
    messages: int
    last_ns: int
    dropped_bytes: int
    damage: str


def find_mcap(path: Path) -> Path:
    """The MCAP file of a bag folder without metadata.yaml, or the file itself.

    Raises:
        ValueError: if there is not exactly one.
    """
    if path.is_file():
        return path
    files = sorted(path.glob("*.mcap")) if path.is_dir() else []
    if len(files) != 1:
        raise ValueError(
            f"{path}: expected a bag folder with one .mcap file; found {len(files)}"
            + (". `ros2 bag reindex` restores bags of several files" if files else "")
        )
    return files[0]


def recover_bag(
    path: Path,
    custom_data: Mapping[str, str] | None = None,
    distribution: str = DISTRIBUTION,
) -> Recovery:
    """Finishes an unfinished bag in place; a whole one stays as it is.

    Args:
        path: Bag folder.
        custom_data: What is known about the episode, added to what its recording began with.
        distribution: Name of the ROS 2 distribution that recorded it.

    Raises:
        ValueError: if there is no bag, or nothing of it can be read.
        OSError: if there is no room to finish it.
    """
    file = find_mcap(path)
    reader = McapReader(file)
    try:
        content, size = reader.content, file.stat().st_size
    finally:
        reader.close()
    told = dict(content.metadata.get(EPISODE_METADATA, {}))
    told.update(custom_data or {})
    count = len(content.messages)
    last_ns = max((message.log_ns for message in content.messages), default=0)
    has_metadata = path.is_dir() and (path / METADATA_FILE).is_file()
    if content.damage is None and has_metadata:
        return Recovery(
            path=path, was_whole=True, messages=count, last_ns=last_ns, dropped_bytes=0, damage=""
        )
    if content.end <= len(MAGIC):
        raise ValueError(f"{file}: nothing to recover; {content.damage}")
    information = _information(file, content, told, distribution)
    end = content.end
    if content.damage is not None:
        _finish(file, content, to_yaml(information).strip())
    if path.is_dir():
        write_metadata(path, information)
        (path / ".reserve").unlink(missing_ok=True)
    return Recovery(
        path=path,
        was_whole=False,
        messages=count,
        last_ns=last_ns,
        dropped_bytes=size - end if content.damage else 0,
        damage=content.damage or f"{METADATA_FILE} was missing",
    )


def _counts(content: McapContent) -> dict[int, int]:
    counts: dict[int, int] = {}
    for message in content.messages:
        counts[message.channel] = counts.get(message.channel, 0) + 1
    return counts


def _span_ns(content: McapContent) -> tuple[int, int]:
    times = [message.log_ns for message in content.messages]
    return (min(times), max(times)) if times else (0, 0)


def _information(
    file: Path, content: McapContent, custom_data: Mapping[str, str], distribution: str
) -> dict[str, Any]:
    counts = _counts(content)
    topics = []
    for channel in content.channels.values():
        schema = content.schemas.get(channel.schema_id)
        qos = yaml.safe_load(channel.metadata.get("offered_qos_profiles", "") or "[]") or []
        topic = topic_metadata(
            channel.topic,
            schema.name if schema else "",
            channel.metadata.get("topic_type_hash", ""),
            qos,
        )
        topics.append((topic, counts.get(channel.id, 0)))
    return bag_information(file.name, topics, _span_ns(content), custom_data, distribution)


def _finish(file: Path, content: McapContent, serialized_metadata: str) -> None:
    tail, end, chunks = b"", content.end, content.chunks
    if chunks and not chunks[-1].is_indexed:
        end = chunks[-1].end
        tail = chunks[-1].message_indexes()
    metadata = pack_text("rosbag2") + pack_map({"serialized_metadata": serialized_metadata})
    packed = record(Opcode.METADATA, metadata)
    places = [*content.metadata_places, ("rosbag2", end + len(tail), len(packed))]
    tail += packed
    tail += pack_summary(
        end + len(tail),
        list(content.schemas.values()),
        list(content.channels.values()),
        chunks,
        places,
        _counts(content),
        _span_ns(content),
    )
    with file.open("r+b") as output:
        output.truncate(end)
        output.seek(end)
        output.write(tail)
        output.flush()
        os.fsync(output.fileno())


def annotate_bag(path: Path, custom_data: Mapping[str, str]) -> None:
    """Adds to or changes what a finished bag says about its episode, e.g. its outcome.

    Raises:
        ValueError: if the bag is not finished.
    """
    file = path / METADATA_FILE
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        information = content[INFORMATION]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected the metadata of a finished bag; {error}") from None
    information["custom_data"] = {**(information.get("custom_data") or {}), **custom_data}
    write_metadata(path, information)
