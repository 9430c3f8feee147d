"""The simulated robot: two ViperX 300 S, three cameras and a task, in MuJoCo.

Joint targets go in and joint states and images come out in the units and the order in which the
real ALOHA speaks; time advances only when asked to and is counted in whole physics steps. Knows
nothing of ROS, clocks or pacing. Physics and reward are gym-aloha's, but control comes at 25 Hz
and with grippers on ALOHA's action scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from vla_oft_ros.aloha import (
    ACTION_DIM,
    ARM_DIM,
    ARM_JOINTS,
    ARMS,
    CAMERAS,
    GRIPPERS,
    JOINT_STATE_NAMES,
    START_ARM_POSE_RAD,
    GripperCalibration,
)
from vla_oft_ros.sim.rendering import CameraRenderer
from vla_oft_ros.sim.scene import build_model
from vla_oft_ros.sim.tasks import Contacts, Task, load_task

TIMESTEP_NS = 2_000_000
"""One physics step: MuJoCo's default, which gym-aloha keeps."""
START_FINGER_M = 0.02239
"""Finger position at the start: nearly closed (gym-aloha, START_ARM_POSE)."""
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_FINGERS = ("left_finger", "right_finger")


@dataclass(frozen=True, kw_only=True)
class JointState:
    """What one arm reports, as xs_sdk's joint_states has it.

    Attributes:
        names: The nine names, `JOINT_STATE_NAMES`.
        position: (9,) float64: six joint angles and the gripper's servo angle in rad, both fingers
            in m.
        velocity: (9,) float64: rad/s; 0 for the fingers, as on the real robot.
        effort: (9,) float64: actuator torque in N·m (the real robot reports servo current in mA);
            the gripper's is the servo torque that would press the fingers as their actuators do; 0
            for the fingers.
    """

    names: tuple[str, ...]
    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray


@dataclass(frozen=True, kw_only=True)
class WorldState:
    """Everything that the future of a world depends on: restored, it repeats itself bit for bit.

    Attributes:
        time_ns: Simulated time, nanoseconds.
        instruction: What this episode asks for, on which the reward depends.
        physics: MuJoCo's integration state (positions, velocities, targets, solver warm start),
            float64.
    """

    time_ns: int
    instruction: str
    physics: np.ndarray


