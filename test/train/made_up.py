"""A few frames of made-up demonstrations and the sizes of a network of thousands of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vla_oft_ros.aloha import CAMERAS, GRIPPERS
from vla_oft_ros.config import FinetuneConfig, SmallModelConfig
from vla_oft_ros.data.episode import RGB, SUCCESS, Episode

INSTRUCTIONS = ("transfer the cube", "pick up the red cube", "put the pot on the table")
SIZE_PX = 28
SMALL = SmallModelConfig(
    width=16, layers=2, heads=2, dino_width=16, siglip_width=16, depth=2, image_px=SIZE_PX
)
STEPS = 9
CHUNK_LEN = 4

MakeConfig = Callable[..., FinetuneConfig]


def make_episode(number: int, steps: int = STEPS, **changes: object) -> Episode:
    generator = np.random.default_rng(number)
    time = np.linspace(0.0, 1.0, steps)[:, None]
    qpos = 0.3 * np.sin(3.0 * time * np.arange(1, 15) / 14 + number)
    qpos[:, list(GRIPPERS)] += 0.5
    images = {
        camera: generator.integers(0, 256, (steps, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        for camera in CAMERAS
    }
    episode = Episode(
        images=images,
        qpos=qpos,
        action=qpos + 0.05,
        stamps_ns=np.arange(steps) * 40_000_000,
        rate_hz=25.0,
        instruction=INSTRUCTIONS[number % len(INSTRUCTIONS)],
        profile="sim",
        color_order=RGB,
        outcome=SUCCESS,
        source=f"made up {number}",
    )
    return replace(episode, **changes)
