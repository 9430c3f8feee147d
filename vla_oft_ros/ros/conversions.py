"""Messages to values and back; every message field name of the package lives here.

Nothing is decided here; pixels are decoded by `image_decoding`, as in recordings.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES
from vla_oft_ros.image_decoding import ImageError, decode_compressed, decode_image
from vla_oft_ros.motion_watch import Motion
from vla_oft_ros.safety_report import LastIntervention, SafetyState
from vla_oft_ros.types import ActionChunk, MotionMode, RetainedTokens

if TYPE_CHECKING:
    from vla_oft_ros.data.recorder import RecorderStatus, State

NS_PER_S = 1_000_000_000


def stamp_from_msg(stamp: Time) -> int:
    """Time message → nanoseconds."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def stamp_to_msg(stamp_ns: int) -> Time:
    """Nanoseconds → Time message; inverse of `stamp_from_msg`."""
    return Time(sec=stamp_ns // NS_PER_S, nanosec=stamp_ns % NS_PER_S)


def image_from_msg(message: Image) -> np.ndarray:
    """Decodes a raw image.

    Returns:
        (H, W, 3) uint8 RGB, contiguous; for rgb8 without padding a view of the message's data.

    Raises:
        ImageError: for an encoding that is not a colour image, or sizes that do not fit together.
    """
    return decode_image(
        message.encoding,
        int(message.height),
        int(message.width),
        int(message.step),
        bool(message.is_bigendian),
        message.data,
    )


def compressed_image_from_msg(message: CompressedImage) -> np.ndarray:
    """Decodes a JPEG or PNG image.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: if the data is no image, or a compressed depth image.
    """
    return decode_compressed(message.format, message.data)


def image_to_msg(image: np.ndarray, stamp_ns: int, frame_id: str) -> Image:
    """(H, W, 3) uint8 RGB → rgb8 message."""
    height, width, _ = image.shape
    message = Image(height=height, width=width, encoding="rgb8", is_bigendian=0, step=3 * width)
    message.header.stamp = stamp_to_msg(stamp_ns)
    message.header.frame_id = frame_id
    # Assigning an ndarray would be checked element by element (100 ms); an array.array is taken as
    # it is.
    message.data = array.array("B", image.tobytes())
    return message


def compressed_image_to_msg(
    image: np.ndarray, stamp_ns: int, frame_id: str, quality: int = 90
) -> CompressedImage:
    """(H, W, 3) uint8 RGB → JPEG message.

    Raises:
        ImageError: if OpenCV cannot encode it.
    """
    done, buffer = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise ImageError(f"compressed image: JPEG encoding of a {image.shape} image failed")
    message = CompressedImage(format="rgb8; jpeg compressed bgr8")
    message.header.stamp = stamp_to_msg(stamp_ns)
    message.header.frame_id = frame_id
    message.data = array.array("B", buffer.tobytes())
    return message


def image_decoder(choice: str) -> Callable[[Image], np.ndarray]:
    """The function that decodes raw images.

    Args:
        choice: "numpy" and "auto" decode here; "cv_bridge" uses the one of the ROS installation.

    Raises:
        ImageError: if cv_bridge is asked for and not installed.
    """
    if choice in ("auto", "numpy"):
        return image_from_msg
    try:
        from cv_bridge import CvBridge
    except ImportError as error:
        raise ImageError(
            f"image_decoder: expected cv_bridge to be installed; {error}. "
            "Install ros-jazzy-cv-bridge, or set image_decoder to numpy (same pixels, no "
            "dependency)"
        ) from None
    bridge = CvBridge()

    def decode(message: Image) -> np.ndarray:
        try:
            return np.asarray(bridge.imgmsg_to_cv2(message, desired_encoding="rgb8"))
        except (TypeError, ValueError) as error:  # CvBridgeError is a TypeError
            raise ImageError(
                f"image {message.encoding} {message.width}x{message.height}: expected one that "
                f"cv_bridge turns into rgb8; it says {error}"
            ) from None

    return decode


def camera_info_to_msg(
    intrinsics: np.ndarray, width_px: int, height_px: int, stamp_ns: int, frame_id: str
) -> CameraInfo:
    """(3, 3) pinhole matrix in pixels → CameraInfo without distortion."""
    message = CameraInfo(
        width=width_px, height=height_px, distortion_model="plumb_bob", d=[0.0] * 5
    )
    message.header.stamp = stamp_to_msg(stamp_ns)
    message.header.frame_id = frame_id
    message.k = intrinsics.reshape(9).tolist()
    message.r = np.eye(3).reshape(9).tolist()
    message.p = np.hstack([intrinsics, np.zeros((3, 1))]).reshape(12).tolist()
    return message


def joint_state_to_msg(
    names: Sequence[str],
    position: np.ndarray,
    stamp_ns: int,
    velocity: np.ndarray | None = None,
    effort: np.ndarray | None = None,
) -> JointState:
    """Named joint values → JointState; velocity and effort stay empty when not given."""
    message = JointState(name=list(names), position=position.tolist())
    message.header.stamp = stamp_to_msg(stamp_ns)
    if velocity is not None:
        message.velocity = velocity.tolist()
    if effort is not None:
        message.effort = effort.tolist()
    return message


def pose_to_msg(pose: np.ndarray, stamp_ns: int, frame_id: str) -> PoseStamped:
    """(7,) position in m and quaternion (w, x, y, z) → PoseStamped."""
    message = PoseStamped()
    message.header.stamp = stamp_to_msg(stamp_ns)
    message.header.frame_id = frame_id
    place, turn = message.pose.position, message.pose.orientation
    place.x, place.y, place.z, turn.w, turn.x, turn.y, turn.z = pose.tolist()
    return message


def pose_from_msg(message: PoseStamped) -> np.ndarray:
    """PoseStamped → (7,) position in m and quaternion (w, x, y, z); inverse of `pose_to_msg`."""
    place, turn = message.pose.position, message.pose.orientation
    return np.array([place.x, place.y, place.z, turn.w, turn.x, turn.y, turn.z])


def chunk_to_msg(chunk: ActionChunk, joint_names: Sequence[str]) -> messages.ActionChunk:
    """ActionChunk → message; what was retained travels in messages of its own."""
    message = messages.ActionChunk(
        dt_s=chunk.dt_ns / NS_PER_S,
        joint_names=list(joint_names),
        chunk_len=chunk.chunk_len,
        positions=chunk.actions.reshape(-1).tolist(),  # (K · A,)
        instruction=chunk.instruction,
        inference_s=chunk.inference_s,
    )
    message.header.stamp = stamp_to_msg(chunk.stamp_ns)
    return message


def chunk_from_msg(message: messages.ActionChunk, joint_names: Sequence[str]) -> ActionChunk:
    """Message → ActionChunk; inverse of `chunk_to_msg`.

    Args:
        message: The message.
        joint_names: Joints that the receiver expects, in its order.

    Raises:
        ValueError: if it is for other joints, or its sizes do not fit together.
    """
    if list(message.joint_names) != list(joint_names):
        raise ValueError(
            f"ActionChunk: expected the joints {', '.join(joint_names)}; got "
            f"{', '.join(message.joint_names) or 'none'}. "
            "Is the policy for another robot?"
        )
    expected = message.chunk_len * len(joint_names)
    if expected == 0 or len(message.positions) != expected:
        raise ValueError(
            f"ActionChunk: expected chunk_len · {len(joint_names)} = {expected} positions, at "
            f"least one row; "
            f"got {len(message.positions)}"
        )
    if not 0.0 < message.dt_s < 10.0:
        raise ValueError(
            f"ActionChunk: expected dt_s above 0 and below 10 s; got {message.dt_s!r}"
        )
    return ActionChunk(
        actions=np.array(message.positions, dtype=np.float64).reshape(
            message.chunk_len, len(joint_names)
        ),  # (K, A)
        stamp_ns=stamp_from_msg(message.header.stamp),
        dt_ns=round(message.dt_s * NS_PER_S),
        instruction=message.instruction,
        inference_s=message.inference_s,
    )


def retained_to_msg(retained: RetainedTokens) -> messages.RetainedTokens:
    """RetainedTokens → message."""
    message = messages.RetainedTokens(
        camera=retained.camera,
        rows=retained.grid[0],
        columns=retained.grid[1],
        layer=retained.layer,
        patch_indices=array.array("I", retained.patch_indices.astype(np.uint32).tobytes()),
        kept_by=array.array("B", retained.kept_by.astype(np.uint8).tobytes()),
    )
    message.header.stamp = stamp_to_msg(retained.stamp_ns)
    return message


def retained_from_msg(message: messages.RetainedTokens) -> RetainedTokens:
    """Message → RetainedTokens; inverse of `retained_to_msg`.

    Raises:
        ValueError: if indices and flags do not fit together or leave the grid.
    """
    return RetainedTokens(
        camera=message.camera,
        stamp_ns=stamp_from_msg(message.header.stamp),
        grid=(message.rows, message.columns),
        layer=message.layer,
        patch_indices=np.array(message.patch_indices, dtype=np.int32),
        kept_by=np.array(message.kept_by, dtype=np.uint8),
    )


def safety_to_msg(
    *,
    stamp_ns: int,
    state: SafetyState,
    reason: str,
    holding_since_ns: int | None,
    counts: Mapping[str, int],
    last: LastIntervention | None,
) -> messages.SafetyStatus:
    """What the safety gate does → SafetyStatus.

    Args:
        stamp_ns: When this was so, nanoseconds.
        state: State of the gate.
        reason: Why it holds or has stopped; empty if it does not.
        holding_since_ns: Start of the present hold, nanoseconds; None if there is none.
        counts: Interventions since activation by kind.
        last: The latest intervention, if there was one.
    """
    message = messages.SafetyStatus(
        state=int(state),
        reason=reason,
        holding_since=stamp_to_msg(holding_since_ns or 0),
        intervention_kinds=list(counts),
        intervention_counts=list(counts.values()),
    )
    message.header.stamp = stamp_to_msg(stamp_ns)
    if last is not None:
        message.last_kind = last.kind
        message.last_stamp = stamp_to_msg(last.stamp_ns)
        message.joint_names = list(ACTION_NAMES)
        message.last_wanted = last.wanted.tolist()
        message.last_given = last.given.tolist()
    return message


def pruning_to_msg(
    *, stamp_ns: int, motion: Motion, ticks: int, retain_ratio: float
) -> messages.PruningStatus:
    """How the motion was judged and how much was kept → PruningStatus.

    Args:
        stamp_ns: Stamp of the observation, nanoseconds.
        motion: Mode and speeds.
        ticks: Control steps back to the reference images; 0 if there were none.
        retain_ratio: Share of the patches kept to the last layer.
    """
    fine = motion.mode is MotionMode.FINE
    message = messages.PruningStatus(
        mode=messages.PruningStatus.FINE if fine else messages.PruningStatus.COARSE,
        translation=list(motion.translation),
        rotation=list(motion.rotation),
        rise=list(motion.rise),
        reference_ticks=ticks,
        retain_ratio=retain_ratio,
    )
    message.header.stamp = stamp_to_msg(stamp_ns)
    return message


def pruning_from_msg(message: messages.PruningStatus) -> tuple[Motion, float]:
    """PruningStatus → how the motion was judged, and the share of patches that was kept."""
    fine = message.mode == messages.PruningStatus.FINE
    motion = Motion(
        mode=MotionMode.FINE if fine else MotionMode.COARSE,
        translation=(float(message.translation[0]), float(message.translation[1])),
        rotation=(float(message.rotation[0]), float(message.rotation[1])),
        rise=(float(message.rise[0]), float(message.rise[1])),
    )
    return motion, float(message.retain_ratio)


def safety_from_msg(message: messages.SafetyStatus) -> tuple[SafetyState, str]:
    """SafetyStatus → state of the gate, and why.

    Raises:
        ValueError: for a state that is none.
    """
    return SafetyState(message.state), str(message.reason)


def episode_status_to_msg(
    status: RecorderStatus,
    *,
    state: State,
    stamp_ns: int,
    topics: Sequence[str],
    instruction: str,
) -> messages.EpisodeStatus:
    """What the recorder does → EpisodeStatus.

    Args:
        status: What it says.
        state: Its state, which is inactive where the node is.
        stamp_ns: When this was so, nanoseconds.
        topics: What is heard, absolute names.
        instruction: What the next episode, or the present one, is about.
    """
    message = messages.EpisodeStatus(
        state=int(state),
        reason=status.reason,
        episode_index=status.episode_index,
        episodes_on_disk=status.episodes_on_disk,
        instruction=status.instruction or instruction,
        label=status.label,
        duration_s=status.duration_s,
        topics=list(topics),
        message_counts=[status.message_counts.get(topic, 0) for topic in topics],
        dropped_counts=[status.dropped_counts.get(topic, 0) for topic in topics],
        bytes=status.bytes,
        free_disk_bytes=status.free_disk_bytes,
        quality=int(status.quality),
        quality_reasons=list(status.quality_reasons),
    )
    message.header.stamp = stamp_to_msg(stamp_ns)
    return message
