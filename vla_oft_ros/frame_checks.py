"""Whether cameras still see: pixels that stand still while the robot moves, and darkness.

Age and skew (`sync.py`) are facts of the stamps; a driver that repeats its last image under fresh
stamps, or a covered lens, shows only in the pixels. Looked at per observation, not per frame, so
that nothing is decoded for it. Knows nothing of ROS.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM, GRIPPERS
from vla_oft_ros.config import SyncConfig
from vla_oft_ros.types import Observation

_ARM_JOINTS = [index for index in range(ACTION_DIM) if index not in GRIPPERS]


@dataclass
class _Unchanged:
    """Since when a camera shows the same pixels, and how far the arms have moved meanwhile."""

    digest: bytes
    since_ns: int
    lowest: np.ndarray
    highest: np.ndarray


class FrameChecks:
    """Judges the images of successive observations.

    Args:
        config: `max_frozen_s`, `frozen_motion_rad` and `min_brightness`.
    """

    def __init__(self, config: SyncConfig) -> None:
        self._config = config
        self.clear()

    def clear(self) -> None:
        """Forgets what was seen, as after a new episode or a jump of the clock."""
        self._unchanged: dict[str, _Unchanged] = {}

    def problems(self, observation: Observation) -> list[str]:
        """Why the images of an observation must not be used, one sentence per camera.

        Args:
            observation: The next one in time; its (A,) proprio tells whether the arms move.
        """
        found = []
        for camera, image in observation.images.items():
            stamp_ns = observation.image_stamps_ns[camera]
            frozen_s = self._frozen_s(camera, image, stamp_ns, observation.proprio)
            brightness = float(image.mean())
            if self._config.max_frozen_s and frozen_s > self._config.max_frozen_s:
                found.append(
                    f"{camera}: the same pixels for {frozen_s:.2f} s, expected at most "
                    f"{self._config.max_frozen_s:g} s (sync.max_frozen_s)"
                )
            elif brightness < self._config.min_brightness:
                found.append(
                    f"{camera}: mean brightness {brightness:.1f} of 255, expected at least "
                    f"{self._config.min_brightness:g} (sync.min_brightness); is the lens covered?"
                )
        return found

    def _frozen_s(
        self, camera: str, image: np.ndarray, stamp_ns: int, proprio: np.ndarray
    ) -> float:
        digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        joints = proprio[_ARM_JOINTS] if proprio.shape == (ACTION_DIM,) else proprio
        before = self._unchanged.get(camera)
        if before is None or before.digest != digest or stamp_ns < before.since_ns:
            self._unchanged[camera] = _Unchanged(digest, stamp_ns, joints, joints)
            return 0.0
        before.lowest = np.minimum(before.lowest, joints)
        before.highest = np.maximum(before.highest, joints)
        moved_rad = float((before.highest - before.lowest).max())
        if moved_rad < self._config.frozen_motion_rad:
            return 0.0
        return (stamp_ns - before.since_ns) * 1e-9
