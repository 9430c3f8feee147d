"""Both arms as one URDF, and where its links are: what a 3-D view of the robot needs.

The URDF is merged from two arms' descriptions, those of Interbotix or a plain one drawn from
`kinematics`, under link names `left/…` and `right/…`. Knows nothing of ROS, files or packages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from vla_oft_ros.aloha import (
    ARM_DIM,
    ARM_JOINTS,
    ARMS,
    JOINT_LOWER_RAD,
    JOINT_UPPER_RAD,
    JOINT_VELOCITY_RAD_S,
    GripperCalibration,
)
from vla_oft_ros.kinematics import HOME_POSITION_M, BasePose, home_axes

WORLD = "world"
"""Root link: the frame of the table, in which the bases are given."""
_ALONG_AXIS_M = (0.079, 0.0, 0.0, 0.25955, 0.0, 0.429294)
"""Where on its axis each joint's frame sits: as in aloha_vx300s.urdf, though any place serves."""
_LINKS = (
    "base_link",
    "shoulder_link",
    "upper_arm_link",
    "upper_forearm_link",
    "lower_forearm_link",
    "wrist_link",
    "gripper_link",
)
"""Links of an arm as Interbotix names them; joint n moves link n + 1."""
_RADII_M = (0.05, 0.045, 0.03, 0.027, 0.025, 0.022, 0.02)
_GREY = "0.35 0.36 0.38 1"
_FINGER_M = (0.06, 0.012, 0.02)
_FINGER_LIMITS_M = (0.015, 0.06)
_MOVING = ("revolute", "continuous", "prismatic")


@dataclass(frozen=True, kw_only=True)
class LinkPose:
    """Where a link is, in the frame of its parent.

    Attributes:
        parent: Name of the parent link.
        child: Name of the link.
        position_m: (3,) m.
        quaternion: (4,) w, x, y, z.
    """

    parent: str
    child: str
    position_m: np.ndarray
    quaternion: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Joint:
    name: str
    kind: str
    axis: np.ndarray
    home: LinkPose


