"""An episode as a stream of joint targets that a robot can follow from where it stands now.

Only numbers: the controller's safety gate still has the last word on every one of them.
"""

from __future__ import annotations

import math

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM
from vla_oft_ros.data.episode import Episode

EASE_IN_RAD_S = 0.5
"""Fastest joint on the way to the first action; a gripper opens or closes in two seconds."""
_PEAK = 1.5
"""A smoothstep is this much faster in its middle than on average."""


def replay_targets(
    episode: Episode,
    present: np.ndarray,
    *,
    rate_hz: float,
    speed: float = 1.0,
    ease_in_rad_s: float = EASE_IN_RAD_S,
) -> np.ndarray:
    """Joint targets that lead gently to the first action and then repeat the episode.

    Args:
        episode: What to repeat.
        present: (14,) where the robot is told to be, or is, now.
        rate_hz: Rate at which the targets will be sent.
        speed: 1 is as recorded, 0.5 is half as fast.
        ease_in_rad_s: Fastest joint on the way to the first action, rad/s; openings per second
            for grippers.

    Returns:
        (N, 14) float64; the last row is the last action of the episode.

    Raises:
        ValueError: if an argument is out of range.
    """
    present = np.asarray(present, dtype=np.float64)
    if present.shape != (ACTION_DIM,) or not np.all(np.isfinite(present)):
        raise ValueError(f"present: expected ({ACTION_DIM},) finite positions; got {present}")
    for name, value, high in (
        ("rate_hz", rate_hz, 1000.0),
        ("speed", speed, 1.0),
        ("ease_in_rad_s", ease_in_rad_s, math.pi),
    ):
        if not 0.0 < value <= high:
            raise ValueError(f"{name}: expected above 0 to {high:g}; got {value}")
    first = episode.action[0]
    way = float(np.abs(first - present).max())
    steps = math.ceil(_PEAK * way / ease_in_rad_s * rate_hz)
    share = np.arange(1, steps + 1)[:, None] / max(steps, 1)
    ease = present + (first - present) * (3.0 - 2.0 * share) * share**2  # (steps, 14)
    count = math.floor((len(episode) - 1) / episode.rate_hz / speed * rate_hz + 1e-9)
    place = np.minimum(np.arange(count + 1) * speed * episode.rate_hz / rate_hz, len(episode) - 1)
    before = np.floor(place).astype(int)
    after = np.minimum(before + 1, len(episode) - 1)
    weight = (place - before)[:, None]
    body = episode.action[before] * (1.0 - weight) + episode.action[after] * weight
    tail = episode.action[-1:] if place[-1] < len(episode) - 1 else episode.action[:0]
    return np.concatenate([ease, body, tail])  # (N, 14)
