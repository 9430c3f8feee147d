"""The simulated robot, a real process: it says and takes what the real one does, in lock-step."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import qos_profile_sensor_data
from ros.graph import Graph
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float32
from std_srvs.srv import Trigger

from vla_oft_ros.aloha import (
    ACTION_NAMES,
    ARMS,
    CAMERAS,
    GRIPPERS,
    JOINT_STATE_NAMES,
    load_profile,
    start_pose,
)
from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.conversions import (
    compressed_image_from_msg,
    image_from_msg,
    joint_state_to_msg,
    stamp_from_msg,
)
from vla_oft_ros.ros.processes import NodeProcesses
from vla_oft_ros.ros.robot_io import targets_to_msg

pytest.importorskip("mujoco", reason="needs MuJoCo: pip install 'vla_oft_ros[sim]'")
pytestmark = pytest.mark.sim

PROFILE = load_profile("sim")
DT_NS = 40_000_000
GROUP_NS = 20_000_000
FIRST_S = 60.0
"""How long the first picture may take on a loaded machine."""
SLOW_S = 0.15
"""A sender this late is slower than several control steps."""


class Listener:
    """Everything that the simulated robot says, by topic and stamp."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.clock: list[int] = []
        self.joints: dict[str, dict[int, JointState]] = {arm: {} for arm in ARMS}
        self.images: dict[int, dict[str, Image]] = defaultdict(dict)
        self.infos: dict[int, dict[str, CameraInfo]] = defaultdict(dict)
        self.jpegs: dict[int, dict[str, CompressedImage]] = defaultdict(dict)
        self.rewards = graph.hear(Float32, "task_reward")
        ear = graph.ear
        ear.create_subscription(Clock, "/clock", self._on_clock, 100)
        for arm, topic in zip(ARMS, PROFILE.follower_joint_state_topics, strict=True):
            self._take(JointState, topic, partial(self._on_joints, arm))
        for camera in CAMERAS:
            topic = PROFILE.camera_topic(camera)
            info = topic.replace("image_rect_raw", "camera_info")
            self._by_stamp(Image, topic, self.images, camera)
            self._by_stamp(CameraInfo, info, self.infos, camera)
            self._by_stamp(CompressedImage, f"{topic}/compressed", self.jpegs, camera)
        self._targets = ear.create_publisher(JointState, "joint_targets", 10)

    def _take(self, kind: type, topic: str, callback: Callable) -> None:
        self.graph.ear.create_subscription(kind, topic, callback, qos_profile_sensor_data)

    def _by_stamp(self, kind: type, topic: str, into: dict, camera: str) -> None:
        self._take(kind, topic, lambda message: into[_stamp(message)].update({camera: message}))

    def _on_joints(self, arm: str, message: JointState) -> None:
        self.joints[arm][_stamp(message)] = message

    def _on_clock(self, message: Clock) -> None:
        self.clock.append(stamp_from_msg(message.clock))

    @property
    def now_ns(self) -> int:
        return self.clock[-1] if self.clock else 0

    def until_time(self, stamp_ns: int) -> None:
        self.graph.until(lambda: self.now_ns >= stamp_ns, f"simulated time {stamp_ns}", FIRST_S)

    def position(self, arm: str, joint: str) -> float:
        newest = self.joints[arm][max(self.joints[arm])]
        return float(newest.position[newest.name.index(joint)])

    def send(self, targets: np.ndarray, stamp_ns: int) -> None:
        self._targets.publish(targets_to_msg(targets, stamp_ns))

    def send_message(self, message: JointState) -> None:
        self._targets.publish(message)

    def drive(self, targets: np.ndarray, steps: int) -> None:
        """Sends the same targets for some control steps."""
        end_ns = self.now_ns + steps * DT_NS

        def arrived() -> bool:
            self.send(targets, self.now_ns)
            return self.now_ns >= end_ns

        self.graph.until(arrived, "the end of the motion", FIRST_S)

    def reset(self) -> None:
        answer = self.graph.call(Trigger, "sim_node/reset", Trigger.Request())
        assert answer.success, answer.message


def _stamp(message: object) -> int:
    return stamp_from_msg(message.header.stamp)  # type: ignore[attr-defined]


def start(folder: Path, **overrides: object) -> NodeProcesses:
    nodes = NodeProcesses(config_dir(), folder, os.environ)
    nodes.start("sim_node", "sim.yaml", overrides)
    return nodes