class RobotModel:
    """The joints of a URDF.

    Args:
        urdf: Text of the description.

    Raises:
        ValueError: if it is no URDF, or a joint is of a kind that no arm has.
    """

    def __init__(self, urdf: str) -> None:
        root = _parsed(urdf, "robot description")
        self._joints = [_joint(element) for element in root.findall("joint")]
        children = {joint.home.child for joint in self._joints}
        roots = [link.get("name", "") for link in root.findall("link")]
        self.root = next((name for name in roots if name not in children), "")
        """Name of the link that nothing carries."""

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints that move."""
        return tuple(joint.name for joint in self._joints if joint.kind in _MOVING)

    def fixed_links(self) -> list[LinkPose]:
        """Links that never move in the frame of their parent."""
        return [joint.home for joint in self._joints if joint.kind not in _MOVING]

    def moving_links(self, positions: Mapping[str, float]) -> list[LinkPose]:
        """Links that do.

        Args:
            positions: Joint name → rad, or m for a sliding one; joints left out stand at 0.
        """
        return [
            _moved(joint, positions.get(joint.name, 0.0))
            for joint in self._joints
            if joint.kind in _MOVING
        ]


def model_positions(
    joints: np.ndarray, calibration: GripperCalibration, *, commanded: bool
) -> dict[str, float]:
    """Joint positions under the names of the model.

    Args:
        joints: (14,) rad and gripper openings, left arm first.
        calibration: Of the robot's grippers.
        commanded: True for targets, whose opening is that of the servo; False for what was
            measured, whose opening is that of the fingers.

    Returns:
        Joint name → rad, fingers in m.
    """
    positions: dict[str, float] = {}
    for arm, part in zip(ARMS, joints.reshape(len(ARMS), ARM_DIM), strict=True):  # (2, 7)
        *angles, opening = (float(value) for value in part)
        if commanded or calibration.observed_scale == "servo":
            servo_rad = calibration.action_to_servo_rad(opening)
        else:
            span_m = calibration.position_open_m - calibration.position_closed_m
            servo_rad = calibration.servo_rad(calibration.position_closed_m + opening * span_m)
        finger_m = calibration.finger_m(servo_rad)
        positions |= {
            f"{arm}/{name}": angle for name, angle in zip(ARM_JOINTS, angles, strict=True)
        }
        positions[f"{arm}/gripper"] = servo_rad
        positions[f"{arm}/left_finger"], positions[f"{arm}/right_finger"] = finger_m, -finger_m
    return positions


def merge_arms(arms: Mapping[str, str], bases: Mapping[str, BasePose]) -> str:
    """One description of two arms on their table.

    Args:
        arms: Arm → its URDF, whose link names already tell the arms apart.
        bases: Arm → where it stands.

    Returns:
        A URDF whose joints are called `<arm>/<joint>` and whose root is `world`.

    Raises:
        ValueError: if a description is no URDF of one tree.
    """
    robot = ElementTree.Element("robot", name="aloha")
    ElementTree.SubElement(robot, "link", name=WORLD)
    materials: set[str | None] = set()
    for arm, urdf in arms.items():
        root = _parsed(urdf, f"description of the {arm} arm")
        carried = {child.get("link") for child in root.iterfind("joint/child")}
        bottom = [link for link in root.findall("link") if link.get("name") not in carried]
        if len(bottom) != 1:
            raise ValueError(
                f"description of the {arm} arm: expected one link that nothing carries; got "
                f"{len(bottom)}"
            )
        base, stand = bases[arm], ElementTree.SubElement(robot, "joint", type="fixed")
        stand.set("name", f"{arm}/base")
        xyz, rpy = f"{base.x_m} {base.y_m} {base.z_m}", f"0 0 {base.yaw_rad}"
        ElementTree.SubElement(stand, "origin", xyz=xyz, rpy=rpy)
        ElementTree.SubElement(stand, "parent", link=WORLD)
        ElementTree.SubElement(stand, "child", link=bottom[0].get("name", ""))
        # Transmissions, controllers and simulators' entries are left out: this is for the eye.
        for element in root:
            if element.tag == "joint":
                element.set("name", f"{arm}/{element.get('name')}")
                for mimic in element.iterfind("mimic"):
                    mimic.set("joint", f"{arm}/{mimic.get('joint')}")
                robot.append(element)
            elif element.tag == "link":
                robot.append(element)
            elif element.tag == "material" and element.get("name") not in materials:
                materials.add(element.get("name"))
                robot.append(element)
    ElementTree.indent(robot)
    return ElementTree.tostring(robot, encoding="unicode")


def plain_arm(arm: str) -> str:
    """URDF of one ViperX-300 S in cylinders and boxes, its joints where `kinematics` has them.

    Args:
        arm: Prefix of the link names.
    """
    robot = ElementTree.Element("robot", name=arm)
    material = ElementTree.SubElement(robot, "material", name="arm")
    ElementTree.SubElement(material, "color", rgba=_GREY)
    axes, feet_m = home_axes()
    frames_m = np.vstack([np.zeros(3), feet_m + axes * np.array(_ALONG_AXIS_M)[:, None]])
    ends_m = np.vstack([frames_m[1:], HOME_POSITION_M])
    for link, start_m, end_m, radius_m in zip(_LINKS, frames_m, ends_m, _RADII_M, strict=True):
        _cylinder(_link(robot, f"{arm}/{link}"), end_m - start_m, radius_m)
    for number, name in enumerate(ARM_JOINTS):
        joint = _add_joint(
            robot,
            name,
            "revolute",
            f"{arm}/{_LINKS[number]}",
            f"{arm}/{_LINKS[number + 1]}",
            frames_m[number + 1] - frames_m[number],
        )
        ElementTree.SubElement(joint, "axis", xyz=_numbers(axes[number]))
        _limit(joint, JOINT_LOWER_RAD[number], JOINT_UPPER_RAD[number])
    tip_m = HOME_POSITION_M - frames_m[-1]
    gripper, tip = f"{arm}/{_LINKS[-1]}", f"{arm}/ee_gripper_link"
    _link(robot, tip)
    _add_joint(robot, "ee_gripper", "fixed", gripper, tip, tip_m)
    for finger, side in (("left_finger", 1.0), ("right_finger", -1.0)):
        shape = _visual(_link(robot, f"{arm}/{finger}_link"), np.zeros(3), "0 0 0")
        ElementTree.SubElement(shape, "box", size=_numbers(np.array(_FINGER_M)))
        joint = _add_joint(robot, finger, "prismatic", tip, f"{arm}/{finger}_link", np.zeros(3))
        ElementTree.SubElement(joint, "axis", xyz="0 1 0")
        _limit(joint, *sorted(side * limit_m for limit_m in _FINGER_LIMITS_M))
    return ElementTree.tostring(robot, encoding="unicode")


def plain_description(bases: Mapping[str, BasePose]) -> str:
    """URDF of both arms without any mesh; arguments as `merge_arms`."""
    return merge_arms({arm: plain_arm(arm) for arm in bases}, bases)


def _parsed(urdf: str, what: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(urdf)
    except ElementTree.ParseError as error:
        raise ValueError(f"{what}: expected a URDF; {error}") from None
    if root.tag != "robot":
        raise ValueError(f"{what}: expected a URDF, whose root is <robot>; got <{root.tag}>")
    return root


def _joint(element: ElementTree.Element) -> _Joint:
    name, kind = element.get("name", ""), element.get("type", "")
    if kind not in (*_MOVING, "fixed"):
        raise ValueError(
            f"joint {name!r}: expected one of fixed, {', '.join(_MOVING)}; got {kind!r}"
        )
    origin, axis = element.find("origin"), element.find("axis")
    parent, child = element.find("parent"), element.find("child")
    if parent is None or child is None:
        raise ValueError(f"joint {name!r}: expected a parent and a child")
    direction = _vector(axis, "xyz", "1 0 0")
    home = LinkPose(
        parent=parent.get("link", ""),
        child=child.get("link", ""),
        position_m=_vector(origin, "xyz", "0 0 0"),
        quaternion=_from_rpy(*_vector(origin, "rpy", "0 0 0")),
    )
    return _Joint(name=name, kind=kind, axis=direction / np.linalg.norm(direction), home=home)


def _vector(element: ElementTree.Element | None, key: str, default: str) -> np.ndarray:
    text = default if element is None else element.get(key, default)
    return np.array([float(number) for number in text.split()])


def _moved(joint: _Joint, position: float) -> LinkPose:
    home = joint.home
    if joint.kind == "prismatic":
        shift_m = rotate(home.quaternion, joint.axis * position)
        place_m, turn = home.position_m + shift_m, home.quaternion
    else:
        half = position / 2.0
        around = np.array([math.cos(half), *(math.sin(half) * joint.axis)])
        place_m, turn = home.position_m, product(home.quaternion, around)
    return LinkPose(parent=home.parent, child=home.child, position_m=place_m, quaternion=turn)


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Product of two quaternions w, x, y, z: the turn `right`, seen from the frame `left`."""
    w, x = left[0] * right[0] - left[1:] @ right[1:], np.cross(left[1:], right[1:])
    return np.array([w, *(left[0] * right[1:] + right[0] * left[1:] + x)])


