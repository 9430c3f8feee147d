"""Watches a running system from outside: counts every stream, times the targets, films the
cameras.

A plain node that only subscribes. Stamps are of simulated time, periods of arrival are of real
time; both are shown.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float32

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ARM_DIM, ARMS, CAMERAS, JointStateError, load_profile
from vla_oft_ros.ros.conversions import image_from_msg, stamp_from_msg

_TILE_PX = (320, 240)
_FILM_EVERY = 2
_FILM_HZ = 12.5
_SHEET_ROWS = 4
_RECENT = 50
_RELIABLE = QoSProfile(depth=100)
# As deep as half a second of frames: a watcher that is late for a moment must not miscount.
_FRAMES = QoSProfile(depth=12, reliability=ReliabilityPolicy.BEST_EFFORT)
_PERIOD_S = 0.04
_NAMES = {0: "inactive", 1: "hold", 2: "ease in", 3: "active", 4: "e-stop"}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was seen between the first chunk and the end; times in simulated seconds unless they
    say otherwise.

    Attributes:
        seconds: Time watched.
        ticks: Control ticks in that time.
        targets: Joint targets with different stamps in that time.
        target_hz: Their rate.
        jitter_p50_ms, jitter_p99_ms: Real time between two arrivals, distance from 40 ms over the
        real-time factor.
        camera_hz: Camera → rate of images with different stamps.
        chunks: Action chunks.
        inference_p50_ms, inference_p95_ms: Real time of one inference, first one left out.
        chunk_age_p50_s, chunk_age_max_s: Age of the observation behind the newest chunk, at each
        target.
        retain_ratio: Share of the patches kept to the last layer, mean.
        arm_motion_rad: Arm → largest range that one of its joints covered in the physics.
        reward_max: Highest task reward seen.
        real_time_factor: Simulated per real time.
        active_share: Share of safety messages in state active.
    """

    seconds: float
    ticks: int
    targets: int
    target_hz: float
    jitter_p50_ms: float
    jitter_p99_ms: float
    camera_hz: dict[str, float]
    chunks: int
    inference_p50_ms: float
    inference_p95_ms: float
    chunk_age_p50_s: float
    chunk_age_max_s: float
    retain_ratio: float
    arm_motion_rad: dict[str, float]
    reward_max: float
    real_time_factor: float
    active_share: float

    def as_dict(self) -> dict[str, object]:
        """For JSON; a figure that nothing was seen for is null."""
        plain = asdict(self)
        return {
            k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in plain.items()
        }

    def rows(self) -> list[tuple[str, str]]:
        """Name and value as a person reads them."""
        cameras = ", ".join(f"{camera} {rate:.1f}" for camera, rate in self.camera_hz.items())
        motion = ", ".join(f"{arm} {value:.2f}" for arm, value in self.arm_motion_rad.items())
        return [
            ("Joint targets", f"{self.targets} for {self.ticks} ticks, {self.target_hz:.2f} Hz"),
            (
                "Tick jitter",
                f"{self.jitter_p50_ms:.1f} ms median, {self.jitter_p99_ms:.1f} ms p99 (real time)",
            ),
            ("Cameras", f"{cameras} Hz"),
            (
                "Chunks",
                f"{self.chunks}, age {self.chunk_age_p50_s:.2f} s median, "
                f"{self.chunk_age_max_s:.2f} s at most",
            ),
            (
                "Inference",
                f"{self.inference_p50_ms:.0f} ms median, {self.inference_p95_ms:.0f} ms p95",
            ),
            ("Tokens kept", f"{100 * self.retain_ratio:.0f} %"),
            ("Arms moved", f"{motion} rad"),
            ("Reward", f"{self.reward_max:.0f} of 4"),
            ("Safety gate", f"active {100 * self.active_share:.0f} % of the time"),
            ("Real-time factor", f"{self.real_time_factor:.2f}"),
        ]


