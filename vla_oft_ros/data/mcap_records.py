"""The records of an MCAP file as bytes: what `mcap_writer` and `mcap_reader` agree on.

MCAP is a magic number, then records of one opcode byte, eight bytes of length and the content; the
end of the file repeats what is in it and says where. Only what rosbag2 uses is here. Source: the
MCAP specification, version 0.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

MAGIC = b"\x89MCAP0\r\n"
PREFIX = struct.Struct("<BQ")
"""Opcode and length of a record."""
MESSAGE = struct.Struct("<HIQQ")
"""Channel, sequence, log time, publish time; the data follow."""
CHUNK_HEAD = struct.Struct("<QQQI")
"""First and last log time, size and CRC of the uncompressed records."""


class Opcode(IntEnum):
    """Kinds of records."""

    HEADER = 0x01
    FOOTER = 0x02
    SCHEMA = 0x03
    CHANNEL = 0x04
    MESSAGE = 0x05
    CHUNK = 0x06
    MESSAGE_INDEX = 0x07
    CHUNK_INDEX = 0x08
    STATISTICS = 0x0B
    METADATA = 0x0C
    METADATA_INDEX = 0x0D
    SUMMARY_OFFSET = 0x0E
    DATA_END = 0x0F


class DamagedRecord(ValueError):
    """A record whose content does not fit its length."""


def record(opcode: Opcode, content: bytes) -> bytes:
    """One record."""
    return PREFIX.pack(opcode, len(content)) + content


def pack_text(text: str) -> bytes:
    """A string with its length in front."""
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def pack_map(entries: Mapping[str, str]) -> bytes:
    """A map of strings with its length in bytes in front."""
    data = b"".join(pack_text(key) + pack_text(value) for key, value in entries.items())
    return struct.pack("<I", len(data)) + data


class Fields:
    """Takes the fields of a record's content one after the other.

    Raises:
        DamagedRecord: from every method, if the content ends too early.
    """

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self._place = 0

    def take(self, layout: str) -> tuple[int, ...]:
        """Little-endian numbers, as `struct` names them."""
        return struct.unpack("<" + layout, self.bytes(struct.calcsize("<" + layout)))

    def bytes(self, count: int) -> memoryview:
        """The next bytes."""
        end = self._place + count
        if end > len(self._content):
            raise DamagedRecord(f"expected {count} more bytes in a record; it ends before")
        part = self._content[self._place : end]
        self._place = end
        return part

    def blob(self) -> memoryview:
        """Bytes with a four-byte length in front."""
        (count,) = self.take("I")
        return self.bytes(count)

    def text(self) -> str:
        """A string."""
        try:
            return bytes(self.blob()).decode()
        except UnicodeDecodeError as error:
            raise DamagedRecord(f"expected UTF-8 text in a record; {error}") from None

    def map(self) -> dict[str, str]:
        """A map of strings."""
        inner = Fields(self.blob())
        entries: dict[str, str] = {}
        while not inner.at_end:
            key = inner.text()
            entries[key] = inner.text()
        return entries

    @property
    def at_end(self) -> bool:
        """True once everything is taken."""
        return self._place >= len(self._content)


@dataclass(frozen=True)
class Schema:
    """A message type and its definition.

    Attributes:
        id: Number within the file, from 1.
        name: Type, e.g. sensor_msgs/msg/Image.
        encoding: Language of the definition: ros2msg or ros2idl.
        definition: The definition, those of nested types included.
    """

    id: int
    name: str
    encoding: str
    definition: str

    def packed(self) -> bytes:
        """As a record."""
        content = struct.pack("<H", self.id) + pack_text(self.name) + pack_text(self.encoding)
        return record(Opcode.SCHEMA, content + pack_text(self.definition))

    @classmethod
    def unpacked(cls, content: bytes | memoryview) -> Schema:
        """From a record's content."""
        fields = Fields(content)
        return cls(fields.take("H")[0], fields.text(), fields.text(), fields.text())


@dataclass(frozen=True)
class Channel:
    """A topic.

    Attributes:
        id: Number within the file, from 1.
        schema_id: Its type.
        topic: Its name.
        encoding: How its messages are serialised: cdr.
        metadata: rosbag2's offered_qos_profiles and topic_type_hash.
    """

    id: int
    schema_id: int
    topic: str
    encoding: str = "cdr"
    metadata: Mapping[str, str] = field(default_factory=dict)

    def packed(self) -> bytes:
        """As a record."""
        content = struct.pack("<HH", self.id, self.schema_id) + pack_text(self.topic)
        return record(Opcode.CHANNEL, content + pack_text(self.encoding) + pack_map(self.metadata))

    @classmethod
    def unpacked(cls, content: bytes | memoryview) -> Channel:
        """From a record's content."""
        fields = Fields(content)
        channel, schema = fields.take("HH")
        return cls(channel, schema, fields.text(), fields.text(), fields.map())


