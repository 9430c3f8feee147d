"""TFRecord files and tf.train.Example messages, without TensorFlow.

A record is a length and its checksum, the data and their checksum. An Example maps names to lists
of bytes, floats or integers; only as much of protocol buffers is here as that needs. Sources:
tensorflow/core/lib/io/record_writer, tensorflow/core/example/example.proto.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vla_oft_ros.data.optional import require

Values = Sequence[bytes] | np.ndarray
"""Bytes, or a vector of float32 or int64."""
_MASK = 0xA282EAD8
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
"""Field numbers of Feature's kinds."""


class RecordError(ValueError):
    """A file that is no TFRecord file, or a damaged one."""


def frame(data: bytes) -> bytes:
    """One record."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _checksum(length), data, _checksum(data)))


def read_records(path: Path) -> Iterator[bytes]:
    """The data of every record of a file.

    Raises:
        RecordError: if a checksum is wrong or the file ends within a record.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while head := file.read(12):
            if len(head) < 12 or _checksum(head[:8]) != head[8:]:
                raise RecordError(f"{path}: expected a record at {file.tell() - len(head)}")
            (length,) = struct.unpack("<Q", head[:8])
            if length > size - file.tell():  # nothing is allocated for what is not there
                raise RecordError(
                    f"{path}: expected a record of {length} bytes at {file.tell()}; the file has "
                    f"{size}"
                )
            data, checksum = file.read(length), file.read(4)
            if len(data) < length or _checksum(data) != checksum:
                raise RecordError(f"{path}: the record before {file.tell()} is damaged")
            yield data


def _checksum(data: bytes) -> bytes:
    crc = require("google_crc32c").value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def pack_example(features: Mapping[str, Values]) -> bytes:
    """Names → values, as a serialised tf.train.Example."""
    entries = []
    for name, values in features.items():
        if not isinstance(values, np.ndarray):
            content = b"".join(_field(1, value) for value in values)
            feature = _field(_BYTES, content)
        elif values.dtype == np.float32:
            feature = _field(_FLOATS, _field(1, values.astype("<f4").tobytes()))
        elif values.dtype == np.int64:
            packed = b"".join(_varint(int(value)) for value in values)
            feature = _field(_INTEGERS, _field(1, packed))
        else:
            raise ValueError(f"{name}: expected bytes, float32 or int64; got {values.dtype}")
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def unpack_example(data: bytes) -> dict[str, Values]:
    """A serialised tf.train.Example → names and values; inverse of `pack_example`.

    Raises:
        RecordError: if it is none.
    """
    features: dict[str, Values] = {}
    for _, example in _fields(memoryview(data)):
        for _, entry in _fields(example):
            name, feature = "", memoryview(b"")
            for number, content in _fields(entry):
                if number == 1:
                    name = _name(content)
                else:
                    feature = content
            for kind, content in _fields(feature):
                features[name] = _values(kind, [part for _, part in _fields(content)])
    return features


def _values(kind: int, parts: list[memoryview]) -> Values:
    if kind == _BYTES:
        return [bytes(part) for part in parts]
    joined = b"".join(parts)
    if kind == _FLOATS:
        if len(joined) % 4:
            raise RecordError("expected a tf.train.Example; a list of floats is cut off")
        return np.frombuffer(joined, dtype="<f4").astype(np.float32)
    integers, place = [], 0
    while place < len(joined):
        value, place = _take_varint(memoryview(joined), place)
        value &= 2**64 - 1
        integers.append(value - 2**64 if value >= 2**63 else value)
    return np.array(integers, dtype=np.int64)


def _name(content: memoryview) -> str:
    try:
        return bytes(content).decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"expected a tf.train.Example; {error}") from None


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    octets = bytearray()
    while value > 127:
        octets.append(value & 127 | 128)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, a string or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _take_varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise RecordError("expected a tf.train.Example; a number is cut off")
        octet = data[place]
        value |= (octet & 127) << shift
        place, shift = place + 1, shift + 7
        if octet < 128:
            return value, place


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every length-delimited field; only such are in an Example."""
    place = 0
    while place < len(data):
        tag, place = _take_varint(data, place)
        length, place = _take_varint(data, place)
        if tag & 7 != 2 or place + length > len(data):
            raise RecordError("expected a tf.train.Example; a field is cut off")
        yield tag >> 3, data[place : place + length]
        place += length