@pytest.fixture(scope="module")
def free_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcesses]:
    """One robot for several tests; it waits for no controller."""
    with start(
        tmp_path_factory.mktemp("sim"), publish_compressed=True, lockstep_timeout_s=0.0
    ) as nodes:
        yield nodes


def listen(make_graph: Callable, nodes: NodeProcesses) -> Listener:
    """A listener that has heard everything at least once."""
    listener = Listener(make_graph())

    def complete() -> bool:
        assert not nodes.ended(), nodes.log_tail("sim_node")
        images = any(len(images) == len(CAMERAS) for images in listener.images.values())
        return images and listener.clock and all(listener.joints.values())

    listener.graph.until(complete, "the first three images", FIRST_S)
    return listener


@pytest.fixture
def robot(make_graph: Callable, free_running: NodeProcesses) -> Listener:
    return listen(make_graph, free_running)


def test_both_arms_say_all_nine_joints_fifty_times_in_a_simulated_second(robot: Listener) -> None:
    robot.until_time(robot.now_ns + 10**9)
    for arm in ARMS:
        stamps = sorted(robot.joints[arm])
        # Best effort may lose a message, but none comes at another time.
        assert len(stamps) > 25
        assert {(stamp - stamps[0]) % GROUP_NS for stamp in stamps} == {0}
        assert np.median(np.diff(stamps)) == GROUP_NS
        for message in robot.joints[arm].values():
            assert tuple(message.name) == JOINT_STATE_NAMES
            count = len(JOINT_STATE_NAMES)
            assert len(message.position) == len(message.velocity) == len(message.effort) == count


def test_what_the_arms_say_is_a_legal_part_of_an_observation(robot: Listener) -> None:
    for arm in ARMS:
        message = robot.joints[arm][max(robot.joints[arm])]
        qpos = PROFILE.arm_qpos(message.name, message.position)
        # Fingers in metres are those that the servo angle means.
        servo = message.position[JOINT_STATE_NAMES.index("gripper")]
        finger = message.position[JOINT_STATE_NAMES.index("left_finger")]
        assert abs(PROFILE.gripper.finger_m(servo) - finger) < 1e-6
        assert -0.2 <= qpos[6] <= 1.2


def test_three_cameras_and_their_intrinsics_have_the_stamp_of_one_control_step(
    robot: Listener,
) -> None:
    def whole() -> list[int]:
        return [
            stamp
            for stamp in robot.images
            if len(robot.images[stamp]) == len(robot.infos[stamp]) == len(CAMERAS)
        ]

    robot.graph.until(lambda: len(whole()) >= 5, "five complete sets", FIRST_S)
    stamps = sorted(robot.images)
    assert {(stamp - stamps[0]) % DT_NS for stamp in stamps} == {0}
    assert set(whole()) & set(robot.joints["left"])
    stamp = whole()[-1]
    for camera in CAMERAS:
        image, info = robot.images[stamp][camera], robot.infos[stamp][camera]
        assert (image.encoding, image.width, image.height, image.step) == ("rgb8", 640, 480, 1920)
        assert (info.width, info.height) == (640, 480)
        assert image.header.frame_id == info.header.frame_id != ""
        assert np.std(image_from_msg(image)) > 5  # something is to be seen
        focal_x, focal_y, centre = info.k[0], info.k[4], (info.k[2], info.k[5])
        assert focal_x == focal_y > 100
        assert abs(centre[0] - 320) <= 1 and abs(centre[1] - 240) <= 1
    pixels = [image_from_msg(robot.images[stamp][camera]) for camera in CAMERAS]
    assert not np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[1], pixels[2])


def test_a_compressed_image_shows_what_the_raw_one_of_its_stamp_shows(robot: Listener) -> None:
    def both() -> list[int]:
        return [
            stamp
            for stamp in robot.jpegs
            if len(robot.images[stamp]) == len(robot.jpegs[stamp]) == len(CAMERAS)
        ]

    robot.graph.until(both, "raw and compressed images of one stamp", FIRST_S)
    stamp = both()[0]
    for camera in CAMERAS:
        raw = image_from_msg(robot.images[stamp][camera]).astype(int)
        assert np.abs(compressed_image_from_msg(robot.jpegs[stamp][camera]) - raw).mean() < 4


