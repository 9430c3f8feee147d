"""Scripted leaders on the wire, and the whole path from them to labelled bags on the disk."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from rich.console import Console
from ros.graph import Graph, parameters
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vla_oft_ros.aloha import ACTION_NAMES, ARMS, GRIPPERS, JOINT_STATE_NAMES, load_profile
from vla_oft_ros.config import SyncConfig
from vla_oft_ros.data.bag import read_bag
from vla_oft_ros.data.bag_streams import BagOptions
from vla_oft_ros.ros.conversions import pose_from_msg, pose_to_msg, stamp_from_msg, stamp_to_msg
from vla_oft_ros.ros.robot_io import targets_from_msg

pytest.importorskip("mujoco", reason="needs MuJoCo: pip install 'vla_oft_ros[sim]'")
pytest.importorskip("rosbags", reason="needs the extra data: pip install '.[data]'")
pytestmark = pytest.mark.sim

from vla_oft_ros.ros.record_demo import RecordDemoOptions, record_demo  # noqa: E402
from vla_oft_ros.ros.teleop_node import TeleopNode  # noqa: E402
from vla_oft_ros.sim.tasks import PICK_CUBE, sample_pick_cube  # noqa: E402

PROFILE = load_profile("sim")
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
STEP_NS = 20_000_000
CUBE = np.array([0.1, 0.5, 0.02, 1.0, 0.0, 0.0, 0.0])

PATIENT = BagOptions(sync=SyncConfig(max_image_age_s=5.0, max_joint_age_s=5.0, max_skew_s=5.0))
"""Ages count from arrival, and on a busy machine simulated time runs on while a message waits."""


class Session:
    """A teleoperation in simulated time that the test advances."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node = graph.add(TeleopNode())
        self.now_ns = 1_000_000_000
        self.leaders = {
            arm: graph.hear(JointState, topic)
            for arm, topic in zip(ARMS, PROFILE.leader_joint_state_topics, strict=True)
        }
        self.targets = graph.hear(JointState, "joint_targets")
        self.phases = graph.hear(String, "teleop_node/phase", LATCHED)
        self._clock = graph.ear.create_publisher(Clock, "/clock", 10)
        self._cube = graph.ear.create_publisher(PoseStamped, "object_poses/red_box", 10)

        def everybody_listens() -> bool:
            self.step()
            return bool(self.targets and self.phases)

        graph.until(everybody_listens, "the first target")
        self.advance(1)  # everything before is answered, too

    def step(self) -> None:
        self.now_ns += STEP_NS
        self._cube.publish(pose_to_msg(CUBE, self.now_ns, "world"))
        self._clock.publish(Clock(clock=stamp_to_msg(self.now_ns)))

    def advance(self, steps: int) -> None:
        """Some steps, each answered before the next."""
        for _ in range(steps):
            self.step()
            self.graph.until(
                lambda: stamp_from_msg(self.targets[-1].header.stamp) == self.now_ns, "a target"
            )

    def ask(self, name: str) -> Trigger.Response:
        return self.graph.call(Trigger, f"teleop_node/{name}", Trigger.Request())


@pytest.fixture
def session(make_graph: Callable) -> Session:
    return Session(make_graph(*parameters(use_sim_time="true", rest_s=0.1)))


def test_leaders_say_nine_joints_and_followers_are_told_what_teleoperation_makes_of_them(
    session: Session,
) -> None:
    session.ask("demonstrate")
    session.advance(330)
    newest = {
        arm: {stamp_from_msg(m.header.stamp): m for m in session.leaders[arm]} for arm in ARMS
    }
    grip = PROFILE.gripper
    openings = []
    for message in session.targets[-300:]:
        stamp_ns = stamp_from_msg(message.header.stamp)
        targets = targets_from_msg(message)
        said = []
        for arm in ARMS:
            leader = newest[arm][stamp_ns]
            assert tuple(leader.name) == JOINT_STATE_NAMES
            servo_rad = leader.position[JOINT_STATE_NAMES.index("gripper")]
            assert grip.leader_joint_closed_rad - 1e-9 <= servo_rad
            assert servo_rad <= grip.leader_joint_open_rad + 1e-9
            said.append(PROFILE.leader_action(leader.name, leader.position))
        assert np.array_equal(np.concatenate(said), targets)
        openings.append(targets[list(GRIPPERS)])
    assert np.ptp(openings, axis=0).min() > 0.8  # both grippers open and close


def test_the_operator_waits_demonstrates_and_is_done_and_rests_when_asked(
    session: Session,
) -> None:
    rest = targets_from_msg(session.targets[-1])
    assert session.phases[-1].data == "waiting"
    assert session.ask("demonstrate").success
    session.advance(3)
    assert session.phases[-1].data == "demonstrating"
    assert np.array_equal(targets_from_msg(session.targets[-1]), rest)  # has only begun to wait
    session.advance(330)
    assert session.phases[-1].data == "done"
    end = targets_from_msg(session.targets[-1])
    assert np.abs(end - rest).max() > 0.1
    assert session.ask("rest").success
    session.advance(1)
    assert np.array_equal(targets_from_msg(session.targets[-1]), rest)
    assert session.phases[-1].data == "waiting"
    assert session.ask("demonstrate").success
    session.advance(333)
    assert np.allclose(targets_from_msg(session.targets[-1]), end, atol=1e-6)


