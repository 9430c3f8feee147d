"""The viewer: the very frame under the tokens, arms where they are, and nobody waits for it."""

from collections.abc import Callable

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros.graph import parameters
from ros.viewer_bench import (
    FRAME_NS,
    HIGH,
    KEPT,
    PROFILE,
    SIDE_PX,
    Bench,
    chunk,
    kept_pixel,
    picture,
    tokens,
)
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from visualization_msgs.msg import Marker, MarkerArray

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import (
    ARMS,
    CAMERAS,
    START_ARM_POSE_RAD,
    load_profile,
    start_pose,
)
from vla_oft_ros.kinematics import BasePose, end_effector_pose, link_points
from vla_oft_ros.motion_watch import Motion
from vla_oft_ros.overlay import COLORS
from vla_oft_ros.overlay_caption import STRIP_PX
from vla_oft_ros.robot_model import WORLD, RobotModel, model_positions
from vla_oft_ros.ros.conversions import (
    compressed_image_from_msg,
    compressed_image_to_msg,
    image_from_msg,
    image_to_msg,
    pruning_to_msg,
    safety_to_msg,
    stamp_from_msg,
)
from vla_oft_ros.ros.model_frames import LATCHED, transform_to_msg
from vla_oft_ros.ros.robot_io import targets_to_msg
from vla_oft_ros.ros.token_viewer_node import TokenViewerNode
from vla_oft_ros.ros.viewer_markers import (
    FULL_RED_RAD,
    Status,
    arm_markers,
    plan_markers,
    status_marker,
    status_text,
)
from vla_oft_ros.safety_report import SafetyState
from vla_oft_ros.types import ActionChunk, KeptBy, MotionMode


def test_the_overlay_is_drawn_on_the_frame_that_the_policy_used_not_on_the_newest(
    make_bench: Callable,
) -> None:
    bench = make_bench()
    shown = bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    bench.show_frames(9)
    bench.say(tokens(4 * FRAME_NS))
    bench.graph.until(lambda: shown, "an overlay")
    assert stamp_from_msg(shown[0].header.stamp) == 4 * FRAME_NS
    overlay = image_from_msg(shown[0])
    assert overlay.shape == (SIDE_PX + 2 * STRIP_PX, SIDE_PX, 3)
    inside = overlay[STRIP_PX:-STRIP_PX]
    assert kept_pixel(overlay) == picture(4)[0, 0, 0]
    assert np.any(np.all(inside == COLORS[KeptBy.DYNAMIC], axis=-1))
    assert inside[-1, -1, 0] == int(picture(4)[0, 0, 0] * 0.3)  # pruned: dimmed


def test_nothing_is_drawn_of_tokens_whose_frame_never_came(make_bench: Callable) -> None:
    bench = make_bench()
    shown = bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    told = bench.graph.hear(DiagnosticArray, "/diagnostics")
    bench.show_frames(3)
    bench.say(tokens(4 * FRAME_NS + 1))
    bench.graph.listen_in_silence()
    assert shown == []
    bench.say(tokens(2 * FRAME_NS))
    bench.graph.until(lambda: shown, "an overlay")

    def missed() -> bool:
        values = {pair.key: pair.value for pair in told[-1].status[0].values} if told else {}
        return values.get("missed_frames") == "1" and values.get("drawn") == "1"

    bench.graph.until(missed, "a missed frame in /diagnostics")


@pytest.mark.parametrize(("asked", "expected"), [(0, 25), (12, 10)])
def test_stages_that_come_one_by_one_make_one_overlay_of_the_last_or_of_that_asked_for(
    asked: int, expected: int, make_bench: Callable
) -> None:
    bench = make_bench(rate_hz=5.0, layer=asked)
    shown = bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    bench.show_frames(3)
    stages = (2, 10, 15, 20, 25)
    kept = {stage: KEPT if stage == expected else KEPT + 100 for stage in stages}
    bench.say(*(tokens(2 * FRAME_NS, layer=stage, kept=kept[stage]) for stage in stages))
    bench.graph.until(lambda: shown, "an overlay")
    bench.graph.listen_in_silence(0.5)
    assert len(shown) == 1
    assert kept_pixel(image_from_msg(shown[0])) == picture(2)[0, 0, 0]  # else it would be dim


