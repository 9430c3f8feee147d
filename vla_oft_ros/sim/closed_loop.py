"""One episode of a policy at the simulated robot: nothing but the wire is left out.

Tick by tick what policy_node, controller_node and sim_node do together, with the same classes:
ObservationBuilder, FrameRing, MotionWatch, ActionChunkQueue, SafetyGate. Time is simulated, and
how long an inference takes is a setting, so that a result does not depend on the machine. Cameras
are drawn only when somebody looks. Knows nothing of ROS or torch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vla_oft_ros.aloha import ARMS, RobotProfile
from vla_oft_ros.chunk_queue import ActionChunkQueue, ChunkRefused
from vla_oft_ros.config import ConfigError
from vla_oft_ros.frame_checks import FrameChecks
from vla_oft_ros.frame_ring import FrameRing, reference_ticks
from vla_oft_ros.motion_watch import MotionWatch
from vla_oft_ros.safety import SafetyGate
from vla_oft_ros.safety_report import SafetyState
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.inverse_kinematics import TOOL_M, ToolSolver
from vla_oft_ros.sim.loop_setting import Actor, EpisodeResult, LoopSetting
from vla_oft_ros.sim.record import measured
from vla_oft_ros.sync import ObservationBuilder, ObservationNotReady
from vla_oft_ros.types import ActionChunk, MotionMode, Observation

_GREY = 128
"""Of a blank image: no darker than what the frame checks let pass."""


def run_episode(
    world: AlohaWorld,
    profile: RobotProfile,
    actor: Actor,
    setting: LoopSetting,
    *,
    other: AlohaWorld | None = None,
) -> EpisodeResult:
    """Lets a policy work from the start pose to the end of the task or of the time.

    Args:
        world: Just reset.
        profile: Whose joint names and grippers the world has.
        actor: The policy.
        setting: How it is run.
        other: For `sight` other: a world of the same task, just reset; its robot gets the same
            targets and its images are what the policy sees.

    Raises:
        ConfigError: if `other` is missing or not wanted.
    """
    if (other is not None) != (setting.sight == "other"):
        raise ConfigError(
            f"run_episode: expected another world for the sight other, and only then; got "
            f"{other} for {setting.sight!r}"
        )
    worlds = [world] if other is None else [world, other]
    policy = PolicySide(actor, profile, setting, world.control_period_ns)
    controller = ControllerSide(setting, world.control_period_ns)
    tools = _Tools(world)
    rewards: list[int] = []
    done_ns: int | None = None
    settle_ns, limit_ns = setting.settle_s * 1e9, setting.time_limit_s * 1e9
    while world.time_ns < limit_ns:
        joints = measured(world, profile)
        policy.see(worlds[-1], joints)
        for chunk, arrival_ns in policy.tick(world, controller.has_played(world.time_ns)):
            controller.take(chunk, arrival_ns)
        target = controller.tick(joints, world.time_ns)
        if target is not None:
            policy.watch.update(world.time_ns, target)
        for each in worlds:
            if target is not None:
                each.set_targets(target)
            each.advance(each.control_period_ns)
        tools.look()
        rewards.append(world.reward())
        if world.task.is_success(rewards):
            done_ns = world.time_ns if done_ns is None else done_ns
            if world.time_ns - done_ns >= settle_ns:
                break
    return EpisodeResult(
        success=world.task.is_success(rewards),
        max_reward=max(rewards),
        done_s=None if done_ns is None else done_ns * 1e-9,
        end_s=world.time_ns * 1e-9,
        nearest_mm=tools.nearest_mm,
        inference_ms=tuple(policy.inference_ms),
        inference_cpu_ms=tuple(policy.inference_cpu_ms),
        kept=tuple(policy.kept),
        ticks=len(rewards),
        idle_ticks=controller.idle_ticks,
        held_ticks=controller.held_ticks,
        refused=controller.refused + policy.not_ready,
        interventions=controller.interventions(),
    )


class PolicySide:
    """What policy_node does: collects frames and joints, asks when it is time, answers late."""

    def __init__(
        self, actor: Actor, profile: RobotProfile, setting: LoopSetting, dt_ns: int
    ) -> None:
        self.inference_ms: list[float] = []
        self.inference_cpu_ms: list[float] = []
        self.kept: list[float] = []
        self.not_ready = 0
        self.watch = MotionWatch(dt_ns, actor.motion_scale)
        self._actor = actor
        self._profile = profile
        self._setting = setting
        self._dt_ns = dt_ns
        self._builder = ObservationBuilder(actor.cameras, setting.sync)
        self._checks = FrameChecks(setting.sync)
        self._ring = FrameRing(actor.cameras, tick_ns=dt_ns)
        self._next_query_ns = 0
        self._answer: tuple[ActionChunk, int] | None = None
        actor.reset()

    def see(self, seen: AlohaWorld, joints: np.ndarray) -> None:
        """Takes what the robot sends at this instant.

        Args:
            seen: World whose cameras send.
            joints: (14,) measured joint state of the robot.
        """
        now_ns = seen.time_ns
        for arm, qpos in zip(ARMS, np.split(joints, len(ARMS)), strict=True):
            self._builder.add_joints(arm, now_ns, qpos)
        shutter = _Shutter(seen)
        for camera in self._actor.cameras:
            frame = _Frame(shutter, camera)
            self._builder.add_image(camera, now_ns, frame)
            self._ring.add(camera, now_ns, frame)

    def tick(self, world: AlohaWorld, has_played: bool) -> list[tuple[ActionChunk, int]]:
        """Asks the policy if it is time.

        Args:
            world: Gives time and instruction.
            has_played: Whether the controller has nothing left to play.

        Returns:
            The chunk that has arrived since the last tick or arrives now, and when; or nothing.
        """
        now_ns = world.time_ns
        plays_out = self._setting.queue.join == "sync"
        due = has_played if plays_out else now_ns >= self._next_query_ns
        arrived = self._arrived(now_ns)
        if self._answer is None and not (plays_out and arrived) and due:
            self._ask(now_ns, self._setting.instruction or world.instruction)
            arrived += self._arrived(now_ns)
        return arrived

    def _arrived(self, now_ns: int) -> list[tuple[ActionChunk, int]]:
        if self._answer is None or self._answer[1] > now_ns:
            return []
        answer, self._answer = self._answer, None
        return [answer]

    def _ask(self, now_ns: int, instruction: str) -> None:
        try:
            observation = self._builder.build(now_ns, instruction)
            blind = self._checks.problems(observation)
            if blind:
                raise ObservationNotReady(blind)
        except ObservationNotReady:
            self.not_ready += 1
            return
        self._next_query_ns = observation.stamp_ns + self._setting.execute_steps * self._dt_ns
        motion = self.watch.motion
        if self._setting.looks_back:
            references = self._ring.reference_images(
                observation.image_stamps_ns, reference_ticks(motion.speed)
            )
            observation = replace(observation, reference_images=references)
        if self._setting.sight == "blank":
            observation = blanked(observation)
        mode = self._setting.mode
        cpu_s = time.process_time()
        chunk = self._actor.infer(
            observation, mode=motion.mode if mode == "action_aware" else MotionMode(mode)
        )
        self.inference_cpu_ms.append(1e3 * (time.process_time() - cpu_s))
        self.inference_ms.append(1e3 * chunk.inference_s)
        self.kept.append(kept_share(chunk))
        self._answer = chunk, now_ns + round(self._setting.latency_ms * 1e6)


class ControllerSide:
    """What controller_node does: queue, safety gate, one target per tick."""

    def __init__(self, setting: LoopSetting, dt_ns: int) -> None:
        self.idle_ticks = self.held_ticks = self.refused = 0
        self._queue = ActionChunkQueue(setting.queue, dt_ns)
        self._gate = SafetyGate(setting.safety, dt_ns)
        self._gate.activate()
        self._has_chunk = False

    def has_played(self, now_ns: int) -> bool:
        """Whether there is no action left."""
        return self._queue.remaining(now_ns) == 0

    def take(self, chunk: ActionChunk, now_ns: int) -> None:
        """Takes a chunk as it arrives."""
        try:
            self._queue.put(chunk, now_ns)
            self._has_chunk = True
        except ChunkRefused:
            self.refused += 1

    def tick(self, joints: np.ndarray, now_ns: int) -> np.ndarray | None:
        """(14,) the target of this tick; None before there is one."""
        wanted = self._queue.next_action(now_ns)
        self.idle_ticks += wanted is None and self._has_chunk
        decision = self._gate.check(wanted, joints, now_ns, now_ns)
        if decision.waits:
            self._queue.hold(now_ns, decision.target)
        self.held_ticks += decision.state in (SafetyState.HOLD, SafetyState.ESTOP)
        return decision.target

    def interventions(self) -> dict[str, int]:
        """Kind → how often the gate changed a target."""
        counts = Counter(self._gate.kind_counts())
        counts.pop("no_action", None)
        return dict(counts)


def blanked(observation: Observation) -> Observation:
    """The observation with every image grey: what a policy does that cannot see."""

    def grey(image: np.ndarray) -> np.ndarray:
        return np.full_like(image, _GREY)

    references = observation.reference_images
    return replace(
        observation,
        images={camera: grey(image) for camera, image in observation.images.items()},
        reference_images=None
        if references is None
        else {c: None if image is None else grey(image) for c, image in references.items()},
    )


def kept_share(chunk: ActionChunk) -> float:
    """Share of the patches of all cameras kept after the last pruning stage, 0 … 1."""
    last = max((kept.layer for kept in chunk.retained), default=0)
    shares: Sequence[float] = [k.retain_ratio for k in chunk.retained if k.layer == last]
    return float(np.mean(shares)) if shares else 1.0


class _Shutter:
    """The cameras of a world at one instant, drawn when the first of them is looked at."""

    def __init__(self, world: AlohaWorld) -> None:
        self._world = world
        self._state = world.state()
        self._images: dict[str, np.ndarray] | None = None

    def image(self, camera: str) -> np.ndarray:
        if self._images is None:
            present = self._world.state()
            self._world.restore(self._state)
            self._images = self._world.images()
            self._world.restore(present)
        return self._images[camera]


@dataclass(frozen=True, eq=False)
class _Frame:
    """One camera's image, as an undecoded message is one."""

    shutter: _Shutter
    camera: str

    def __call__(self) -> np.ndarray:
        return self.shutter.image(self.camera)


class _Tools:
    """How near the tool points have come to the cube that is meant."""

    def __init__(self, world: AlohaWorld) -> None:
        self._world = world
        solvers = [ToolSolver(world.model, arm) for arm in ARMS]
        self._bases = [(solver.base_position_m, solver.base_rotation) for solver in solvers]
        self.nearest_mm = np.inf
        self.look()

    def look(self) -> None:
        cube = self._world.cube_pose(self._world.target)[:3]
        for arm, (base_m, turn) in zip(ARMS, self._bases, strict=True):
            pose = self._world.gripper_pose(arm)
            tool = base_m + turn @ (pose[:3, 3] + TOOL_M * pose[:3, 0])
            self.nearest_mm = min(self.nearest_mm, 1e3 * float(np.linalg.norm(cube - tool)))
