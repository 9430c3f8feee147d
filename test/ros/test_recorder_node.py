"""The recorder on the wire: bytes as they were sent, one bag per wish, no end that spoils one."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from ros.fakes import FakeRobot
from ros.graph import TIMEOUT_S, Graph, parameters
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from vla_oft_ros.msg import ActionChunk, EpisodeStatus, SafetyStatus

from vla_oft_ros.aloha import ARMS, CAMERAS, JOINT_STATE_NAMES, load_profile
from vla_oft_ros.config import SyncConfig, config_dir
from vla_oft_ros.data.bag import read_bag
from vla_oft_ros.data.bag_recovery import recover_bag
from vla_oft_ros.data.bag_storage import open_bag
from vla_oft_ros.data.bag_streams import BagOptions
from vla_oft_ros.data.bag_writer import BagTopic, BagWriter
from vla_oft_ros.data.cdr import JOINT_STATE, STAMP_BYTES, read_stamp_ns
from vla_oft_ros.ros.arrival_clock import ArrivalClock
from vla_oft_ros.ros.conversions import (
    compressed_image_to_msg,
    joint_state_to_msg,
    stamp_to_msg,
)
from vla_oft_ros.ros.processes import NodeProcesses
from vla_oft_ros.ros.raw_topics import RawTopic
from vla_oft_ros.ros.recorder_node import RecorderNode

NO_DATA = "needs the extra data: pip install '.[data]'"
pytest.importorskip("rosbags", reason=NO_DATA)
mcap_reader = pytest.importorskip("mcap.reader", reason=NO_DATA)
mcap_decoder = pytest.importorskip("mcap_ros2.decoder", reason=NO_DATA)

PROFILE = load_profile("sim")
STREAMS = len(CAMERAS) + 2 * len(ARMS)
NS = 1_000_000_000
START_S = 60.0

PATIENT = BagOptions(sync=SyncConfig(max_image_age_s=5.0, max_joint_age_s=5.0, max_skew_s=5.0))
"""Ages count from arrival, and on a busy machine simulated time runs on while a message waits."""


class FakeStation(FakeRobot):
    """The robot with its leaders: what a teleoperated ALOHA says. Remembers what was sent."""

    def __init__(self, node: Node, compressed: bool = False) -> None:
        super().__init__(node)
        self.opening = 1.0
        self.swing = 0.0
        self.sent: dict[str, list[bytes]] = {}
        self._leaders = [
            node.create_publisher(JointState, topic, 10)
            for topic in PROFILE.leader_joint_state_topics
        ]
        self._jpegs = {}
        if compressed:
            for publisher in self._cameras.values():
                node.destroy_publisher(publisher)
            self._cameras = {}
            self._jpegs = {
                camera: node.create_publisher(
                    CompressedImage, f"{PROFILE.camera_topic(camera)}/compressed", 10
                )
                for camera in CAMERAS
            }

    def step(self) -> None:
        super().step()
        self.swing = 0.1 * np.sin(self.stamp_ns * 2e-9)
        grip = PROFILE.gripper
        span = grip.leader_joint_open_rad - grip.leader_joint_closed_rad
        servo = grip.leader_joint_closed_rad + self.opening * span
        position = np.array([self.swing, -0.96, 1.16, 0.0, -0.3, 0.0, servo, 0.02, -0.02])
        for arm in ARMS:
            self.arms[arm][0] = self.swing
        for publisher in self._leaders:
            message = joint_state_to_msg(JOINT_STATE_NAMES, position, self.stamp_ns)
            data = serialize_message(message)
            self.sent.setdefault(publisher.topic_name, []).append(data)
            publisher.publish(data)
        for camera, publisher in self._jpegs.items():
            image = np.full((48, 64, 3), self.stamp_ns // 10**7 % 200 + 30, np.uint8)
            publisher.publish(compressed_image_to_msg(image, self.stamp_ns, camera))


class Station:
    """A recorder, a robot to record, and an operator."""

    def __init__(self, graph: Graph, folder: Path) -> None:
        self.graph, self.folder = graph, folder
        self.statuses = graph.hear(EpisodeStatus, "episode_status")

    @property
    def status(self) -> EpisodeStatus:
        return self.statuses[-1]

    def ask(self, name: str) -> Trigger.Response:
        return self.graph.call(Trigger, f"recorder_node/{name}", Trigger.Request())

    def must(self, name: str) -> None:
        answer = self.ask(name)
        assert answer.success, answer.message

    def label(self, success: bool) -> None:
        request = SetBool.Request(data=success)
        assert self.graph.call(SetBool, "recorder_node/label", request).success

    def until_state(self, state: int) -> None:
        self.graph.until(lambda: self.statuses and self.status.state == state, f"state {state}")

    def until_ready(self) -> None:
        """Everything is heard."""
        self.graph.until(
            lambda: self.statuses and len(self.status.topics) >= STREAMS, "all streams", START_S
        )
        self.begin()

    def begin(self) -> None:
        """Starts an episode, whether or not an answer is lost on the way."""

        def is_recording() -> bool:
            if self.status.state != EpisodeStatus.STATE_RECORDING:
                self.ask("start")
            return bool(self.status.state == EpisodeStatus.STATE_RECORDING)

        self.graph.until(is_recording, "the start")

    def record(self, messages: int = 60) -> int:
        """Records one episode and returns its number."""
        self.begin()
        self.graph.until(
            lambda: sum(self.status.message_counts) > messages, f"{messages} messages"
        )
        self.ask("stop")
        self.until_state(EpisodeStatus.STATE_REVIEW)
        return int(self.status.episode_index)

    def on_disk(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("*/metadata.yaml"))

    def bag(self, index: int) -> Path:
        return self.folder / f"episode_{index:06d}"


@pytest.fixture
def make_station(make_graph: Callable, tmp_path: Path) -> Callable[..., Station]:
    def make(robot: Callable[[Node], FakeRobot] = FakeStation, **config: object) -> Station:
        given = {
            "use_sim_time": "true",
            "output_dir": str(tmp_path / "set"),
            "camera_rate_hz": 50.0,
            "status_rate_hz": 10.0,
            "min_free_disk_gb": 0.0,
            "instruction": "wave",
            **config,
        }
        graph = make_graph(*parameters(**given))
        station = Station(graph, tmp_path / "set")
        station.node = graph.add(RecorderNode())  # type: ignore[attr-defined]
        assert station.node.autostart()  # type: ignore[attr-defined]
        station.robot = robot(graph.ear)  # type: ignore[attr-defined]
        return station

    return make


def test_an_operator_starts_stops_labels_discards_and_records_anew(
    make_station: Callable[..., Station],
) -> None:
    station = make_station()
    assert not station.ask("stop").success and not station.ask("discard").success
    station.until_ready()
    assert not station.ask("start").success  # it is recording already
    station.record()
    assert station.status.episodes_on_disk == 1 == len(station.on_disk())
    station.label(False)
    station.until_state(EpisodeStatus.STATE_IDLE)
    assert station.status.label == "failure"
    assert station.record() == 1
    station.must("discard")
    station.until_state(EpisodeStatus.STATE_IDLE)
    assert station.status.episodes_on_disk == 1 and station.on_disk() == ["episode_000000"]
    station.must("start")
    station.must("rerecord")
    assert station.record() == 1
    station.label(True)
    assert station.on_disk() == ["episode_000000", "episode_000001"]
    outcomes = []
    for index in range(2):
        with open_bag(station.bag(index)) as bag:
            outcomes.append(bag.custom_data["outcome"])
    assert outcomes == ["failure", "success"]


def test_the_bag_holds_the_very_bytes_that_were_sent_and_any_reader_decodes_them(
    make_station: Callable[..., Station],
) -> None:
    station = make_station()
    station.until_ready()
    station.record(800)
    with open_bag(station.bag(0), check=True) as bag:
        assert not bag.damage
        for topic, sent in station.robot.sent.items():  # type: ignore[attr-defined]
            recorded = [bag.read(entry) for entry in bag.entries if entry.topic == topic]
            first = sent.index(recorded[0])
            assert recorded == sent[first : first + len(recorded)]  # none missing, none changed
        counts = dict(zip(station.status.topics, station.status.message_counts, strict=True))
        assert {name: count for name, count in counts.items() if count} == {
            name: count for name, count in bag.counts().items() if count
        }
    with next(station.bag(0).glob("*.mcap")).open("rb") as file:
        reader = mcap_reader.make_reader(
            file, decoder_factories=[mcap_decoder.DecoderFactory()], validate_crcs=True
        )
        decoded = list(reader.iter_decoded_messages())
    assert len(decoded) == sum(counts.values())
    assert {c.topic for _, c, _, m in decoded} >= {
        *PROFILE.camera_topics,
        *PROFILE.follower_joint_state_topics,
        *PROFILE.leader_joint_state_topics,
    }
    episode = read_bag(station.bag(0), PATIENT)
    assert (episode.instruction, episode.profile) == ("wave", "sim")
    camera, stamp_ns = "cam_high", int(episode.image_stamps_ns["cam_high"][3])  # type: ignore[index]
    assert np.array_equal(
        episode.images[camera][3],
        station.robot.image(camera, stamp_ns),  # type: ignore[attr-defined]
    )


def test_metadata_say_what_publishers_offer_and_the_hash_of_the_type(
    make_station: Callable[..., Station],
) -> None:
    station = make_station()
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    publisher = station.graph.ear.create_publisher(String, "instruction", latched)
    publisher.publish(String(data="transfer the cube"))
    station.until_ready()
    station.graph.until(
        lambda: "/instruction" in station.status.topics, "the instruction", TIMEOUT_S
    )
    publisher.publish(String(data="fold the shirt"))
    station.graph.until(
        lambda: station.status.instruction == "fold the shirt", "the new instruction"
    )
    station.record()
    metadata = yaml.safe_load((station.bag(0) / "metadata.yaml").read_text())
    information = metadata["rosbag2_bagfile_information"]
    assert information["custom_data"]["instruction"] == "fold the shirt"
    topics = {
        entry["topic_metadata"]["name"]: entry["topic_metadata"]
        for entry in information["topics_with_message_count"]
    }
    (qos,) = topics["/instruction"]["offered_qos_profiles"]
    assert (qos["durability"], qos["reliability"]) == ("transient_local", "reliable")
    string_hash = "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
    assert topics["/instruction"]["type_description_hash"] == string_hash


def test_compressed_images_are_recorded_where_no_raw_ones_are_published(
    make_station: Callable[..., Station],
) -> None:
    station = make_station(lambda node: FakeStation(node, compressed=True))
    station.until_ready()
    station.record()
    images = [topic for topic in station.status.topics if "image" in topic]
    assert sorted(images) == sorted(f"{topic}/compressed" for topic in PROFILE.camera_topics)
    assert read_bag(station.bag(0), PATIENT).images["cam_high"][0].shape == (48, 64, 3)


def test_what_begins_to_speak_in_the_middle_is_recorded_from_its_first_word(
    make_station: Callable[..., Station],
) -> None:
    station = make_station()
    ear = station.graph.ear
    station.until_ready()
    expected = {"action_chunk": ActionChunk, "safety_status": SafetyStatus}
    station.node._topics._wanted = []  # type: ignore[attr-defined]  # nobody looks any more
    for topic in expected:  # somebody waits, before anybody publishes
        assert ear.count_subscribers(topic) == 1 and f"/{topic}" not in station.status.topics
    publishers = {topic: ear.create_publisher(kind, topic, 10) for topic, kind in expected.items()}
    for number in range(3):
        for topic, kind in expected.items():
            publisher = publishers[topic]
            station.graph.until(publisher.get_subscription_count, topic, START_S)
            message = kind()
            message.header.stamp.sec = number
            publisher.publish(message)
    station.graph.until(lambda: "/safety_status" in station.status.topics, "the status")
    station.record(200)
    with open_bag(station.bag(0)) as bag:
        for topic in expected:
            recorded = [bag.read(entry) for entry in bag.entries if entry.topic == f"/{topic}"]
            assert [read_stamp_ns(data) // NS for data in recorded] == [0, 1, 2]
    metadata = yaml.safe_load((station.bag(0) / "metadata.yaml").read_text())
    for entry in metadata["rosbag2_bagfile_information"]["topics_with_message_count"]:
        told = entry["topic_metadata"]
        assert told["offered_qos_profiles"] and told["type_description_hash"].startswith("RIHS01")


def test_an_expected_topic_is_heard_as_it_is_offered(make_station: Callable[..., Station]) -> None:
    station = make_station()
    station.until_ready()
    publisher = station.graph.ear.create_publisher(
        ActionChunk, "action_chunk", qos_profile_sensor_data
    )

    def heard() -> bool:
        publisher.publish(ActionChunk())
        counts = dict(zip(station.status.topics, station.status.message_counts, strict=True))
        return counts.get("/action_chunk", 0) > 0

    station.graph.until(heard, "a chunk, sent best effort", START_S)


def test_a_recorder_that_comes_late_does_not_make_the_messages_late(
    make_station: Callable[..., Station],
) -> None:
    station = make_station()
    robot = station.robot  # type: ignore[attr-defined]
    station.until_ready()
    station.graph.until(lambda: sum(station.status.message_counts) > 100, "some messages")
    for _ in range(25):  # half a second, in which the recorder's executor does not come round
        robot.step()
        time.sleep(robot.REAL_STEP_S)
    station.record(700)
    with open_bag(station.bag(0)) as bag:
        stamped = [entry for entry in bag.entries if bag.types[entry.topic] == JOINT_STATE]
        late_ns = [entry.log_ns - read_stamp_ns(bag.read(entry, STAMP_BYTES)) for entry in stamped]
    assert len(stamped) > 4 * 25
    assert -3 * robot.STEP_NS <= min(late_ns) and max(late_ns) <= 3 * robot.STEP_NS


def test_a_take_holds_all_that_arrived_before_it_was_stopped_and_nothing_from_before_its_start(
    make_station: Callable[..., Station],
) -> None:
    station = make_station()
    robot, node = station.robot, station.node  # type: ignore[attr-defined]
    station.until_ready()
    station.must("discard")

    def unheard() -> None:
        """A while in which the recorder's executor does not come round."""
        for _ in range(25):
            robot.step()
            time.sleep(robot.REAL_STEP_S)

    unheard()
    before_ns = robot.stamp_ns
    node._start_episode()
    unheard()
    last_ns = robot.stamp_ns
    node._stop_episode()
    station.until_state(EpisodeStatus.STATE_REVIEW)
    assert sum(station.status.dropped_counts) == 0
    with open_bag(station.bag(0)) as bag:
        for topic in (*PROFILE.follower_joint_state_topics, *PROFILE.leader_joint_state_topics):
            entries = [entry for entry in bag.entries if entry.topic == topic]
            stamps = [read_stamp_ns(bag.read(entry, STAMP_BYTES)) for entry in entries]
            assert stamps == list(range(before_ns + robot.STEP_NS, last_ns + 1, robot.STEP_NS))


