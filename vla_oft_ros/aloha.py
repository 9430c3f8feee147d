"""The bimanual ALOHA: 14-vector layout, grippers, limits, robot profiles. Every robot quirk lives
here.

The package speaks one language about the robot: vectors of 14, left arm first, six joint angles in
rad and one gripper opening (0 closed … 1 open) per arm. Real ALOHAs differ in names, order and
gripper constants; a `RobotProfile` holds these differences and is read from `config/aloha.yaml`.
Facts: Interbotix/aloha (branches main, 1.0, 2.0), tonyzhaozh/aloha, interbotix_ros_manipulators,
moojink/openvla-oft.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vla_oft_ros.config import ConfigError, check_fields, config_dir, doc, from_mapping, load_yaml
from vla_oft_ros.types import Observation

ARMS = ("left", "right")
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
"""Joints of one arm, in the order of xs_sdk's joint_states (aloha_vx300s.yaml)."""
JOINT_STATE_NAMES = (*ARM_JOINTS, "gripper", "left_finger", "right_finger")
"""The nine entries of one arm's joint_states: gripper is the servo angle in rad, the fingers are
metres."""
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
"""Cameras of OFT-ALOHA in the order in which the network sees them (openvla-oft, image order)."""
ARM_DIM = 7
ACTION_DIM = 14
GRIPPERS = (6, 13)
"""Positions of the two grippers in a 14-vector."""
ACTION_NAMES = tuple(f"{arm}/{joint}" for arm in ARMS for joint in (*ARM_JOINTS, "gripper"))
"""Names of a 14-vector's entries; joint_states of the two arms use the same bare names, hence the
prefix."""

START_ARM_POSE_RAD = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)
"""START_ARM_POSE of every ALOHA stack (aloha/constants.py)."""
SLEEP_ARM_POSE_RAD = (0.0, -2.05, 1.7, 0.0, -2.0, 0.0)
"""Folded pose of aloha_vx300s (interbotix_xsarm_descriptions, jazzy); outside the URDF limits on
purpose."""

# URDF aloha_vx300s: lower, upper in rad; the servo registers agree to 0.002 rad
# (aloha_vx300s.yaml).
JOINT_LOWER_RAD = (-math.pi + 1e-5, -1.8500, -1.7628, -math.pi + 1e-5, -1.8675, -math.pi + 1e-5)
JOINT_UPPER_RAD = (math.pi - 1e-5, 1.2566, 1.6057, math.pi - 1e-5, 2.2340, math.pi - 1e-5)
JOINT_VELOCITY_RAD_S = math.pi
"""URDF velocity limit of every joint; servo register Velocity_Limit 131 = 3.1415 rad/s."""


class JointStateError(ValueError):
    """A joint_states message that cannot be used; says what was expected and what came."""