def test_targets_move_the_arms_in_the_physics_and_a_reset_puts_them_back_while_time_goes_on(
    robot: Listener,
) -> None:
    robot.reset()
    begin = len(robot.clock)
    pose = start_pose(1.0)
    targets = pose.copy()
    targets[[0, 7]] = 0.3, -0.3
    targets[list(GRIPPERS)] = 0.0
    robot.drive(targets, steps=40)
    assert abs(robot.position("left", "waist") - 0.3) < 0.06
    assert abs(robot.position("right", "waist") + 0.3) < 0.06
    assert PROFILE.gripper.observed_opening(robot.position("left", "gripper")) < 0.3
    robot.reset()
    reset_ns = robot.now_ns
    robot.until_time(reset_ns + 2 * DT_NS)
    assert abs(robot.position("left", "waist")) < 0.05
    assert abs(robot.position("right", "waist")) < 0.05
    # Time has gone on in equal steps, from before the motion to after the reset.
    assert set(np.diff(robot.clock[begin:])) == {GROUP_NS}


def test_targets_that_cannot_be_used_move_nothing_and_stop_nothing(
    robot: Listener, free_running: NodeProcesses
) -> None:
    robot.reset()
    robot.until_time(robot.now_ns + 2 * DT_NS)
    targets = start_pose(1.0)
    targets[0] = 0.5
    end_ns = robot.now_ns + 10 * DT_NS

    def arrived() -> bool:
        robot.send_message(joint_state_to_msg(ACTION_NAMES[1:], targets[1:], robot.now_ns))
        return robot.now_ns >= end_ns

    robot.graph.until(arrived, "ten steps", FIRST_S)
    assert abs(robot.position("left", "waist")) < 0.05
    assert "missing left/waist" in free_running.log_tail("sim_node")
    assert not free_running.ended()


def test_reward_and_health_are_told(robot: Listener) -> None:
    status = robot.graph.hear(DiagnosticArray, "/diagnostics")
    robot.graph.until(lambda: status and robot.rewards, "reward and diagnostics", FIRST_S)
    assert 0.0 <= robot.rewards[-1].data <= 4.0
    (part,) = status[-1].status
    values = {pair.key: float(pair.value) for pair in part.values}
    assert part.name == "/sim_node: physics"
    assert values["real_time_factor"] > 0 and values["simulated_s"] > 0


@pytest.fixture
def another_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of earshot of the robot that the other tests share."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(1 + int(os.environ["ROS_DOMAIN_ID"]) % 101))


def test_time_waits_for_a_slow_controller_and_skips_no_step(
    another_domain: None, make_graph: Callable, tmp_path: Path
) -> None:
    with start(tmp_path, lockstep_timeout_s=30.0) as nodes:
        robot = listen(make_graph, nodes)
        targets = start_pose(1.0)
        robot.drive(targets, steps=3)
        robot.graph.listen_in_silence()
        # A sender of targets at the control step: time comes to the next one and stays there.
        for _ in range(4):
            tick_ns = robot.now_ns
            robot.graph.listen_in_silence(SLOW_S)
            assert robot.now_ns == tick_ns
            robot.send(targets, tick_ns)
            robot.until_time(tick_ns + DT_NS)
            robot.graph.listen_in_silence(SLOW_S)
            assert robot.now_ns == tick_ns + DT_NS
        begin = robot.clock.index(tick_ns)
        assert set(np.diff(robot.clock[begin:])) == {GROUP_NS}
        # A sender whose ticks lie between ours is waited for as well, but not for ever.
        answered = set()
        started_s = time.monotonic()
        end_ns = robot.now_ns + 10 * DT_NS
        robot.send(targets, robot.now_ns)

        def answers_between_steps() -> bool:
            for stamp_ns in robot.clock:
                between = (stamp_ns - tick_ns) % DT_NS != 0
                if stamp_ns > tick_ns and between and stamp_ns not in answered:
                    answered.add(stamp_ns)
                    robot.send(targets, stamp_ns)
            return robot.now_ns >= end_ns

        robot.graph.until(answers_between_steps, "ten more steps", 25.0)
        assert time.monotonic() - started_s < 25.0
        assert nodes.stop() == {"sim_node": 0}


def test_a_simulation_without_opengl_ends_with_1_and_says_so(
    another_domain: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    monkeypatch.setenv("LIBGL_DRIVERS_PATH", "/nowhere")
    with start(tmp_path) as nodes:
        deadline_s = time.monotonic() + FIRST_S
        while not nodes.ended() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert nodes.ended() == {"sim_node": 1}
        assert "the simulation ended" in nodes.log_tail("sim_node")
