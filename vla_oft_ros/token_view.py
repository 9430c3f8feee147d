"""What the policy keeps of each camera, for a person to judge: the simulated robot at work, and a
picture of its three cameras with the kept patches painted.

Joins simulation, policy and overlay; needs MuJoCo and an OpenGL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vla_oft_ros.action_aware import (
    ActionAwareState,
    ActionAwareThresholds,
    MotionScale,
    arm_motion,
    next_mode,
)
from vla_oft_ros.aloha import ARMS, RobotProfile
from vla_oft_ros.frame_ring import FrameRing, reference_ticks
from vla_oft_ros.model.image_ops import CROP_AREA
from vla_oft_ros.overlay import paint_retained
from vla_oft_ros.overlay_caption import LONG_LEGEND, with_legend, with_title
from vla_oft_ros.policy import Policy
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.contact_sheet import contact_sheet
from vla_oft_ros.sim.demonstrator import SCRIPTS, demonstrate
from vla_oft_ros.types import ActionChunk, MotionMode, Observation, RetainedTokens


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One moment of a robot at work, as a policy node would hand it to the policy.

    Attributes:
        observation: With the reference images that were there.
        mode: Of the action-aware controller.
    """

    observation: Observation
    mode: MotionMode


def watch_demonstration(
    world: AlohaWorld, profile: RobotProfile, *, stride: int, scale: MotionScale | None = None
) -> Iterator[Sight]:
    """Lets the scripted teleoperator work and looks on at the control rate.

    Args:
        world: Just reset.
        profile: Whose joint names and grippers the world has.
        stride: Control steps from one sight to the next.
        scale: What counts as fast; None for the default.

    Yields:
        One sight every `stride` steps, the first after the first step.
    """
    scale, thresholds = scale or MotionScale(), ActionAwareThresholds()
    cameras = list(world.images())
    ring = FrameRing(cameras, tick_ns=world.control_period_ns)
    state, before = ActionAwareState(), world.targets()
    for step, targets in enumerate(demonstrate(world)):
        world.set_targets(targets)
        world.advance(world.control_period_ns)
        state = next_mode(state, before, targets, scale, thresholds)
        way_m = arm_motion(before, targets, 1.0).translation_m_s  # (2,) per control step
        before = targets
        images = world.images()
        for camera, image in images.items():
            ring.add(camera, world.time_ns, image)
        if step % stride:
            continue
        stamps = dict.fromkeys(images, world.time_ns)
        ticks = reference_ticks(float(way_m.max()) / scale.translation_m)
        joints = [world.joint_state(arm) for arm in ARMS]
        observation = Observation(
            images=images,
            image_stamps_ns=stamps,
            proprio=np.concatenate([profile.arm_qpos(j.names, list(j.position)) for j in joints]),
            proprio_stamp_ns=world.time_ns,
            instruction=world.instruction,
            reference_images=ring.reference_images(stamps, ticks),
        )
        yield Sight(observation=observation, mode=state.mode)


def token_sheet(policy: Policy, observation: Observation, chunk: ActionChunk) -> np.ndarray:
    """A picture of one inference: the cameras, then what was left of them after each stage.

    Args:
        policy: That answered.
        observation: What it saw.
        chunk: What it answered.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    crop_area = CROP_AREA if policy.checkpoint.images.options.center_crop else 1.0
    seen = {camera: observation.images[camera] for camera in policy.cameras}
    bands = [with_title(contact_sheet([seen]), f'"{observation.instruction}"')]
    for layer in sorted({record.layer for record in chunk.retained}):
        stage = [record for record in chunk.retained if record.layer == layer]
        painted = {
            record.camera: paint_retained(
                observation.images[record.camera], record, crop_area=crop_area
            )
            for record in stage
        }
        bands.append(with_title(contact_sheet([painted]), _stage_title(layer, stage)))
    return with_legend(np.concatenate(bands), LONG_LEGEND)


def write_token_view(
    policy: Policy,
    profile: RobotProfile,
    path: Path,
    *,
    inferences: int = 4,
    stride: int = 15,
    seed: int = 0,
) -> ActionChunk:
    """Lets the simulated robot work until some inferences are done, and writes what the last kept.

    Args:
        policy: With token pruning on; without, the picture shows every patch kept.
        profile: Profile of the simulated robot, `load_profile("sim")`.
        path: PNG file to write; its folder is made.
        inferences: Which inference to show, counted from 1; the first one is dense.
        stride: Control steps between inferences.
        seed: Of the cube's pose.

    Returns:
        The answer that the picture shows.

    Raises:
        ValueError: if the demonstration ends before, or the file cannot be written.
    """
    world = AlohaWorld(profile.gripper, seed=seed)
    steps = round(SCRIPTS[world.task.name].duration_s * 1e9 / world.control_period_ns)
    most = 1 + (steps - 1) // stride
    if not 1 <= inferences <= most:
        raise ValueError(
            f"inferences: expected from 1 to {most}, since at a stride of {stride} the "
            f"demonstration has no more; got {inferences}"
        )
    try:
        policy.reset()
        sights = watch_demonstration(world, profile, stride=stride)
        for number, sight in enumerate(sights, start=1):
            chunk = policy.infer(sight.observation, mode=sight.mode)
            if number == inferences:
                break
    finally:
        world.close()
    sheet = token_sheet(policy, sight.observation, chunk)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet[..., ::-1]):
        raise ValueError(f"{path}: expected a writable file name that ends in .png")
    return chunk


def _stage_title(layer: int, stage: Sequence[RetainedTokens]) -> str:
    kept = sum(record.patch_indices.size for record in stage)
    everything = sum(record.grid[0] * record.grid[1] for record in stage)
    counts = ", ".join(f"{record.patch_indices.size}" for record in stage)
    where = f"after layer {layer}" if layer else "dense"
    return f"{where}: {kept} of {everything} patches kept ({counts})"
