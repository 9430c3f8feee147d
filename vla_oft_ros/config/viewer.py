"""Settings of the viewer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vla_oft_ros.config.fields import ConfigError, check_fields, doc


@dataclass(frozen=True, kw_only=True)
class TokenViewerConfig:
    """Parameters of `token_viewer_node`: shows what the policy saw, kept and plans.

    It only listens: nothing here changes what policy or controller do.
    """

    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    chunk_topic: str = field(default="action_chunk", metadata=doc("Action chunks in."))
    retained_tokens_topic: str = field(
        default="retained_tokens", metadata=doc("What was kept of each camera in.")
    )
    pruning_status_topic: str = field(
        default="pruning_status", metadata=doc("Mode, speeds and retain ratio in.")
    )
    target_topic: str = field(
        default="joint_targets", metadata=doc("Joint targets in, as the controller sends them.")
    )
    safety_topic: str = field(
        default="safety_status", metadata=doc("What the safety gate does in.")
    )
    image_transport: str = field(
        default="auto",
        metadata=doc(
            "Kind of camera topics: raw images, compressed ones on <topic>/compressed, or the "
            "first that delivers.",
            choices=["auto", "raw", "compressed"],
        ),
    )
    image_decoder: str = field(
        default="auto",
        metadata=doc(
            "Decoder of raw images: the package's own, or cv_bridge.",
            choices=["auto", "numpy", "cv_bridge"],
        ),
    )
    overlay_topic: str = field(
        default="viewer/overlay",
        metadata=doc(
            "Overlay images out: <overlay_topic>/<camera> and the same with /compressed."
        ),
    )
    marker_topic: str = field(
        default="viewer/markers",
        metadata=doc("Status, planned paths and arms out (visualization_msgs/MarkerArray)."),
    )
    joint_state_topic: str = field(
        default="viewer/joint_states",
        metadata=doc("Measured joints out, under the names of the robot description."),
    )
    joint_target_topic: str = field(
        default="viewer/joint_targets",
        metadata=doc("Joint targets out, under the names of the robot description."),
    )
    robot_description_topic: str = field(
        default="robot_description", metadata=doc("URDF of both arms out (std_msgs/String).")
    )
    robot_description: str = field(
        default="auto",
        metadata=doc(
            "Which arms are drawn: those of interbotix_xsarm_descriptions, plain ones, or the "
            "former where they are installed.",
            choices=["auto", "interbotix", "plain"],
        ),
    )
    publish_tf: bool = field(
        default=True,
        metadata=doc(
            "Publish the frames of the robot description on /tf, measured and (with the prefix "
            "target) as wanted; needs tf2_msgs."
        ),
    )
    layer: int = field(
        default=0,
        metadata=doc(
            "Transformer layer whose retained tokens are shown; 0 is the last that pruned.", ge=0
        ),
    )
    crop_area: float = field(
        default=0.9,
        metadata=doc(
            "Share of the image's area that the network sees: 0.9 with center_crop, else 1.",
            ge=0.1,
            le=1.0,
        ),
    )
    jpeg_quality: int = field(
        default=90, metadata=doc("Quality of compressed overlays.", ge=1, le=100)
    )
    frames: int = field(
        default=50,
        metadata=doc("Frames of a camera that may wait for their tokens.", ge=1, le=1000),
    )
    rate_hz: float = field(
        default=25.0,
        metadata=doc("Rate of markers and frames, in real time.", unit="Hz", ge=1.0, le=100.0),
    )
    stale_after_s: float = field(
        default=2.0,
        metadata=doc(
            "Policy or controller that said nothing for so long are called silent.",
            unit="s",
            ge=0.1,
            le=3600.0,
        ),
    )
    left_base_pose: tuple[float, ...] = field(
        default=(-0.469, 0.5, 0.0, 0.0),
        metadata=doc(
            "x, y, z and heading of the left arm's base on the table; as in controller.yaml.",
            unit="m, rad",
        ),
    )
    right_base_pose: tuple[float, ...] = field(
        default=(0.469, 0.5, 0.0, 3.141592653589793),
        metadata=doc(
            "x, y, z and heading of the right arm's base on the table; as in controller.yaml.",
            unit="m, rad",
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("left_base_pose", "right_base_pose"):
            pose = getattr(self, name)
            if len(pose) != 4 or not all(math.isfinite(number) for number in pose):
                raise ConfigError(
                    f"TokenViewerConfig.{name}: expected 4 finite numbers; got {pose}"
                )
