"""The world around controller and policy in which faults are injected: robot, cameras, ears.

The robot is wherever it was told to be; every stream can be silenced, falsified or stopped. What
the nodes say is kept with its time. Runs in a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import (
    ACTION_DIM,
    ACTION_NAMES,
    ARM_DIM,
    ARMS,
    CAMERAS,
    GRIPPERS,
    JOINT_STATE_NAMES,
    load_profile,
    start_pose,
)
from vla_oft_ros.ros.conversions import (
    chunk_to_msg,
    image_to_msg,
    joint_state_to_msg,
    stamp_to_msg,
)
from vla_oft_ros.ros.fault_policy import CHUNK_LEN, motion
from vla_oft_ros.ros.robot_io import targets_from_msg
from vla_oft_ros.types import ActionChunk

DT_NS = 40_000_000
_JOINTS_PERIOD_S = 0.01
_IMAGES_PERIOD_S = 0.04
_CALL_TIMEOUT_S = 10.0
_POLL_S = 0.01
_SILENCE_S = 0.2
"""Five ticks without a status: there is no controller."""
_ARM_JOINTS = [joint for joint in range(ACTION_DIM) if joint not in GRIPPERS]

EditJoints = Callable[[str, list[str], np.ndarray], tuple[list[str], np.ndarray]]
"""Arm, names and values of one joint_states message to what is sent instead."""


class FaultWorld(Node):
    """Robot, cameras and ears.

    Args:
        simulated: True to be the clock of the nodes as well (/clock).

    Attributes:
        silent: Cameras and arms that say nothing.
        edit_joints: What is done to joint states on their way.
        image_delay_ns: How old images are when they are sent.
        frozen, black: Cameras that repeat their last image, and that see nothing.
        reordered: True if every other image is sent with an older stamp than the one before.
        deadman: True while the deadman switch is pressed.
        stuck: True if the robot ignores what it is told.
        clock_offset_ns: Step of the clock, in simulated time.
        image_offsets_ns: How far off the stamps of the next images are, first of the next one.
        largest_step_rad: Largest distance of a target from where the robot was.
    """

    def __init__(self, *, simulated: bool) -> None:
        super().__init__("fault_world")
        profile = load_profile("sim")
        self._gripper = profile.gripper
        self.largest_step_rad = 0.0
        self.clock_offset_ns = 0
        self.image_offsets_ns: deque[int] = deque()
        self._generator = np.random.default_rng(0)
        self._last_images: dict[str, np.ndarray] = {}
        self._images_sent = 0
        self.pose = start_pose(0.5)
        self.targets: deque[tuple[float, np.ndarray]] = deque(maxlen=2000)
        self.statuses: deque[tuple[float, messages.SafetyStatus]] = deque(maxlen=2000)
        self.parts: dict[str, tuple[str, dict[str, str]]] = {}
        self.heal()
        self._time_publisher = self.create_publisher(Clock, "/clock", 10) if simulated else None
        self._cameras = {
            camera: self.create_publisher(Image, profile.camera_topic(camera), 5)
            for camera in CAMERAS
        }
        self._arms = {
            arm: self.create_publisher(JointState, topic, 10)
            for arm, topic in zip(ARMS, profile.follower_joint_state_topics, strict=True)
        }
        self._deadman = self.create_publisher(Empty, "/controller_node/deadman", 10)
        self._chunks = self.create_publisher(messages.ActionChunk, "action_chunk", 10)
        self.create_subscription(JointState, "joint_targets", self._on_target, 100)
        self.create_subscription(messages.SafetyStatus, "safety_status", self._on_status, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)
        self.create_timer(_JOINTS_PERIOD_S, self._publish_joints)
        self.create_timer(_IMAGES_PERIOD_S, self._publish_images)
        self._triggers = {
            name: self.create_client(Trigger, f"/controller_node/{name}")
            for name in ("estop", "reset_estop", "go_to_start", "follow_policy")
        }
        self._change_state = self.create_client(ChangeState, "/controller_node/change_state")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def heal(self) -> None:
        """Every stream is as it should be."""
        self.silent: set[str] = set()
        self.edit_joints: EditJoints | None = None
        self.image_delay_ns = 0
        self.frozen: set[str] = set()
        self.black: set[str] = set()
        self.reordered = self.stuck = False
        self.deadman = True

    def close(self) -> None:
        """Ends the thread and the node."""
        self._ending.set()
        self._thread.join()
        self._executor.remove_node(self)
        self.destroy_node()

    def _spin(self) -> None:
        while not self._ending.is_set() and rclpy.ok():
            self._executor.spin_once(timeout_sec=0.1)

    # What the world says.

    def now_ns(self) -> int:
        """Present time on the clock of the nodes."""
        return time.time_ns() + self.clock_offset_ns

    def _publish_joints(self) -> None:
        now_ns = self.now_ns()
        if self._time_publisher is not None:
            self._time_publisher.publish(Clock(clock=stamp_to_msg(now_ns)))
        if self.deadman:
            self._deadman.publish(Empty())
        for index, (arm, publisher) in enumerate(self._arms.items()):
            joints = self.pose[index * ARM_DIM : (index + 1) * ARM_DIM].copy()
            joints[-1] = self._gripper.action_to_servo_rad(joints[-1])
            names, values = list(JOINT_STATE_NAMES), np.array([*joints, 0.03, -0.03])
            if self.edit_joints is not None:
                names, values = self.edit_joints(arm, names, values)
            if arm not in self.silent:
                publisher.publish(joint_state_to_msg(names, values, now_ns))

    def _publish_images(self) -> None:
        self._images_sent += 1
        stamp_ns = self.now_ns() - self.image_delay_ns
        if self.image_offsets_ns:
            stamp_ns += self.image_offsets_ns.popleft()
        if self.reordered and self._images_sent % 2:
            stamp_ns -= round(1.5e9 * _IMAGES_PERIOD_S)
        for camera, publisher in self._cameras.items():
            if camera in self.silent:
                continue
            image = self._generator.integers(60, 200, (48, 64, 3), dtype=np.uint8)
            if camera in self.frozen:
                image = self._last_images[camera]
            self._last_images[camera] = image
            if camera in self.black:
                image = np.zeros_like(image)
            publisher.publish(image_to_msg(image, stamp_ns, camera))

    def send_chunk(
        self,
        change: Callable[[messages.ActionChunk], None],
        *,
        shift_ns: int = 0,
        dt_ns: int = DT_NS,
    ) -> None:
        """Publishes a chunk of the usual motion, shifted in time and changed."""
        stamp_ns = self.now_ns() + shift_ns
        chunk = ActionChunk(
            actions=motion(stamp_ns + dt_ns * np.arange(CHUNK_LEN)),
            stamp_ns=stamp_ns,
            dt_ns=dt_ns,
            instruction="",
            inference_s=0.0,
        )
        message = chunk_to_msg(chunk, ACTION_NAMES)
        change(message)
        self._chunks.publish(message)

    def call(self, name: str) -> bool:
        """Calls a service of the controller; returns whether it did what it was asked.

        Raises:
            TimeoutError: if there is no answer.
        """
        future = self._triggers[name].call_async(Trigger.Request())
        self._wait_for(future, name)
        return bool(future.result().success)

    def change_controller(self, transition: int) -> None:
        """Walks the controller through one transition.

        Raises:
            TimeoutError: if there is no answer.
        """
        request = ChangeState.Request(transition=Transition(id=transition))
        self._wait_for(self._change_state.call_async(request), f"transition {transition}")

    def _wait_for(self, future: rclpy.task.Future, what: str) -> None:
        if not self.until(future.done, _CALL_TIMEOUT_S):
            raise TimeoutError(f"controller_node: no answer to {what}")

    # What the world hears.

    def _on_target(self, message: JointState) -> None:
        target = targets_from_msg(message)
        step_rad = float(np.abs(target - self.pose)[_ARM_JOINTS].max())
        if not self.stuck:
            self.largest_step_rad = max(self.largest_step_rad, step_rad)
            self.pose = target
        self.targets.append((time.monotonic(), target))

    def _on_status(self, message: messages.SafetyStatus) -> None:
        self.statuses.append((time.monotonic(), message))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            self.parts[status.name] = (status.message, values)

    @property
    def status(self) -> messages.SafetyStatus | None:
        """The last thing that the safety gate said."""
        return self.statuses[-1][1] if self.statuses else None

    def arm_range_rad(self, since_s: float) -> float | None:
        """How far any arm joint's target has moved since a moment; None without targets."""
        rows = [target for at_s, target in tuple(self.targets) if at_s >= since_s]
        if len(rows) < 2:
            return None
        return float(np.ptp(np.array(rows)[:, _ARM_JOINTS], axis=0).max())

    def is_moving(self) -> bool:
        """True if the policy's motion reaches the robot."""
        if not self.statuses or time.monotonic() - self.statuses[-1][0] > _SILENCE_S:
            return False
        moved_rad = self.arm_range_rad(time.monotonic() - 0.5)
        good = (messages.SafetyStatus.ACTIVE, messages.SafetyStatus.EASE_IN)
        return bool(self.statuses[-1][1].state in good and moved_rad and moved_rad > 0.002)

    def first_status(
        self, since_s: float, wanted: Callable[[messages.SafetyStatus], bool]
    ) -> float | None:
        """When the gate first said something wanted since a moment, seconds after that moment."""
        for at_s, status in tuple(self.statuses):
            if at_s >= since_s and wanted(status):
                return at_s - since_s
        return None

    @staticmethod
    def until(condition: Callable[[], object], timeout_s: float) -> bool:
        """Waits until something is so; False if it did not come to be in time."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True
