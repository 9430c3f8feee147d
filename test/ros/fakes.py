"""A policy without a network and a robot without a body: small classes instead of mocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rclpy.clock import Clock as RealClock
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

from vla_oft_ros.action_aware import MotionScale
from vla_oft_ros.aloha import (
    ACTION_DIM,
    ARMS,
    CAMERAS,
    JOINT_STATE_NAMES,
    START_ARM_POSE_RAD,
    load_profile,
)
from vla_oft_ros.ros.conversions import image_to_msg, joint_state_to_msg, stamp_to_msg
from vla_oft_ros.types import ActionChunk, KeptBy, MotionMode, Observation, RetainedTokens


class FakePolicy:
    """Answers with a ramp from the arms' present pose; remembers what it was asked.

    `answer` may be replaced; it is called in the inference thread.
    """

    cameras = CAMERAS
    action_dim = ACTION_DIM
    chunk_len = 25
    motion_scale = MotionScale()
    how_it_runs = "fake"

    def __init__(self) -> None:
        self.asked: list[Observation] = []
        self.calls: list[str] = []
        self.modes: list[MotionMode] = []
        self.answer: Callable[[Observation], ActionChunk] = self.ramp

    def reset(self) -> None:
        self.calls.append("reset")

    def infer(
        self, observation: Observation, *, mode: MotionMode = MotionMode.FINE
    ) -> ActionChunk:
        self.modes.append(mode)
        self.calls.append("infer")
        self.asked.append(observation)
        return self.answer(observation)

    def ramp(self, observation: Observation) -> ActionChunk:
        steps = np.arange(self.chunk_len)[:, None]  # (K, 1)
        return ActionChunk(
            actions=observation.proprio + 0.001 * steps,  # (K, A)
            stamp_ns=observation.stamp_ns,
            dt_ns=40_000_000,
            instruction=observation.instruction,
            inference_s=0.01,
            retained=tuple(
                RetainedTokens(
                    camera=camera,
                    stamp_ns=observation.image_stamps_ns[camera],
                    grid=(16, 16),
                    layer=2,
                    patch_indices=np.arange(number % 2, 256, 2, dtype=np.int32),
                    kept_by=np.full(128, KeptBy.LOCAL, dtype=np.uint8),
                )
                for number, camera in enumerate(self.cameras)
            ),
        )


class FakeRobot:
    """Small images of three cameras, joint states of both arms and the clock, all with one stamp.

    It lives in simulated time: every few real milliseconds, 20 simulated ones pass.
    """

    STEP_NS = 20_000_000
    REAL_STEP_S = 0.008

    def __init__(self, node: Node) -> None:
        profile = load_profile("sim")
        self.stamp_ns = 1_000_000_000
        self.silent: set[str] = set()
        """Cameras and arms that say nothing."""
        self.arms = {arm: np.array([*START_ARM_POSE_RAD, 0.5, 0.03, -0.03]) for arm in ARMS}
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._cameras = {
            camera: node.create_publisher(Image, profile.camera_topic(camera), 10)
            for camera in CAMERAS
        }
        self._joints = {
            arm: node.create_publisher(JointState, topic, 10)
            for arm, topic in zip(ARMS, profile.follower_joint_state_topics, strict=True)
        }
        node.create_timer(self.REAL_STEP_S, self.step, clock=RealClock())

    def image(self, camera: str, stamp_ns: int) -> np.ndarray:
        """(6, 8, 3) uint8: noise, another one for every camera and instant."""
        generator = np.random.default_rng([CAMERAS.index(camera), stamp_ns])
        return generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)

    def step(self) -> None:
        self.stamp_ns += self.STEP_NS
        for arm, publisher in self._joints.items():
            if arm not in self.silent:
                publisher.publish(
                    joint_state_to_msg(JOINT_STATE_NAMES, self.arms[arm], self.stamp_ns)
                )
        for camera, publisher in self._cameras.items():
            if camera not in self.silent:
                image = self.image(camera, self.stamp_ns)
                publisher.publish(image_to_msg(image, self.stamp_ns, camera))
        self._clock.publish(Clock(clock=stamp_to_msg(self.stamp_ns)))