def test_raw_and_compressed_overlays_are_the_same_picture(make_bench: Callable) -> None:
    bench = make_bench()
    raw = bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    jpeg = bench.graph.hear(CompressedImage, f"viewer/overlay/{HIGH}/compressed")
    bench.show_frames(3)
    bench.say(tokens(2 * FRAME_NS))
    bench.graph.until(lambda: raw and jpeg, "both overlays")
    assert raw[0].header == jpeg[0].header
    difference = image_from_msg(raw[0]).astype(int) - compressed_image_from_msg(jpeg[0])
    assert np.abs(difference).mean() < 4.0


def test_cameras_that_are_compressed_are_shown_too(make_bench: Callable) -> None:
    bench = make_bench()
    shown = bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    topic = f"{PROFILE.camera_topic(HIGH)}/compressed"
    publisher = bench.graph.ear.create_publisher(CompressedImage, topic, 10)
    bench.graph.until(publisher.get_subscription_count, "a viewer")
    publisher.publish(compressed_image_to_msg(picture(3), 3 * FRAME_NS, HIGH))
    bench.graph.listen_in_silence()
    bench.say(tokens(3 * FRAME_NS))
    bench.graph.until(lambda: shown, "an overlay")
    assert kept_pixel(image_from_msg(shown[0])) == pytest.approx(picture(3)[0, 0, 0], abs=2)


def test_an_image_too_small_for_its_patches_is_told_and_the_next_one_shown(
    make_bench: Callable,
) -> None:
    bench = make_bench()
    shown = bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    bench.show_frames(1)
    small = np.zeros((8, 8, 3), dtype=np.uint8)
    bench.images[HIGH].publish(image_to_msg(small, 2 * FRAME_NS, HIGH))
    bench.graph.listen_in_silence()
    bench.say(tokens(2 * FRAME_NS))
    bench.graph.listen_in_silence()
    assert shown == []
    bench.images[HIGH].publish(image_to_msg(picture(3), 3 * FRAME_NS, HIGH))
    bench.say(tokens(3 * FRAME_NS))
    bench.graph.until(lambda: shown, "an overlay")


def positions(marker: Marker) -> np.ndarray:
    return np.array([[point.x, point.y, point.z] for point in marker.points])


def bases(node: TokenViewerNode) -> dict[str, BasePose]:
    poses = (node.config.left_base_pose, node.config.right_base_pose)
    return {arm: BasePose(*pose) for arm, pose in zip(ARMS, poses, strict=True)}


def test_markers_show_paths_and_arms_where_the_kinematics_have_them(make_bench: Callable) -> None:
    bench = make_bench()
    heard = bench.graph.hear(MarkerArray, "viewer/markers")
    generator = np.random.default_rng(0)
    actions = start_pose() + np.cumsum(generator.normal(0, 0.02, (25, 14)), axis=0)
    target = start_pose() + 0.05

    def all_there() -> dict:
        now_ns = bench.now_ns()
        bench.say(chunk(now_ns, actions), targets_to_msg(target, now_ns))
        bench.move(start_pose(), now_ns)
        drawn = {(marker.ns, marker.id): marker for marker in heard[-1].markers} if heard else {}
        return drawn if len(drawn) == 11 else {}

    drawn = bench.graph.until(all_there, "all markers")
    for number, (arm, base) in enumerate(bases(bench.node).items()):
        mine = slice(7 * number, 7 * number + 6)
        path = base.place(end_effector_pose(actions[:, mine])[1])
        np.testing.assert_allclose(positions(drawn[f"plan/{arm}", 0]), path, atol=1e-9)
        np.testing.assert_allclose(positions(drawn[f"plan/{arm}", 1]), path, atol=1e-9)
        here = base.place(link_points(np.array(START_ARM_POSE_RAD)))
        np.testing.assert_allclose(positions(drawn[f"measured/{arm}", 0]), here, atol=1e-9)
        there = base.place(link_points(target[mine]))
        np.testing.assert_allclose(positions(drawn[f"target/{arm}", 0]), there, atol=1e-9)
    assert {marker.header.frame_id for marker in drawn.values()} == {WORLD}
    assert all(marker.lifetime.sec == 1 for marker in drawn.values())
    assert all(len(marker.colors) == len(marker.points) for marker in drawn.values())


