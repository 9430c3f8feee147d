"""Laws of the robot model: what is drawn stands where the kinematics say."""

from collections.abc import Mapping
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_oft_ros.aloha import ARMS, GRIPPERS, load_profile, position_limits, start_pose
from vla_oft_ros.kinematics import BasePose, end_effector_pose, home_axes, link_points
from vla_oft_ros.robot_model import (
    WORLD,
    LinkPose,
    RobotModel,
    merge_arms,
    model_positions,
    plain_arm,
    plain_description,
    product,
    rotate,
)

BASES = {"left": BasePose(-0.4, 0.5, 0.02, 0.3), "right": BasePose(0.5, 0.45, 0.0, 3.0)}
GRIPPER = load_profile("sim").gripper
MODEL = RobotModel(plain_description(BASES))
PLACES = ("base_link", "upper_arm_link", "upper_forearm_link", "wrist_link", "ee_gripper_link")
"""Links that stand at the points of `link_points`, apart from the shoulder's column."""

seeds = st.integers(0, 2**32 - 1)


def random_joints(seed: int) -> np.ndarray:
    lower, upper = position_limits()
    return np.random.default_rng(seed).uniform(lower, upper)


def unit_quaternion(generator: np.random.Generator) -> np.ndarray:
    quaternion = generator.normal(size=4)
    return quaternion / np.linalg.norm(quaternion)


