"""Is this demonstration fit for training? Judged message by message, while it is recorded.

The recorder asks twice a second, so that the operator hears the verdict before leaving the scene;
the doctor feeds a finished bag through the same checks. Knows serialised messages, no ROS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vla_oft_ros.aloha import (
    ACTION_NAMES,
    ARM_DIM,
    ARMS,
    CAMERAS,
    JointStateError,
    RobotProfile,
)
from vla_oft_ros.config import QualityConfig
from vla_oft_ros.data import cdr
from vla_oft_ros.data.stream_checks import ArmActions, CameraPictures, Stillness, Timing
from vla_oft_ros.data.verdict import Finding, Verdict, worst

_WARM_UP_NS = 1_000_000_000
"""Before this nothing is said about rates, nor that a stream is missing."""
_OFTEN = 0.05
"""What happens to a larger share of the messages spoils the episode, not only a moment of it."""
_OPENING_RANGE = (-0.25, 1.4)
"""Openings that any finger geometry read with any profile's constants may give (aloha.yaml)."""
_CLOCK_JUMP_NS = 1_000_000_000
_SKEW_DELAY = 8
"""Frames that pass before one is compared with those of the other cameras."""


@dataclass(frozen=True)
class Stream:
    """What a topic is for.

    Attributes:
        role: "image", "follower", "leader" or "target"; everything else is not judged.
        name: Camera or arm.
        type: Message type.
    """

    role: str
    name: str
    type: str