def test_balls_turn_from_green_to_red_with_the_distance_from_the_target() -> None:
    measured, target = start_pose(), start_pose()
    target[2] += FULL_RED_RAD / 2  # left elbow
    target[12] += 2 * FULL_RED_RAD  # right wrist_rotate
    markers = arm_markers(measured, target, {arm: BasePose(0, 0, 0, 0) for arm in ARMS}, 0)
    balls = {marker.ns: marker.colors for marker in markers if marker.id == 1}
    assert [color.r for color in balls["target/left"]] == pytest.approx([0, 0.5, 0, 0])
    assert [color.r for color in balls["target/right"]] == pytest.approx([0, 0, 0, 1])
    assert balls["target/right"][3].g == pytest.approx(0.0)


def test_the_words_above_the_robot_say_mode_speeds_ratio_and_safety() -> None:
    motion = Motion(
        mode=MotionMode.COARSE, translation=(0.8, 0.1), rotation=(0.3, 0.05), rise=(0.0, 0.0)
    )
    status = Status(
        motion=motion,
        retain_ratio=0.254,
        safety=(SafetyState.HOLD, "no action"),
        instruction="lift",
    )
    assert status_text(status).split("\n") == [
        '"lift"',
        "COARSE, 25 % of the patches kept",
        "left: v 0.80, w 0.30",
        "right: v 0.10, w 0.05",
        "HOLD: no action",
    ]
    assert status_text(Status()) == "policy silent\ncontroller silent"
    assert status_text(Status(waited=False)) == "policy not heard yet\ncontroller not heard yet"


def test_a_planned_path_fades_with_time() -> None:
    plan = ActionChunk(
        actions=np.tile(start_pose(), (25, 1)),
        stamp_ns=0,
        dt_ns=FRAME_NS,
        instruction="lift the cube",
        inference_s=0.1,
    )
    for marker in plan_markers(plan, {arm: BasePose(0, 0, 0, 0) for arm in ARMS}, 0):
        opacities = [color.a for color in marker.colors]
        assert opacities[0] == 1.0 and opacities[-1] > 0.0
        assert opacities == sorted(opacities, reverse=True)


def test_the_words_have_the_colour_of_the_safety_state() -> None:
    bases = {arm: BasePose(0.0, 0.0, 0.0, 0.0) for arm in ARMS}

    def color(state: SafetyState) -> tuple[float, ...]:
        shown = status_marker(Status(safety=(state, "")), bases, 0).color
        return shown.r, shown.g, shown.b

    assert max(range(3), key=color(SafetyState.ACTIVE).__getitem__) == 1  # green
    assert max(range(3), key=color(SafetyState.ESTOP).__getitem__) == 0  # red
    assert color(SafetyState.HOLD) == color(SafetyState.EASE_IN)
    assert len({color(state) for state in SafetyState}) == len(SafetyState) - 1


def test_who_falls_silent_is_called_so_and_old_plans_vanish(make_bench: Callable) -> None:
    bench = make_bench(stale_after_s=1.0)
    heard = bench.graph.hear(MarkerArray, "viewer/markers")
    motion = Motion(
        mode=MotionMode.FINE, translation=(0.0, 0.0), rotation=(0.0, 0.0), rise=(0.0, 0.0)
    )

    def text() -> str:
        return str(heard[-1].markers[0].text) if heard else ""

    def spoken() -> bool:
        now_ns = bench.now_ns()
        bench.say(
            chunk(now_ns, np.tile(start_pose(), (25, 1))),
            pruning_to_msg(stamp_ns=now_ns, motion=motion, ticks=0, retain_ratio=1.0),
            safety_to_msg(
                stamp_ns=now_ns,
                state=SafetyState.ACTIVE,
                reason="",
                holding_since_ns=None,
                counts={},
                last=None,
            ),
        )
        return text() == (
            '"lift the cube"\nFINE, 100 % of the patches kept\n'
            "left: v 0.00, w 0.00\nright: v 0.00, w 0.00\nACTIVE"
        )

    bench.graph.until(spoken, "the words")
    assert any(marker.ns == "plan/left" for marker in heard[-1].markers)
    bench.graph.until(lambda: text() == "policy silent\ncontroller silent", "silence")
    assert [marker.ns for marker in heard[-1].markers] == ["status"]


