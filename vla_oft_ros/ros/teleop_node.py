"""A scripted operator at simulated leader arms: the whole path of teleoperation without hardware.

Says what the drivers of real leaders say and forwards the leaders' positions to the followers as
joint targets, through the same conversion of the grippers as real teleoperation. Where the object
is it learns from the simulation.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock as NodeClock
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vla_oft_ros.aloha import ARMS, GRIPPERS, JOINT_STATE_NAMES, load_profile
from vla_oft_ros.config import TeleopConfig
from vla_oft_ros.ros.conversions import joint_state_to_msg, pose_from_msg, stamp_from_msg
from vla_oft_ros.ros.lifecycle import declare_node_config, main_of
from vla_oft_ros.ros.robot_io import targets_to_msg
from vla_oft_ros.sim.tasks import load_task

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class TeleopNode(Node):
    """Leaders and operator. Parameters: `TeleopConfig`.

    Services (std_srvs/Trigger): `~/demonstrate` begins a demonstration, `~/rest` puts the leaders
    back into the start pose. `~/phase` (latched String) says what the operator is doing.
    """

    def __init__(self) -> None:
        super().__init__("teleop_node", automatically_declare_parameters_from_overrides=True)
        self.config: TeleopConfig = declare_node_config(self, TeleopConfig)
        from vla_oft_ros.sim.aloha_world import AlohaWorld  # brings MuJoCo
        from vla_oft_ros.sim.demonstrator import SCRIPTS
        from vla_oft_ros.sim.leaders import Phase, ScriptedOperator, leader_joints

        config = self.config
        self._profile = load_profile(config.profile, config.profiles_path)
        self._leader_joints, self._busy = leader_joints, Phase.DEMONSTRATING
        self._task = load_task(config.task)
        world = AlohaWorld(
            self._profile.gripper, task=self._task
        )  # for its kinematics; nothing moves in it
        opening = float(world.targets()[GRIPPERS[0]])
        script = SCRIPTS[self._task.name]
        self._operator = ScriptedOperator(world.model, script, opening, config.rest_s)
        self._generator = np.random.default_rng(config.seed)
        self._cubes: dict[str, np.ndarray] = {}
        self._instruction = ""
        self._leader_publishers = [
            self.create_publisher(JointState, topic, 10)
            for topic in self._profile.leader_joint_state_topics
        ]
        self._target_publisher = self.create_publisher(JointState, config.target_topic, 10)
        self._phase_publisher = self.create_publisher(String, "~/phase", _LATCHED)
        for cube in self._task.cubes:
            self.create_subscription(
                PoseStamped,
                f"{config.object_topic}/{cube.name}",
                partial(self._on_cube, cube.name),
                QoSProfile(depth=1),
            )
        self.create_subscription(String, config.instruction_topic, self._on_instruction, _LATCHED)
        self.create_service(Trigger, "~/demonstrate", self._on_demonstrate)
        self.create_service(Trigger, "~/rest", self._on_rest)
        self._period_ns = round(1e9 / config.rate_hz)
        self._stamp_ns = 0
        if self.get_parameter("use_sim_time").value:
            # A timer would skip instants when two messages of the clock arrive at once.
            self.create_subscription(Clock, "/clock", self._on_clock, QoSProfile(depth=100))
        else:
            steady = NodeClock(clock_type=ClockType.STEADY_TIME)  # nobody can set it
            self.create_timer(1.0 / config.rate_hz, self._on_timer, clock=steady)
        self._tell()

    def _on_cube(self, name: str, message: PoseStamped) -> None:
        self._cubes[name] = pose_from_msg(message)

    def _on_instruction(self, message: String) -> None:
        try:
            self._task.target(message.data)
        except ValueError as error:
            self.get_logger().error(f"{self.config.instruction_topic}: {error}")
            return
        self._instruction = message.data

    def _meant_cube(self) -> np.ndarray:
        """(7,) pose of the cube that the instruction is about.

        Raises:
            ValueError: if it is not known, with what to do.
        """
        if not self._instruction and len(self._task.instructions) > 1:
            raise ValueError(
                f"nobody says on {self.config.instruction_topic} which cube is meant: start "
                f"sim_node with task: {self._task.name}"
            )
        name = self._task.target(self._instruction)
        if name not in self._cubes:
            raise ValueError(
                f"nobody says on {self.config.object_topic}/{name} where the cube is: start "
                f"sim_node with task: {self._task.name}"
            )
        return self._cubes[name]

    def _on_demonstrate(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        try:
            self._meant_cube()
        except ValueError as error:
            response.message = str(error)
            return response
        response.success = True
        offset_m = np.zeros(3)
        if self._generator.random() < self.config.miss_share:
            angle = self._generator.uniform(0.0, 2.0 * np.pi)
            offset_m[:2] = self.config.miss_by_m * np.array([np.cos(angle), np.sin(angle)])
        self._operator.demonstrate(offset_m)
        self._tell()
        return response

    def _on_rest(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._operator.rest()
        self._tell()
        response.success = True
        return response

    def _on_timer(self) -> None:
        self._tick(int(self.get_clock().now().nanoseconds))

    def _on_clock(self, message: Clock) -> None:
        stamp_ns = stamp_from_msg(message.clock)
        if not 0 <= stamp_ns - self._stamp_ns < self._period_ns:  # a clock may begin anew
            self._stamp_ns = stamp_ns
            self._tick(stamp_ns)

    def _tick(self, stamp_ns: int) -> None:
        """What leaders and operator do at one instant."""
        phase = self._operator.phase
        # Asked for anew at every tick: an operator who is still looking follows what is said.
        cube = np.zeros(3)
        if phase is self._busy:
            try:
                cube = self._meant_cube()
            except ValueError as error:
                self.get_logger().error(f"the demonstration ends: {error}")
                self._operator.rest()
        positions = self._operator.positions(stamp_ns, cube)
        targets = []
        for arm, publisher in zip(ARMS, self._leader_publishers, strict=True):
            joints = self._leader_joints(self._profile, arm, positions)
            # Velocity and effort stay empty, as a simulated driver (xs_sdk_sim) leaves them.
            publisher.publish(joint_state_to_msg(JOINT_STATE_NAMES, joints, stamp_ns))
            targets.append(self._profile.leader_action(JOINT_STATE_NAMES, joints.tolist()))
        self._target_publisher.publish(targets_to_msg(np.concatenate(targets), stamp_ns))
        if self._operator.phase is not phase:
            self._tell()

    def _tell(self) -> None:
        self._phase_publisher.publish(String(data=self._operator.phase.value))


main = main_of(TeleopNode)

if __name__ == "__main__":
    main()