class EpisodeQuality:
    """Judges one episode.

    Args:
        profile: The robot.
        config: Limits.
        camera_rate_hz: Rate at which the cameras are meant to deliver.
    """

    def __init__(
        self,
        profile: RobotProfile,
        config: QualityConfig,
        camera_rate_hz: float,
    ) -> None:
        self._profile, self._config, self._camera_hz = profile, config, camera_rate_hz
        self._timing: dict[tuple[str, str], Timing] = {}
        self._pictures: dict[str, CameraPictures] = {}
        self._poses: dict[str, np.ndarray] = {}
        self._openings: dict[str, tuple[float, float]] = {}
        self._stillness = {arm: Stillness(config.idle_motion_rad) for arm in ARMS}
        self._actions = {arm: ArmActions() for arm in ARMS}
        self._recent_images_ns: dict[str, deque[int]] = {}
        self._images = self._skewed = self._worst_skew_ns = 0
        self._clock_apart_ns = 0
        self._refused: dict[str, str] = {}
        self._first_ns = self._last_ns = 0

    def add(self, stream: Stream, log_ns: int, data: bytes) -> None:
        """Takes the next message of a stream that is judged.

        Args:
            stream: What it is for.
            log_ns: When it was received.
            data: The serialised message.
        """
        self._first_ns = self._first_ns or log_ns
        self._last_ns = max(self._last_ns, log_ns)
        key = stream.role, stream.name
        timing = self._timing.setdefault(key, Timing())
        try:
            stamp_ns = cdr.read_stamp_ns(data)
            timing.add(stamp_ns)
            if stream.role == "image":
                self._add_image(stream, stamp_ns, data)
            else:
                self._add_joints(stream, stamp_ns, cdr.read_joint_state(data))
        except (cdr.CdrError, JointStateError) as error:
            self._refused.setdefault(_named(key), str(error))
            return
        if stream.role == "follower":
            self._clock_apart_ns = log_ns - stamp_ns

    def _add_image(self, stream: Stream, stamp_ns: int, data: bytes) -> None:
        camera, config = stream.name, self._config
        if camera not in self._pictures:
            self._pictures[camera] = CameraPictures(stream.type, config.frozen_motion_rad)
        joints = np.concatenate(
            [np.zeros(0), *(pose[: ARM_DIM - 1] for pose in self._poses.values())]
        )
        self._pictures[camera].add(stamp_ns, data, joints, config.min_brightness)
        recent = self._recent_images_ns.setdefault(camera, deque(maxlen=2 * _SKEW_DELAY))
        recent.append(stamp_ns)
        if len(recent) >= _SKEW_DELAY and len(self._recent_images_ns) == len(CAMERAS):
            # A frame of a moment ago: whatever belongs to it has arrived, in whatever order.
            then_ns = recent[-_SKEW_DELAY]
            skew_ns = max(
                min(abs(other_ns - then_ns) for other_ns in others)
                for others in self._recent_images_ns.values()
            )
            self._images += 1
            self._skewed += skew_ns > config.max_skew_s * 1e9
            self._worst_skew_ns = max(self._worst_skew_ns, skew_ns)

    def _add_joints(self, stream: Stream, stamp_ns: int, state: cdr.JointStateFields) -> None:
        profile, position = self._profile, state.position.tolist()
        check_limits = profile.arm_model == "vx300s"
        if stream.role == "follower":
            pose = profile.arm_qpos(state.name, position)
            self._poses[stream.name] = pose
            self._stillness[stream.name].add(stamp_ns, pose)
            low, high = self._openings.get(stream.name, (np.inf, -np.inf))
            self._openings[stream.name] = min(low, pose[-1]), max(high, pose[-1])
        elif stream.role == "leader":
            action = profile.leader_action(state.name, position)
            pose_then = self._poses.get(stream.name)
            self._actions[stream.name].add(action, pose_then, check_limits)
        elif ("leader", ARMS[0]) not in self._timing:  # leaders, where there are any, count
            place = {name: index for index, name in enumerate(state.name)}
            if not set(ACTION_NAMES) <= set(place):
                raise JointStateError(f"expected the joints {', '.join(ACTION_NAMES)}")
            targets = np.array([position[place[name]] for name in ACTION_NAMES])
            for arm, action in zip(ARMS, targets.reshape(len(ARMS), ARM_DIM), strict=True):
                self._actions[arm].add(action, self._poses.get(arm), check_limits)

    @property
    def duration_s(self) -> float:
        """Time since the first message, seconds."""
        return (self._last_ns - self._first_ns) * 1e-9

    def findings(self, lost: Mapping[str, int] | None = None) -> list[Finding]:
        """Everything that is wrong so far, the worst first.

        Args:
            lost: Topic → messages that were sent but are not in the recording.
        """
        found = [
            Finding(Verdict.SUSPECT, f"{topic}: {count} messages are missing in the recording")
            for topic, count in (lost or {}).items()
            if count
        ]
        for check in (self._timings, self._cameras, self._arms, self._idleness):
            found += check()
        found += [Finding(Verdict.BAD, f"{what}: {why}") for what, why in self._refused.items()]
        if abs(self._clock_apart_ns) > _CLOCK_JUMP_NS:
            found.append(
                Finding(
                    Verdict.SUSPECT,
                    f"stamps of the joints are {self._clock_apart_ns * 1e-9:.1f} s behind the "
                    "recorder's clock: synchronise the clocks, or set use_sim_time",
                )
            )
        return sorted(found, key=lambda finding: -finding.verdict)

    def verdict(self, findings: list[Finding]) -> Verdict:
        """The verdict that findings make; UNKNOWN as long as too little was seen."""
        if self._last_ns - self._first_ns < _WARM_UP_NS:
            return Verdict.UNKNOWN
        return worst(findings)

    def _timings(self) -> Iterator[Finding]:
        config = self._config
        if self._last_ns - self._first_ns < _WARM_UP_NS:
            return
        acting = "leader" if ("leader", ARMS[0]) in self._timing else "target"
        names = ARMS if acting == "leader" else ("",)
        expected = [("image", camera) for camera in CAMERAS]
        expected += [("follower", arm) for arm in ARMS] + [(acting, name) for name in names]
        for key in expected:
            timing = self._timing.get(key)
            what = _named(key)
            if timing is None:
                told = "neither leaders nor joint targets" if key[0] == "target" else what
                yield Finding(Verdict.BAD, f"nothing was heard of {told}")
                continue
            image = key[0] == "image"
            least_hz = config.min_joint_rate_hz
            if image:
                least_hz = config.min_rate_share * self._camera_hz
            elif key[0] == "target":
                least_hz = 0.0
            if timing.rate_hz < least_hz:
                yield Finding(
                    Verdict.BAD, f"{what}: {timing.rate_hz:.1f} Hz, expected {least_hz:g} or more"
                )
            limit_s = config.max_image_gap_s if image else config.max_joint_gap_s
            ended_ns = self._last_ns - self._clock_apart_ns - timing.last_ns
            if key[0] != "target" and ended_ns > _WARM_UP_NS:
                yield Finding(Verdict.BAD, f"{what}: silent for {ended_ns * 1e-9:.1f} s")
            if key[0] != "target" and timing.longest_gap_ns > limit_s * 1e9:
                yield Finding(
                    Verdict.BAD,
                    f"{what}: nothing for {timing.longest_gap_ns * 1e-6:.0f} ms, expected at most "
                    f"{limit_s * 1e3:.0f} ms",
                )
            if timing.not_later:
                yield Finding(
                    Verdict.SUSPECT,
                    f"{what}: {timing.not_later} stamps are not later than the one before",
                )

    def _cameras(self) -> Iterator[Finding]:
        config = self._config
        for camera, pictures in self._pictures.items():
            frozen_s = pictures.frozen_ns * 1e-9
            if pictures.problem:
                yield Finding(Verdict.BAD, f"{camera}: {pictures.problem}")
            if frozen_s > config.max_frozen_s:
                yield Finding(
                    Verdict.BAD,
                    f"{camera}: the same picture for {frozen_s:.1f} s while the arms moved",
                )
            elif pictures.repeated > _OFTEN * self._timing["image", camera].count:
                yield Finding(
                    Verdict.SUSPECT,
                    f"{camera}: {pictures.repeated} pictures repeat the one before while the arms "
                    "moved",
                )
            if pictures.dark:
                often = pictures.dark > 0.5 * pictures.looks
                yield Finding(
                    Verdict.BAD if often else Verdict.SUSPECT,
                    f"{camera}: mean brightness down to {pictures.brightness:.1f} of 255, "
                    f"expected {config.min_brightness:g} or more; is the lens covered?",
                )
        if self._skewed:
            often = self._skewed > _OFTEN * self._images
            yield Finding(
                Verdict.BAD if often else Verdict.SUSPECT,
                f"cameras are up to {self._worst_skew_ns * 1e-6:.0f} ms apart, expected at most "
                f"{config.max_skew_s * 1e3:.0f} ms",
            )

    def _arms(self) -> Iterator[Finding]:
        low, high = _OPENING_RANGE
        for arm in ARMS:
            actions = self._actions[arm]
            ranges = {"opening": self._openings.get(arm)}
            ranges["action"] = actions.gripper if actions.count else None
            for what, seen in ranges.items():
                if seen is not None and (seen[0] < low or seen[1] > high):
                    yield Finding(
                        Verdict.BAD,
                        f"{arm} gripper: {what} from {seen[0]:.2f} to {seen[1]:.2f}, expected 0 "
                        f"(closed) to 1 (open): is {self._profile.name!r} the right profile?",
                    )
            if actions.beyond:
                share = 100.0 * actions.beyond / actions.count
                yield Finding(
                    Verdict.SUSPECT,
                    f"{arm} arm: {share:.0f} % of the actions lie beyond the follower's limits, "
                    f"{actions.worst_joint} by up to {actions.worst_rad:.2f} rad",
                )
            if actions.mean_distance_rad > self._config.max_distance_rad:
                yield Finding(
                    Verdict.SUSPECT,
                    f"{arm} arm: {actions.mean_distance_rad:.2f} rad from where it was told to "
                    "be; is its torque on, are the arms swapped?",
                )

    def _idleness(self) -> Iterator[Finding]:
        limit_s = self._config.max_idle_s
        heard = [self._timing[key] for key in self._timing if key[0] == "follower"]
        if not heard:
            return
        begin_ns, end_ns = heard[0].first_ns, heard[0].last_ns
        firsts = [still.first_motion_ns for still in self._stillness.values()]
        lasts = [still.last_motion_ns for still in self._stillness.values()]
        head_ns = min((first for first in firsts if first), default=end_ns) - begin_ns
        if head_ns > limit_s * 1e9:
            yield Finding(
                Verdict.SUSPECT, f"the arms stand still for the first {head_ns * 1e-9:.1f} s"
            )
        tail_ns = end_ns - max((last for last in lasts if last), default=end_ns)
        if tail_ns > limit_s * 1e9:
            yield Finding(
                Verdict.SUSPECT, f"the arms stand still for the last {tail_ns * 1e-9:.1f} s"
            )


def _named(key: tuple[str, str]) -> str:
    role, name = key
    return {"image": name, "target": "joint targets"}.get(role, f"{name} {role}")