def rotate(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(3,) vector turned by a quaternion w, x, y, z of length 1."""
    w, axis = quaternion[0], quaternion[1:]
    twice = 2.0 * np.cross(axis, vector)
    return np.asarray(vector + w * twice + np.cross(axis, twice))


def _from_rpy(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Quaternion of fixed-axis angles, Rz · Ry · Rx, as URDF means them."""
    turn = np.array([1.0, 0.0, 0.0, 0.0])
    for axis, angle in ((2, yaw), (1, pitch), (0, roll)):
        part = np.zeros(4)
        part[0], part[1 + axis] = math.cos(angle / 2.0), math.sin(angle / 2.0)
        turn = product(turn, part)
    return turn


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.9g}" for value in values)


def _link(robot: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(robot, "link", name=name)


def _visual(link: ElementTree.Element, center_m: np.ndarray, rpy: str) -> ElementTree.Element:
    """Adds something visible to a link; returns where its shape belongs."""
    visual = ElementTree.SubElement(link, "visual")
    ElementTree.SubElement(visual, "origin", xyz=_numbers(center_m), rpy=rpy)
    ElementTree.SubElement(visual, "material", name="arm")
    return ElementTree.SubElement(visual, "geometry")


def _cylinder(link: ElementTree.Element, along_m: np.ndarray, radius_m: float) -> None:
    """A cylinder from the link's origin to a point in its x-z plane."""
    pitch = math.atan2(along_m[0], along_m[2])
    shape = _visual(link, along_m / 2.0, f"0 {pitch:.9g} 0")
    length = f"{np.linalg.norm(along_m):.9g}"
    ElementTree.SubElement(shape, "cylinder", radius=f"{radius_m:g}", length=length)


def _add_joint(
    robot: ElementTree.Element, name: str, kind: str, parent: str, child: str, xyz_m: np.ndarray
) -> ElementTree.Element:
    joint = ElementTree.SubElement(robot, "joint", name=name, type=kind)
    ElementTree.SubElement(joint, "origin", xyz=_numbers(xyz_m), rpy="0 0 0")
    ElementTree.SubElement(joint, "parent", link=parent)
    ElementTree.SubElement(joint, "child", link=child)
    return joint


def _limit(joint: ElementTree.Element, lower: float, upper: float) -> None:
    ElementTree.SubElement(
        joint,
        "limit",
        lower=f"{lower:.9g}",
        upper=f"{upper:.9g}",
        effort="20",
        velocity=f"{JOINT_VELOCITY_RAD_S:.9g}",
    )
