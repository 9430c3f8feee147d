"""Settings of the controller: how chunks are joined, what the safety gate lets pass, the robot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vla_oft_ros.config.fields import ConfigError, check_fields, doc


@dataclass(frozen=True, kw_only=True)
class ChunkQueueConfig:
    """How action chunks are joined into one stream of actions."""

    join: str = field(
        default="latency_matched_blend",
        metadata=doc(
            "How a new chunk follows the one that runs.",
            choices=["latency_matched_blend", "sync", "append", "replace", "temporal_ensemble"],
        ),
    )
    blend_steps: int = field(
        default=8,
        metadata=doc(
            "Control steps in which the difference at a join fades (latency_matched_blend).",
            ge=0,
            le=100,
        ),
    )
    gripper_hysteresis: float = field(
        default=0.1,
        metadata=doc(
            "While a join fades, a gripper keeps its opening unless the new one is this near to "
            "it, or this far from half open.",
            ge=0.0,
            le=0.5,
        ),
    )
    ensemble_decay: float = field(
        default=0.01,
        metadata=doc(
            "m of the weights exp(-m i), i = 0 the oldest chunk (temporal_ensemble; ACT uses "
            "0.01).",
            ge=-10.0,
            le=10.0,
        ),
    )
    play_steps: int = field(
        default=0,
        metadata=doc("Rows of a chunk that sync and append play; 0 is all.", ge=0, le=1000),
    )
    max_waiting_chunks: int = field(
        default=4, metadata=doc("Chunks that may wait to be played (append).", ge=1, le=100)
    )
    max_chunk_age_s: float = field(
        default=2.0,
        metadata=doc("Oldest observation a chunk may come from.", unit="s", ge=0.01, le=60.0),
    )
    max_future_s: float = field(
        default=0.02,
        metadata=doc(
            "How far the clock of the policy's machine may be ahead.", unit="s", ge=0.0, le=1.0
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Limits of the safety gate, the last word before the robot."""

    max_joint_age_s: float = field(
        default=0.05,
        metadata=doc("Older joint states stop the motion.", unit="s", ge=0.001, le=10.0),
    )
    position_margin_rad: float = field(
        default=0.02,
        metadata=doc("Distance kept from the joint limits.", unit="rad", ge=0.0, le=0.5),
    )
    max_velocity_rad_s: float = field(
        default=2.0,
        metadata=doc("Fastest target of an arm joint.", unit="rad/s", ge=0.01, le=3.14159),
    )
    max_acceleration_rad_s2: float = field(
        default=20.0,
        metadata=doc(
            "Largest change of a target's velocity; the default stops any motion in 0.1 s.",
            unit="rad/s^2",
            ge=0.1,
            le=200.0,
        ),
    )
    max_gripper_speed: float = field(
        default=4.0,
        metadata=doc("Fastest change of a gripper's opening.", unit="1/s", ge=0.1, le=50.0),
    )
    ease_in_velocity_rad_s: float = field(
        default=0.3,
        metadata=doc(
            "Fastest target right after a start or a hold.", unit="rad/s", ge=0.01, le=3.14159
        ),
    )
    ease_in_s: float = field(
        default=2.0,
        metadata=doc(
            "Time in which that speed grows to the normal one.", unit="s", ge=0.0, le=60.0
        ),
    )
    ease_in_tolerance_rad: float = field(
        default=0.05,
        metadata=doc(
            "Targets this near to what is wanted need no easing in.", unit="rad", ge=0.0, le=1.0
        ),
    )
    max_tracking_error_rad: float = field(
        default=0.5,
        metadata=doc(
            "Largest distance between an arm joint and its target.", unit="rad", ge=0.01, le=10.0
        ),
    )
    max_tracking_error_s: float = field(
        default=0.2,
        metadata=doc("How long it may last before everything stops.", unit="s", ge=0.0, le=10.0),
    )
    workspace_lower_m: tuple[float, ...] = field(
        default=(-0.3, -0.8, -0.05),
        metadata=doc("Lowest x, y, z of a gripper, in the frame of its arm's base.", unit="m"),
    )
    workspace_upper_m: tuple[float, ...] = field(
        default=(0.85, 0.8, 0.95),
        metadata=doc("Highest x, y, z of a gripper, in the frame of its arm's base.", unit="m"),
    )
    left_base_pose: tuple[float, ...] = field(
        default=(-0.469, 0.5, 0.0, 0.0),
        metadata=doc("x, y, z and heading of the left arm's base on the table.", unit="m, rad"),
    )
    right_base_pose: tuple[float, ...] = field(
        default=(0.469, 0.5, 0.0, 3.141592653589793),
        metadata=doc("x, y, z and heading of the right arm's base on the table.", unit="m, rad"),
    )
    min_arm_distance_m: float = field(
        default=0.08,
        metadata=doc(
            "Least distance of the axes of two links, one per arm; 0 is no check.",
            unit="m",
            ge=0.0,
            le=1.0,
        ),
    )
    min_gripper_distance_m: float = field(
        default=0.0,
        metadata=doc(
            "The same from gripper to gripper; 0, no check, lets them hand over objects.",
            unit="m",
            ge=0.0,
            le=1.0,
        ),
    )
    parking_velocity_rad_s: float = field(
        default=0.6,
        metadata=doc(
            "Fastest joint on the way to the start or sleep pose.", unit="rad/s", ge=0.01, le=1.5
        ),
    )
    parking_acceleration_rad_s2: float = field(
        default=1.5,
        metadata=doc("Largest joint acceleration on that way.", unit="rad/s^2", ge=0.01, le=15.0),
    )
    start_gripper: float = field(
        default=1.0,
        metadata=doc(
            "Opening of both grippers at the end of go_to_start, 0 closed to 1 open; they open "
            "first. Give what the demonstrations began with: a policy is lost that saw no other.",
            ge=0.0,
            le=1.0,
        ),
    )
    deadman_timeout_s: float = field(
        default=0.0,
        metadata=doc(
            "Arms hold when the deadman switch was silent for this long; 0 is no switch.",
            unit="s",
            ge=0.0,
            le=10.0,
        ),
    )
    open_grippers_on_stop: bool = field(
        default=True,
        metadata=doc("Open the grippers on an emergency stop and when the controller ends."),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name, count in (
            ("workspace_lower_m", 3),
            ("workspace_upper_m", 3),
            ("left_base_pose", 4),
            ("right_base_pose", 4),
        ):
            if len(getattr(self, name)) != count:
                raise ConfigError(
                    f"SafetyConfig.{name}: expected {count} numbers; got {getattr(self, name)}"
                )
            if not all(math.isfinite(number) for number in getattr(self, name)):
                raise ConfigError(
                    f"SafetyConfig.{name}: expected finite numbers; got {getattr(self, name)}"
                )
        if not all(
            low < high
            for low, high in zip(self.workspace_lower_m, self.workspace_upper_m, strict=True)
        ):
            raise ConfigError(
                "SafetyConfig.workspace_upper_m: expected more than workspace_lower_m in x, y and "
                f"z; got {self.workspace_upper_m} and {self.workspace_lower_m}"
            )
        if self.ease_in_velocity_rad_s > self.max_velocity_rad_s:
            raise ConfigError(
                "SafetyConfig.ease_in_velocity_rad_s: expected at most max_velocity_rad_s "
                f"{self.max_velocity_rad_s:g}; got {self.ease_in_velocity_rad_s:g}"
            )


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """Parameters of `controller_node`: action chunks in, one joint target per tick out."""

    autostart: bool = field(
        default=True, metadata=doc("Configure and activate without being asked to.")
    )
    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    chunk_topic: str = field(
        default="action_chunk", metadata=doc("Action chunks in (vla_oft_ros/ActionChunk).")
    )
    target_topic: str = field(
        default="joint_targets",
        metadata=doc("Joint targets out (sensor_msgs/JointState, 14 names, left arm first)."),
    )
    safety_topic: str = field(
        default="safety_status", metadata=doc("What the safety gate does (SafetyStatus).")
    )
    control_rate_hz: float = field(
        default=25.0, metadata=doc("Rate of joint targets.", unit="Hz", ge=1.0, le=100.0)
    )
    robot_interface: str = field(
        default="joint_state",
        metadata=doc(
            "How the robot is told: joint_state is target_topic alone, interbotix also the xs_sdk "
            "topics of each arm.",
            choices=["joint_state", "interbotix"],
        ),
    )
    interbotix_bring_up: str = field(
        default="auto",
        metadata=doc(
            "How arms are prepared and torque is switched (robot_interface interbotix): auto is "
            "through interbotix_xs_modules where it is installed, services is straight to xs_sdk.",
            choices=["auto", "services"],
        ),
    )
    realtime_priority: int = field(
        default=50,
        metadata=doc(
            "Priority of the process in the real-time class SCHED_FIFO, where permitted; 0 is the "
            "normal class.",
            ge=0,
            le=98,
        ),
    )
    deadman_topic: str = field(
        default="~/deadman",
        metadata=doc(
            "Heartbeat of the deadman switch while it is pressed (std_msgs/Empty); see "
            "safety.deadman_timeout_s."
        ),
    )
    shadow: bool = field(
        default=False,
        metadata=doc(
            "Move nothing: targets go to ~/shadow and are compared with what the teleoperator "
            "does."
        ),
    )
    teleop_topic: str = field(
        default="",
        metadata=doc(
            "What the teleoperator does, in shadow mode: joint targets like ours; empty takes the "
            "leaders' joint states."
        ),
    )
    queue: ChunkQueueConfig = field(default_factory=ChunkQueueConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)

    def __post_init__(self) -> None:
        check_fields(self)
