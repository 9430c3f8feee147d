"""What is drawn around the robot: status, planned paths, arms as measured and as wanted.

Pure functions from values to markers of the frame `world`, for RViz and Foxglove alike: standard
shapes, no meshes, no frames that somebody else must publish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker

from vla_oft_ros.aloha import ARM_DIM, ARMS
from vla_oft_ros.kinematics import ARM_JOINT_COUNT, BasePose, end_effector_pose, link_points
from vla_oft_ros.motion_watch import Motion
from vla_oft_ros.robot_model import WORLD
from vla_oft_ros.ros.conversions import stamp_to_msg
from vla_oft_ros.safety_report import SafetyState
from vla_oft_ros.types import ActionChunk

LIFETIME_NS = 1_000_000_000
"""Markers vanish when nobody renews them."""
FULL_RED_RAD = 0.1
"""Distance of a joint from its target that is shown in full red."""
_STATUS_ABOVE_M, _TEXT_M = 0.75, 0.045
_PATH_M, _STEP_M, _ARM_M, _JOINT_M = 0.006, 0.012, 0.02, 0.035
_GREY = (0.6, 0.6, 0.62)
_PLAN_COLORS = {"left": (1.0, 0.55, 0.1), "right": (0.1, 0.75, 1.0)}
_STATE_COLORS = {
    SafetyState.INACTIVE: (0.7, 0.7, 0.7),
    SafetyState.HOLD: (1.0, 0.8, 0.2),
    SafetyState.EASE_IN: (1.0, 0.8, 0.2),
    SafetyState.ACTIVE: (0.4, 1.0, 0.5),
    SafetyState.ESTOP: (1.0, 0.25, 0.2),
}
_PLACES = ((0, 1), (2,), (3, 4), (5,))
"""Joints whose errors are shown at shoulder, elbow, wrist and gripper (`link_points`)."""

Color = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Status:
    """What policy and controller last said.

    Attributes:
        motion: How the last inference judged the motion; None where the policy is silent.
        retain_ratio: Share of the patches that it kept.
        safety: State and reason of the safety gate; None where the controller is silent.
        instruction: What the last chunk answers.
        waited: Whether both were listened to for long enough to call them silent.
    """

    motion: Motion | None = None
    retain_ratio: float = 1.0
    safety: tuple[SafetyState, str] | None = None
    instruction: str = ""
    waited: bool = True


def status_text(status: Status) -> str:
    """The words above the robot, a line each."""
    lines = [f'"{status.instruction}"'] if status.instruction else []
    motion, nothing = status.motion, "silent" if status.waited else "not heard yet"
    if motion is None:
        lines.append(f"policy {nothing}")
    else:
        lines.append(f"{motion.mode.name}, {100 * status.retain_ratio:.0f} % of the patches kept")
        lines += [
            f"{arm}: v {motion.translation[index]:.2f}, w {motion.rotation[index]:.2f}"
            for index, arm in enumerate(ARMS)
        ]
    if status.safety is None:
        lines.append(f"controller {nothing}")
    else:
        state, reason = status.safety
        lines.append(f"{state.name}: {reason}" if reason else state.name)
    return "\n".join(lines)


def status_marker(status: Status, bases: Mapping[str, BasePose], stamp_ns: int) -> Marker:
    """The words above the robot, in the colour of the safety state."""
    marker = _marker("status", 0, Marker.TEXT_VIEW_FACING, stamp_ns)
    middle = np.mean([[base.x_m, base.y_m, base.z_m] for base in bases.values()], axis=0)
    marker.pose.position = _point(middle + np.array([0.0, 0.0, _STATUS_ABOVE_M]))
    marker.scale.z = _TEXT_M
    marker.text = status_text(status)
    state = SafetyState.INACTIVE if status.safety is None else status.safety[0]
    marker.color = _color(_STATE_COLORS[state])
    return marker


def gripper_path(actions: np.ndarray, arm: str, base: BasePose) -> np.ndarray:
    """Where a chunk leads one gripper.

    Args:
        actions: (K, 14) joint targets, left arm first.
        arm: Left or right.
        base: Where that arm stands.

    Returns:
        (K, 3) positions of ee_gripper_link in the frame of the table, m.
    """
    return base.place(end_effector_pose(_angles(actions, arm))[1])


def plan_markers(chunk: ActionChunk, bases: Mapping[str, BasePose], stamp_ns: int) -> list[Marker]:
    """The planned path of each gripper: a line that fades with time, a dot per control step."""
    markers = []
    for arm, base in bases.items():
        points = gripper_path(chunk.actions, arm, base)
        opacities = np.linspace(1.0, 0.2, len(points))
        colors = [_color(_PLAN_COLORS[arm], opacity) for opacity in opacities]
        for number, (kind, size_m) in enumerate(
            ((Marker.LINE_STRIP, _PATH_M), (Marker.SPHERE_LIST, _STEP_M))
        ):
            markers.append(_points(f"plan/{arm}", number, kind, size_m, points, colors, stamp_ns))
    return markers


def arm_markers(
    measured: np.ndarray | None,
    target: np.ndarray | None,
    bases: Mapping[str, BasePose],
    stamp_ns: int,
) -> list[Marker]:
    """Both arms as lines: as measured, and translucent as wanted.

    Balls at the wanted joints turn from green to red with the distance of what is measured.

    Args:
        measured: (14,) or None.
        target: (14,) or None.
        bases: Arm → where it stands.
        stamp_ns: Of the markers, nanoseconds.
    """
    markers = []
    for arm, base in bases.items():
        for name, joints, opacity in (("measured", measured, 1.0), ("target", target, 0.4)):
            if joints is None:
                continue
            points = base.place(link_points(_angles(joints, arm)))
            colors = [_color(_GREY, opacity)] * len(points)
            line = Marker.LINE_STRIP
            markers.append(_points(f"{name}/{arm}", 0, line, _ARM_M, points, colors, stamp_ns))
            if name == "target" and measured is not None:
                errors = np.abs(_angles(joints, arm) - _angles(measured, arm))
                shown = [_error_color(errors[list(place)].max()) for place in _PLACES]
                balls = Marker.SPHERE_LIST
                markers.append(
                    _points(f"{name}/{arm}", 1, balls, _JOINT_M, points[1:], shown, stamp_ns)
                )
    return markers


def _angles(joints: np.ndarray, arm: str) -> np.ndarray:
    """(..., 14) → (..., 6) joint angles of one arm."""
    start = ARMS.index(arm) * ARM_DIM
    return joints[..., start : start + ARM_JOINT_COUNT]


def _error_color(error_rad: float) -> ColorRGBA:
    red = min(float(error_rad) / FULL_RED_RAD, 1.0)
    return _color((red, 1.0 - red, 0.15), 0.7)


def _marker(namespace: str, number: int, kind: int, stamp_ns: int) -> Marker:
    marker = Marker(ns=namespace, id=number, type=kind, action=Marker.ADD)
    marker.header.frame_id = WORLD
    marker.header.stamp = stamp_to_msg(stamp_ns)
    marker.pose.orientation.w = 1.0
    marker.lifetime.sec, marker.lifetime.nanosec = divmod(LIFETIME_NS, 1_000_000_000)
    return marker


def _points(
    namespace: str,
    number: int,
    kind: int,
    size_m: float,
    points: np.ndarray,
    colors: Sequence[ColorRGBA],
    stamp_ns: int,
) -> Marker:
    marker = _marker(namespace, number, kind, stamp_ns)
    marker.scale.x = marker.scale.y = marker.scale.z = size_m
    marker.points = [_point(point) for point in points]
    marker.colors = list(colors)
    marker.color = colors[0]  # some viewers look only here
    return marker


def _point(place: np.ndarray) -> Point:
    return Point(x=float(place[0]), y=float(place[1]), z=float(place[2]))


def _color(rgb: Color, opacity: float = 1.0) -> ColorRGBA:
    return ColorRGBA(r=rgb[0], g=rgb[1], b=rgb[2], a=float(opacity))
