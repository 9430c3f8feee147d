"""Writes MCAP files that a sudden end cannot spoil.

Messages gather in memory and go out as one complete chunk when they are many, when the log time
has moved on, or on demand; nothing is buffered behind that, so a killed process leaves every chunk
readable. A chunk that does not fit on the disk is taken back whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from vla_oft_ros.data.mcap_records import (
    CHUNK_HEAD,
    MAGIC,
    MESSAGE,
    PREFIX,
    Channel,
    Chunk,
    Opcode,
    Schema,
    pack_map,
    pack_summary,
    pack_text,
    record,
)

LIBRARY = "vla_oft_ros"
_MAX_BUFFERS = 512
"""Buffers handed to the kernel in one call; POSIX promises 16, Linux takes 1024."""


class McapWriter:
    """One MCAP file. Not for several threads at once.

    Args:
        path: File to write; must not exist.
        metadata: Name → map of strings, written at the beginning.
        chunk_bytes: A chunk is written out when it has this many bytes,
        chunk_ns: or when its messages span this much log time, nanoseconds.

    Raises:
        FileExistsError: if the file exists.
        OSError: from every method that writes; the file then ends with its last whole chunk.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, Mapping[str, str]],
        chunk_bytes: int = 4 * 2**20,
        chunk_ns: int = 200_000_000,
    ) -> None:
        self.path = path
        self._chunk_bytes, self._chunk_ns = chunk_bytes, chunk_ns
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._end = 0
        self._schemas: list[Schema] = []
        self._channels: list[Channel] = []
        self._chunks: list[Chunk] = []
        self._metadata: list[tuple[str, int, int]] = []
        self._counts: dict[int, int] = {}
        self._span_ns = (2**63 - 1, 0)
        self._clear()
        try:
            head = pack_text("ros2") + pack_text(LIBRARY)
            self._append([MAGIC, record(Opcode.HEADER, head)])
            for name, entries in metadata.items():
                self.add_metadata(name, entries)
        except OSError:
            self.abort()
            raise

    def _clear(self) -> None:
        """Begins a new chunk."""
        self._buffers: list[bytes | memoryview] = []
        self._messages: dict[int, list[tuple[int, int]]] = {}
        self._size: int = 0
        self._crc: int = 0
        self._last_ns: int = 0
        self._first_ns: int = 2**63 - 1

    def add_schema(self, name: str, encoding: str, definition: str) -> int:
        """Announces a message type; returns its number. The same type twice is the same number."""
        for schema in self._schemas:
            if schema.name == name:
                return schema.id
        schema = Schema(len(self._schemas) + 1, name, encoding, definition)
        self._schemas.append(schema)
        self._put([schema.packed()])
        return schema.id

    def add_channel(self, schema_id: int, topic: str, metadata: Mapping[str, str]) -> int:
        """Announces a topic; returns its number."""
        channel = Channel(len(self._channels) + 1, schema_id, topic, "cdr", dict(metadata))
        self._channels.append(channel)
        self._put([channel.packed()])
        return channel.id

    def add_metadata(self, name: str, entries: Mapping[str, str]) -> None:
        """Writes a named map of strings at once."""
        packed = record(Opcode.METADATA, pack_text(name) + pack_map(entries))
        start = self._append([packed])
        self._metadata.append((name, start, len(packed)))

    def write(
        self, channel: int, sequence: int, log_ns: int, publish_ns: int, data: bytes | memoryview
    ) -> None:
        """Takes one serialised message; the data are not copied, so they must not change."""
        self._messages.setdefault(channel, []).append((log_ns, self._size))
        self._first_ns = min(self._first_ns, log_ns)
        self._last_ns = max(self._last_ns, log_ns)
        head = MESSAGE.pack(channel, sequence & 0xFFFFFFFF, log_ns, publish_ns)
        self._put([PREFIX.pack(Opcode.MESSAGE, len(head) + len(data)) + head, data])
        if self._size >= self._chunk_bytes or self._last_ns - self._first_ns >= self._chunk_ns:
            self.flush()

    @property
    def bytes_written(self) -> int:
        """Size of the file."""
        return self._end

    @property
    def pending_messages(self) -> int:
        """Messages that are still in memory."""
        return sum(len(entries) for entries in self._messages.values())

    def flush(self) -> None:
        """Writes what is in memory as a chunk, even if it is small."""
        if not self._buffers:
            return
        head = CHUNK_HEAD.pack(
            *(self._first_ns if self._messages else 0, self._last_ns, self._size, self._crc)
        )
        head += pack_text("") + self._size.to_bytes(8, "little")
        prefix = PREFIX.pack(Opcode.CHUNK, len(head) + self._size)
        chunk = Chunk(
            start=self._end,
            length=PREFIX.size + len(head) + self._size,
            first_ns=self._first_ns if self._messages else 0,
            last_ns=self._last_ns,
            compression="",
            stored=self._size,
            size=self._size,
            messages=self._messages,
        )
        self._append([prefix + head, *self._buffers, chunk.message_indexes()])
        self._chunks.append(chunk)
        for channel, entries in self._messages.items():
            self._counts[channel] = self._counts.get(channel, 0) + len(entries)
        self._span_ns = (
            min(self._span_ns[0], self._first_ns),
            max(self._span_ns[1], self._last_ns),
        )
        self._clear()

    def close(self, metadata: Mapping[str, Mapping[str, str]]) -> None:
        """Writes the rest and the index, and makes sure that all of it is on the disk.

        Args:
            metadata: Name → map of strings, written behind the messages.
        """
        self.flush()
        for name, entries in metadata.items():
            self.add_metadata(name, entries)
        summary = pack_summary(
            self._end,
            self._schemas,
            self._channels,
            self._chunks,
            self._metadata,
            self._counts,
            self._span_ns,
        )
        self._append([summary])
        os.fsync(self._file)
        os.close(self._file)

    def abort(self) -> None:
        """Closes the file as it is: whole chunks, no index."""
        os.close(self._file)

    def _put(self, buffers: list[bytes | memoryview]) -> None:
        for buffer in buffers:
            self._buffers.append(buffer)
            self._size += len(buffer)
            self._crc = zlib.crc32(buffer, self._crc)

    def _append(self, buffers: list[bytes | memoryview]) -> int:
        """Writes at the end, all or nothing; returns where."""
        start = self._end
        try:
            for first in range(0, len(buffers), _MAX_BUFFERS):
                self._write_all(buffers[first : first + _MAX_BUFFERS])
        except OSError:
            os.ftruncate(self._file, start)
            os.lseek(self._file, start, os.SEEK_SET)
            self._end = start
            raise
        return start

    def _write_all(self, buffers: list[bytes | memoryview]) -> None:
        left = sum(len(buffer) for buffer in buffers)
        written = os.writev(self._file, buffers)
        self._end += written
        if written < left:  # a full disk, or a signal: the rest says which
            rest = memoryview(b"".join(buffers))[written:]
            while rest:
                count = os.write(self._file, rest)
                self._end += count
                rest = rest[count:]
