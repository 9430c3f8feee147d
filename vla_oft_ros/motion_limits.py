"""Joint targets that come in ticks, limited in velocity and acceleration; slow moves to a pose.

Everything is a displacement per tick: `step` is what a target moves in one tick, `brake` by how
much a step may change from one tick to the next. A target is kept such that it can always come to
rest before a limit, so no limit ever has to be broken to keep another. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vla_oft_ros.aloha import ARMS, GRIPPERS, SLEEP_ARM_POSE_RAD, start_pose
from vla_oft_ros.config import SafetyConfig

_GRIPPER_PARKING_SPEED = 1.0
"""Opening per second on the way to a pose: a full stroke in a second, as the ALOHA stacks do."""
_PEAK_VELOCITY = 15.0 / 8.0
"""Largest slope of the minimum-jerk profile 10 t³ - 15 t⁴ + 6 t⁵ on 0 … 1."""
_PEAK_ACCELERATION = 10.0 / math.sqrt(3.0)
"""Largest second derivative of the same profile."""


def largest_stoppable_step(room: np.ndarray, brake: np.ndarray) -> np.ndarray:
    """Largest step after which a target can still come to rest within `room`.

    A step s is followed by s - brake, s - 2 brake, … until rest; with n such further steps the way
    is (n + 1) s - brake n (n + 1) / 2.

    Args:
        room: (...) distance to the limit, at least 0.
        brake: (...) largest change of a step per tick, positive.

    Returns:
        (...) step, at least 0.
    """
    count = np.floor((np.sqrt(1.0 + 8.0 * room / brake) - 1.0) / 2.0)
    return np.asarray((room + brake * count * (count + 1.0) / 2.0) / (count + 1.0))


def braking_way(step: np.ndarray, brake: np.ndarray) -> np.ndarray:
    """How far a target still moves after a step when it brakes from the next tick on.

    Args:
        step: (...) the last step, with its sign.
        brake: (...) largest change of a step per tick, positive.

    Returns:
        (...) displacement, with the sign of `step`.
    """
    size = np.abs(step)
    count = np.floor(size / brake)
    return np.asarray(np.sign(step) * (count * size - brake * count * (count + 1.0) / 2.0))


def braking_steps(step: np.ndarray, brake: np.ndarray) -> np.ndarray:
    """The steps with which a target comes to rest: (n, A), the last one is 0 or nearly so.

    Args:
        step: (A,) the last step before braking.
        brake: (A,) largest change of a step per tick.
    """
    count = int(np.ceil(np.max(np.abs(step) / brake)))
    ticks = np.arange(1, count + 1)[:, None]  # (n, 1)
    return np.asarray(np.sign(step) * np.maximum(np.abs(step) - ticks * brake, 0.0))  # (n, A)


def limited_step(
    position: np.ndarray,
    step: np.ndarray,
    wanted: np.ndarray,
    wanted_before: np.ndarray,
    *,
    lower: np.ndarray,
    upper: np.ndarray,
    largest: np.ndarray,
    brake: np.ndarray,
) -> np.ndarray:
    """The next step of a target that follows what is wanted as closely as the limits allow.

    On track it goes exactly where it is wanted. Behind, it closes the gap as fast as it can still
    stop relative to the wanted motion, so that it neither lags for good nor overshoots.

    Args:
        position: (..., A) present target; may lie outside the limits, it then only moves inward.
        step: (..., A) its last step.
        wanted: (..., A) where it shall be after this tick, within the limits.
        wanted_before: (..., A) the same one tick ago; equal to `wanted` where nothing is known.
        lower: (..., A) lower position limits.
        upper: (..., A) upper position limits.
        largest: (..., A) largest step.
        brake: (..., A) largest change of a step.

    Returns:
        (..., A) step.
    """
    gap = wanted_before - position
    closing = np.sign(gap) * largest_stoppable_step(np.abs(gap), brake)
    desired = np.clip(wanted - wanted_before, -largest, largest) + closing
    # A step that is too large already (a limit was lowered) shrinks as fast as braking allows.
    highest = np.minimum(step + brake, np.maximum(largest, step - brake))
    lowest = np.maximum(step - brake, np.minimum(-largest, step + brake))
    limited = np.clip(desired, lowest, highest)
    rest = position + braking_way(step, brake)
    room_up = np.maximum(upper, rest) - position
    room_down = position - np.minimum(lower, rest)
    furthest_up = largest_stoppable_step(np.maximum(room_up, 0.0), brake)
    furthest_down = largest_stoppable_step(np.maximum(room_down, 0.0), brake)
    return np.asarray(np.clip(limited, -furthest_down, furthest_up))


def parking_poses(name: str, start_gripper: float = 1.0) -> list[np.ndarray]:
    """Poses, each (14,), to go through on the way to rest.

    Args:
        name: `start` or `sleep`; the arms fold into the sleep pose from the start pose only.
        start_gripper: Opening of the grippers in the end, in the start pose; they open first, so
            that nothing stays in them.

    Raises:
        ValueError: for another name.
    """
    start = start_pose()
    sleep = np.concatenate([[*SLEEP_ARM_POSE_RAD, 1.0]] * len(ARMS))
    poses = {"start": [start], "sleep": [start, sleep]}
    if name not in poses:
        raise ValueError(f"pose: expected one of {', '.join(poses)}; got {name!r}")
    if name == "start" and start_gripper < 1.0:
        poses[name].append(start_pose(start_gripper))
    return poses[name]


def plan_parking(
    present: np.ndarray, poses: Sequence[np.ndarray], config: SafetyConfig, dt_ns: int
) -> np.ndarray:
    """Joint targets of a slow move through poses, at rest in each: minimum jerk, joints together.

    Args:
        present: (14,) where the arms are.
        poses: Each (14,), in order.
        config: Its parking limits.
        dt_ns: Time between two rows, nanoseconds.

    Returns:
        (T, 14) targets, one per tick; the last one is exactly the last pose. T is 0 only without
        poses.
    """
    velocity = np.full(present.shape, config.parking_velocity_rad_s)
    velocity[list(GRIPPERS)] = _GRIPPER_PARKING_SPEED
    acceleration = np.full(present.shape, config.parking_acceleration_rad_s2)
    acceleration[list(GRIPPERS)] = np.inf
    rows: list[np.ndarray] = []
    for pose in poses:
        way = np.abs(pose - present)
        needed_s = np.maximum(
            _PEAK_VELOCITY * way / velocity, np.sqrt(_PEAK_ACCELERATION * way / acceleration)
        )
        count = max(1, math.ceil(float(needed_s.max()) / (dt_ns * 1e-9)))
        share = np.arange(1, count + 1)[:, None] / count  # (count, 1)
        profile = share**3 * (10.0 + share * (-15.0 + 6.0 * share))
        rows.append(present + profile * (pose - present))  # (count, A)
        rows[-1][-1] = pose
        present = pose
    return np.concatenate(rows) if rows else np.zeros((0, *present.shape))
