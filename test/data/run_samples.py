"""Bags of policy runs for tests: what happened in them is known to the tick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import bag_samples
import numpy as np
from bag_samples import NS, START_NS, Sent, Take

from vla_oft_ros.aloha import ACTION_NAMES, CAMERAS
from vla_oft_ros.data.policy_messages import (
    ACTION_CHUNK,
    DIAGNOSTICS,
    EPISODE_STATUS,
    FLOAT,
    PRUNING_STATUS,
    RETAINED_TOKENS,
    SAFETY_STATUS,
)

MESSAGES = Path(__file__).parents[2] / "msg"
GRID = (4, 4)
HOLD, EASE_IN, ACTIVE, ESTOP = 1, 2, 3, 4


@lru_cache(maxsize=1)
def types() -> Any:
    known = bag_samples.types()
    for path in sorted(MESSAGES.glob("*.msg")):
        known.add(f"vla_oft_ros/msg/{path.stem}", path.read_text(encoding="utf-8"))
    return known


def made(name: str, **fields: object) -> bytes:
    return bytes(types().serialize(name, types().types[name](**fields)))


def time_of(stamp_ns: int) -> Any:
    kind = types().types["builtin_interfaces/msg/Time"]
    return kind(sec=stamp_ns // NS, nanosec=stamp_ns % NS)


def header(stamp_ns: int) -> Any:
    return types().types["std_msgs/msg/Header"](stamp=time_of(stamp_ns), frame_id="")


def chunk(stamp_ns: int, actions: np.ndarray, instruction: str = "transfer the cube") -> bytes:
    return made(
        ACTION_CHUNK,
        header=header(stamp_ns),
        dt_s=0.04,
        joint_names=list(ACTION_NAMES),
        chunk_len=len(actions),
        positions=actions.reshape(-1),
        instruction=instruction,
        inference_s=0.125,
    )


def retained(camera: str, stamp_ns: int, layer: int, indices: Sequence[int]) -> bytes:
    return made(
        RETAINED_TOKENS,
        header=header(stamp_ns),
        camera=camera,
        rows=GRID[0],
        columns=GRID[1],
        layer=layer,
        patch_indices=np.array(indices, dtype=np.uint32),
        kept_by=np.full(len(indices), 2, dtype=np.uint8),
    )


def pruning(stamp_ns: int, mode: int = 1, ratio: float = 0.25) -> bytes:
    return made(
        PRUNING_STATUS,
        header=header(stamp_ns),
        mode=mode,
        translation=np.array([0.1, 0.2]),
        rotation=np.array([0.3, 0.4]),
        rise=np.array([-0.5, 0.6]),
        reference_ticks=7,
        retain_ratio=ratio,
    )


def safety(stamp_ns: int, state: int, reason: str = "", **counts: int) -> bytes:
    return made(
        SAFETY_STATUS,
        header=header(stamp_ns),
        state=state,
        reason=reason,
        holding_since=time_of(0),
        intervention_kinds=list(counts),
        intervention_counts=np.array(list(counts.values()), dtype=np.uint64),
        last_kind="",
        last_stamp=time_of(0),
        joint_names=[],
        last_wanted=np.zeros(0),
        last_given=np.zeros(0),
    )


def episode_status(stamp_ns: int, state: int, index: int) -> bytes:
    return made(
        EPISODE_STATUS,
        header=header(stamp_ns),
        state=state,
        reason="",
        episode_index=index,
        episodes_on_disk=1,
        instruction="a",
        label="success",
        duration_s=1.0,
        topics=["/a", "/b"],
        message_counts=np.array([1, 2], dtype=np.uint64),
        dropped_counts=np.array([0, 0], dtype=np.uint64),
        bytes=5,
        free_disk_bytes=6,
        quality=2,
        quality_reasons=["dark"],
    )


def diagnostics(stamp_ns: int, name: str, level: int, message: str) -> bytes:
    known = types().types
    pair = known["diagnostic_msgs/msg/KeyValue"](key="a", value="b")
    status = known["diagnostic_msgs/msg/DiagnosticStatus"](
        level=level, name=name, message=message, hardware_id="", values=[pair]
    )
    return made(DIAGNOSTICS, header=header(stamp_ns), status=[status])


def frame_color(camera: str, index: int) -> tuple[int, int, int]:
    """Every frame of every camera has a colour of its own."""
    return 40 + index, 60 + 40 * CAMERAS.index(camera), 250 - index


@dataclass
class Run(Take):
    """Three seconds of a policy at work, with everything that can happen in it.

    The chunk number k is predicted from frame `used_frame(k)` and arrives at `chunk_times_s[k]`.
    """

    seconds: float = 3.0
    camera_hz: float = 25.0
    joint_hz: float = 50.0
    leaders: bool = False
    targets: bool = True
    compressed: bool = False
    size: tuple[int, int] = (48, 64)
    chunk_times_s: tuple[float, ...] = (0.6, 1.2, 1.8, 2.4)
    kept: tuple[tuple[int, ...], ...] = ((0, 5), (1, 6, 15), (2,), (3, 12))
    silent: dict[str, tuple[float, float]] = field(default_factory=dict)

    def image(self, camera: str, index: int) -> np.ndarray:
        return np.full((*self.size, 3), frame_color(camera, index), dtype=np.uint8)

    def used_frame(self, number: int) -> int:
        """Index of the frame that a chunk was predicted from: 5 frames before its arrival."""
        return round(self.chunk_times_s[number] * self.camera_hz) - 5

    def stamp_of(self, index: int) -> int:
        return START_NS + round(index / self.camera_hz * NS)

    def actions(self, number: int) -> np.ndarray:
        return np.full((25, 14), 0.1 * number) + 0.01 * np.arange(25)[:, None]

    def messages(self) -> list[Sent]:
        sent = super().messages()
        for topic, (begin_s, end_s) in self.silent.items():
            sent = [
                one
                for one in sent
                if topic not in one.topic or not begin_s <= (one.log_ns - START_NS) / NS < end_s
            ]
        sent += [*self._policy(), *self._safety(), *self._others()]
        return sorted(sent, key=lambda one: one.log_ns)

    def _policy(self) -> list[Sent]:
        sent = []
        for number, time_s in enumerate(self.chunk_times_s):
            now, stamp = START_NS + round(time_s * NS), self.stamp_of(self.used_frame(number))
            data = chunk(stamp, self.actions(number))
            sent.append(Sent(now, "/action_chunk", ACTION_CHUNK, data))
            for camera in CAMERAS:
                for layer, indices in ((2, range(16)), (7, self.kept[number])):
                    tokens = retained(camera, stamp, layer, list(indices))
                    sent.append(Sent(now, "/retained_tokens", RETAINED_TOKENS, tokens))
            status = pruning(stamp, mode=number % 2)
            sent.append(Sent(now, "/pruning_status", PRUNING_STATUS, status))
        return sent

    def _safety(self) -> list[Sent]:
        """A hold at the start, velocity limits from 1.00 to 1.16 s, an e-stop from 2 to 2.2 s."""
        sent, counts = [], {"velocity": 0, "arm_distance": 0}
        for tick in range(round(self.seconds * 25)):
            now, reason = START_NS + tick * NS // 25, ""
            state = HOLD if tick < 16 else ACTIVE
            if tick < 16:
                reason = "no action for this tick"
            if 25 <= tick < 29:
                counts["velocity"] += 2
            if tick == 40:
                counts["arm_distance"] += 1
            if 50 <= tick < 55:
                state, reason = ESTOP, "asked for by service"
            data = safety(now, state, reason, **counts)
            sent.append(Sent(now, "/safety_status", SAFETY_STATUS, data))
        return sent

    def _others(self) -> list[Sent]:
        """One fault from 1.5 to 2.5 s, a better instruction at 1.7 s, a recorded episode from 0.5
        to 2.5 s, a reward of 2 at 2.1 s.
        """
        at = lambda time_s: START_NS + round(time_s * NS)  # noqa: E731
        level = {0.5: 0, 1.5: 2, 2.5: 0}
        state = {0.0: 1, 0.5: 2, 1.5: 2, 2.5: 3}
        return [
            *(
                Sent(at(t), "/diagnostics", DIAGNOSTICS, diagnostics(at(t), "/p: gpu", n, "hot"))
                for t, n in level.items()
            ),
            *(
                Sent(at(t), "/episode_status", EPISODE_STATUS, episode_status(at(t), n, 4))
                for t, n in state.items()
            ),
            *(
                Sent(at(t), "/task_reward", FLOAT, made(FLOAT, data=r))
                for t, r in {1.0: 0.0, 2.1: 2.0, 2.2: 2.0, 2.3: 1.0}.items()
            ),
        ]

    def write(self, path: Path, **custom: str) -> Path:
        types()
        return super().write(path, **custom)
