"""A live run to take pictures of: simulation, policy, controller and viewer as processes.

Listens to the same topics as RViz would and keeps the moment that shows most.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from visualization_msgs.msg import MarkerArray

from vla_oft_ros.aloha import ARMS, CAMERAS, load_profile
from vla_oft_ros.config import SimConfig, config_dir, load_node_config
from vla_oft_ros.ros.conversions import image_from_msg, pose_from_msg, stamp_from_msg
from vla_oft_ros.ros.demo_attempts import DemoAttempts, Phase
from vla_oft_ros.ros.demo_monitor import DemoMonitor
from vla_oft_ros.ros.processes import NodeProcesses, keep_on_loopback
from vla_oft_ros.sim.tasks import Task, load_task

TILE_PX = (320, 240)
TILE_EVERY = 5
"""Of so many camera frames one is kept for the contact sheet: 5 a second."""
_DENSE_ANSWERS = 3
"""First answers of the policy that are not shown: pruning begins with the second."""
_START_TIMEOUT_S = 600.0
_SLOWEST = 0.02
_FRAMES = QoSProfile(depth=12, reliability=ReliabilityPolicy.BEST_EFFORT)

Moment = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Scene:
    """One moment of the run.

    Attributes:
        overlays: Camera → (H, W, 3) uint8 RGB as token_viewer_node published it.
        paths: Arm → (K, 3) planned gripper positions in the frame of the table, m, as published.
        status: The words above the robot.
        qpos: (14,) measured joints.
        cubes: Cube name → (7,) pose in the world.
    """

    overlays: Moment
    paths: Mapping[str, np.ndarray]
    status: str
    qpos: np.ndarray
    cubes: Mapping[str, np.ndarray]

    @property
    def way_m(self) -> float:
        """Length of both planned paths."""
        steps = [np.diff(path, axis=0) for path in self.paths.values()]
        return float(sum(np.linalg.norm(step, axis=1).sum() for step in steps))


@dataclass(frozen=True)
class Run:
    """What was seen.

    Attributes:
        scene: The moment that shows most.
        handover: Moments of the first attempt that did the task; empty without one.
        instruction: What the policy was asked for.
        summary: How the attempts went.
    """

    scene: Scene
    handover: list[Moment]
    instruction: str
    summary: str


class _Photographer:
    """Hears what a viewer on another machine would hear."""

    def __init__(
        self,
        monitor: DemoMonitor,
        attempts: DemoAttempts,
        task: Task,
        worth: Callable[[Scene], float],
    ) -> None:
        self._monitor, self._attempts, self._worth = monitor, attempts, worth
        self.best: Scene | None = None
        self._best_worth = 0.0
        self.tiles: list[Moment] = []
        self._cubes: dict[str, np.ndarray] = {}
        self._overlays: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
        self._pending: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
        self._answers = 0
        self._fresh: dict[str, np.ndarray] | None = None
        self._frames = 0
        sim = load_node_config(SimConfig, config_dir() / "sim.yaml", "sim_node")
        profile = load_profile(sim.profile)
        for camera in CAMERAS:
            overlay, topic = f"viewer/overlay/{camera}", profile.camera_topic(camera)
            monitor.create_subscription(Image, overlay, partial(self._on_overlay, camera), 10)
            monitor.create_subscription(Image, topic, partial(self._on_frame, camera), _FRAMES)
        for cube in task.cubes:
            topic = f"{sim.object_topic}/{cube.name}"
            monitor.create_subscription(PoseStamped, topic, partial(self._on_cube, cube.name), 10)
        monitor.create_subscription(MarkerArray, "viewer/markers", self._on_markers, 10)

    def _on_cube(self, name: str, message: PoseStamped) -> None:
        self._cubes[name] = pose_from_msg(message)

    def _on_overlay(self, camera: str, message: Image) -> None:
        found = self._overlays[stamp_from_msg(message.header.stamp)]
        found[camera] = image_from_msg(message)
        if len(found) == len(CAMERAS):
            self._answers += 1
            self._fresh = {camera: found[camera] for camera in CAMERAS}
            self._overlays.clear()

    def _on_markers(self, message: MarkerArray) -> None:
        qpos = self._monitor.qpos()
        if self._fresh is None or qpos is None or self._attempts.phase is not Phase.ACTING:
            return
        overlays, self._fresh = self._fresh, None
        by_name = {(marker.ns, marker.id): marker for marker in message.markers}
        lines = {arm: (f"plan/{arm}", 0) for arm in ARMS}
        if self._answers <= _DENSE_ANSWERS or not by_name.keys() >= set(lines.values()):
            return
        paths = {
            arm: np.array([[point.x, point.y, point.z] for point in by_name[name].points])
            for arm, name in lines.items()
        }
        status = by_name[("status", 0)].text
        scene = Scene(overlays, paths, status, qpos, dict(self._cubes))
        worth = self._worth(scene)
        if self.best is None or worth > self._best_worth:
            self.best, self._best_worth = scene, worth

    def _on_frame(self, camera: str, message: Image) -> None:
        if self._attempts.phase is not Phase.ACTING or not self._answers:
            self.tiles.clear()
            return
        tiles = self._pending[stamp_from_msg(message.header.stamp)]
        tiles[camera] = image_from_msg(message)
        if len(tiles) == len(CAMERAS):
            if self._frames % TILE_EVERY == 0:
                small = {
                    camera: cv2.resize(tiles[camera], TILE_PX, interpolation=cv2.INTER_AREA)
                    for camera in CAMERAS
                }
                self.tiles.append(small)
            self._frames += 1
            self._pending.clear()


def watch(
    checkpoint: Path, folder: Path, *, seconds: float, seed: int, worth: Callable[[Scene], float]
) -> Run:
    """Lets a policy act and keeps what there is to show.

    Args:
        checkpoint: Directory of the policy.
        folder: For log files.
        seconds: Simulated time; ends earlier once the policy has done its task.
        seed: Of the objects' poses.
        worth: How much a moment shows; the one of which it is highest is kept.

    Raises:
        RuntimeError: if a process ends or nothing comes, with what it said.
    """
    keep_on_loopback(os.environ, config_dir())
    os.environ["ROS_LOG_DIR"] = str(folder)
    sim = load_node_config(SimConfig, config_dir() / "sim.yaml", "sim_node")
    task = load_task(sim.task)
    instruction = next(iter(task.instructions))
    rclpy.init()
    monitor, executor = DemoMonitor(seconds, folder / "cameras.mp4"), SingleThreadedExecutor()
    executor.add_node(monitor)
    attempts = DemoAttempts(monitor, task)
    monitor.on_reward = attempts.on_reward
    photographer = _Photographer(monitor, attempts, task, worth)
    handover: list[Moment] = []
    begun_s = time.monotonic()
    try:
        with NodeProcesses(config_dir(), folder, os.environ) as nodes:
            _start(nodes, checkpoint, instruction, seed)
            while not monitor.done and not handover:
                executor.spin_once(timeout_sec=0.1)
                for name, code in nodes.ended().items():
                    raise RuntimeError(f"{name} ended with {code}:\n{nodes.log_tail(name)}")
                allowed_s = _START_TIMEOUT_S + (seconds / _SLOWEST if monitor.started_ns else 0.0)
                if time.monotonic() > begun_s + allowed_s:
                    said = nodes.log_tail("policy_node")
                    raise RuntimeError(f"the run is too slow; the policy said\n{said}")
                if monitor.started_ns is None:
                    continue
                before = list(photographer.tiles)
                attempts.update(monitor.now_ns - monitor.started_ns, monitor.qpos())
                if attempts.successes:
                    handover = before
    finally:
        executor.remove_node(monitor)
        monitor.close()
        monitor.destroy_node()
        rclpy.try_shutdown()
    if photographer.best is None:
        raise RuntimeError("the viewer showed no pruned answer of the policy; watch it longer")
    return Run(photographer.best, handover, instruction, attempts.summary())


def _start(nodes: NodeProcesses, checkpoint: Path, instruction: str, seed: int) -> None:
    simulated: dict[str, object] = {"use_sim_time": True, "exit_with_parent": True}
    nodes.start("sim_node", "sim.yaml", {"exit_with_parent": True, "seed": seed})
    policy = {
        "instruction": instruction,
        "policy.checkpoint_dir": str(checkpoint),
        "policy.threads": 1,
    }
    nodes.start("policy_node", "policy.yaml", {**simulated, **policy})
    nodes.start("controller_node", "controller.yaml", simulated)
    nodes.start("token_viewer_node", "token_viewer.yaml", simulated)
