"""A recorded bag → an `Episode`, through the same `ObservationBuilder` that the live node asks.

Messages are delivered to the builder in the order in which they were received, and at every tick
it is asked as the policy would ask it; what would have been refused live is refused here. The
action of a tick is what the leaders did, or without leaders the joint targets that followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from vla_oft_ros.aloha import ACTION_NAMES, ARM_DIM, ARMS, JointStateError
from vla_oft_ros.data import cdr
from vla_oft_ros.data.bag_storage import BagError, open_bag
from vla_oft_ros.data.bag_streams import Arrival, BagOptions, BagStreams
from vla_oft_ros.data.episode import RGB, Episode, LazyImages
from vla_oft_ros.sync import ObservationBuilder

_LATEST_TARGET = 1.5
"""A target belongs to a tick if it follows within so many periods."""
Frame = Callable[[], np.ndarray]
"""An image that is read and decoded when it is called."""


@dataclass
class _Moved:
    """Velocity and effort of one arm, of the message that the builder took."""

    velocity: np.ndarray | None = None
    effort: np.ndarray | None = None


@dataclass
class _Step:
    """What was seen and done at one tick."""

    time_ns: int
    frames: dict[str, Frame]
    image_stamps_ns: dict[str, int]
    qpos: np.ndarray
    moved: list[_Moved]
    action: np.ndarray


def read_bag(
    path: Path, options: BagOptions | None = None, ticks_ns: Sequence[int] | None = None
) -> Episode:
    """Reads one episode.

    Args:
        path: Bag folder, or its file.
        options: How.
        ticks_ns: When to sample, ascending; by default at `rate_hz` from the moment on which
            every stream has delivered.

    Returns:
        The episode; its images are read from the bag when they are asked for.

    Raises:
        BagError: naming the bag, what is missing or wrong, and what to do.
        ConfigError: if the profile is unknown.
    """
    options = options or BagOptions()
    bag = open_bag(path)
    try:
        if bag.damage and options.on_damage != "repair":
            raise BagError(
                f"{path}: {'; '.join(bag.damage)}. Finish it with `vla_oft recover`, or ask for "
                "what can be read with --on-damage repair"
            )
        return _read(BagStreams(bag, options), options, ticks_ns)
    except (cdr.CdrError, JointStateError) as error:
        bag.close()
        raise BagError(f"{path}: {error}") from None
    except BaseException:
        bag.close()
        raise


def _read(streams: BagStreams, options: BagOptions, ticks_ns: Sequence[int] | None) -> Episode:
    sampler = _Sampler(streams, options)
    steps = sampler.steps(streams.ticks_ns() if ticks_ns is None else ticks_ns)
    told = streams.bag.custom_data
    return Episode(
        images={
            camera: LazyImages(
                [step.frames[camera] for step in steps], lambda frame: cast(Frame, frame)()
            )
            for camera in options.cameras
        },
        image_stamps_ns={
            camera: np.array([step.image_stamps_ns[camera] for step in steps], dtype=np.int64)
            for camera in options.cameras
        },
        qpos=np.stack([step.qpos for step in steps]),
        qvel=_joined([moved.velocity for step in steps for moved in step.moved]),
        effort=_joined([moved.effort for step in steps for moved in step.moved]),
        action=np.stack([step.action for step in steps]),
        stamps_ns=np.array([step.time_ns for step in steps], dtype=np.int64),
        rate_hz=options.rate_hz,
        instruction=options.instruction or told.get("instruction", "") or sampler.asked,
        profile=streams.profile.name,
        color_order=RGB,
        outcome=told.get("outcome", ""),
        object_poses=streams.object_poses(steps[0].time_ns),
        source=str(streams.bag.path),
        notes=tuple(streams.notes),
    )


class _Sampler:
    """Delivers the messages of a bag to an `ObservationBuilder` and asks it at every tick."""

    def __init__(self, streams: BagStreams, options: BagOptions) -> None:
        self._streams, self._options = streams, options
        self._builder = ObservationBuilder(options.cameras, options.sync)
        self._leaders: dict[str, tuple[int, np.ndarray]] = {}
        self._moved = {arm: _Moved() for arm in ARMS}
        self._targets: list[np.ndarray] = []
        self._target_times = np.zeros(0, dtype=np.int64)
        self.asked = ""
        """The last instruction that was heard."""

    def steps(self, ticks_ns: Sequence[int]) -> list[_Step]:
        """One step per tick.

        Raises:
            BagError: if there are none, or some are missing and the options do not allow it.
        """
        arrivals = self._streams.arrivals
        targets = [one for one in arrivals if one.role == "target"]
        self._target_times = np.array([one.time_ns for one in targets], dtype=np.int64)
        self._targets = [_target(self._joint_state(one)) for one in targets]
        runs: list[list[_Step]] = [[]]
        gaps: list[str] = []
        place = 0
        for tick_ns in ticks_ns:
            while place < len(arrivals) and arrivals[place].time_ns <= tick_ns:
                self._deliver(arrivals[place])
                place += 1
            reasons = self._builder.problems(tick_ns)
            action, late = self._action(tick_ns)
            if action is not None and not reasons:
                runs[-1].append(self._step(tick_ns, action))
                continue
            since_s = (tick_ns - ticks_ns[0]) / 1e9
            gaps.append(f"at {since_s:.2f} s: {'; '.join([*reasons, *late])}")
            runs.append([])
        return self._without_gaps([run for run in runs if run], gaps)

    def _without_gaps(self, runs: Sequence[list[_Step]], gaps: Sequence[str]) -> list[_Step]:
        if not runs:
            why = gaps[0] if gaps else "the streams do not overlap in time"
            raise self._streams.error(f"expected at least one observation; got none: {why}")
        longest = max(runs, key=len)
        if len(runs) == 1:
            if gaps:
                self._streams.notes.append(f"left out {len(gaps)} ticks at the ends ({gaps[0]})")
            return longest
        found = f"{len(gaps)} ticks without one, the first {gaps[0]}"
        if self._options.on_gap != "longest":
            raise self._streams.error(
                f"expected an observation at every tick; got {found}. Keep the longest run "
                "without a gap with --on-gap longest"
            )
        self._streams.notes.append(f"kept the longest of {len(runs)} runs ({found})")
        return longest

    def _step(self, tick_ns: int, action: np.ndarray) -> _Step:
        """What `ObservationBuilder.build` gives, with images that are not decoded yet."""
        streams = self._builder.streams
        cameras = self._options.cameras
        return _Step(
            time_ns=tick_ns,
            frames={camera: cast(Frame, streams[camera].value) for camera in cameras},
            image_stamps_ns={camera: cast(int, streams[camera].stamp_ns) for camera in cameras},
            qpos=np.concatenate(
                [cast(np.ndarray, streams[f"joint states {arm}"].value) for arm in ARMS]
            ),
            moved=[self._moved[arm] for arm in ARMS],
            action=action,
        )

    def _deliver(self, one: Arrival) -> None:
        streams = self._streams
        if one.role == "image":
            frame = partial(streams.decode, one.entry)
            self._builder.add_image(one.name, streams.stamp_ns(one.entry), frame)
        elif one.role == "instruction":
            self.asked = cdr.read_string(streams.bag.read(one.entry))
        elif one.role == "leader":
            state = self._joint_state(one)
            action = streams.profile.leader_action(state.name, state.position.tolist())
            self._leaders[one.name] = state.stamp_ns, action
        elif one.role == "follower":
            state = self._joint_state(one)
            qpos = streams.profile.arm_qpos(state.name, state.position.tolist())
            if self._builder.add_joints(one.name, state.stamp_ns, qpos):
                velocity = self._picked(state.name, state.velocity)
                if velocity is not None:
                    velocity[-1] = 0.0  # of fingers, it is 0 in every ALOHA recording
                self._moved[one.name] = _Moved(velocity, self._picked(state.name, state.effort))

    def _joint_state(self, one: Arrival) -> cdr.JointStateFields:
        return cdr.read_joint_state(self._streams.bag.read(one.entry))

    def _picked(self, names: Sequence[str], values: np.ndarray) -> np.ndarray | None:
        if len(values) != len(names):
            return None  # simulated drivers leave velocity and effort empty
        joints = self._streams.profile.joint_names
        return np.array([values[names.index(joint)] for joint in joints])

    def _action(self, tick_ns: int) -> tuple[np.ndarray | None, list[str]]:
        """The (14,) action of a tick, or why there is none."""
        if not self._streams.uses_leaders:
            # The first target after the observation: it is sampled before its action is sent.
            place = int(np.searchsorted(self._target_times, tick_ns, side="left"))
            latest_ns = tick_ns + _LATEST_TARGET * 1e9 / self._options.rate_hz
            if place == len(self._targets) or self._target_times[place] > latest_ns:
                return None, ["no joint target followed"]
            return self._targets[place], []
        limit_ns = self._options.sync.max_joint_age_s * 1e9
        late = [
            f"leader {arm}: nothing received for {limit_ns / 1e6:.0f} ms"
            for arm in ARMS
            if arm not in self._leaders or tick_ns - self._leaders[arm][0] > limit_ns
        ]
        if late:
            return None, late
        return np.concatenate([self._leaders[arm][1] for arm in ARMS]), []


def _target(state: cdr.JointStateFields) -> np.ndarray:
    """(14,) joint targets by name."""
    place = {name: index for index, name in enumerate(state.name)}
    missing = [name for name in ACTION_NAMES if name not in place]
    if missing or len(state.position) != len(state.name):
        raise JointStateError(
            f"joint targets: expected positions named {ACTION_NAMES[0]} … {ACTION_NAMES[-1]}; "
            f"missing {', '.join(missing) or 'none'}"
        )
    return np.array([state.position[place[name]] for name in ACTION_NAMES])


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """(7,) per step and arm → (T, 14); None if one is missing."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return np.stack(known).reshape(-1, len(ARMS) * ARM_DIM)  # (T, 14)