class DemoMonitor(Node):
    """Counts what is on the wire.

    Args:
        seconds: Simulated time to watch, from the policy's first chunk on.
        video_path: Where the film of the three cameras goes.
    """

    def __init__(self, seconds: float, video_path: Path) -> None:
        super().__init__("demo_monitor")
        self._duration_ns = round(seconds * 1e9)
        self.started_ns: int | None = None
        """Stamp of the first joint target after the first chunk; None before it."""
        self._start_wall_s = 0.0
        self.now_ns = 0
        """Newest stamp seen, simulated time."""
        self.on_reward: Callable[[float], None] = lambda reward: None
        """Called with the reward after every control step."""
        self._arrivals_s: list[float] = []
        self._target_stamps: list[int] = []
        self._image_stamps: dict[str, set[int]] = {camera: set() for camera in CAMERAS}
        self._pending: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
        self._frames = 0
        self._stills: list[np.ndarray] = []
        self._newest_chunk_ns = 0
        self._chunk_ages_s: list[float] = []
        self._inference_s: list[float] = []
        self._retained: list[float] = []
        self._reward = 0.0
        self._reward_max = 0.0
        self._states: dict[int, int] = defaultdict(int)
        self._state = 0
        self._positions: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
        size = (_TILE_PX[0] * len(CAMERAS), _TILE_PX[1])
        self._video = cv2.VideoWriter(
            str(video_path), cv2.VideoWriter.fourcc(*"mp4v"), _FILM_HZ, size
        )

        profile = load_profile("sim")
        self._profile = profile
        self.create_subscription(JointState, "joint_targets", self._on_targets, _RELIABLE)
        self.create_subscription(messages.ActionChunk, "action_chunk", self._on_chunk, _RELIABLE)
        self.create_subscription(
            messages.RetainedTokens, "retained_tokens", self._on_retained, _RELIABLE
        )
        self.create_subscription(
            messages.SafetyStatus, "safety_status", self._on_safety, _RELIABLE
        )
        self.create_subscription(Float32, "task_reward", self._on_reward, _RELIABLE)
        for arm, topic in zip(ARMS, profile.follower_joint_state_topics, strict=True):
            self.create_subscription(
                JointState, topic, lambda m, arm=arm: self._on_joints(arm, m), _RELIABLE
            )
        for camera in CAMERAS:
            self.create_subscription(
                Image,
                profile.camera_topic(camera),
                lambda m, c=camera: self._on_image(c, m),
                _FRAMES,
            )

    @property
    def done(self) -> bool:
        """True once the time to watch is over."""
        return self.started_ns is not None and self.now_ns > self.started_ns + self._duration_ns

    def qpos(self) -> np.ndarray | None:
        """(14,) float64 newest joint state of both arms; None before there is one."""
        if not all(self._positions.values()):
            return None
        return np.concatenate([self._positions[arm][-1] for arm in ARMS])

    def close(self) -> None:
        """Finishes the film."""
        self._video.release()

    def _in_time(self, stamp_ns: int) -> bool:
        started = self.started_ns
        return started is not None and started <= stamp_ns < started + self._duration_ns

    def _on_targets(self, message: JointState) -> None:
        stamp_ns = stamp_from_msg(message.header.stamp)
        now_s = time.monotonic()
        if self.started_ns is None:
            if not self._inference_s:
                return  # holding, until the policy speaks
            self.started_ns, self._start_wall_s = stamp_ns, now_s
        self.now_ns = max(self.now_ns, stamp_ns)
        if not self._in_time(stamp_ns):
            return
        self._target_stamps.append(stamp_ns)
        self._arrivals_s.append(now_s)
        if self._newest_chunk_ns:
            self._chunk_ages_s.append((stamp_ns - self._newest_chunk_ns) / 1e9)

    def _on_chunk(self, message: messages.ActionChunk) -> None:
        self._newest_chunk_ns = stamp_from_msg(message.header.stamp)
        self._inference_s.append(message.inference_s)

    def _on_retained(self, message: messages.RetainedTokens) -> None:
        self._retained.append(len(message.patch_indices) / (message.rows * message.columns))

    def _on_safety(self, message: messages.SafetyStatus) -> None:
        self._state = message.state
        self._states[message.state] += 1

    def _on_reward(self, message: Float32) -> None:
        self._reward = message.data
        self.on_reward(message.data)
        if self.started_ns is not None:
            self._reward_max = max(self._reward_max, message.data)

    def _on_joints(self, arm: str, message: JointState) -> None:
        stamp_ns = stamp_from_msg(message.header.stamp)
        self.now_ns = max(self.now_ns, stamp_ns)
        if not self._in_time(stamp_ns):
            return
        try:
            self._positions[arm].append(self._profile.arm_qpos(message.name, message.position))
        except JointStateError as error:
            self.get_logger().error(str(error), once=True)

    def _on_image(self, camera: str, message: Image) -> None:
        stamp_ns = stamp_from_msg(message.header.stamp)
        if not self._in_time(stamp_ns):
            return
        self._image_stamps[camera].add(stamp_ns)
        if (len(self._image_stamps[camera]) - 1) % _FILM_EVERY and stamp_ns not in self._pending:
            return
        self._pending[stamp_ns][camera] = cv2.resize(
            image_from_msg(message), _TILE_PX, interpolation=cv2.INTER_AREA
        )
        if len(self._pending[stamp_ns]) == len(CAMERAS):
            self._film(stamp_ns)

    def _film(self, stamp_ns: int) -> None:
        tiles = self._pending.pop(stamp_ns)
        for old in [stamp for stamp in self._pending if stamp < stamp_ns]:
            del self._pending[old]
        strip = np.hstack([tiles[camera] for camera in CAMERAS])  # (240, 960, 3)
        seconds = (stamp_ns - (self.started_ns or 0)) / 1e9
        _write(strip, 0, f"{CAMERAS[0]}  {seconds:.1f} s  reward {self._reward:.0f}")
        for column, camera in enumerate(CAMERAS[1:], start=1):
            _write(strip, column, camera)
        self._video.write(cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))
        self._frames += 1
        expected = self._duration_ns / 1e9 * _FILM_HZ
        if (
            len(self._stills) < _SHEET_ROWS
            and self._frames >= 1 + len(self._stills) * expected / _SHEET_ROWS
        ):
            self._stills.append(strip)

    def write_contact_sheet(self, path: Path) -> None:
        """Writes some moments of the run, one below the other, as one picture."""
        if self._stills:
            cv2.imwrite(str(path), cv2.cvtColor(np.vstack(self._stills), cv2.COLOR_RGB2BGR))

    def line(self) -> str:
        """The live line."""
        if self.started_ns is None:
            return "waiting for the first action chunk …"
        recent = np.diff(self._arrivals_s[-_RECENT:])
        stamps = np.diff(self._target_stamps[-_RECENT:])
        rate_hz = 1e9 / float(np.mean(stamps)) if stamps.size else float("nan")
        jitter_ms = 1e3 * float(np.std(recent)) if recent.size else float("nan")
        age_s = self._chunk_ages_s[-1] if self._chunk_ages_s else float("nan")
        inference_ms = 1e3 * self._inference_s[-1] if self._inference_s else float("nan")
        kept = 100 * self._retained[-1] if self._retained else float("nan")
        return (
            f"{(self.now_ns - self.started_ns) / 1e9:5.1f} s  targets {rate_hz:5.2f} Hz  jitter "
            f"{jitter_ms:4.1f} ms  "
            f"chunk age {age_s:4.2f} s  inference {inference_ms:4.0f} ms  kept {kept:3.0f} %  "
            f"reward {self._reward:.0f}  {_NAMES.get(self._state, '?')}  real time "
            f"x{self._factor():.2f}"
        )

    def _factor(self) -> float:
        wall_s = (self._arrivals_s[-1] if self._arrivals_s else 0.0) - self._start_wall_s
        spanned_s = (
            (self._target_stamps[-1] - self._target_stamps[0]) / 1e9
            if self._target_stamps
            else 0.0
        )
        return spanned_s / wall_s if wall_s > 0 else float("nan")

    def figures(self) -> Figures:
        """Everything counted so far."""
        seconds = self._duration_ns / 1e9
        factor = self._factor()
        periods_ms = 1e3 * np.diff(self._arrivals_s)
        jitter_ms = (
            np.abs(periods_ms - 1e3 * _PERIOD_S / factor)
            if periods_ms.size
            else np.array([np.nan])
        )
        targets = len(set(self._target_stamps))
        inference_ms = 1e3 * np.array(self._inference_s[1:] or [np.nan])
        ages_s = np.array(self._chunk_ages_s or [np.nan])
        motion = {}
        for arm, states in self._positions.items():
            joints = np.array(states)[:, : ARM_DIM - 1] if states else np.zeros((1, ARM_DIM - 1))
            motion[arm] = float(np.ptp(joints, axis=0).max())
        total = sum(self._states.values())
        return Figures(
            seconds=seconds,
            ticks=round(seconds / _PERIOD_S),
            targets=targets,
            target_hz=targets / seconds,
            jitter_p50_ms=float(np.quantile(jitter_ms, 0.5)),
            jitter_p99_ms=float(np.quantile(jitter_ms, 0.99)),
            camera_hz={
                camera: len(stamps) / seconds for camera, stamps in self._image_stamps.items()
            },
            chunks=len(self._inference_s),
            inference_p50_ms=float(np.quantile(inference_ms, 0.5)),
            inference_p95_ms=float(np.quantile(inference_ms, 0.95)),
            chunk_age_p50_s=float(np.quantile(ages_s, 0.5)),
            chunk_age_max_s=float(np.max(ages_s)),
            retain_ratio=float(np.mean(self._retained)) if self._retained else float("nan"),
            arm_motion_rad=motion,
            reward_max=self._reward_max,
            real_time_factor=factor,
            active_share=self._states[3] / total if total else float("nan"),
        )


def _write(strip: np.ndarray, column: int, text: str) -> None:
    """Writes a line into the top left corner of one camera's tile."""
    place = (column * _TILE_PX[0] + 8, 20)
    cv2.putText(strip, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
