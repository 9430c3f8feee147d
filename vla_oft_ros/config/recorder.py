"""Settings of the recorder and of its verdict on an episode."""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_oft_ros.config.fields import check_fields, doc


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """When a demonstration is fit for training; judged while it is recorded."""

    min_rate_share: float = field(
        default=0.9,
        metadata=doc("Share of camera_rate_hz that each camera must deliver.", ge=0.0, le=1.0),
    )
    min_joint_rate_hz: float = field(
        default=40.0,
        metadata=doc(
            "Lowest rate of followers and leaders; real ones speak at 100 Hz.",
            unit="Hz",
            ge=0.0,
            le=1000.0,
        ),
    )
    max_image_gap_s: float = field(
        default=0.15,
        metadata=doc(
            "Longest time between two images; policy and converter refuse older ones.",
            unit="s",
            ge=0.0,
            le=10.0,
        ),
    )
    max_joint_gap_s: float = field(
        default=0.05,
        metadata=doc("Longest time between two joint states.", unit="s", ge=0.0, le=10.0),
    )
    max_skew_s: float = field(
        default=0.05,
        metadata=doc(
            "Largest time from an image to the nearest one of another camera.",
            unit="s",
            ge=0.0,
            le=10.0,
        ),
    )
    max_frozen_s: float = field(
        default=0.5,
        metadata=doc(
            "Longest time for which a camera may show the same picture while an arm moves.",
            unit="s",
            ge=0.0,
            le=60.0,
        ),
    )
    frozen_motion_rad: float = field(
        default=0.02,
        metadata=doc("A joint that has moved by this much moves.", unit="rad", ge=0.0, le=10.0),
    )
    min_brightness: float = field(
        default=10.0,
        metadata=doc("Darkest picture on average, of 255; 0 is no check.", ge=0.0, le=255.0),
    )
    max_idle_s: float = field(
        default=2.0,
        metadata=doc(
            "Longest time without motion at the beginning and at the end.",
            unit="s",
            ge=0.0,
            le=600.0,
        ),
    )
    idle_motion_rad: float = field(
        default=0.02,
        metadata=doc(
            "Less than this is no motion; for grippers, a share of the opening.",
            unit="rad",
            ge=0.0,
            le=10.0,
        ),
    )
    max_distance_rad: float = field(
        default=0.3,
        metadata=doc(
            "Largest mean distance between where a follower is and what it is told.",
            unit="rad",
            ge=0.0,
            le=10.0,
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RecorderConfig:
    """Parameters of `recorder_node`: everything on the wire in, one rosbag2 per episode out."""

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
    output_dir: str = field(
        default="recordings",
        metadata=doc("Folder of the data set; one folder per episode is made in it."),
    )
    instruction: str = field(
        default="", metadata=doc("What the operator does, until the topic says something else.")
    )
    camera_rate_hz: float = field(
        default=30.0,
        metadata=doc(
            "Rate at which the cameras are set to deliver; one data set has one rate.",
            unit="Hz",
            ge=1.0,
            le=240.0,
        ),
    )
    image_transport: str = field(
        default="auto",
        metadata=doc(
            "Which images are recorded; auto takes raw ones where they are published, else "
            "<topic>/compressed.",
            choices=["auto", "raw", "compressed"],
        ),
    )
    instruction_topic: str = field(
        default="instruction", metadata=doc("What the operator does (std_msgs/String).")
    )
    target_topic: str = field(
        default="joint_targets", metadata=doc("Joint targets, from controller or teleoperation.")
    )
    chunk_topic: str = field(default="action_chunk", metadata=doc("Action chunks of a policy."))
    retained_tokens_topic: str = field(
        default="retained_tokens", metadata=doc("What a policy kept of its images.")
    )
    pruning_status_topic: str = field(
        default="pruning_status", metadata=doc("How a policy judged the motion and pruned.")
    )
    safety_topic: str = field(
        default="safety_status", metadata=doc("What the controller's safety gate does.")
    )
    extra_topics: tuple[str, ...] = field(
        default=("/diagnostics",),
        metadata=doc("More topics to record, of any type; nobody need publish them."),
    )
    status_topic: str = field(
        default="episode_status", metadata=doc("What the recorder does (EpisodeStatus).")
    )
    gripper_trigger: str = field(
        default="off",
        metadata=doc(
            "What closing both leader grippers does: start an episode, or start and end it.",
            choices=["off", "start", "start_and_stop"],
        ),
    )
    gripper_closed: float = field(
        default=0.1,
        metadata=doc(
            "A leader gripper open by less than this share counts as closed; twice this is open "
            "again.",
            ge=0.0,
            le=0.5,
        ),
    )
    gripper_hold_s: float = field(
        default=1.0,
        metadata=doc(
            "How long both must stay closed; longer than they do in the task itself.",
            unit="s",
            ge=0.0,
            le=10.0,
        ),
    )
    max_episode_s: float = field(
        default=0.0,
        metadata=doc("An episode ends by itself after this; 0 is never.", unit="s", ge=0.0),
    )
    max_silence_s: float = field(
        default=1.0,
        metadata=doc(
            "An episode starts only if cameras, followers, and leaders or targets were heard so "
            "recently, in simulated time where that is used; 0 starts always.",
            unit="s",
            ge=0.0,
            le=60.0,
        ),
    )
    buffer_mb: int = field(
        default=512,
        metadata=doc(
            "Memory for messages that the disk has not taken yet; 512 is six seconds of three raw "
            "cameras.",
            unit="MB",
            ge=1,
            le=65536,
        ),
    )
    min_free_disk_gb: float = field(
        default=2.0,
        metadata=doc(
            "With less space an episode is not started, and a running one is ended.",
            unit="GB",
            ge=0.0,
        ),
    )
    status_rate_hz: float = field(
        default=2.0, metadata=doc("Rate of the status.", unit="Hz", ge=0.5, le=20.0)
    )
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        check_fields(self)
