"""Demonstrations straight from the simulation: scripted teleoperation with what robot and cameras
saw, without ROS and as fast as the machine allows.

Rows are what a recorder makes of the real robot: observation and leader position of one instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM, ARM_DIM, ARMS, CAMERAS, GRIPPERS, RobotProfile
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.demonstrator import SCRIPTS, demonstrate

DISTURBANCE_MEMORY = 0.8
"""How much of a disturbance is left one step later: a push that lasts about five steps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstration:
    """One take.

    Attributes:
        images: Camera name → T images, (H, W, 3) uint8 RGB.
        qpos: (T, 14) float64 measured joint state, gripper openings 0 … 1.
        action: (T, 14) float64 what the leaders said at the same instant.
        stamps_ns: (T,) int64 simulated time.
        rewards: (T,) int64 reward after each action.
        instruction: What was asked for.
        cube_poses: Cube name → (7,) world pose at the start.
        success: Whether the task was done at the end.
    """

    images: dict[str, np.ndarray]
    qpos: np.ndarray
    action: np.ndarray
    stamps_ns: np.ndarray
    rewards: np.ndarray
    instruction: str
    cube_poses: Mapping[str, np.ndarray]
    success: bool


def measured(world: AlohaWorld, profile: RobotProfile) -> np.ndarray:
    """(14,) float64 joint state as a policy sees it, at this instant."""
    states = [world.joint_state(arm) for arm in ARMS]
    return np.concatenate(
        [profile.arm_qpos(state.names, state.position.tolist()) for state in states]
    )


def record_demonstration(
    world: AlohaWorld,
    profile: RobotProfile,
    generator: np.random.Generator,
    *,
    disturbance_rad: float = 0.0,
    store: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Demonstration:
    """Teleoperates a world just reset to the end and records it.

    Args:
        world: Its cube lies where the demonstration shall find it.
        profile: Robot profile of the simulation.
        generator: Of the disturbance.
        disturbance_rad: Standard deviation by which the arms are pushed off what the leaders say
            while they move freely; the record holds what they say, so that a policy learns to come
            back (DART, Laskey et al. 2017). An arm that holds the cube, or reaches for one in the
            other hand, is left alone: there a push teaches nothing but to lose it.
        store: What is kept of a camera image.
    """
    cube_poses = {cube.name: world.cube_pose(cube.name) for cube in world.task.cubes}
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in CAMERAS}
    qpos, actions, stamps, rewards = [], [], [], []
    push = np.zeros(ACTION_DIM)
    fresh = disturbance_rad * np.sqrt(1.0 - DISTURBANCE_MEMORY**2)
    script = SCRIPTS[world.task.name]
    for target in demonstrate(world):
        for camera, image in world.images().items():
            images[camera].append(store(image))
        qpos.append(measured(world, profile))
        actions.append(target)
        stamps.append(world.time_ns)
        push = DISTURBANCE_MEMORY * push + fresh * generator.standard_normal(ACTION_DIM)
        push[list(GRIPPERS)] = 0.0
        slack = script.slack((world.time_ns + world.control_period_ns) * 1e-9)
        world.set_targets(target + push * slack.repeat(ARM_DIM))
        world.advance(world.control_period_ns)
        rewards.append(world.reward())
    return Demonstration(
        images={camera: np.stack(frames) for camera, frames in images.items()},
        qpos=np.stack(qpos),
        action=np.stack(actions),
        stamps_ns=np.array(stamps, dtype=np.int64),
        rewards=np.array(rewards, dtype=np.int64),
        instruction=world.instruction,
        cube_poses=cube_poses,
        success=world.task.is_success(rewards),
    )
