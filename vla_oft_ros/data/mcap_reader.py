"""Reads MCAP files, finished or not.

One walk over the records finds every message without reading its data; where the file is damaged
the walk ends and says where and why. Messages are fetched when somebody asks for them.
"""

from __future__ import annotations

import os
import weakref
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from vla_oft_ros.data.mcap_records import (
    CHUNK_HEAD,
    MAGIC,
    MESSAGE,
    PREFIX,
    Channel,
    Chunk,
    DamagedRecord,
    Fields,
    Opcode,
    Schema,
)
from vla_oft_ros.data.optional import require

_MAX_RECORD_BYTES = 2**32
"""A length above this is damage, not something to allocate for; rosbag2 writes chunks of 1 MB."""
MAX_CHUNK_BYTES = 2**28
"""Of a chunk's records, uncompressed: some kilobytes may claim to be gigabytes. rosbag2's chunks
are of 1 MB, or of one message that is larger."""


@dataclass(frozen=True)
class MessagePlace:
    """Where one message lies.

    Attributes:
        log_ns: When it was recorded, nanoseconds.
        publish_ns: When it was published, nanoseconds.
        channel: Its topic.
        chunk: Number of the compressed chunk that it is in; -1 if it is not in one.
        offset: Where its data begin: in the file, or in the uncompressed chunk.
        size: Bytes of its data.
    """

    log_ns: int
    publish_ns: int
    channel: int
    chunk: int
    offset: int
    size: int


@dataclass
class McapContent:
    """What a walk over a file found.

    Attributes:
        schemas: Number → message type.
        channels: Number → topic.
        metadata: Name → map of strings; of several with one name the last.
        metadata_places: Name, offset and length of each metadata record.
        chunks: Every whole chunk.
        messages: Every message, in the order of the file.
        end: Up to this offset the file is whole.
        damage: Why the walk ended before the footer; None if it did not.
    """

    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    metadata_places: list[tuple[str, int, int]] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    messages: list[MessagePlace] = field(default_factory=list)
    end: int = 0
    damage: str | None = None