@dataclass
class Chunk:
    """Where a chunk lies, for the index at the end of the file.

    Attributes:
        start: Offset of its record.
        length: Bytes of its record.
        first_ns: Earliest log time in it.
        last_ns: Latest log time in it.
        compression: "" or the name of the compression.
        stored: Bytes of its records as stored.
        size: Bytes of its records uncompressed.
        messages: Channel → log time and offset within the uncompressed records.
        index_places: Channel → offset of its message index record; these follow the chunk.
        index_end: Offset behind them.
    """

    start: int
    length: int
    first_ns: int
    last_ns: int
    compression: str
    stored: int
    size: int
    messages: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    index_places: dict[int, int] = field(default_factory=dict)
    index_end: int = 0

    @property
    def end(self) -> int:
        """Offset behind its record."""
        return self.start + self.length

    @property
    def is_indexed(self) -> bool:
        """True if every channel in it has its message index."""
        return set(self.messages) <= set(self.index_places)

    def message_indexes(self) -> bytes:
        """Its message index records, to be written right behind it; notes where."""
        packed = b""
        for channel, entries in self.messages.items():
            data = b"".join(struct.pack("<QQ", *entry) for entry in entries)
            self.index_places[channel] = self.end + len(packed)
            packed += record(Opcode.MESSAGE_INDEX, struct.pack("<HI", channel, len(data)) + data)
        self.index_end = self.end + len(packed)
        return packed

    def index(self) -> bytes:
        """Its chunk index record."""
        offsets = b"".join(struct.pack("<HQ", *entry) for entry in self.index_places.items())
        content = struct.pack("<QQQQ", self.first_ns, self.last_ns, self.start, self.length)
        content += struct.pack("<I", len(offsets)) + offsets
        content += struct.pack("<Q", max(0, self.index_end - self.end))
        content += pack_text(self.compression) + struct.pack("<QQ", self.stored, self.size)
        return record(Opcode.CHUNK_INDEX, content)


def pack_summary(
    start: int,
    schemas: Sequence[Schema],
    channels: Sequence[Channel],
    chunks: Sequence[Chunk],
    metadata: Sequence[tuple[str, int, int]],
    counts: Mapping[int, int],
    span_ns: tuple[int, int],
) -> bytes:
    """Everything behind the data of a file: end of data, summary, footer.

    Args:
        start: Offset at which it will be written.
        schemas: All message types.
        channels: All topics.
        chunks: All chunks.
        metadata: Name, offset and length of each metadata record.
        counts: Channel → number of its messages.
        span_ns: Earliest and latest log time.
    """
    numbers = struct.pack(
        "<QHIIIIQQ",
        *(sum(counts.values()), len(schemas), len(channels), 0, len(metadata), len(chunks)),
        *(span_ns if counts else (0, 0)),
    )
    numbers += struct.pack("<I", 10 * len(counts))
    numbers += b"".join(struct.pack("<HQ", *entry) for entry in sorted(counts.items()))
    groups = {
        Opcode.SCHEMA: b"".join(schema.packed() for schema in schemas),
        Opcode.CHANNEL: b"".join(channel.packed() for channel in channels),
        Opcode.STATISTICS: record(Opcode.STATISTICS, numbers),
        Opcode.CHUNK_INDEX: b"".join(chunk.index() for chunk in chunks),
        Opcode.METADATA_INDEX: b"".join(
            record(Opcode.METADATA_INDEX, struct.pack("<QQ", offset, length) + pack_text(name))
            for name, offset, length in metadata
        ),
    }
    data_end = record(Opcode.DATA_END, bytes(4))
    summary_start = place = start + len(data_end)
    offsets = b""
    for opcode, group in groups.items():
        if group:
            content = struct.pack("<BQQ", opcode, place, len(group))
            offsets += record(Opcode.SUMMARY_OFFSET, content)
        place += len(group)
    summary = b"".join(groups.values()) + offsets
    summary += PREFIX.pack(Opcode.FOOTER, 20) + struct.pack("<QQ", summary_start, place)
    return data_end + summary + struct.pack("<I", zlib.crc32(summary)) + MAGIC