def world_poses(
    model: RobotModel, positions: Mapping[str, float]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Link → position and quaternion in the world, by following the tree."""
    carried = {pose.child: pose for pose in model.fixed_links() + model.moving_links(positions)}

    def placed(name: str) -> tuple[np.ndarray, np.ndarray]:
        if name == model.root:
            return np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0])
        pose: LinkPose = carried[name]
        place, turn = placed(pose.parent)
        return place + rotate(turn, pose.position_m), product(turn, pose.quaternion)

    return {name: placed(name) for name in carried}


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_every_link_of_the_plain_model_is_where_the_kinematics_put_it(seed: int) -> None:
    joints = random_joints(seed)
    poses = world_poses(MODEL, model_positions(joints, GRIPPER, commanded=True))
    for number, arm in enumerate(ARMS):
        angles = joints[7 * number : 7 * number + 6]
        expected = BASES[arm].place(link_points(angles))
        for link, place in zip(PLACES, expected, strict=True):
            np.testing.assert_allclose(poses[f"{arm}/{link}"][0], place, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_the_gripper_of_the_plain_model_points_where_the_kinematics_turn_it(seed: int) -> None:
    joints = random_joints(seed)
    poses = world_poses(MODEL, model_positions(joints, GRIPPER, commanded=True))
    for number, arm in enumerate(ARMS):
        rotation, _ = end_effector_pose(joints[7 * number : 7 * number + 6])
        for axis in np.eye(3):
            expected = BASES[arm].place(rotation @ axis) - BASES[arm].place(np.zeros(3))
            turned = rotate(poses[f"{arm}/ee_gripper_link"][1], axis)
            np.testing.assert_allclose(turned, expected, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_fingers_open_along_the_gripper_and_stay_apart_by_twice_the_finger_s_way(
    seed: int,
) -> None:
    joints = random_joints(seed)
    positions = model_positions(joints, GRIPPER, commanded=True)
    poses = world_poses(MODEL, positions)
    for arm in ARMS:
        tip, turn = poses[f"{arm}/ee_gripper_link"]
        across = rotate(turn, np.array([0.0, positions[f"{arm}/left_finger"], 0.0]))
        np.testing.assert_allclose(poses[f"{arm}/left_finger_link"][0], tip + across, atol=1e-9)
        np.testing.assert_allclose(poses[f"{arm}/right_finger_link"][0], tip - across, atol=1e-9)


def test_every_moving_joint_of_the_model_is_given_a_position() -> None:
    names = set(model_positions(start_pose(), GRIPPER, commanded=False))
    assert set(MODEL.joint_names) <= names
    assert len(MODEL.joint_names) == len(ARMS) * 8
    assert MODEL.root == WORLD


@given(st.floats(0.05, 0.95))
def test_a_gripper_that_has_reached_its_target_is_drawn_where_the_target_is(
    opening: float,
) -> None:
    commanded = start_pose(opening)
    measured = commanded.copy()
    measured[list(GRIPPERS)] = GRIPPER.observed_opening(GRIPPER.action_to_servo_rad(opening))
    wanted = model_positions(commanded, GRIPPER, commanded=True)
    seen = model_positions(measured, GRIPPER, commanded=False)
    assert seen == pytest.approx(wanted, abs=1e-6)


def test_openings_of_a_robot_that_observes_its_servos_are_not_taken_for_fingers() -> None:
    gripper = load_profile("agilex").gripper
    assert model_positions(start_pose(0.3), gripper, commanded=False) == model_positions(
        start_pose(0.3), gripper, commanded=True
    )


def test_axes_at_home_are_those_of_the_screws() -> None:
    directions, points = home_axes()
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0)
    np.testing.assert_allclose((directions * points).sum(axis=1), 0.0, atol=1e-12)
    assert points[4] == pytest.approx([0.35955, 0.0, 0.42705])  # mr_descriptions.vx300s, S5


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_a_product_of_turns_is_one_turn_after_the_other(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second = unit_quaternion(generator), unit_quaternion(generator)
    vector = generator.normal(size=3)
    np.testing.assert_allclose(
        rotate(product(first, second), vector), rotate(first, rotate(second, vector)), atol=1e-12
    )


def turned_link(kind: str, rpy: str, position: float, axis: str = "0 0 2") -> LinkPose:
    urdf = (
        f'<robot name="r"><link name="a"/><link name="b"/><joint name="j" type="{kind}">'
        f'<origin xyz="1 2 3" rpy="{rpy}"/><axis xyz="{axis}"/><parent link="a"/>'
        '<child link="b"/></joint></robot>'
    )
    return RobotModel(urdf).moving_links({"j": position})[0]


def test_angles_of_a_description_turn_about_fixed_axes_first_x_then_y_then_z() -> None:
    quarter = np.pi / 2
    pose = turned_link("continuous", f"{quarter} 0 {quarter}", 0.0)
    np.testing.assert_allclose(rotate(pose.quaternion, np.array([0, 1, 0])), [0, 0, 1], atol=1e-9)
    pose = turned_link("continuous", f"{quarter} {quarter} 0", 0.0)
    np.testing.assert_allclose(rotate(pose.quaternion, np.array([0, 1, 0])), [1, 0, 0], atol=1e-9)


def test_a_joint_moves_along_or_about_its_axis_in_its_own_frame() -> None:
    quarter = np.pi / 2
    slid = turned_link("prismatic", f"{quarter} 0 0", 0.5)
    np.testing.assert_allclose(slid.position_m, [1.0, 1.5, 3.0], atol=1e-9)
    turned = turned_link("revolute", f"{quarter} 0 0", quarter)
    np.testing.assert_allclose(turned.position_m, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(
        rotate(turned.quaternion, np.array([1, 0, 0])), [0, 0, 1], atol=1e-9
    )


ARM = """<robot name="one">
  <material name="black"/><transmission name="t"/><gazebo/>
  <link name="{0}/base"/><link name="{0}/a"/><link name="{0}/b"/>
  <joint name="left" type="prismatic"><parent link="{0}/base"/><child link="{0}/a"/></joint>
  <joint name="right" type="prismatic"><parent link="{0}/base"/><child link="{0}/b"/>
    <mimic joint="left" multiplier="-1"/></joint>
</robot>"""


def test_two_descriptions_become_one_tree_whose_joints_have_names_of_their_own() -> None:
    merged = merge_arms({arm: ARM.format(arm) for arm in ARMS}, BASES)
    robot = ElementTree.fromstring(merged)
    links = [link.get("name") for link in robot.findall("link")]
    joints = [joint.get("name") for joint in robot.findall("joint")]
    assert len(set(links)) == len(links) == 7 and len(set(joints)) == len(joints) == 6
    assert {mimic.get("joint") for mimic in robot.iterfind("joint/mimic")} == {
        "left/left",
        "right/left",
    }
    assert {element.tag for element in robot} == {"link", "joint", "material"}
    assert len(robot.findall("material")) == 1
    model = RobotModel(merged)
    assert model.root == WORLD
    for pose in model.fixed_links():
        base = BASES[pose.child.partition("/")[0]]
        np.testing.assert_allclose(pose.position_m, [base.x_m, base.y_m, base.z_m])
        heading = rotate(pose.quaternion, np.array([1.0, 0.0, 0.0]))
        assert np.arctan2(heading[1], heading[0]) == pytest.approx(base.yaw_rad)


def test_every_link_that_a_joint_of_the_plain_model_names_is_there_and_can_be_seen() -> None:
    robot = ElementTree.fromstring(plain_description(BASES))
    links = {link.get("name") for link in robot.findall("link")}
    named = {part.get("link") for tag in ("parent", "child") for part in robot.iter(tag)}
    assert named == links
    visible = {link.get("name") for link in robot.findall("link") if link.find("visual")}
    assert links - visible == {WORLD, "left/ee_gripper_link", "right/ee_gripper_link"}


@pytest.mark.parametrize(
    ("urdf", "expected"),
    [
        ("<robot", "description of the left arm: expected a URDF; "),
        ("<sdf/>", "expected a URDF, whose root is <robot>; got <sdf>"),
        (
            "<robot><link name='a'/><link name='b'/></robot>",
            "one link that nothing carries; got 2",
        ),
    ],
)
def test_what_is_no_arm_is_refused(urdf: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        merge_arms({"left": urdf, "right": plain_arm("right")}, BASES)


@pytest.mark.parametrize(
    ("joint", "expected"),
    [
        ("<joint name='j' type='ball'/>", "joint 'j': expected one of fixed, revolute"),
        ("<joint name='j' type='fixed'/>", "joint 'j': expected a parent and a child"),
    ],
)
def test_a_joint_that_cannot_be_drawn_is_named(joint: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        RobotModel(f"<robot>{joint}</robot>")
