"""Settings of the simulated robot and of its scripted operator."""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_oft_ros.config.fields import check_fields, doc

TASKS = ("transfer_cube", "pick_cube")
"""Tasks of `vla_oft_ros.sim.tasks`."""


@dataclass(frozen=True, kw_only=True)
class SimConfig:
    """Parameters of `sim_node`: a physically simulated ALOHA that speaks as the real one does."""

    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    target_topic: str = field(
        default="joint_targets",
        metadata=doc("Joint targets in (sensor_msgs/JointState, 14 names, left arm first)."),
    )
    reward_topic: str = field(
        default="task_reward", metadata=doc("Task reward out (std_msgs/Float32).")
    )
    object_topic: str = field(
        default="object_poses",
        metadata=doc(
            "True poses of the objects out, for scripted teleoperation and for plots: "
            "<object_topic>/<name> (geometry_msgs/PoseStamped, frame world)."
        ),
    )
    instruction_topic: str = field(
        default="task_instruction",
        metadata=doc(
            "What the present episode asks for (std_msgs/String, latched). Called `instruction`, "
            "it is what policy and recorder listen to."
        ),
    )
    task: str = field(
        default="transfer_cube", metadata=doc("Scene, instructions and reward.", choices=TASKS)
    )
    seed: int = field(
        default=0,
        metadata=doc(
            "Seed of object poses and instructions; each reset draws the next ones.", ge=0
        ),
    )
    control_rate_hz: float = field(
        default=25.0, metadata=doc("Rate of physics control steps.", unit="Hz", ge=1.0, le=100.0)
    )
    joint_state_rate_hz: float = field(
        default=50.0,
        metadata=doc(
            "Rate of joint states; a multiple of the control rate.", unit="Hz", ge=1.0, le=500.0
        ),
    )
    image_width_px: int = field(
        default=640, metadata=doc("Width of camera images.", unit="px", ge=16, le=4096)
    )
    image_height_px: int = field(
        default=480, metadata=doc("Height of camera images.", unit="px", ge=16, le=4096)
    )
    publish_compressed: bool = field(
        default=False, metadata=doc("Also publish JPEG images on <topic>/compressed.")
    )
    real_time_factor: float = field(
        default=1.0,
        metadata=doc(
            "Fastest simulated time allowed per real time; 0 is as fast as it goes.",
            ge=0.0,
            le=1000.0,
        ),
    )
    lockstep_timeout_s: float = field(
        default=1.0,
        metadata=doc(
            "Real time that a step waits for the joint target of the tick before, once targets "
            "flow; 0 never waits.",
            unit="s",
            ge=0.0,
            le=60.0,
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class TeleopConfig:
    """Parameters of `teleop_node`: a scripted operator at simulated leader arms."""

    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    target_topic: str = field(
        default="joint_targets",
        metadata=doc("Joint targets for the followers out (sensor_msgs/JointState, 14 names)."),
    )
    object_topic: str = field(
        default="object_poses", metadata=doc("Where the simulation says where the objects are.")
    )
    instruction_topic: str = field(
        default="task_instruction",
        metadata=doc("Where the simulation says what is asked for (std_msgs/String, latched)."),
    )
    task: str = field(
        default="transfer_cube", metadata=doc("What the operator does.", choices=TASKS)
    )
    rate_hz: float = field(
        default=50.0,
        metadata=doc("Rate of leaders and targets (50 on ALOHA).", unit="Hz", ge=5.0, le=200.0),
    )
    rest_s: float = field(
        default=0.4,
        metadata=doc(
            "How long the operator waits before and after the motion.", unit="s", ge=0.0, le=60.0
        ),
    )
    miss_share: float = field(
        default=0.0,
        metadata=doc(
            "Share of the demonstrations that miss the object on purpose, to have failures too.",
            ge=0.0,
            le=1.0,
        ),
    )
    miss_by_m: float = field(
        default=0.06, metadata=doc("How far they miss it.", unit="m", ge=0.0, le=0.5)
    )
    seed: int = field(default=0, metadata=doc("Seed of the misses.", ge=0))

    def __post_init__(self) -> None:
        check_fields(self)
