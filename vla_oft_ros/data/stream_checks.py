"""What can go wrong with one stream while it is recorded: its timing, its pictures, its motion.

Each check takes messages one by one and keeps a few numbers, so that a verdict costs the same
after an hour as after a second. What the numbers mean is `quality`'s business.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from vla_oft_ros.aloha import ARM_DIM, ARM_JOINTS, JOINT_LOWER_RAD, JOINT_UPPER_RAD
from vla_oft_ros.data import cdr
from vla_oft_ros.image_decoding import decode_compressed, decode_image

_LOOK_EVERY_NS = 500_000_000
"""A picture is decoded this often to see how bright it is: 2.5 ms for a 640x480 JPEG."""
_PIXEL_STEP = 7
"""Every so many bytes of a raw image are compared: prime to 3, so that no channel is left out."""
_BEYOND_RAD = 0.01
"""Beyond a limit by less than this is measurement noise."""


@dataclass
class Timing:
    """Rate, gaps and order of a stream's stamps."""

    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    longest_gap_ns: int = 0
    gap_at_ns: int = 0
    """Stamp after which the longest gap began."""
    not_later: int = 0
    """Messages whose stamp is not later than that of the one before."""

    def add(self, stamp_ns: int) -> None:
        """Takes the next stamp."""
        self.count += 1
        if self.count == 1:
            self.first_ns = self.last_ns = stamp_ns
            return
        gap_ns = stamp_ns - self.last_ns
        if gap_ns <= 0:
            self.not_later += 1
            return
        if gap_ns > self.longest_gap_ns:
            self.longest_gap_ns, self.gap_at_ns = gap_ns, self.last_ns
        self.last_ns = stamp_ns

    @property
    def rate_hz(self) -> float:
        """Different stamps per second; NaN before the second one."""
        span_ns = self.last_ns - self.first_ns
        return (self.count - self.not_later - 1) * 1e9 / span_ns if span_ns else float("nan")


class CameraPictures:
    """Whether a camera still sees: repeated pictures while the arms move, and darkness.

    Args:
        type_name: Type of its messages, raw or compressed image.
        frozen_motion_rad: Repeated pictures count once a joint has moved by this much.
    """

    def __init__(self, type_name: str, frozen_motion_rad: float) -> None:
        self._type = type_name
        self._motion_rad = frozen_motion_rad
        self._digest = 0
        self._since_ns: int | None = None
        self._lowest = self._highest = np.zeros(0)
        self._looked_ns: int | None = None
        self.repeated = 0
        """Pictures that were the same as the one before although the arms had moved."""
        self.frozen_ns = 0
        """Longest time for which that was so."""
        self.looks = self.dark = 0
        self.brightness = 255.0
        """Lowest mean of 0 … 255 that was seen, over `looks` pictures."""
        self.problem = ""
        """Why a picture cannot be decoded."""

    def add(self, stamp_ns: int, data: bytes, joints: np.ndarray, min_brightness: float) -> None:
        """Takes the next picture.

        Args:
            stamp_ns: Its stamp.
            data: The serialised message.
            joints: (n,) present joint angles of both arms, rad; empty if none were heard.
            min_brightness: Pictures below this mean of 0 … 255 are dark.
        """
        digest = self._digest_of(data)
        if self._since_ns is None or digest != self._digest or joints.size != self._lowest.size:
            self._digest, self._since_ns = digest, stamp_ns
            self._lowest = self._highest = joints
        else:
            self._lowest = np.minimum(self._lowest, joints)
            self._highest = np.maximum(self._highest, joints)
            if joints.size and np.max(self._highest - self._lowest) >= self._motion_rad:
                self.repeated += 1
                self.frozen_ns = max(self.frozen_ns, stamp_ns - self._since_ns)
        if self._looked_ns is None or stamp_ns - self._looked_ns >= _LOOK_EVERY_NS:
            self._looked_ns = stamp_ns
            self._look(data, min_brightness)

    def _digest_of(self, data: bytes) -> int:
        if self._type == cdr.IMAGE:
            pixels = np.frombuffer(cdr.read_image(data).data, np.uint8)
            return zlib.crc32(pixels[::_PIXEL_STEP].tobytes())
        return zlib.crc32(cdr.read_compressed_image(data)[1])

    def _look(self, data: bytes, min_brightness: float) -> None:
        try:
            image = decode_message(self._type, data)
        except ValueError as error:
            self.problem = str(error)
            return
        mean = float(image[::8, ::8].mean())
        self.looks += 1
        self.dark += mean < min_brightness
        self.brightness = min(self.brightness, mean)


def decode_message(type_name: str, data: bytes) -> np.ndarray:
    """Serialised image → (H, W, 3) uint8 RGB.

    Raises:
        ImageError: if it is no colour image.
        CdrError: if it is no message.
    """
    if type_name == cdr.COMPRESSED_IMAGE:
        return decode_compressed(*cdr.read_compressed_image(data))
    image = cdr.read_image(data)
    return decode_image(
        image.encoding, image.height, image.width, image.step, image.is_bigendian, image.data
    )


@dataclass
class Stillness:
    """When an arm first moved, and when last.

    Attributes:
        tolerance: What counts as a motion, rad, or share of the gripper's opening.
    """

    tolerance: float
    first_motion_ns: int | None = None
    last_motion_ns: int | None = None
    _pose: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, stamp_ns: int, pose: np.ndarray) -> None:
        """Takes the next (7,) pose."""
        if not self._pose.size:
            self._pose = pose
        elif np.max(np.abs(pose - self._pose)) > self.tolerance:
            self._pose, self.last_motion_ns = pose, stamp_ns
            if self.first_motion_ns is None:
                self.first_motion_ns = stamp_ns


@dataclass
class ArmActions:
    """What one arm was told: beyond the follower's limits, and how far from where it was.

    Attributes:
        count: Actions so far.
        beyond: Of them, those outside the limits of the vx300s.
        worst_rad: Largest distance beyond a limit,
        worst_joint: and the joint of it.
        gripper: Lowest and highest gripper entry.
    """

    count: int = 0
    beyond: int = 0
    worst_rad: float = 0.0
    worst_joint: str = ""
    gripper: tuple[float, float] = (np.inf, -np.inf)
    compared: int = 0
    _distance: float = 0.0

    def add(self, action: np.ndarray, pose: np.ndarray | None, check_limits: bool) -> None:
        """Takes the next (7,) action, and the follower's (7,) pose at that time if known."""
        joints = action[: ARM_DIM - 1]
        self.count += 1
        low, high = self.gripper
        self.gripper = min(low, float(action[-1])), max(high, float(action[-1]))
        if check_limits:
            beyond = np.maximum(joints - JOINT_UPPER_RAD, JOINT_LOWER_RAD - joints)
            worst = int(np.argmax(beyond))
            self.beyond += bool(beyond[worst] > _BEYOND_RAD)
            if beyond[worst] > self.worst_rad:
                self.worst_rad, self.worst_joint = float(beyond[worst]), ARM_JOINTS[worst]
        if pose is not None:
            self.compared += 1
            self._distance += float(np.max(np.abs(joints - pose[: ARM_DIM - 1])))

    @property
    def mean_distance_rad(self) -> float:
        """Mean over time of the largest distance between a joint and what it was told."""
        return self._distance / self.compared if self.compared else 0.0