def test_every_instant_of_the_clock_is_answered_once(session: Session) -> None:
    begin = len(session.targets)
    for _ in range(40):  # at once: none may be skipped
        session.step()
    session.graph.until(lambda: len(session.targets) >= begin + 40, "forty targets")
    session.graph.listen_in_silence()
    stamps = [stamp_from_msg(message.header.stamp) for message in session.targets[begin:]]
    assert list(np.diff(stamps)) == [STEP_NS] * 39
    assert tuple(session.targets[-1].name) == ACTION_NAMES


def test_nobody_demonstrates_before_the_simulation_says_where_the_cube_is(
    make_graph: Callable,
) -> None:
    graph = make_graph()
    graph.add(TeleopNode())
    answer = graph.call(Trigger, "teleop_node/demonstrate", Trigger.Request())
    assert not answer.success and "start sim_node" in answer.message


def test_the_operator_of_several_cubes_waits_to_be_told_which_one_is_meant(
    make_graph: Callable,
) -> None:
    graph = make_graph(*parameters(task="pick_cube"))
    graph.add(TeleopNode())
    place = {
        cube.name: graph.ear.create_publisher(PoseStamped, f"object_poses/{cube.name}", 10)
        for cube in PICK_CUBE.cubes
    }
    say = graph.ear.create_publisher(String, "task_instruction", LATCHED)

    def demonstrate() -> Trigger.Response:
        return graph.call(Trigger, "teleop_node/demonstrate", Trigger.Request())

    assert "task_instruction which cube is meant" in demonstrate().message
    say.publish(String(data="pick up the blue cube"))
    graph.until(
        lambda: "object_poses/blue_cube where the cube is" in demonstrate().message, "the words"
    )
    place["red_cube"].publish(pose_to_msg(CUBE, 1, "world"))
    say.publish(String(data="pick up the pink cube"))  # said to no task: the blue one it remains
    graph.listen_in_silence()
    assert "object_poses/blue_cube where the cube is" in demonstrate().message
    place["blue_cube"].publish(pose_to_msg(CUBE, 1, "world"))
    graph.until(lambda: demonstrate().success, "the blue cube")
    phases = graph.hear(String, "teleop_node/phase", LATCHED)
    graph.until(lambda: phases and phases[-1].data == "demonstrating", "the demonstration")
    say.publish(String(data="pick up the green cube"))  # which nobody has seen
    graph.until(lambda: phases[-1].data == "waiting", "the end of it")
    assert "object_poses/green_cube where the cube is" in demonstrate().message


def test_a_pose_comes_back_from_its_message() -> None:
    pose = np.arange(7) / 7.0
    assert np.array_equal(pose_from_msg(pose_to_msg(pose, 5, "world")), pose)


@pytest.fixture
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo sets for its processes ends with the test."""
    for name in ("ROS_DOMAIN_ID", "ROS_LOG_DIR", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        monkeypatch.setenv(name, os.environ[name])


def test_demonstrations_are_recorded_labelled_by_the_reward_and_continued(
    own_environment: None, tmp_path: Path
) -> None:
    console = Console(record=True, width=200)

    def run(episodes: int, miss_share: float) -> str:
        record_demo(
            RecordDemoOptions(
                episodes=episodes,
                output_dir=tmp_path / "set",
                miss_share=miss_share,
                real_time_factor=0.0,
            ),
            console,
        )
        return console.export_text()

    assert "1 episodes on disk, of them 1 successes; 1 recorded now" in run(1, 0.0)
    assert "2 episodes on disk, of them 1 successes; 1 recorded now" in run(2, 1.0)
    assert "2 episodes are there already" in run(2, 0.0)
    outcomes = []
    for index in range(2):
        episode = read_bag(tmp_path / "set" / f"episode_{index:06d}", PATIENT)
        outcomes.append(episode.outcome)
        assert episode.instruction.startswith("transfer the cube") and episode.profile == "sim"
        assert 6.0 < episode.duration_s < 8.0
        # The followers go where their leaders are, and the cameras see it.
        assert np.abs(episode.action - episode.qpos)[:, :6].mean() < 0.1
        assert not np.array_equal(episode.images["cam_high"][0], episode.images["cam_high"][-1])
    assert outcomes == ["success", "failure"]


def test_a_recording_carries_the_words_by_which_its_episode_was_done(
    own_environment: None, tmp_path: Path
) -> None:
    options = RecordDemoOptions(
        episodes=2, output_dir=tmp_path, task="pick_cube", seed=11, real_time_factor=0.0
    )
    record_demo(options, Console(quiet=True))
    generator = np.random.default_rng(11)
    expected = [sample_pick_cube(generator).instruction for _ in range(4)][2:]
    assert len(set(expected)) == 2  # else it would prove nothing
    for index, instruction in enumerate(expected):
        episode = read_bag(tmp_path / f"episode_{index:06d}", PATIENT)
        assert (episode.instruction, episode.outcome) == (instruction, "success")
