"""How far a policy's chunks are from what the scripted teleoperator does at the same sight, mm.

Success in the closed loop says whether a policy is good enough; the aim says how far it is from
that, also long before the first success. Knows nothing of ROS or torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vla_oft_ros.aloha import ARM_DIM, ARMS, RobotProfile
from vla_oft_ros.config import SyncConfig
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.demonstrator import SCRIPTS, demonstrate
from vla_oft_ros.sim.inverse_kinematics import ToolSolver
from vla_oft_ros.sim.loop_setting import Actor
from vla_oft_ros.sim.record import measured
from vla_oft_ros.sync import ObservationBuilder
from vla_oft_ros.types import ActionChunk, MotionMode


def aim_errors(world: AlohaWorld, profile: RobotProfile, actor: Actor) -> np.ndarray:
    """Lets the teleoperator do the task; asks the policy again whenever its chunk is over.

    Args:
        world: Just reset.
        profile: Whose joint names and grippers the world has.
        actor: The policy; it only looks on.

    Returns:
        (T, 2) float64, mm: for each tick and arm, left first, the distance between the tool point
        that the policy had predicted and that of the teleoperator's target.
    """
    actor.reset()
    builder = ObservationBuilder(actor.cameras, SyncConfig())
    errors: list[np.ndarray] = []
    rows: Iterator[np.ndarray] = iter(())
    solvers = [ToolSolver(world.model, arm) for arm in ARMS]
    for targets in demonstrate(world):
        predicted = next(rows, None)
        if predicted is None:
            rows = iter(_ask(world, profile, actor, builder).actions)
            predicted = next(rows)
        apart = [
            solver.forward(mine[:-1])[0] - solver.forward(theirs[:-1])[0]
            for solver, mine, theirs in zip(
                solvers,
                predicted.reshape(len(ARMS), ARM_DIM),
                targets.reshape(len(ARMS), ARM_DIM),
                strict=True,
            )
        ]  # (arms, 3)
        errors.append(1e3 * np.linalg.norm(apart, axis=-1))  # (arms,)
        world.set_targets(targets)
        world.advance(world.control_period_ns)
    return np.stack(errors)


def grasp_tick(world: AlohaWorld) -> int:
    """Index in `aim_errors` of the tick in which the teleoperator's tool is at the cube."""
    return round(SCRIPTS[world.task.name].look_s * 1e9 / world.control_period_ns) - 1


def _ask(
    world: AlohaWorld, profile: RobotProfile, actor: Actor, builder: ObservationBuilder
) -> ActionChunk:
    now_ns = world.time_ns
    for arm, qpos in zip(ARMS, np.split(measured(world, profile), len(ARMS)), strict=True):
        builder.add_joints(arm, now_ns, qpos)
    if actor.cameras:
        images = world.images()
        for camera in actor.cameras:
            builder.add_image(camera, now_ns, images[camera])
    return actor.infer(builder.build(now_ns, world.instruction), mode=MotionMode.FINE)
