"""A bag → a `RunLog`: every message once, in order of arrival.

Message types tell which topic is what; only cameras, arms, targets, instructions and the reward go
by name. Messages that cannot be read are counted and named, never an end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from vla_oft_ros.aloha import (
    ACTION_NAMES,
    ARMS,
    CAMERAS,
    JointStateError,
    RobotProfile,
    load_profile,
)
from vla_oft_ros.config import config_dir, load_yaml
from vla_oft_ros.data import cdr
from vla_oft_ros.data import policy_messages as own
from vla_oft_ros.data.bag_storage import Bag, BagEntry, BagError, open_bag
from vla_oft_ros.data.run_events import EventCollector
from vla_oft_ros.data.run_log import Answer, Picture, RunLog, Track
from vla_oft_ros.types import RetainedTokens

_CLOCK_JUMP_NS = 1_000_000_000
"""Log times this far from the stamps were taken from another clock (simulated time)."""
_SILENT_S = 0.5
"""A stream that says nothing for longer is silent; cameras and joints are refused long before."""
_CLOCKS = (cdr.IMAGE, cdr.COMPRESSED_IMAGE, cdr.JOINT_STATE)
"""Types whose stamps are of the moment at which they are sent."""

Take = Callable[[float, bytes], None]


def read_run(path: Path, profile: str = "", profiles_path: str = "") -> RunLog:
    """Reads a recorded run.

    Args:
        path: Bag folder, or an .mcap or .db3 file.
        profile: Robot profile; empty takes what the bag says, else the one whose topics it has.
        profiles_path: Profile file; empty is the shipped one.

    Raises:
        BagError: if it is no bag, empty, or of another robot.
        ConfigError: if the profile is unknown.
    """
    bag = open_bag(path)
    try:
        if not bag.entries:
            raise BagError(f"{path}: expected a recorded run; there is no message in it")
        notes = [f"damaged: {text}" for text in bag.damage]
        robot = _choose_profile(bag, profile, profiles_path, notes)
        log = RunLog(bag=bag, profile=robot, notes=notes)
        _Reader(log).read()
        return log
    except BaseException:
        bag.close()
        raise


def _choose_profile(bag: Bag, name: str, path: str, notes: list[str]) -> RobotProfile:
    counts = bag.counts()

    def found(profile: RobotProfile) -> int:
        topics = (*profile.camera_topics, *profile.follower_joint_state_topics)
        return sum(bool(counts.get(t) or counts.get(f"{t}/compressed")) for t in topics)

    name = name or bag.custom_data.get("profile", "")
    if not name:
        names = load_yaml(Path(path) if path else config_dir() / "aloha.yaml")
        # A bag of `ros2 bag record` does not say; its topics do.
        name = max(names, key=lambda one: found(load_profile(one, path)))
        notes.append(f"the bag does not name its robot; read as profile {name!r}")
    profile = load_profile(name, path)
    if not found(profile):
        topics = ", ".join(f"{topic} ({count})" for topic, count in sorted(counts.items()))
        raise BagError(
            f"{bag.path}: expected cameras or joint states of profile {name!r} "
            f"({profile.camera_topics[0]}, {profile.follower_joint_state_topics[0]} …); the bag "
            f"has {topics}. Name its profile (--profile)"
        )
    return profile


class _Reader:
    """Fills a `RunLog` from its bag."""

    def __init__(self, log: RunLog) -> None:
        self._log, self._bag = log, log.bag
        self._events = EventCollector()
        self._retained: Track[RetainedTokens] = Track()
        self._pruning: dict[int, own.PruningReport] = {}
        self._images: dict[str, str] = {}
        """Topic → camera."""
        self._takes: dict[str, Take] = {}
        """Topic → what is done with its messages."""
        self._choose_topics()

    def read(self) -> None:
        """Takes every message, and closes what is open at the end."""
        log, refused = self._log, Counter[str]()
        why: dict[str, str] = {}
        for now_ns, entry in self._arrivals():
            log.start_ns = log.start_ns or now_ns
            log.duration_s = log.time_s(now_ns)
            try:
                self._take(log.duration_s, entry)
            except ValueError as error:  # CDR, joints, or the file itself
                refused[entry.topic] += 1
                why.setdefault(entry.topic, str(error))
        log.notes += [
            f"{topic}: {count} messages cannot be used, the first: {why[topic]}"
            for topic, count in refused.items()
        ]
        log.link_retained(self._retained, self._pruning)
        for silence in log.silences(_SILENT_S):
            self._events.silence(*silence)
        log.events = self._events.finish(log.duration_s)
        if not log.instructions.values and (asked := self._bag.custom_data.get("instruction")):
            log.instructions.add(0.0, asked)
        log.note_what_is_missing()

    def _choose_topics(self) -> None:
        counts, profile = self._bag.counts(), self._log.profile
        by_type: dict[str, Take] = {
            own.ACTION_CHUNK: self._on_chunk,
            own.RETAINED_TOKENS: lambda t, data: self._retained.add(t, own.read_retained(data)),
            own.PRUNING_STATUS: self._on_pruning,
            own.SAFETY_STATUS: self._on_safety,
            own.EPISODE_STATUS: self._on_recorder,
            own.DIAGNOSTICS: self._on_diagnostics,
        }
        by_name: dict[tuple[str, str], Take] = {
            ("/instruction", cdr.STRING): lambda t, data: self._asked(t, cdr.read_string(data)),
            ("/task_reward", own.FLOAT): self._on_reward,
            ("/joint_targets", cdr.JOINT_STATE): self._on_targets,
        }
        for topic, kind in sorted(self._bag.types.items(), key=lambda one: counts[one[0]]):
            if kind in by_type:  # of several topics the one with most messages is the last
                self._takes = {t: take for t, take in self._takes.items() if take != by_type[kind]}
                self._takes[topic] = by_type[kind]
            for (end, named_kind), take in by_name.items():
                if topic.endswith(end) and kind == named_kind:
                    self._takes[topic] = take
        for camera in CAMERAS:
            name = profile.camera_topic(camera)
            topic = max((name, f"{name}/compressed"), key=lambda one: counts.get(one, 0))
            if counts.get(topic):
                self._images[topic] = camera
        for topics, on_joints in (
            (profile.follower_joint_state_topics, self._on_follower),
            (profile.leader_joint_state_topics, self._on_leader),
        ):
            for arm, topic in zip(ARMS, topics, strict=True):
                self._takes[topic] = partial(on_joints, arm)

    def _arrivals(self) -> Iterator[tuple[int, BagEntry]]:
        """Every message and its time of arrival, on the clock of the stamps."""
        if not self._clocks_are_apart():
            yield from ((entry.log_ns, entry) for entry in self._bag.entries)
            return
        self._log.notes.append(
            "log times and stamps are of different clocks; the time is that of the newest stamp"
        )
        now_ns = 0
        for entry in self._bag.entries:
            if self._tells_time(entry):
                now_ns = max(now_ns, self._stamp_ns(entry) or 0)
            if now_ns:  # nothing before tells the time
                yield now_ns, entry

    def _tells_time(self, entry: BagEntry) -> bool:
        ours = entry.topic in self._takes or entry.topic in self._images
        return ours and self._bag.types[entry.topic] in _CLOCKS

    def _clocks_are_apart(self) -> bool:
        stamped = [entry for entry in self._bag.entries if self._tells_time(entry)]
        some = stamped[:: max(1, len(stamped) // 50)]
        stamps = [(entry.log_ns, self._stamp_ns(entry)) for entry in some]
        delays = [log_ns - stamp_ns for log_ns, stamp_ns in stamps if stamp_ns is not None]
        return bool(delays) and abs(float(np.median(delays))) > _CLOCK_JUMP_NS

    def _stamp_ns(self, entry: BagEntry) -> int | None:
        """None of a message that cannot be read."""
        try:
            return cdr.read_stamp_ns(self._bag.read(entry, cdr.STAMP_BYTES))
        except ValueError:
            return None

    def _take(self, time_s: float, entry: BagEntry) -> None:
        if entry.topic in self._images:
            stamp_ns = cdr.read_stamp_ns(self._bag.read(entry, cdr.STAMP_BYTES))
            picture = Picture(stamp_ns, entry)
            self._log.add_picture(time_s, self._images[entry.topic], picture)
        elif entry.topic in self._takes:
            self._takes[entry.topic](time_s, self._bag.read(entry))

    def _on_follower(self, arm: str, time_s: float, data: bytes) -> None:
        state = cdr.read_joint_state(data)
        qpos = self._log.profile.arm_qpos(state.name, state.position.tolist())
        self._log.joints[arm].add(time_s, qpos)

    def _on_leader(self, arm: str, time_s: float, data: bytes) -> None:
        state = cdr.read_joint_state(data)
        action = self._log.profile.leader_action(state.name, state.position.tolist())
        self._log.leaders[arm].add(time_s, action)

    def _on_targets(self, time_s: float, data: bytes) -> None:
        state = cdr.read_joint_state(data)
        place = {name: index for index, name in enumerate(state.name)}
        missing = [name for name in ACTION_NAMES if name not in place]
        if missing or len(state.position) != len(state.name):
            raise JointStateError(
                f"expected positions named {ACTION_NAMES[0]} … {ACTION_NAMES[-1]}; missing "
                f"{', '.join(missing) or 'some position'}"
            )
        self._log.targets.add(time_s, state.position[[place[name] for name in ACTION_NAMES]])

    def _on_chunk(self, time_s: float, data: bytes) -> None:
        chunk = own.read_chunk(data)
        latency_s = time_s - self._log.time_s(chunk.stamp_ns)
        self._log.answers.add(time_s, Answer(time_s=time_s, latency_s=latency_s, chunk=chunk))
        self._events.chunk(time_s, chunk, latency_s)
        self._asked(time_s, chunk.instruction)

    def _asked(self, time_s: float, instruction: str) -> None:
        if instruction and instruction != self._log.instructions.at(time_s):
            self._log.instructions.add(time_s, instruction)
            self._events.instruction(time_s, instruction)

    def _on_pruning(self, time_s: float, data: bytes) -> None:
        report = own.read_pruning(data)
        self._pruning[report.stamp_ns] = report

    def _on_safety(self, time_s: float, data: bytes) -> None:
        report = own.read_safety(data)
        self._log.safety.add(time_s, report)
        self._events.safety(time_s, report)

    def _on_recorder(self, time_s: float, data: bytes) -> None:
        report = own.read_recorder(data)
        self._log.recorder.add(time_s, report)
        self._events.recorder(time_s, report)

    def _on_diagnostics(self, time_s: float, data: bytes) -> None:
        statuses = own.read_diagnostics(data)
        self._events.diagnostics(time_s, statuses)
        before = self._log.diagnostics.at(time_s) or {}
        told = {status.name for status in statuses}
        now = {name: one for name, one in before.items() if name not in told}
        now |= {status.name: status for status in statuses if status.level}
        if now != before:
            self._log.diagnostics.add(time_s, now)

    def _on_reward(self, time_s: float, data: bytes) -> None:
        reward = own.read_float(data)
        self._log.rewards.add(time_s, reward)
        self._events.reward(time_s, reward)