@dataclass(frozen=True, kw_only=True)
class GripperCalibration:
    """Turns servo angles and finger positions into openings and back.

    ALOHA uses two scales that are not linear to each other: the *observation* is the finger
    position between its closed and open values, the *action* is the servo angle between its closed
    and open values. Finger metres are always computed from the servo angle with the geometry
    stated here: the driver's own left_finger entry uses another geometry than the constants were
    made with (aloha_vx300s against vx300s).
    """

    observed_scale: str = field(
        default="finger",
        metadata=doc(
            "What an observation is linear in: the finger position (every ALOHA of Trossen), or "
            "the servo angle itself, the same as the action (AgileX).",
            choices=["finger", "servo"],
        ),
    )
    horn_m: float = field(
        default=0.022, metadata=doc("Length of the servo horn.", unit="m", ge=0.001, le=0.2)
    )
    arm_m: float = field(
        default=0.036, metadata=doc("Length of the connecting rod.", unit="m", ge=0.001, le=0.2)
    )
    position_open_m: float = field(
        default=0.058, metadata=doc("Finger position that counts as open.", unit="m")
    )
    position_closed_m: float = field(
        default=0.01844, metadata=doc("Finger position that counts as closed.", unit="m")
    )
    joint_open_rad: float = field(
        metadata=doc("Follower servo angle that counts as open.", unit="rad")
    )
    joint_closed_rad: float = field(
        metadata=doc("Follower servo angle that counts as closed.", unit="rad")
    )
    leader_joint_open_rad: float = field(
        metadata=doc("Leader servo angle that counts as open.", unit="rad")
    )
    leader_joint_closed_rad: float = field(
        metadata=doc("Leader servo angle that counts as closed.", unit="rad")
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.arm_m <= self.horn_m:
            raise ConfigError(
                f"gripper: expected arm_m above horn_m {self.horn_m:g}; got {self.arm_m:g}"
            )
        for what in ("position", "joint", "leader_joint"):
            unit = "m" if what == "position" else "rad"
            if getattr(self, f"{what}_open_{unit}") <= getattr(self, f"{what}_closed_{unit}"):
                raise ConfigError(
                    f"gripper: expected {what}_open_{unit} above {what}_closed_{unit}"
                )

    def finger_m(self, servo_rad: float) -> float:
        """Finger position of a servo angle: x = h·sin t + √(a² − (h·cos t)²) (xs_sdk, gripper
        kinematics).
        """
        return self.horn_m * math.sin(servo_rad) + math.sqrt(
            self.arm_m**2 - (self.horn_m * math.cos(servo_rad)) ** 2
        )

    def servo_rad(self, finger_m: float) -> float:
        """Servo angle of a finger position; positions out of reach give the nearest angle. Inverse
        of `finger_m`.
        """
        reach_m = min(max(finger_m, self.arm_m - self.horn_m), self.arm_m + self.horn_m)
        sine = (self.horn_m**2 + reach_m**2 - self.arm_m**2) / (2.0 * self.horn_m * reach_m)
        return math.asin(min(max(sine, -1.0), 1.0))  # rounding may pass ±1 at the ends

    def observed_opening(self, servo_rad: float) -> float:
        """Gripper entry of an observation, 0 closed … 1 open, not clipped."""
        if self.observed_scale == "servo":
            return self.servo_rad_to_action(servo_rad)
        span = self.position_open_m - self.position_closed_m
        return (self.finger_m(servo_rad) - self.position_closed_m) / span

    def observed_finger_m(self, opening: float) -> float:
        """Finger position behind the gripper entry of an observation."""
        if self.observed_scale == "servo":
            return self.finger_m(self.action_to_servo_rad(opening))
        span = self.position_open_m - self.position_closed_m
        return self.position_closed_m + opening * span

    def action_to_servo_rad(self, opening: float) -> float:
        """Servo angle commanded by the gripper entry of an action."""
        return self.joint_closed_rad + opening * (self.joint_open_rad - self.joint_closed_rad)

    def servo_rad_to_action(self, servo_rad: float) -> float:
        """Gripper entry of an action that commands this servo angle; inverse of
        `action_to_servo_rad`.
        """
        return (servo_rad - self.joint_closed_rad) / (self.joint_open_rad - self.joint_closed_rad)

    def observed_to_action(self, opening: float) -> float:
        """Gripper entry of an action that leaves a gripper where an observation has it."""
        if self.observed_scale == "servo":
            return opening
        return self.servo_rad_to_action(self.servo_rad(self.observed_finger_m(opening)))

    def leader_to_action(self, leader_servo_rad: float) -> float:
        """Gripper entry of an action from the leader's servo angle, not clipped
        (teleoperation).
        """
        span = self.leader_joint_open_rad - self.leader_joint_closed_rad
        return (leader_servo_rad - self.leader_joint_closed_rad) / span


@dataclass(frozen=True, kw_only=True)
class RobotProfile:
    """What distinguishes one ALOHA from another: names, order, gripper constants, colour order,
    rate.
    """

    name: str = field(
        metadata=doc("Section name in config/aloha.yaml; checkpoints and data sets refer to it.")
    )
    description: str = field(metadata=doc("Which robot this is."))
    arm_order: tuple[str, ...] = field(
        default=ARMS, metadata=doc("Order of the arms in vectors that this stack records.")
    )
    camera_topics: tuple[str, ...] = field(
        metadata=doc("Image topics of cam_high, cam_left_wrist and cam_right_wrist.")
    )
    follower_joint_state_topics: tuple[str, ...] = field(
        metadata=doc("Joint states of the left and the right follower.")
    )
    leader_joint_state_topics: tuple[str, ...] = field(
        metadata=doc("Joint states of the left and the right leader.")
    )
    arm_model: str = field(
        default="vx300s",
        metadata=doc(
            "Which arm the followers are; limits and kinematics are those of the vx300s, so "
            "controller_node moves no other.",
            choices=["vx300s", "other"],
        ),
    )
    xs_namespaces: tuple[str, ...] = field(
        default=(),
        metadata=doc(
            "Namespaces of the xs_sdk drivers of the left and the right follower; empty "
            "if there are none."
        ),
    )
    joint_names: tuple[str, ...] = field(
        default=(*ARM_JOINTS, "gripper"),
        metadata=doc("Names of the seven joints in a joint_states message."),
    )
    gripper: GripperCalibration = field(metadata=doc("Gripper constants."))
    color_order: str = field(
        default="rgb", metadata=doc("Colour order of recorded images.", choices=["rgb", "bgr"])
    )
    record_rate_hz: float = field(
        default=25.0,
        metadata=doc("Rate at which this stack records.", unit="Hz", ge=1.0, le=200.0),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if sorted(self.arm_order) != sorted(ARMS):
            raise ConfigError(
                f"arm_order: expected left and right in some order; got {list(self.arm_order)}"
            )
        for name, count in (
            ("camera_topics", len(CAMERAS)),
            ("follower_joint_state_topics", len(ARMS)),
            ("leader_joint_state_topics", len(ARMS)),
            ("joint_names", ARM_DIM),
        ):
            if len(getattr(self, name)) != count:
                raise ConfigError(
                    f"{name}: expected {count} entries; got {len(getattr(self, name))}"
                )
        if len(self.xs_namespaces) not in (0, len(ARMS)):
            raise ConfigError(
                f"xs_namespaces: expected {len(ARMS)} entries or none; got "
                f"{len(self.xs_namespaces)}"
            )

    def camera_topic(self, camera: str) -> str:
        """Image topic of a camera."""
        return self.camera_topics[CAMERAS.index(camera)]

    def arm_qpos(self, names: Sequence[str], positions: Sequence[float]) -> np.ndarray:
        """One follower's part of an observation, picked by joint name so that the order of the
        message does not matter.

        Args:
            names: Joint names of the message.
            positions: Positions of the same length, rad; the gripper entry is the servo angle.

        Returns:
            (7,) float64: six joint angles in rad, gripper opening 0 (closed) … 1 (open).

        Raises:
            JointStateError: if a joint is missing, or a value is missing or not finite.
        """
        joints = self._joints(names, positions)
        joints[-1] = self.gripper.observed_opening(float(joints[-1]))
        return joints

    def leader_action(self, names: Sequence[str], positions: Sequence[float]) -> np.ndarray:
        """One arm's part of an action from its leader, as teleoperation records it.

        Args:
            names: Joint names of the leader's message.
            positions: Positions of the same length, rad; the gripper entry is the servo angle.

        Returns:
            (7,) float64: six joint angles in rad, gripper opening, which may leave 0 … 1.

        Raises:
            JointStateError: as `arm_qpos`.
        """
        joints = self._joints(names, positions)
        joints[-1] = self.gripper.leader_to_action(float(joints[-1]))
        return joints

    def holding_target(self, qpos: np.ndarray) -> np.ndarray:
        """The target that keeps an arm where it is.

        Args:
            qpos: (7,) from `arm_qpos`.

        Returns:
            (7,) float64: the same joint angles, and the gripper on the scale of actions.
        """
        target = np.array(qpos, dtype=np.float64)
        target[-1] = self.gripper.observed_to_action(float(target[-1]))
        return target

    def arm_command(self, target: np.ndarray) -> np.ndarray:
        """What the driver of one follower is told.

        Args:
            target: (7,) six joint targets in rad and a gripper opening.

        Returns:
            (7,) float64: the same joint targets and the servo angle of the gripper, rad.
        """
        command = np.array(target, dtype=np.float64)
        command[-1] = self.gripper.action_to_servo_rad(float(command[-1]))
        return command

    def _joints(self, names: Sequence[str], positions: Sequence[float]) -> np.ndarray:
        if len(names) != len(positions):
            raise JointStateError(
                f"joint_states: expected one position per name; got {len(names)} names and "
                f"{len(positions)} positions"
            )
        place = {name: index for index, name in enumerate(names)}
        missing = [name for name in self.joint_names if name not in place]
        if missing:
            raise JointStateError(
                f"joint_states: expected the joints {', '.join(self.joint_names)} of profile "
                f"{self.name!r}; "
                f"{', '.join(missing)} missing, got {', '.join(names) or 'none'}. "
                "Set joint_names of the profile in config/aloha.yaml, or choose another profile"
            )
        joints = np.array([positions[place[name]] for name in self.joint_names], dtype=np.float64)
        if not np.all(np.isfinite(joints)):
            bad = [
                name
                for name, value in zip(self.joint_names, joints, strict=True)
                if not math.isfinite(value)
            ]
            raise JointStateError(
                f"joint_states: expected finite positions; {', '.join(bad)} is not"
            )
        return joints


def load_profile(name: str, path: Path | str = "") -> RobotProfile:
    """Reads one robot profile.

    Args:
        name: Section of the file.
        path: Profile file; empty is the shipped `config/aloha.yaml`.

    Raises:
        ConfigError: if the file, the profile or one of its keys is wrong; names the known
            profiles.
    """
    file = Path(path) if path else config_dir() / "aloha.yaml"
    profiles = load_yaml(file)
    if name not in profiles:
        near = difflib.get_close_matches(name, profiles, n=1)
        raise ConfigError(
            f"{file}: expected one of the profiles {', '.join(sorted(profiles))}; got {name!r}"
            + (f", did you mean {near[0]!r}?" if near else "")
            + ". Set the parameter 'profile'"
        )
    section = profiles[name]
    if not isinstance(section, dict):
        raise ConfigError(
            f"{file}, {name}: expected a mapping of RobotProfile fields; got {section!r}"
        )
    return from_mapping(RobotProfile, {"name": name, **section}, f"{file}, {name}")


def start_pose(gripper_opening: float = 1.0) -> np.ndarray:
    """(14,) float64: both arms in the start pose, grippers at the given opening."""
    arm = np.array([*START_ARM_POSE_RAD, gripper_opening])
    return np.concatenate([arm, arm])


def position_limits() -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits of a 14-vector, each (14,) float64: rad for joints, 0 … 1 for
    grippers.
    """
    lower = np.array([*JOINT_LOWER_RAD, 0.0] * len(ARMS))
    upper = np.array([*JOINT_UPPER_RAD, 1.0] * len(ARMS))
    return lower, upper


def example_observation(
    generator: np.random.Generator, instruction: str = "transfer the cube"
) -> Observation:
    """A legal random observation (noise images, start pose ± 0.1 rad), for tests, self-tests and
    documentation.
    """
    proprio = start_pose(0.5) + generator.uniform(-0.1, 0.1, ACTION_DIM)
    images = {
        camera: generator.integers(0, 256, (480, 640, 3), dtype=np.uint8) for camera in CAMERAS
    }
    return Observation(
        images=images,
        image_stamps_ns=dict.fromkeys(images, 0),
        proprio=proprio,
        proprio_stamp_ns=0,
        instruction=instruction,
    )