def test_a_plan_that_is_over_vanishes_though_its_policy_still_speaks(
    make_bench: Callable,
) -> None:
    bench = make_bench(stale_after_s=600.0)
    heard = bench.graph.hear(MarkerArray, "viewer/markers")

    def shown() -> set[str]:
        return {marker.ns for marker in heard[-1].markers} if heard else set()

    def planned() -> bool:
        bench.say(chunk(bench.now_ns(), np.tile(start_pose(), (100, 1))))  # 4 s
        bench.graph.listen_in_silence(0.3)
        return {"plan/left", "plan/right"} <= shown()

    bench.graph.until(planned, "the plan")
    bench.graph.until(lambda: shown() == {"status"}, "the end of the plan")
    assert '"lift the cube"' in heard[-1].markers[0].text


def test_joints_are_published_under_the_names_of_the_description_that_a_late_viewer_gets(
    make_bench: Callable,
) -> None:
    bench = make_bench(robot_description="plain")
    seen = bench.graph.hear(JointState, "viewer/joint_states")
    wanted = bench.graph.hear(JointState, "viewer/joint_targets")
    target = start_pose(0.25)

    def both() -> bool:
        now_ns = bench.now_ns()
        bench.move(start_pose(0.75), now_ns)
        bench.say(targets_to_msg(target, now_ns))
        return bool(seen and wanted)

    bench.graph.until(both, "joints")
    description = bench.graph.hear(String, "robot_description", LATCHED)
    bench.graph.until(lambda: description, "the description")
    names = RobotModel(description[0].data).joint_names
    assert set(names) <= set(seen[0].name) == set(wanted[0].name)
    expected = model_positions(target, PROFILE.gripper, commanded=True)
    assert dict(zip(wanted[0].name, wanted[0].position, strict=True)) == pytest.approx(expected)
    opening = model_positions(start_pose(0.75), PROFILE.gripper, commanded=True)
    got = dict(zip(seen[0].name, seen[0].position, strict=True))
    assert got["left/left_finger"] == pytest.approx(opening["left/left_finger"], abs=1e-6)


def test_frames_of_the_targets_are_a_second_tree() -> None:
    urdf = '<robot><link name="a"/><link name="b"/><joint name="j" type="fixed">'
    urdf += '<parent link="a"/><child link="b"/></joint></robot>'
    (pose,) = RobotModel(urdf).fixed_links()
    plain, prefixed = transform_to_msg(pose, 7), transform_to_msg(pose, 7, "target")
    assert (plain.header.frame_id, plain.child_frame_id) == ("a", "b")
    assert (prefixed.header.frame_id, prefixed.child_frame_id) == ("target/a", "target/b")
    assert plain.transform.rotation.w == 1.0 and stamp_from_msg(plain.header.stamp) == 7


def test_every_frame_of_the_description_can_be_looked_up_from_the_world(
    make_bench: Callable,
) -> None:
    tf2 = pytest.importorskip("tf2_msgs.msg", reason="tf2_msgs comes with a ROS installation")
    bench = make_bench(robot_description="plain")
    moving = bench.graph.hear(tf2.TFMessage, "/tf")
    fixed = bench.graph.hear(tf2.TFMessage, "/tf_static", LATCHED)

    def both() -> bool:
        now_ns = bench.now_ns()
        bench.move(start_pose(), now_ns)
        bench.say(targets_to_msg(start_pose(), now_ns))
        first = {message.transforms[0].header.frame_id.split("/")[0] for message in moving}
        return bool(fixed) and first >= {"left", "target"}

    bench.graph.until(both, "frames")
    parents: dict[str, str] = {}
    for message in (*fixed, *moving):
        for frame in message.transforms:
            parent = parents.setdefault(frame.child_frame_id, frame.header.frame_id)
            assert parent == frame.header.frame_id
    links = {child for child in parents if not child.startswith("target/")}
    assert {f"target/{child}" for child in links} | {f"target/{WORLD}"} == set(parents) - links
    for child in parents:
        while child != WORLD:
            child = parents[child]


