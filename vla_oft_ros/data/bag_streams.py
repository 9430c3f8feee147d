"""Which messages of a bag make an episode, when they arrived, and when to look at them.

Knows topics and clocks; what is made of the messages is `bag`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vla_oft_ros.aloha import ARMS, CAMERAS, RobotProfile, load_profile
from vla_oft_ros.config import SyncConfig
from vla_oft_ros.data import cdr
from vla_oft_ros.data.bag_storage import Bag, BagEntry, BagError
from vla_oft_ros.image_decoding import decode_compressed, decode_image

CONTROL_RATE_HZ = 25.0
"""Rate of OFT-ALOHA (openvla-oft, DT 0.04)."""
_CLOCK_JUMP_NS = 1_000_000_000
"""Log times this far from the stamps were taken from another clock (simulated time)."""
_CLOCK_LAG_NS = 100_000_000
"""A recorder in simulated time is at most so far behind: /clock ticks at least as often as control
does, but arrives when it likes."""
_CLOCK_TOPIC = "/clock"
_UNEVEN_NS = 500_000_000
"""A stream that begins so much later or ends so much earlier than another has a gap."""


@dataclass(frozen=True, kw_only=True)
class BagOptions:
    """How a bag is read.

    Attributes:
        profile: Robot profile; empty takes the one that the bag names.
        profiles_path: Profile file; empty is the shipped one.
        cameras: Cameras to read, in this order.
        rate_hz: Ticks per second.
        instruction: What was asked for; empty takes what the bag says.
        action_from: "leaders", "targets", or "auto": leaders where they were recorded.
        target_topic: Joint targets.
        instruction_topic: Instructions.
        object_topic: Where a simulation says where things are, one topic per object under it.
        on_gap: "refuse" a bag in which some ticks have no observation, or keep its "longest" run
            without a gap.
        on_damage: "refuse" a damaged bag, or "repair": read what can be read.
        sync: Age and skew limits, as live.
    """

    profile: str = ""
    profiles_path: str = ""
    cameras: tuple[str, ...] = CAMERAS
    rate_hz: float = CONTROL_RATE_HZ
    instruction: str = ""
    action_from: str = "auto"
    target_topic: str = "/joint_targets"
    instruction_topic: str = "/instruction"
    object_topic: str = "/object_poses"
    on_gap: str = "refuse"
    on_damage: str = "refuse"
    sync: SyncConfig = field(default_factory=SyncConfig)


@dataclass(frozen=True)
class Arrival:
    """One message and what it is for."""

    time_ns: int
    role: str
    name: str
    entry: BagEntry


class BagStreams:
    """The streams of one bag.

    Args:
        bag: The open bag.
        options: How to read it.

    Attributes:
        profile: The robot that recorded it.
        uses_leaders: True if actions are what the leaders did, False if they are joint targets.
        arrivals: The messages of the episode by time of arrival.
        notes: What was assumed, one sentence each.

    Raises:
        BagError: if a stream is missing.
    """

    def __init__(self, bag: Bag, options: BagOptions) -> None:
        self.bag, self._options = bag, options
        name = options.profile or bag.custom_data.get("profile", "")
        if not name:
            raise self.error(
                "expected to know which robot recorded it; the bag does not say. Name the "
                "profile (--profile)"
            )
        self.profile: RobotProfile = load_profile(name, options.profiles_path)
        self.notes = [f"damaged: {damage}" for damage in bag.damage]
        self._counts = bag.counts()
        self.uses_leaders = self._choose_leaders()
        self.arrivals = self._find_arrivals()

    def error(self, text: str) -> BagError:
        """An error that names the bag."""
        return BagError(f"{self.bag.path}: {text}")

    def _roles(self) -> dict[str, tuple[str, str]]:
        """Topic → role and name of what it carries."""
        profile, counts = self.profile, self._counts
        roles = {self._options.instruction_topic: ("instruction", "")}
        for camera in self._options.cameras:
            roles[self._camera_topic(camera)] = ("image", camera)
        topics = profile.follower_joint_state_topics
        for arm, topic in zip(ARMS, topics, strict=True):
            if not counts.get(topic):
                raise self.error(self._missing(f"joint states of the {arm} follower", topic))
            roles[topic] = ("follower", arm)
        if self.uses_leaders:
            leaders = profile.leader_joint_state_topics
            roles.update(
                {topic: ("leader", arm) for arm, topic in zip(ARMS, leaders, strict=True)}
            )
        else:
            roles[self._options.target_topic] = ("target", "")
        return roles

    def _choose_leaders(self) -> bool:
        leaders, targets = self.profile.leader_joint_state_topics, self._options.target_topic
        have = {
            "leaders": all(self._counts.get(topic) for topic in leaders),
            "targets": bool(self._counts.get(targets)),
        }
        chosen = self._options.action_from
        if chosen == "auto":
            chosen = "leaders" if have["leaders"] else "targets"
        if not have.get(chosen, False):
            raise self.error(
                f"expected actions from {self._options.action_from}: messages on "
                f"{', '.join(leaders)} or on {targets}; the bag has {self._topics()}"
            )
        return chosen == "leaders"

    def _camera_topic(self, camera: str) -> str:
        """The raw or the compressed topic, whichever delivered first: as the live node decides."""
        if camera not in CAMERAS:
            raise self.error(f"expected cameras among {', '.join(CAMERAS)}; got {camera!r}")
        topic = self.profile.camera_topic(camera)
        candidates = [name for name in (topic, f"{topic}/compressed") if self._counts.get(name)]
        if not candidates:
            raise self.error(
                self._missing(f"images of {camera}", f"{topic}[/compressed]")
                + ". Leave the camera out (--cameras), or name the profile that has its topic"
            )
        if len(candidates) == 1:
            return candidates[0]
        return next(entry.topic for entry in self.bag.entries if entry.topic in candidates)

    def _missing(self, what: str, topic: str) -> str:
        return (
            f"expected {what} on {topic} (profile {self.profile.name}); the bag has "
            f"{self._topics()}"
        )

    def _topics(self) -> str:
        counts = self._counts
        return ", ".join(f"{topic} ({count})" for topic, count in sorted(counts.items())) or "none"

    def _find_arrivals(self) -> list[Arrival]:
        roles = self._roles()
        arrivals = [
            Arrival(entry.log_ns, *roles[entry.topic], entry)
            for entry in self.bag.entries
            if entry.topic in roles
        ]
        stamped = [one for one in arrivals if one.role == "follower"]
        delays = [
            one.time_ns - self.stamp_ns(one.entry)
            for one in stamped[:: max(1, len(stamped) // 50)]
        ]
        if abs(float(np.median(delays))) <= _CLOCK_JUMP_NS:
            return self._after_stamps(arrivals) if self._counts.get(_CLOCK_TOPIC) else arrivals
        self.notes.append(
            "log times and stamps are of different clocks; messages count as received at their "
            "stamps"
        )
        stamped = [one for one in arrivals if one.role != "instruction"]
        arrivals = [
            Arrival(self.stamp_ns(one.entry), one.role, one.name, one.entry) for one in stamped
        ]
        return sorted(arrivals, key=lambda one: one.time_ns)

    def _after_stamps(self, arrivals: list[Arrival]) -> list[Arrival]:
        """In simulated time (`ros2 bag record --use-sim-time`): nothing arrives before its stamp,
        though the recorder may not have heard of that instant yet.
        """

        def arrived_ns(one: Arrival) -> int:
            if one.role == "instruction":
                return one.time_ns
            ahead_ns = self.stamp_ns(one.entry) - one.time_ns
            return one.time_ns + (ahead_ns if 0 < ahead_ns <= _CLOCK_LAG_NS else 0)

        moved = [Arrival(arrived_ns(one), one.role, one.name, one.entry) for one in arrivals]
        return sorted(moved, key=lambda one: one.time_ns)

    def stamp_ns(self, entry: BagEntry) -> int:
        """Stamp in the header of a message, nanoseconds."""
        return cdr.read_stamp_ns(self.bag.read(entry, cdr.STAMP_BYTES))

    def ticks_ns(self) -> range:
        """When to look: from the moment on which every stream has delivered, to the end of the
        stream that ends first, so that no last value is repeated.

        Raises:
            BagError: if a stream begins much later or ends much earlier than the others, and the
                options do not allow gaps.
        """
        spans: dict[str, tuple[int, int]] = {}
        for one in self.arrivals:
            if one.role != "instruction":
                key = f"{one.role} {one.name}".strip()
                spans[key] = spans.get(key, (one.time_ns, 0))[0], one.time_ns
        # Targets follow the observation, and may begin when the policy does.
        late = max((key for key in spans if key != "target"), key=lambda key: spans[key][0])
        early = min(spans, key=lambda key: spans[key][1])
        begin, end = spans[late][0], spans[early][1]
        first, last = min(span[0] for span in spans.values()), max(s[1] for s in spans.values())
        for what, lost_ns in (
            (f"{late} begins {(begin - first) / 1e9:.1f} s after the first stream", begin - first),
            (f"{early} ends {(last - end) / 1e9:.1f} s before the last stream", last - end),
        ):
            if lost_ns > _UNEVEN_NS and self._options.on_gap != "longest":
                raise self.error(
                    f"expected streams over the same time; {what}. Keep the time that all have "
                    "with --on-gap longest"
                )
            if lost_ns > _UNEVEN_NS:
                self.notes.append(f"{what}: that time is left out")
        return range(begin, end + 1, round(1e9 / self._options.rate_hz))

    def object_poses(self, time_ns: int) -> dict[str, np.ndarray] | None:
        """Object → (7,) pose at some time, as far as the bag says; None if it says nothing."""
        poses: dict[str, np.ndarray] = {}
        for entry in self.bag.entries:
            folder, _, name = entry.topic.rpartition("/")
            is_pose = self.bag.types[entry.topic] == cdr.POSE_STAMPED
            if not is_pose or folder != self._options.object_topic:
                continue
            stamp_ns, pose = cdr.read_pose(self.bag.read(entry))
            if name not in poses or stamp_ns <= time_ns:
                poses[name] = pose
        return poses or None

    def decode(self, frame: BagEntry) -> np.ndarray:
        """Reads and decodes a raw or compressed image, exactly as the live node does.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            ImageError: if it is no colour image.
            CdrError: if it is no message.
        """
        data = self.bag.read(frame)
        if self.bag.types[frame.topic] == cdr.COMPRESSED_IMAGE:
            return decode_compressed(*cdr.read_compressed_image(data))
        image = cdr.read_image(data)
        return decode_image(
            image.encoding, image.height, image.width, image.step, image.is_bigendian, image.data
        )
