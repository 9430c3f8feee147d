"""The simulated ALOHA on the wire: it publishes and takes exactly what the real robot does.

One thread owns the physics and its OpenGL context and steps through time; the executor's thread
takes joint targets. Simulated time is published on /clock. Where the machine cannot keep up,
simulated time slows down and nothing is skipped: with `lockstep_timeout_s` a step waits until the
controller has answered the previous one.
"""

from __future__ import annotations

import threading
import time
import traceback

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock as NodeClock
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float32, String
from std_srvs.srv import Trigger

from vla_oft_ros.aloha import ARMS, CAMERAS, JointStateError, load_profile
from vla_oft_ros.config import ConfigError, SimConfig
from vla_oft_ros.ros.conversions import (
    camera_info_to_msg,
    compressed_image_to_msg,
    image_to_msg,
    joint_state_to_msg,
    pose_to_msg,
    stamp_from_msg,
    stamp_to_msg,
)
from vla_oft_ros.ros.diagnostics import OK, WARN, Diagnostics
from vla_oft_ros.ros.lifecycle import declare_node_config, main_of
from vla_oft_ros.ros.robot_io import targets_from_msg
from vla_oft_ros.sim.tasks import load_task

START_NS = 1_000_000_000
"""First simulated stamp: a ROS clock at zero counts as not running."""
_RESET_TIMEOUT_S = 10.0
_COMPLAIN_EVERY_S = 5.0