class McapReader:
    """An open MCAP file.

    Args:
        path: The file.
        check: Read everything and compare checksums as well.

    Raises:
        ValueError: if it is no MCAP file of rosbag2 at all.
        OSError: if it cannot be read.
    """

    def __init__(self, path: Path, check: bool = False) -> None:
        self.path = path
        self._check = check
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._file)
        """Closes the file; happens by itself when nobody uses the reader any more."""
        self._uncompressed = lru_cache(maxsize=4)(self._chunk_records)
        try:
            self._size = os.fstat(self._file).st_size
            self.content = self._walk()
        except BaseException:
            self.close()
            raise

    def read(self, place: MessagePlace, size: int | None = None) -> bytes:
        """The serialised data of a message, or only its first bytes."""
        size = place.size if size is None else min(size, place.size)
        if place.chunk < 0:
            return self._pread(place.offset, size)
        return self._uncompressed(place.chunk)[place.offset : place.offset + size]

    def _pread(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file, size, offset)
        if len(data) != size:
            raise DamagedRecord(f"{self.path}: expected {size} bytes at {offset}; the file ends")
        return data

    def _walk(self) -> McapContent:
        if self._size < len(MAGIC) or self._pread(0, len(MAGIC)) != MAGIC:
            raise ValueError(f"{self.path}: expected an MCAP file; it begins with something else")
        content, place, finished = McapContent(end=len(MAGIC)), len(MAGIC), False
        in_summary = False
        try:
            while not finished:
                opcode, length = self._prefix(place, self._size)
                self._take(content, opcode, place, length)
                place += PREFIX.size + length
                finished = opcode == Opcode.FOOTER
                if opcode in (Opcode.DATA_END, Opcode.FOOTER):
                    in_summary = True
                # The indexes of a chunk count when they are complete.
                partial = opcode == Opcode.MESSAGE_INDEX and not content.chunks[-1].is_indexed
                if not in_summary and not partial:
                    content.end = place
            if self._size < place + len(MAGIC) or self._pread(place, len(MAGIC)) != MAGIC:
                raise DamagedRecord("the closing mark is missing")
        except DamagedRecord as error:
            content.damage = f"{error} (after {content.end} of {self._size} bytes)"
        return content

    def _prefix(self, place: int, limit: int) -> tuple[int, int]:
        if place + PREFIX.size > limit:
            raise DamagedRecord("the file ends without an index: recording was interrupted")
        opcode, length = PREFIX.unpack(self._pread(place, PREFIX.size))
        if opcode == 0 or length > _MAX_RECORD_BYTES:
            raise DamagedRecord(f"no record begins at {place}")
        if place + PREFIX.size + length > limit:
            raise DamagedRecord(f"the record at {place} is cut off")
        return opcode, length

    def _take(self, content: McapContent, opcode: int, place: int, length: int) -> None:
        inside = place + PREFIX.size
        if opcode == Opcode.CHUNK:
            self._take_chunk(content, place, length)
        elif opcode == Opcode.MESSAGE:
            content.messages.append(
                self._message(self._pread(inside, MESSAGE.size), -1, inside, length)
            )
        elif opcode == Opcode.MESSAGE_INDEX and content.chunks:
            (channel_id,) = Fields(self._pread(inside, 2)).take("H")
            chunk = content.chunks[-1]
            chunk.index_places[channel_id] = place
            chunk.index_end = inside + length
        elif opcode == Opcode.SCHEMA:
            schema = Schema.unpacked(self._pread(inside, length))
            content.schemas[schema.id] = schema
        elif opcode == Opcode.CHANNEL:
            channel = Channel.unpacked(self._pread(inside, length))
            content.channels[channel.id] = channel
        elif opcode == Opcode.METADATA:
            fields = Fields(self._pread(inside, length))
            name = fields.text()
            content.metadata[name] = fields.map()
            content.metadata_places.append((name, place, PREFIX.size + length))

    @staticmethod
    def _message(head: bytes, chunk: int, place: int, length: int) -> MessagePlace:
        if length < MESSAGE.size:
            raise DamagedRecord(f"the message at {place} is too short")
        channel, _, log_ns, publish_ns = MESSAGE.unpack(head)
        return MessagePlace(
            log_ns, publish_ns, channel, chunk, place + MESSAGE.size, length - MESSAGE.size
        )

    def _take_chunk(self, content: McapContent, place: int, length: int) -> None:
        inside = place + PREFIX.size
        head = Fields(self._pread(inside, min(length, 256)))
        first_ns, last_ns, size, crc = head.take("QQQI")
        compression = head.text()
        (stored,) = head.take("Q")
        start = inside + CHUNK_HEAD.size + 4 + len(compression) + 8
        if start + stored > inside + length:
            raise DamagedRecord(f"the chunk at {place} is larger than its record")
        chunk = Chunk(
            place, PREFIX.size + length, first_ns, last_ns, compression, stored, size, {}
        )
        found = McapContent()
        if compression or self._check:
            records = self._stored_records(chunk)
            if crc and zlib.crc32(records) != crc:
                raise DamagedRecord(f"the checksum of the chunk at {place} is wrong")
            self._walk_records(found, records, len(content.chunks) if compression else -1, start)
        else:
            self._walk_stored(found, start, stored)
        content.chunks.append(chunk)
        # The whole chunk was in order: only now does it count.
        inner = 0 if compression else start
        for message in found.messages:
            entry = (message.log_ns, message.offset - inner - MESSAGE.size - PREFIX.size)
            chunk.messages.setdefault(message.channel, []).append(entry)
        content.schemas.update(found.schemas)
        content.channels.update(found.channels)
        content.messages += found.messages

    def _walk_stored(self, found: McapContent, start: int, stored: int) -> None:
        place = start
        while place < start + stored:
            opcode, length = self._prefix(place, start + stored)
            self._take(found, opcode, place, length)
            place += PREFIX.size + length

    def _walk_records(self, found: McapContent, records: bytes, chunk: int, start: int) -> None:
        place, base = 0, start if chunk < 0 else 0
        while place < len(records):
            if place + PREFIX.size > len(records):
                raise DamagedRecord("a chunk ends within a record")
            opcode, length = PREFIX.unpack_from(records, place)
            inside = place + PREFIX.size
            if inside + length > len(records):
                raise DamagedRecord("a chunk ends within a record")
            if opcode == Opcode.MESSAGE:
                head = records[inside : inside + MESSAGE.size]
                if length < MESSAGE.size:
                    raise DamagedRecord("a message is too short")
                found.messages.append(self._message(head, chunk, base + inside, length))
            elif opcode == Opcode.SCHEMA:
                schema = Schema.unpacked(records[inside : inside + length])
                found.schemas[schema.id] = schema
            elif opcode == Opcode.CHANNEL:
                channel = Channel.unpacked(records[inside : inside + length])
                found.channels[channel.id] = channel
            place = inside + length

    def _chunk_records(self, number: int) -> bytes:
        return self._stored_records(self.content.chunks[number])

    def _stored_records(self, chunk: Chunk) -> bytes:
        start = chunk.start + PREFIX.size + CHUNK_HEAD.size + 4 + len(chunk.compression) + 8
        data = self._pread(start, chunk.stored)
        return uncompress(data, chunk.compression, chunk.size)


def uncompress(data: bytes, compression: str, size: int) -> bytes:
    """The records of a chunk.

    Raises:
        DamagedRecord: if they are not what the chunk says.
        ImportError: if the library for this compression is missing; says how to get it.
    """
    if not compression:
        return data
    if size > MAX_CHUNK_BYTES:
        raise DamagedRecord(f"a chunk claims {size} bytes, expected {MAX_CHUNK_BYTES} at most")
    if compression == "zstd":
        zstandard = require("zstandard")
        try:
            # A stream stops at a size; `decompress` believes the one that the data claim.
            with zstandard.ZstdDecompressor().stream_reader(data) as stream:
                records = stream.read(size + 1)
        except zstandard.ZstdError as error:
            raise DamagedRecord(f"a chunk cannot be decompressed: {error}") from None
    elif compression == "lz4":
        try:
            records = require("lz4.frame").LZ4FrameDecompressor().decompress(data, size + 1)
        except RuntimeError as error:
            raise DamagedRecord(f"a chunk cannot be decompressed: {error}") from None
    else:
        raise DamagedRecord(f"a chunk has the unknown compression {compression!r}")
    if len(records) != size:
        raise DamagedRecord(f"a chunk has {len(records)} bytes, expected {size}")
    return bytes(records)