def test_what_there_was_no_time_for_at_the_end_is_named_and_counted(
    make_station: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
) -> None:
    station = make_station()
    robot, node = station.robot, station.node  # type: ignore[attr-defined]
    station.until_ready()
    monkeypatch.setattr("vla_oft_ros.ros.raw_topics._DRAIN_S", 0.0)
    topic = PROFILE.leader_joint_state_topics[0]
    station.graph.until(lambda: node._topics.heard[topic].received > 3, "some messages")
    for _ in range(25):
        robot.step()
        time.sleep(robot.REAL_STEP_S)
    sent = station.robot.sent[topic]  # type: ignore[attr-defined]
    before_the_stop = len(sent)
    node._stop_episode()
    missing = f"the end of .*{topic}.* is missing"
    assert any(re.search(missing, why) for why in node._recorder.status().quality_reasons)
    station.until_state(EpisodeStatus.STATE_REVIEW)
    station.graph.listen_in_silence()
    lost = node._recorder._take.lost[topic]
    assert lost > 0
    with open_bag(station.bag(0)) as bag:
        assert topic in bag.custom_data["cut"]
        recorded = [bag.read(entry) for entry in bag.entries if entry.topic == topic]
    assert sent.index(recorded[0]) + len(recorded) + lost == before_the_stop