class SimNode(Node):
    """Simulated robot, cameras and task. Parameters: `SimConfig`."""

    def __init__(self) -> None:
        super().__init__("sim_node", automatically_declare_parameters_from_overrides=True)
        self.config: SimConfig = declare_node_config(self, SimConfig)
        config = self.config
        self._profile = load_profile(config.profile, config.profiles_path)
        self._dt_ns = round(1e9 / config.control_rate_hz)
        groups = config.joint_state_rate_hz / config.control_rate_hz
        if groups < 1 or groups != int(groups):
            raise ConfigError(
                f"sim_node.joint_state_rate_hz: expected a multiple of control_rate_hz "
                f"{config.control_rate_hz:g}; "
                f"got {config.joint_state_rate_hz:g}"
            )
        self._groups = int(groups)
        self._stamp_ns = START_NS
        self._condition = threading.Condition()
        self._targets: np.ndarray | None = None
        self._targets_stamp_ns = 0
        self._reset_requested = False
        self._resets = 0
        self._instruction = ""
        self._running = True
        self.failed = False
        """True once the physics thread has given up; ends the process."""
        self._real_time_factor = 1.0
        self._late_targets = 0

        self._clock_publisher = self.create_publisher(Clock, "/clock", 10)
        self._joint_publishers = [
            self.create_publisher(JointState, topic, 10)
            for topic in self._profile.follower_joint_state_topics
        ]
        sensor = qos_profile_sensor_data
        self._image_publishers, self._jpeg_publishers, self._info_publishers = {}, {}, {}
        for camera in CAMERAS:
            topic = self._profile.camera_topic(camera)
            self._image_publishers[camera] = self.create_publisher(Image, topic, sensor)
            self._info_publishers[camera] = self.create_publisher(
                CameraInfo, topic.rsplit("/", 1)[0] + "/camera_info", sensor
            )
            if config.publish_compressed:
                self._jpeg_publishers[camera] = self.create_publisher(
                    CompressedImage, f"{topic}/compressed", sensor
                )
        self._reward_publisher = self.create_publisher(Float32, config.reward_topic, 10)
        self._object_publishers = {
            cube.name: self.create_publisher(PoseStamped, f"{config.object_topic}/{cube.name}", 10)
            for cube in load_task(config.task).cubes
        }
        self._instruction_publisher = self.create_publisher(
            String,
            config.instruction_topic,
            QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        )
        self._diagnostics = Diagnostics(self)
        self.create_subscription(
            JointState, config.target_topic, self._on_targets, QoSProfile(depth=10)
        )
        self.create_service(Trigger, "~/reset", self._on_reset)
        steady = NodeClock(clock_type=ClockType.STEADY_TIME)  # not the simulated one
        self.create_timer(1.0, self._publish_diagnostics, clock=steady)
        self._thread = threading.Thread(target=self._run, name="physics")
        self._thread.start()

    def destroy_node(self) -> None:
        """Ends the physics thread, then the node."""
        with self._condition:
            self._running = False
            self._condition.notify_all()
        self._thread.join()
        super().destroy_node()

    def _on_targets(self, message: JointState) -> None:
        try:
            targets = targets_from_msg(message)
        except JointStateError as error:
            self.get_logger().error(str(error), throttle_duration_sec=_COMPLAIN_EVERY_S)
            return
        with self._condition:
            self._targets, self._targets_stamp_ns = targets, stamp_from_msg(message.header.stamp)
            self._condition.notify_all()

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Puts arms and objects back, objects at the next poses of the seed; simulated time goes
        on. The message of the answer is the instruction of the new episode.
        """
        with self._condition:
            self._reset_requested = True
            before = self._resets
            self._condition.notify_all()
            response.success = self._condition.wait_for(
                lambda: self._resets > before, _RESET_TIMEOUT_S
            )
            response.message = self._instruction
        if not response.success:
            response.message = f"no reset within {_RESET_TIMEOUT_S:g} s"
        return response

    def _run(self) -> None:
        """The physics thread."""
        try:
            self._simulate()
        except Exception as error:
            told = str(error) if isinstance(error, ValueError) else traceback.format_exc()
            self.get_logger().fatal(f"the simulation ended: {told}")
            self.failed = True

    def _simulate(self) -> None:
        from vla_oft_ros.sim.aloha_world import (
            AlohaWorld,  # brings MuJoCo and OpenGL; only this thread may draw
        )

        config = self.config
        world = AlohaWorld(
            calibration=self._profile.gripper,
            control_rate_hz=config.control_rate_hz,
            width_px=config.image_width_px,
            height_px=config.image_height_px,
            task=config.task,
            seed=config.seed,
        )
        try:
            self._begin_episode(world)
            infos = {camera: world.intrinsics(camera) for camera in CAMERAS}
            due_s = time.monotonic()
            while self._running:
                started_s = time.monotonic()
                self._take_reset(world)
                if self._targets is not None:
                    world.set_targets(self._targets)
                tick_ns = self._stamp_ns
                for group in range(1, self._groups + 1):
                    world.advance(self._dt_ns * group // self._groups - (self._stamp_ns - tick_ns))
                    self._stamp_ns = tick_ns + self._dt_ns * group // self._groups
                    self._publish_state(world)
                self._publish_objects(world)
                self._publish_images(world, infos)
                self._await_targets()
                due_s = self._pace(due_s)
                elapsed_s = time.monotonic() - started_s
                self._real_time_factor += 0.05 * (
                    self._dt_ns / 1e9 / elapsed_s - self._real_time_factor
                )
        finally:
            world.close()

    def _take_reset(self, world: object) -> None:
        with self._condition:
            if not self._reset_requested:
                return
            self._begin_episode(world)
            self._targets = None
            self._reset_requested = False
            self._resets += 1
            self._condition.notify_all()

    def _begin_episode(self, world: object) -> None:
        world.reset()
        self._instruction = world.instruction
        self.get_logger().info(f"{self.config.task}: {world.instruction!r}")
        self._instruction_publisher.publish(String(data=world.instruction))

    def _publish_state(self, world: object) -> None:
        stamp_ns = self._stamp_ns
        for arm, publisher in zip(ARMS, self._joint_publishers, strict=True):
            state = world.joint_state(arm)
            publisher.publish(
                joint_state_to_msg(
                    state.names, state.position, stamp_ns, state.velocity, state.effort
                )
            )
        # The clock last: who is woken by it finds the joint states of this instant.
        self._clock_publisher.publish(Clock(clock=stamp_to_msg(stamp_ns)))

    def _publish_objects(self, world: object) -> None:
        """What only a simulation knows: where things are, and what the task is worth now."""
        for name, publisher in self._object_publishers.items():
            publisher.publish(pose_to_msg(world.cube_pose(name), self._stamp_ns, "world"))
        self._reward_publisher.publish(Float32(data=float(world.reward())))

    def _publish_images(self, world: object, infos: dict[str, np.ndarray]) -> None:
        config = self.config
        for camera, image in world.images().items():
            frame = f"{camera}_color_optical_frame"
            self._image_publishers[camera].publish(image_to_msg(image, self._stamp_ns, frame))
            self._info_publishers[camera].publish(
                camera_info_to_msg(
                    infos[camera],
                    config.image_width_px,
                    config.image_height_px,
                    self._stamp_ns,
                    frame,
                )
            )
            if config.publish_compressed:
                self._jpeg_publishers[camera].publish(
                    compressed_image_to_msg(image, self._stamp_ns, frame)
                )

    def _await_targets(self) -> None:
        """Lock-step: once targets flow, time does not run away from the one who sends them.

        A target of any instant of the step will do: a controller's ticks need not be ours.
        """
        timeout_s = self.config.lockstep_timeout_s
        with self._condition:
            flowing = self._targets_stamp_ns > self._stamp_ns - 10 * self._dt_ns
            if timeout_s == 0.0 or not flowing:
                return
            arrived = self._condition.wait_for(
                lambda: (
                    self._targets_stamp_ns > self._stamp_ns - self._dt_ns
                    or self._reset_requested
                    or not self._running
                ),
                timeout_s,
            )
            self._late_targets += not arrived

    def _pace(self, due_s: float) -> float:
        """Sleeps until this step is due; returns when the next one is."""
        if self.config.real_time_factor == 0.0:
            return due_s
        due_s += self._dt_ns / 1e9 / self.config.real_time_factor
        now_s = time.monotonic()
        if due_s > now_s:
            time.sleep(due_s - now_s)
            return due_s
        # Behind: time has slowed down. Never catch up by running faster than asked.
        return now_s

    def _publish_diagnostics(self) -> None:
        factor = self._real_time_factor
        slow = factor < 0.95 * (self.config.real_time_factor or factor)
        self._diagnostics.publish(
            {
                "physics": (
                    WARN if slow else OK,
                    "simulated time is slower than asked" if slow else "",
                    {
                        "real_time_factor": factor,
                        "simulated_s": (self._stamp_ns - START_NS) / 1e9,
                        "resets": self._resets,
                        "steps_without_target": self._late_targets,
                    },
                )
            }
        )


main = main_of(SimNode)

if __name__ == "__main__":
    main()
