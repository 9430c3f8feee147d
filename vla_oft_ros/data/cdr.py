"""Serialised messages → values, for the few types that an episode is made of, without ROS.

Reads CDR as every ROS 2 middleware writes it (XCDR1, either byte order) and does not mind padding
at the end, which Fast DDS adds. Source: OMG DDS-XTypes 1.3, §7.4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

NS_PER_S = 1_000_000_000
STAMP_BYTES = 12
"""A message with a header begins with its encapsulation and its stamp: so much tells the time."""
JOINT_STATE = "sensor_msgs/msg/JointState"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
STRING = "std_msgs/msg/String"
POSE_STAMPED = "geometry_msgs/msg/PoseStamped"


class CdrError(ValueError):
    """Bytes that are no message of the expected type."""


class CdrReader:
    """Takes one field after the other.

    Args:
        data: The serialised message, encapsulation header included.

    Raises:
        CdrError: from every method, if the data end too early or make no sense.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        if len(view) < 4 or view[0] != 0 or view[1] not in (0, 1):
            raise CdrError(
                f"expected plain CDR (0x0000 or 0x0001 in front); got {bytes(view[:4]).hex()!r}"
            )
        self._order = "<" if view[1] == 1 else ">"
        self._body, self._place = view[4:], 0

    def number(self, kind: str) -> Any:
        """One number; `kind` as in `struct`."""
        size = struct.calcsize(kind)
        (value,) = struct.unpack(self._order + kind, self._take(size, size))
        return value

    def text(self) -> str:
        """A string."""
        raw = bytes(self._take(self.number("I"), 1))
        if not raw.endswith(b"\0"):
            raise CdrError("expected a string that ends with 0")
        try:
            return raw[:-1].decode()
        except UnicodeDecodeError as error:
            raise CdrError(f"expected a UTF-8 string; {error}") from None

    def octets(self) -> memoryview:
        """A uint8[], not copied."""
        return self._take(self.number("I"), 1)

    def texts(self) -> tuple[str, ...]:
        """A string[]."""
        return tuple(self.text() for _ in range(self._count(4)))

    def doubles(self) -> np.ndarray:
        """A float64[]."""
        return self.numbers("f8")

    def numbers(self, kind: str, count: int | None = None) -> np.ndarray:
        """A sequence of numbers, or an array of a fixed length, copied.

        Args:
            kind: As numpy has it, without byte order: f8, u4, u1.
            count: Length of an array; None for a sequence, which tells its own.
        """
        size = np.dtype(kind).itemsize
        count = self._count(size) if count is None else count
        if count == 0:
            return np.zeros(0, dtype=kind)
        found = np.frombuffer(self._take(size * count, size), self._order + kind)
        return found.astype(kind)

    def stamp_ns(self) -> int:
        """A Time."""
        seconds = self.number("i")
        return int(seconds) * NS_PER_S + int(self.number("I"))

    def header(self) -> int:
        """A Header; its stamp, nanoseconds."""
        stamp_ns = self.stamp_ns()
        self.text()
        return stamp_ns

    def _count(self, size: int) -> int:
        count = int(self.number("I"))
        if count * size > len(self._body) - self._place:
            raise CdrError(f"expected {count} elements; the message ends before")
        return count

    def _take(self, size: int, alignment: int) -> memoryview:
        start = -(-self._place // alignment) * alignment
        if start + size > len(self._body):
            raise CdrError(
                f"expected {size} bytes at {start + 4}; the message has {len(self._body) + 4}"
            )
        self._place = start + size
        return self._body[start : self._place]


@dataclass(frozen=True)
class JointStateFields:
    """sensor_msgs/JointState."""

    stamp_ns: int
    name: tuple[str, ...]
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray


@dataclass(frozen=True)
class ImageFields:
    """sensor_msgs/Image."""

    stamp_ns: int
    height: int
    width: int
    encoding: str
    is_bigendian: bool
    step: int
    data: memoryview


def read_stamp_ns(data: bytes | memoryview) -> int:
    """Stamp of any message that begins with a Header; the first `STAMP_BYTES` are enough."""
    return CdrReader(data).stamp_ns()


def read_joint_state(data: bytes | memoryview) -> JointStateFields:
    """Reads a sensor_msgs/JointState."""
    reader = CdrReader(data)
    return JointStateFields(
        reader.header(), reader.texts(), reader.doubles(), reader.doubles(), reader.doubles()
    )


def read_image(data: bytes | memoryview) -> ImageFields:
    """Reads a sensor_msgs/Image; its pixels are not copied."""
    reader = CdrReader(data)
    stamp_ns = reader.header()
    height, width = reader.number("I"), reader.number("I")
    encoding, bigendian = reader.text(), bool(reader.number("B"))
    return ImageFields(
        stamp_ns, height, width, encoding, bigendian, reader.number("I"), reader.octets()
    )


def read_compressed_image(data: bytes | memoryview) -> tuple[str, memoryview]:
    """Format and data of a sensor_msgs/CompressedImage."""
    reader = CdrReader(data)
    reader.header()
    return reader.text(), reader.octets()


def read_pose(data: bytes | memoryview) -> tuple[int, np.ndarray]:
    """Stamp in ns and (7,) pose of a geometry_msgs/PoseStamped: m, quaternion (w, x, y, z)."""
    reader = CdrReader(data)
    stamp_ns = reader.header()
    x, y, z, *turn, w = (reader.number("d") for _ in range(7))
    return stamp_ns, np.array([x, y, z, w, *turn])


def read_string(data: bytes | memoryview) -> str:
    """Reads a std_msgs/String."""
    return CdrReader(data).text()