def test_silence_is_counted_in_simulated_time(make_station: Callable[..., Station]) -> None:
    station = make_station(max_silence_s=0.3)
    station.until_ready()
    station.must("discard")
    for timer in list(station.graph.ear.timers):
        timer.cancel()  # the simulation stands still,
    station.graph.listen_in_silence(0.8)  # and nobody speaks, in no time at all
    station.must("start")
    station.must("discard")
    node, robot = station.node, station.robot  # type: ignore[attr-defined]
    robot.silent = {"cam_left_wrist"}
    for _ in range(20):  # 0.4 simulated seconds in a moment
        robot.step()
    station.graph.until(lambda: node._topics.now_ns() >= robot.stamp_ns, "the clock")
    answer = station.ask("start")
    assert not answer.success and "nothing was heard of cam_left_wrist in" in answer.message


def test_an_instant_is_that_of_the_last_tick_before_it(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph(*parameters(use_sim_time="true"))
    clock = ArrivalClock(graph.ear)
    assert clock.at(1) == 0  # nothing is known: the node's own clock
    for received_ns, sim_ns in ((1000, 20), (2000, 40), (3000, 60)):
        tick = Clock(clock=stamp_to_msg(sim_ns))
        clock._on_clock(tick, {"received_timestamp": received_ns})
    assert [clock.at(instant) for instant in (1000, 1999, 2000, 2500, 9000)] == [
        20,
        20,
        40,
        40,
        60,
    ]
    assert clock.at(999) == clock.at(0) == 0  # nothing is known: the node's own clock
    clock._on_clock(Clock(clock=stamp_to_msg(80)), {"received_timestamp": 1500})  # put back
    assert clock.at(2500) == 80


def test_an_episode_is_refused_while_a_camera_is_silent_and_says_which(
    make_station: Callable[..., Station],
) -> None:
    station = make_station(max_silence_s=0.3)
    station.until_ready()
    station.must("discard")
    node, robot = station.node, station.robot  # type: ignore[attr-defined]
    robot.silent = {"cam_left_wrist", "right"}
    end_ns = robot.stamp_ns + NS
    station.graph.until(lambda: node._topics.now_ns() >= end_ns, "a second of silence")
    answer = station.ask("start")
    assert not answer.success
    assert "nothing was heard of cam_left_wrist, right follower" in answer.message
    assert station.on_disk() == []


def test_closing_both_grippers_starts_and_stops(make_station: Callable[..., Station]) -> None:
    station = make_station(gripper_trigger="start_and_stop", gripper_hold_s=0.1)
    robot = station.robot  # type: ignore[attr-defined]

    def stay_open() -> None:
        robot.opening = 1.0
        end_ns = robot.stamp_ns + NS // 10
        station.graph.until(lambda: robot.stamp_ns >= end_ns, "open grippers")

    station.graph.until(
        lambda: station.statuses and len(station.status.topics) >= STREAMS, "all streams"
    )
    for expected in (EpisodeStatus.STATE_RECORDING, EpisodeStatus.STATE_REVIEW):
        stay_open()
        robot.opening = 0.0
        station.until_state(expected)
    assert station.on_disk() == ["episode_000000"]


def test_what_the_disk_does_not_take_in_time_is_counted_and_told_loudly(
    make_station: Callable[..., Station], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real = BagWriter.write

    def write(self: BagWriter, *arguments: object) -> None:
        assert gate.wait(TIMEOUT_S)
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BagWriter, "write", write)
    monkeypatch.setattr("vla_oft_ros.data.recorder._MB", 20_000)  # of buffer_mb
    station = make_station(buffer_mb=1)
    told = station.graph.hear(DiagnosticArray, "/diagnostics")
    station.until_ready()
    station.graph.until(lambda: sum(station.status.dropped_counts) > 50, "an overflow")

    def is_loud() -> bool:
        return any(
            status.name == "/recorder_node: recorder" and status.level == DiagnosticStatus.ERROR
            for array in told
            for status in array.status
        )

    station.graph.until(is_loud, "an error in the diagnostics")
    gate.set()
    station.must("stop")
    station.until_state(EpisodeStatus.STATE_REVIEW)
    with open_bag(station.bag(0)) as bag:
        assert sum(station.status.message_counts) == len(bag.entries) > 0
    assert any("are missing in the recording" in why for why in station.status.quality_reasons)


def test_what_is_lost_on_the_way_is_counted(make_station: Callable[..., Station]) -> None:
    station = make_station()
    station.until_ready()
    node = station.node  # type: ignore[attr-defined]
    topic = PROFILE.leader_joint_state_topics[0]
    publisher = station.robot._leaders[0]  # type: ignore[attr-defined]
    message = joint_state_to_msg(JOINT_STATE_NAMES, np.zeros(9), 1)
    for _ in range(1100):  # nobody takes them meanwhile, and 1000 may wait
        publisher.publish(message)
    station.graph.until(lambda: node._topics.heard[topic].lost, "the loss")
    assert 90 <= node._topics.heard[topic].lost <= 110
    assert any(
        "are missing in the recording" in why for why in node._recorder.status().quality_reasons
    )


def test_a_backlog_is_taken_at_one_go(make_station: Callable[..., Station]) -> None:
    station = make_station()
    station.until_ready()
    node, robot = station.node, station.robot  # type: ignore[attr-defined]
    topic = node._topics.heard[PROFILE.leader_joint_state_topics[0]]
    before = topic.received
    for _ in range(300):
        robot._leaders[0].publish(joint_state_to_msg(JOINT_STATE_NAMES, np.zeros(9), 1))
    for _ in range(100):  # a handful of turns for each of the executor's subscriptions
        station.graph.executor.spin_once(timeout_sec=0.02)
    assert topic.received - before >= 300 and topic.lost == 0


def test_losses_are_told_from_a_second_or_a_new_publisher() -> None:
    described = BagTopic(name="/a", type="", definition="", type_hash="")
    topic = RawTopic(described, publishers=frozenset({1}))
    assert [topic.count_lost(number) for number in (5, 6, 9, 1, 2, None, 3)] == [
        *(0, 0, 2, 0, 0, 0, 0)
    ]
    topic.publishers = frozenset({1, 2})
    assert topic.count_lost(9) == 0 and topic.lost == 2


def test_a_node_that_is_deactivated_keeps_what_it_recorded_and_falls_silent(
    make_station: Callable[..., Station],
) -> None:
    station = make_station()
    station.until_ready()
    station.graph.until(lambda: sum(station.status.message_counts) > 50, "some messages")
    station.node.trigger_deactivate()  # type: ignore[attr-defined]
    station.until_state(EpisodeStatus.STATE_INACTIVE)
    assert station.on_disk() == ["episode_000000"]
    with open_bag(station.bag(0)) as bag:
        assert not bag.damage and bag.entries
    assert not station.ask("start").success
    station.node.trigger_activate()  # type: ignore[attr-defined]
    station.until_state(EpisodeStatus.STATE_REVIEW)
    station.graph.until(lambda: station.ask("start").success, "a new start")


@pytest.mark.parametrize("wrong", ["file", "taken"])
def test_a_folder_that_cannot_be_used_is_refused_with_its_name(
    wrong: str, make_graph: Callable, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if wrong == "file":
        (tmp_path / "set").touch()
    graph = make_graph(*parameters(output_dir=str(tmp_path / "set")))
    first = graph.add(RecorderNode())
    assert first.autostart() is (wrong == "taken")
    if wrong == "taken":
        assert not graph.add(RecorderNode()).autostart()
    told = capfd.readouterr().err
    assert f"output_dir {tmp_path / 'set'}" in told and "Traceback" not in told


def run_and_kill(graph: Graph, folder: Path, seed: int, number: int) -> None:
    """Records a good episode and another one, during which the process is killed."""
    with NodeProcesses(config_dir(), folder, os.environ) as nodes:
        given = {"output_dir": str(folder / "set"), "status_rate_hz": 20.0}
        given |= {"min_free_disk_gb": 0.0, "camera_rate_hz": 50.0}
        nodes.start("recorder_node", "recorder.yaml", given)
        station = Station(graph, folder / "set")
        station.until_ready()
        station.record()
        before = {path: path.read_bytes() for path in station.bag(0).iterdir() if path.is_file()}
        station.begin()
        began_ns = time.time_ns()
        graph.listen_in_silence(random.Random(seed).uniform(0.0, 1.5))
        killed_ns = time.time_ns()
        os.kill(nodes._processes["recorder_node"].pid, number)
        nodes._processes["recorder_node"].wait(TIMEOUT_S)
        if number == signal.SIGTERM:
            assert nodes.ended() == {"recorder_node": 0}
            assert station.on_disk() == ["episode_000000", "episode_000001"]
        else:
            assert station.on_disk() == ["episode_000000"]
            recover_bag(station.bag(1))
        with open_bag(station.bag(1), check=True) as bag:
            assert not bag.damage
            last_ns = bag.entries[-1].log_ns if bag.entries else began_ns
        assert killed_ns - last_ns <= NS
        assert before == {
            path: path.read_bytes() for path in station.bag(0).iterdir() if path.is_file()
        }


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_recorder_leaves_all_but_the_last_second(
    seed: int, make_graph: Callable, tmp_path: Path
) -> None:
    graph = make_graph()
    FakeStation(graph.ear)
    run_and_kill(graph, tmp_path, seed, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_killed_recorders_leave_all_but_the_last_second(
    make_graph: Callable, tmp_path: Path
) -> None:
    graph = make_graph()
    FakeStation(graph.ear)
    for seed in range(100, 150):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run_and_kill(graph, folder, seed, signal.SIGKILL)


def test_a_recorder_that_is_told_to_end_saves_the_episode_first(
    make_graph: Callable, tmp_path: Path
) -> None:
    graph = make_graph()
    FakeStation(graph.ear)
    run_and_kill(graph, tmp_path, 0, signal.SIGTERM)