def test_the_viewer_only_listens_and_makes_nobody_wait(make_bench: Callable) -> None:
    bench = make_bench()
    node = bench.node
    bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    bench.graph.hear(MarkerArray, "viewer/markers")
    topics = ["retained_tokens", "action_chunk", "pruning_status", "safety_status"]
    topics += ["joint_targets", *PROFILE.follower_joint_state_topics, PROFILE.camera_topic(HIGH)]
    bench.graph.until(lambda: len(bench.heard()) == len(topics), "all that is heard")
    for topic in topics:
        (heard,) = [
            info
            for info in bench.graph.ear.get_subscriptions_info_by_topic(
                node.resolve_topic_name(topic)
            )
            if info.node_name == "token_viewer_node"
        ]
        assert heard.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT, topic
        assert heard.qos_profile.durability == DurabilityPolicy.VOLATILE, topic
    assert list(node.clients) == []
    published = {publisher.topic_name for publisher in node.publishers}
    overlays = {f"/viewer/overlay/{camera}" for camera in CAMERAS}
    own = {"/viewer/markers", "/viewer/joint_states", "/viewer/joint_targets"}
    own |= overlays | {f"{topic}/compressed" for topic in overlays}
    shared = {"/robot_description", "/diagnostics", "/rosout", "/parameter_events"}
    assert own <= published <= own | shared | {"/tf", "/tf_static"}


@pytest.mark.parametrize(("kind", "end"), [(Image, ""), (CompressedImage, "/compressed")])
def test_an_overlay_is_published_in_the_kind_that_is_looked_at_alone(
    kind: type, end: str, make_bench: Callable
) -> None:
    bench = make_bench()
    sent: list[str] = []
    for publisher in bench.node.publishers:
        if publisher.topic_name.startswith(f"/viewer/overlay/{HIGH}"):
            publisher.publish = lambda message, name=publisher.topic_name: sent.append(name)
    bench.graph.hear(kind, f"viewer/overlay/{HIGH}{end}")
    bench.show_frames(3)
    bench.say(tokens(2 * FRAME_NS))
    bench.graph.until(lambda: sent, "an overlay")
    assert set(sent) == {f"/viewer/overlay/{HIGH}{end}"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: messages.ActionChunk(joint_names=["a"], chunk_len=1, positions=[0.0], dt_s=0.1),
        lambda: messages.SafetyStatus(state=99),
        lambda: JointState(name=["a"], position=[0.0]),
        lambda: messages.RetainedTokens(camera=HIGH, rows=1, columns=1, patch_indices=[7]),
    ],
)
def test_messages_that_make_no_sense_are_dropped_and_the_viewer_goes_on(
    spoil: Callable, make_bench: Callable
) -> None:
    bench = make_bench()
    heard = bench.graph.hear(MarkerArray, "viewer/markers")
    shown = bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    bench.show_frames(3)
    bench.say(spoil(), tokens(2 * FRAME_NS))
    bench.graph.until(lambda: heard and shown, "markers and an overlay")


def test_arms_of_unknown_kinematics_are_not_drawn_but_their_cameras_are(
    make_graph: Callable,
) -> None:
    bench = Bench(make_graph(*parameters(profile="agilex")), load_profile("agilex"))
    heard = bench.graph.hear(MarkerArray, "viewer/markers")
    shown = bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    bench.show_frames(2)
    bench.say(tokens(FRAME_NS), targets_to_msg(start_pose(), bench.now_ns()))
    bench.graph.until(lambda: heard and shown, "markers and an overlay")
    assert [marker.ns for marker in heard[-1].markers] == ["status"]
    assert not bench.graph.ear.get_publishers_info_by_topic("/robot_description")


def test_a_simulation_that_stands_still_is_shown_too(make_bench: Callable) -> None:
    bench = make_bench(use_sim_time="true")
    assert bench.node.get_parameter("use_sim_time").type_ == Parameter.Type.BOOL
    shown = bench.graph.hear(Image, f"viewer/overlay/{HIGH}")
    heard = bench.graph.hear(MarkerArray, "viewer/markers", QoSProfile(depth=10))
    bench.show_frames(3)
    bench.say(tokens(2 * FRAME_NS))
    bench.graph.until(lambda: shown and heard, "an overlay and markers")