class AlohaWorld:
    """A bimanual ALOHA at its task.

    Not thread-safe; images can only be had in the thread that asked for the first ones.

    Args:
        calibration: Gripper constants of the robot profile.
        control_rate_hz: Rate at which targets are meant to come; its period must be whole physics
            steps of 2 ms.
        width_px: Width of camera images.
        height_px: Height of camera images.
        task: A task or its name.
        seed: Seed of object poses and instructions; each reset draws the next ones.

    Raises:
        ValueError: for an unknown task, a rate that 2 ms do not divide, or missing assets.
    """

    def __init__(
        self,
        calibration: GripperCalibration,
        *,
        control_rate_hz: float = 25.0,
        width_px: int = 640,
        height_px: int = 480,
        task: Task | str = "transfer_cube",
        seed: int = 0,
    ) -> None:
        self.task = load_task(task) if isinstance(task, str) else task
        self.control_period_ns = round(1e9 / control_rate_hz)
        if self.control_period_ns % TIMESTEP_NS:
            raise ValueError(
                "control_rate_hz: expected a rate whose period is a multiple of 2 ms "
                f"(10, 20, 25, 50, 100, …); got {control_rate_hz:g}. Set the parameter of sim_node"
            )
        self._calibration = calibration
        self._size = (width_px, height_px)
        self._generator = np.random.default_rng(seed)
        self._model = build_model(self.task.cubes, width_px, height_px)
        self._data = mujoco.MjData(self._model)
        self._renderer: CameraRenderer | None = None
        self._steps = 0
        # Addresses in the 14 + 2 actuated coordinates: (2 arms, 8), six angles, then both fingers.
        joints = [[f"vx300s_{arm}/{joint}" for joint in (*ARM_JOINTS, *_FINGERS)] for arm in ARMS]
        find = self._model.joint
        self._qpos = np.array([[find(name).qposadr[0] for name in arm] for arm in joints])
        self._qvel = np.array([[find(name).dofadr[0] for name in arm] for arm in joints])
        driven = [int(joint) for joint in self._model.actuator_trnid[:, 0]]
        self._ctrl = np.array([[driven.index(find(name).id) for name in arm] for arm in joints])
        self.reset()

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled scene, for planning on it; do not change it."""
        return self._model

    @property
    def instruction(self) -> str:
        """What this episode asks for; drawn or given at `reset`."""
        return self._instruction

    @property
    def target(self) -> str:
        """Name of the cube that the instruction is about."""
        return self.task.target(self._instruction)

    @property
    def time_ns(self) -> int:
        """Simulated time since the last reset, nanoseconds."""
        return self._steps * TIMESTEP_NS

    def reset(
        self,
        seed: int | None = None,
        cube_poses: Mapping[str, np.ndarray] | None = None,
        instruction: str | None = None,
    ) -> None:
        """Begins an episode: arms in the start pose, cubes at their places, time 0.

        What is given replaces what is drawn; the draw happens all the same.

        Args:
            seed: Starts the sequence of draws anew; without it the next start is drawn.
            cube_poses: Cube name → (7,) world pose, position in m and quaternion (w, x, y, z).
            instruction: What this episode asks for.

        Raises:
            ValueError: if `cube_poses` are not those of the task's cubes, or the instruction is
                none of the task's.
        """
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        drawn = self.task.sample(self._generator)
        poses = drawn.cube_poses if cube_poses is None else cube_poses
        expected = sorted(cube.name for cube in self.task.cubes)
        if sorted(poses) != expected:
            raise ValueError(f"cube_poses: expected poses of {expected}; got {sorted(poses)}")
        instruction = drawn.instruction if instruction is None else instruction
        self.task.target(instruction)  # refuses what the task cannot ask for
        self._instruction = instruction
        mujoco.mj_resetData(self._model, self._data)
        start = [*START_ARM_POSE_RAD, START_FINGER_M, -START_FINGER_M]
        self._data.qpos[self._qpos] = start
        self._data.ctrl[self._ctrl] = start
        for name, pose in poses.items():
            self._data.joint(f"{name}_joint").qpos[:] = pose
        self._steps = 0
        self._refresh()

    def set_targets(self, targets: np.ndarray) -> None:
        """Sets where the joints shall go, until the next call; does not advance time.

        Args:
            targets: (14,) absolute joint targets, left arm first: six angles in rad and the
                gripper, 0 (closed) … 1 (open) on the action scale (servo angle). Clipped to the
                actuators' ranges.

        Raises:
            ValueError: if they are not 14 finite numbers.
        """
        targets = np.asarray(targets, dtype=np.float64)
        if targets.shape != (ACTION_DIM,) or not np.all(np.isfinite(targets)):
            raise ValueError(
                f"targets: expected {ACTION_DIM} finite joint targets, left arm first; "
                f"got {targets!r}"
            )
        per_arm = targets.reshape(len(ARMS), ARM_DIM)  # (2, 7)
        finger = np.array(
            [
                [self._calibration.finger_m(self._calibration.action_to_servo_rad(opening))]
                for opening in per_arm[:, -1]
            ]
        )
        ctrl = np.concatenate([per_arm[:, :-1], finger, -finger], axis=1)  # (2, 8)
        lower, upper = np.moveaxis(self._model.actuator_ctrlrange[self._ctrl], -1, 0)
        self._data.ctrl[self._ctrl] = np.clip(ctrl, lower, upper)

    def advance(self, duration_ns: int) -> None:
        """Lets simulated time pass; everything read afterwards belongs to the new time.

        Args:
            duration_ns: How long, nanoseconds; a positive multiple of `TIMESTEP_NS`.

        Raises:
            ValueError: if it is not.
        """
        count, rest = divmod(duration_ns, TIMESTEP_NS)
        if count < 1 or rest:
            raise ValueError(
                f"advance: expected a positive multiple of {TIMESTEP_NS} ns, the physics step; "
                f"got {duration_ns} ns. Choose control_rate_hz and joint_state_rate_hz whose "
                "periods are multiples of 2 ms"
            )
        # Euler's method in two halves, turned round: between calls the first half, which finds
        # positions and contacts, is always done, so that images and reward are of this instant and
        # not of the step before.
        mujoco.mj_step2(self._model, self._data)
        if count > 1:
            mujoco.mj_step(self._model, self._data, count - 1)
        self._steps += count
        self._refresh()

    def _refresh(self) -> None:
        self._data.time = self.time_ns * 1e-9
        mujoco.mj_step1(self._model, self._data)
        # Forces of the present targets, for `effort`: they would be those of the step before.
        mujoco.mj_fwdActuation(self._model, self._data)

    def joint_state(self, arm: str) -> JointState:
        """What the named arm, left or right, would publish at this instant."""
        index = ARMS.index(arm)
        angles, velocity, effort = (
            values[places[index]]
            for values, places in (
                (self._data.qpos, self._qpos),
                (self._data.qvel, self._qvel),
                (self._data.actuator_force, self._ctrl),
            )
        )
        # One servo moves both fingers; here each has its own actuator, so it is their mean that
        # the servo stands for.
        finger_m = (angles[6] - angles[7]) / 2
        servo_rad = self._calibration.servo_rad(finger_m)
        m_per_rad = self._calibration_slope(servo_rad)
        gripper_rad_s = (velocity[6] - velocity[7]) / 2 / m_per_rad
        gripper_n_m = (effort[6] - effort[7]) * m_per_rad  # virtual work: torque · dθ = force · dx
        return JointState(
            names=JOINT_STATE_NAMES,
            position=np.array([*angles[:6], servo_rad, finger_m, -finger_m]),
            velocity=np.array([*velocity[:6], gripper_rad_s, 0.0, 0.0]),
            effort=np.array([*effort[:6], gripper_n_m, 0.0, 0.0]),
        )

    def _calibration_slope(self, servo_rad: float) -> float:
        """Finger metres per radian of servo angle; kept off 0, its value at x = h + a."""
        step = 1e-4
        finger_m = self._calibration.finger_m
        slope = (finger_m(servo_rad + step) - finger_m(servo_rad - step)) / (2 * step)
        return max(slope, 1e-3)

    def targets(self) -> np.ndarray:
        """(14,) float64: the targets in force, in the units of `set_targets`, after clipping."""
        ctrl = self._data.ctrl[self._ctrl]  # (2, 8)
        targets: np.ndarray = ctrl[:, :ARM_DIM].reshape(-1)  # (14,)
        for gripper in GRIPPERS:
            servo_rad = self._calibration.servo_rad(targets[gripper])
            targets[gripper] = self._calibration.servo_rad_to_action(servo_rad)
        return targets

    def images(self, cameras: Sequence[str] = CAMERAS) -> dict[str, np.ndarray]:
        """Draws cameras at this instant.

        Args:
            cameras: Names of cameras of the model; the robot's unless others are asked for.

        Returns:
            Camera name, in the order of `cameras`, → (H, W, 3) uint8 RGB.

        Raises:
            ValueError: at the first call, if no OpenGL library works; says what to install.
        """
        if self._renderer is None:
            self._renderer = CameraRenderer(self._model, *self._size)
        return self._renderer.render(self._data, cameras)

    def intrinsics(self, camera: str) -> np.ndarray:
        """(3, 3) float64 pinhole matrix K; pixel (0, 0) is the middle of the upper left one."""
        width, height = self._size
        focal_px = height / 2 / np.tan(np.deg2rad(self._model.camera(camera).fovy[0]) / 2)
        return np.array(
            [[focal_px, 0.0, (width - 1) / 2], [0.0, focal_px, (height - 1) / 2], [0.0, 0.0, 1.0]]
        )

    def camera_pose(self, camera: str) -> np.ndarray:
        """(4, 4) float64 world pose of a camera's optical frame (x right, y down, z forward)."""
        placed = self._data.camera(camera)
        pose = np.eye(4)
        pose[:3, :3] = placed.xmat.reshape(3, 3) * [1.0, -1.0, -1.0]
        pose[:3, 3] = placed.xpos
        return pose

    def gripper_pose(self, arm: str) -> np.ndarray:
        """(4, 4) float64 pose of an arm's gripper_link in its base frame (x forward, z up), m."""
        base, link = (self._data.body(f"vx300s_{arm}{part}") for part in ("", "/gripper_link"))
        turn = base.xmat.reshape(3, 3).T
        pose = np.eye(4)
        pose[:3, :3] = turn @ link.xmat.reshape(3, 3)
        pose[:3, 3] = turn @ (link.xpos - base.xpos)
        return pose

    def cube_pose(self, name: str) -> np.ndarray:
        """(7,) float64 world pose of a cube: position in m, quaternion (w, x, y, z)."""
        return np.array(self._data.joint(f"{name}_joint").qpos)

    def place_cube(self, name: str, pose: np.ndarray) -> None:
        """Puts a cube somewhere at once, as a hand would; (7,) as `cube_pose` gives it."""
        self._data.joint(f"{name}_joint").qpos[:] = pose
        self._refresh()

    def place_arm(self, arm: str, angles: np.ndarray) -> None:
        """Puts an arm into a pose at once, (6,) rad; its targets stay as they are."""
        self._data.qpos[self._qpos[ARMS.index(arm), : len(ARM_JOINTS)]] = angles
        self._refresh()

    def place_robot(self, qpos: np.ndarray) -> None:
        """Puts both arms and grippers into an observed joint state at once, (14,) as a policy sees
        it; their targets stay as they are.
        """
        for place, joints in zip(self._qpos, qpos.reshape(len(ARMS), ARM_DIM), strict=True):
            finger_m = self._calibration.observed_finger_m(float(joints[-1]))
            self._data.qpos[place] = [*joints[:-1], finger_m, -finger_m]
        self._refresh()

    def contacts(self) -> Contacts:
        """Which named geometries touch at this instant."""
        geom = self._model.geom
        pairs = self._data.contact.geom  # (contacts, 2)
        return Contacts(
            frozenset(frozenset((geom(int(a)).name, geom(int(b)).name)) for a, b in pairs)
        )

    def reward(self) -> int:
        """The task's reward of this instant, 0 … `task.max_reward`."""
        return self.task.reward(self.contacts(), self.target)

    def state(self) -> WorldState:
        """A copy of the state, for `restore`; the sequence of `reset` poses is not part of it."""
        physics = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data, physics, _STATE)
        return WorldState(time_ns=self.time_ns, instruction=self._instruction, physics=physics)

    def restore(self, state: WorldState) -> None:
        """Puts the world into a state of the same task, taken by `state`."""
        mujoco.mj_setState(self._model, self._data, state.physics, _STATE)
        self._steps = state.time_ns // TIMESTEP_NS
        self._instruction = state.instruction
        self._refresh()

    def close(self) -> None:
        """Frees what drawing has taken; the physics goes on working. Closing twice is harmless."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
