"""The recorder without its topics: nothing is lost unseen, nothing that is kept is spoiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bag_samples import NS, START_NS, Take, bag_topic, text
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader

from vla_oft_ros.aloha import load_profile
from vla_oft_ros.config import ConfigError, RecorderConfig
from vla_oft_ros.data.bag import read_bag
from vla_oft_ros.data.bag_recovery import recover_bag
from vla_oft_ros.data.bag_storage import open_bag
from vla_oft_ros.data.bag_writer import BagWriter
from vla_oft_ros.data.episode_folder import EpisodeFolder
from vla_oft_ros.data.gripper_trigger import GripperTrigger
from vla_oft_ros.data.quality import Stream
from vla_oft_ros.data.recorder import EpisodeRecorder, Refused, State
from vla_oft_ros.data.recording import FLUSH_S, EpisodeRecording, FlushTimer

TOPIC = bag_topic("/text", "std_msgs/msg/String")
PROFILE = load_profile("sim")
CAMERAS = {"cam_high": {"topic": "/a", "width_px": 4, "height_px": 3}}
CONFIG = RecorderConfig(min_free_disk_gb=0.0)
TIMEOUT_S = 20.0


def until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen in {TIMEOUT_S:g} s"
        time.sleep(0.005)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that writes nothing until the event is set."""
    event = threading.Event()
    real = BagWriter.write

    def write(self: BagWriter, *arguments: object) -> None:
        assert event.wait(TIMEOUT_S)
        real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BagWriter, "write", write)
    return event


def test_a_slow_disk_makes_nobody_wait_and_every_message_is_written_or_counted(
    tmp_path: Path, gate: threading.Event
) -> None:
    message = text("x" * 1000)
    recording = EpisodeRecording(tmp_path / "bag", {}, buffer_bytes=10 * len(message))
    began_s = time.monotonic()
    taken = [recording.take(TOPIC, START_NS + index, message) for index in range(50)]
    assert time.monotonic() - began_s < 5.0  # the disk would not have answered in 20
    assert taken == [True] * 10 + [False] * 40
    assert recording.dropped == {"/text": 40}
    gate.set()
    until(lambda: recording.waiting_bytes == 0, "the disk to catch up")
    assert recording.take(TOPIC, START_NS + 50, message)
    recording.finish(dict)
    assert recording.join(TIMEOUT_S)
    assert recording.counts == {"/text": 11} and recording.dropped == {"/text": 40}
    with open_bag(tmp_path / "bag") as bag:
        assert bag.counts() == {"/text": 11}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.integers(1, 20_000))
def test_received_is_written_plus_dropped_whatever_the_sizes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], buffer_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("law") / "bag"
    recording = EpisodeRecording(path, {}, buffer_bytes)
    for index, size in enumerate(sizes):
        recording.take(TOPIC, START_NS + index, text("x" * size))
    recording.finish(dict)
    assert recording.join(TIMEOUT_S)
    written, dropped = recording.counts["/text"], recording.dropped["/text"]
    assert written + dropped == len(sizes)
    with open_bag(path) as bag:
        assert len(bag.entries) == written


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 0.5)), min_size=1, max_size=50),
    st.floats(0.01, 1.0),
)
def test_nothing_stays_in_memory_longer_than_a_period(
    acts: list[tuple[bool, float]], period_s: float
) -> None:
    timer, now_s, oldest_s = FlushTimer(period_s), 100.0, None
    for message_came, waited_s in acts:
        left_s = timer.left_s(oldest_s is not None, now_s)
        assert left_s <= period_s
        if oldest_s is None:
            assert left_s == period_s  # nothing is written for nothing
        else:
            assert left_s == pytest.approx(period_s - (now_s - oldest_s))
        if left_s <= 0:
            oldest_s = None
            timer.left_s(False, now_s)
        if message_came and oldest_s is None:
            oldest_s = now_s
            timer.left_s(True, now_s)
        now_s += waited_s


def test_a_message_reaches_the_disk_though_no_other_one_follows(tmp_path: Path) -> None:
    recording = EpisodeRecording(tmp_path / "bag", {}, buffer_bytes=10**6)
    before = recording.bytes_written
    recording.take(TOPIC, START_NS, text("alone"))
    until(lambda: recording.bytes_written > before, "the message to be on disk")
    recording.abandon()
    recover_bag(tmp_path / "bag")
    with open_bag(tmp_path / "bag") as bag:
        assert len(bag.entries) == 1


def test_a_killed_recorder_has_most_of_its_second_left_for_a_busy_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is waited for is never longer than a fifth of the second that may be lost."""
    waited: list[float | None] = []
    real = threading.Condition.wait

    def wait(self: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread().name == "write bag":
            waited.append(timeout)
        return real(self, timeout)

    monkeypatch.setattr(threading.Condition, "wait", wait)
    recording = EpisodeRecording(tmp_path / "bag", {}, buffer_bytes=10**6)
    for index in range(20):
        recording.take(TOPIC, START_NS + index, text("x"))
        time.sleep(FLUSH_S / 7)  # so that messages come just before it is due
    recording.finish(dict)
    assert recording.join(TIMEOUT_S)
    assert waited and all(timeout is not None and timeout <= 0.2 for timeout in waited)
    assert min(timeout for timeout in waited if timeout is not None) < FLUSH_S / 2


def test_a_check_that_fails_costs_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, folder = make_recorder(tmp_path)
    begin(recorder)
    monkeypatch.setattr(
        "vla_oft_ros.data.quality.EpisodeQuality.add", lambda *_: {}["no such key"]
    )
    record(recorder, Take(seconds=0.5))
    finish(recorder)
    assert sum(recorder.status().message_counts.values()) > 100
    assert sum(recorder.status().dropped_counts.values()) == 0
    assert "the quality checks failed, see the log" in recorder.status().quality_reasons
    folder.close()


def make_recorder(
    path: Path, config: RecorderConfig = CONFIG
) -> tuple[EpisodeRecorder, EpisodeFolder]:
    folder = EpisodeFolder(path)
    folder.recover()
    return EpisodeRecorder(folder, PROFILE, config), folder


STREAMS = {
    **{
        PROFILE.camera_topic(camera): Stream("image", camera, "sensor_msgs/msg/Image")
        for camera in ("cam_high", "cam_left_wrist", "cam_right_wrist")
    },
    **{
        topic: Stream(role, arm, "sensor_msgs/msg/JointState")
        for role, topics in (
            ("follower", PROFILE.follower_joint_state_topics),
            ("leader", PROFILE.leader_joint_state_topics),
        )
        for arm, topic in zip(("left", "right"), topics, strict=True)
    },
}


def begin(recorder: EpisodeRecorder, instruction: str = "wave") -> int:
    return recorder.start(START_NS, instruction, STREAMS, CAMERAS)


def record(recorder: EpisodeRecorder, take: Take) -> None:
    for one in take.messages():
        recorder.take(bag_topic(one.topic, one.type), one.log_ns, one.data)


def finish(recorder: EpisodeRecorder) -> None:
    recorder.stop()
    until_saved(recorder)


def until_saved(recorder: EpisodeRecorder) -> None:
    def saved() -> bool:
        recorder.poll()
        return recorder.state is not State.SAVING

    until(saved, "the episode to be saved")


def test_an_episode_goes_from_start_to_a_bag_that_the_project_and_the_mcap_tools_read(
    tmp_path: Path,
) -> None:
    recorder, folder = make_recorder(tmp_path)
    take = Take(seconds=1.5, instruction="ignored")
    assert begin(recorder, "wave") == 0
    record(recorder, take)
    status = recorder.status()
    assert status.state is State.RECORDING and status.episodes_on_disk == 0
    finish(recorder)
    status = recorder.status()
    assert status.state is State.REVIEW and status.episodes_on_disk == 1
    assert status.quality.name == "GOOD", status.quality_reasons
    assert status.duration_s == pytest.approx(1.5, abs=0.05)
    recorder.label(True)
    assert recorder.state is State.IDLE
    sent = take.messages()
    path = folder.episode_path(0)
    with next(path.glob("*.mcap")).open("rb") as file:
        messages = make_reader(file, validate_crcs=True).iter_messages()
        assert [(c.topic, m.log_time, m.data) for _, c, m in messages] == [
            (one.topic, one.log_ns, one.data) for one in sent
        ]
    episode = read_bag(path)
    assert (episode.instruction, episode.outcome, episode.profile) == ("wave", "success", "sim")
    with open_bag(path) as bag:
        assert bag.custom_data["quality"] == "good" and bag.custom_data["dropped"] == "0"
    folder.close()


def test_what_is_said_is_what_is_on_disk_through_every_wish_of_an_operator(
    tmp_path: Path,
) -> None:
    recorder, folder = make_recorder(tmp_path)

    def on_disk() -> list[int]:
        found = sorted(int(path.parent.name[-6:]) for path in tmp_path.glob("*/metadata.yaml"))
        assert recorder.status().episodes_on_disk == len(found)
        return found

    take = Take(seconds=0.2)
    for label in (True, False, None):  # kept and labelled, or only kept
        begin(recorder)
        record(recorder, take)
        finish(recorder)
        if label is not None:
            recorder.label(label)
    assert on_disk() == [0, 1, 2]
    recorder.discard()
    assert on_disk() == [0, 1] and recorder.state is State.IDLE
    with pytest.raises(Refused, match="no episode to discard"):
        recorder.discard()
    assert begin(recorder) == 2
    record(recorder, take)
    recorder.discard()  # while it is recorded
    assert on_disk() == [0, 1] and not folder.episode_path(2).exists()
    assert begin(recorder) == 2
    record(recorder, take)
    recorder.label(False)  # before it has ended
    finish(recorder)
    assert recorder.state is State.IDLE and on_disk() == [0, 1, 2]
    outcomes = []
    for index in on_disk():
        with open_bag(folder.episode_path(index)) as bag:
            outcomes.append(bag.custom_data["outcome"])
    assert outcomes == ["success", "failure", "failure"]
    folder.close()


def test_wishes_that_do_not_fit_are_refused_with_what_can_be_done(tmp_path: Path) -> None:
    recorder, folder = make_recorder(tmp_path)
    for wish in (recorder.stop, recorder.discard, lambda: recorder.label(True)):
        with pytest.raises(Refused, match="start"):
            wish()
    begin(recorder)
    with pytest.raises(Refused, match="stop or discard it first"):
        begin(recorder)
    recorder.close()
    folder.close()


def test_an_episode_ends_by_itself_at_its_longest_and_nothing_is_taken_afterwards(
    tmp_path: Path,
) -> None:
    recorder, folder = make_recorder(tmp_path, replace(CONFIG, max_episode_s=0.5))
    begin(recorder)
    record(recorder, Take(seconds=2.0))
    until_saved(recorder)
    status = recorder.status()
    assert status.state is State.REVIEW and "max_episode_s" in status.reason
    assert status.duration_s == pytest.approx(0.5, abs=0.02)
    with open_bag(folder.episode_path(0)) as bag:
        assert bag.entries[-1].log_ns <= START_NS + 0.52 * NS
    folder.close()


class Backlog:
    """Messages that have arrived and wait, as a busy executor leaves them."""

    def __init__(self, patience: int = 10**6) -> None:
        self.recorder: EpisodeRecorder | None = None
        self.waiting: dict[str, list[int]] = {}
        self.time_ns, self.patience = START_NS, patience

    def now_ns(self) -> int:
        return self.time_ns

    def drain(self, end_ns: int) -> list[str]:
        unfinished = []
        for topic in self.waiting:
            while self.waiting[topic] and self.patience:
                self.patience -= 1
                if self.hand_over(topic) > end_ns:
                    break
            else:
                unfinished += [topic] if self.waiting[topic] else []
        return unfinished

    def hand_over(self, topic: str) -> int:
        """Gives one message to the recorder, its number as its text; returns when it arrived."""
        log_ns = self.waiting[topic].pop(0)
        assert self.recorder is not None
        self.recorder.take(bag_topic(topic, "std_msgs/msg/String"), log_ns, text(str(log_ns)))
        return log_ns


def make_busy_recorder(path: Path, backlog: Backlog, config: RecorderConfig = CONFIG) -> Backlog:
    folder = EpisodeFolder(path)
    backlog.recorder = EpisodeRecorder(folder, PROFILE, config, backlog)
    backlog.recorder.start(START_NS, "wave", {}, {})
    return backlog


ARRIVALS = st.lists(st.integers(0, 100), max_size=20).map(sorted)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["/a", "/b", "/c"]), ARRIVALS),
    st.integers(0, 100),
    st.integers(0, 15),
)
@example({"/a": [1, 2, 3, 9], "/b": [2, 4], "/c": [9]}, 4, 15)
@example({"/a": [1, 2, 3, 9], "/b": [2, 4], "/c": [9]}, 4, 2)
@example({"/a": [1, 2, 3, 9], "/b": [2, 4], "/c": [9]}, 4, 0)
def test_a_take_holds_what_arrived_before_its_stop_or_says_what_is_missing(
    tmp_path_factory: pytest.TempPathFactory,
    arrivals: dict[str, list[int]],
    end: int,
    patience: int,
) -> None:
    path = tmp_path_factory.mktemp("law")
    backlog = make_busy_recorder(path, Backlog(patience))
    recorder = backlog.recorder
    assert recorder is not None
    backlog.waiting = {topic: [START_NS + at for at in times] for topic, times in arrivals.items()}
    backlog.time_ns = START_NS + end
    recorder.stop()
    until_saved(recorder)
    for topic in backlog.waiting:  # the executor comes round at last
        while backlog.waiting[topic]:
            backlog.hand_over(topic)
    with open_bag(path / "episode_000000") as bag:
        kept = {topic: [e.log_ns for e in bag.entries if e.topic == topic] for topic in arrivals}
        cut = bag.custom_data.get("cut", "")
    take = recorder._take
    assert take is not None
    for topic, times in arrivals.items():
        before = [START_NS + at for at in times if at <= end]
        assert kept[topic] == before[: len(kept[topic])]
        assert len(kept[topic]) + take.lost.get(topic, 0) == len(before)
        if len(kept[topic]) < len(before):
            assert topic in cut and any(topic in f.text for f in take.findings())
    if patience >= sum(map(len, arrivals.values())):
        assert not cut and not take.lost
    recorder._folder.close()


def test_what_waits_does_not_end_a_take_again_or_later_than_its_longest(tmp_path: Path) -> None:
    config = replace(CONFIG, max_episode_s=0.5)
    backlog = make_busy_recorder(tmp_path, Backlog(), config)
    recorder = backlog.recorder
    assert recorder is not None
    times = [START_NS + index * NS // 10 for index in range(10)]
    backlog.waiting = {"/a": list(times), "/b": list(times)}
    while recorder.is_recording:
        backlog.hand_over("/a")
    assert backlog.waiting["/b"] == times[7:]  # the first one behind the end was looked at
    until_saved(recorder)
    with open_bag(tmp_path / "episode_000000") as bag:
        assert bag.counts() == {"/a": 6, "/b": 6}
    recorder._folder.close()


def test_a_number_that_is_taken_is_never_given_again(tmp_path: Path) -> None:
    recorder, folder = make_recorder(tmp_path)
    (tmp_path / "episode_000041").mkdir()
    assert begin(recorder) == 42
    recorder.close()
    folder.close()


def test_an_interrupted_episode_is_finished_by_the_next_recorder_and_keeps_its_number(
    tmp_path: Path,
) -> None:
    writer = BagWriter(tmp_path / "episode_000003", {"instruction": "wave"})
    writer.add_topic(TOPIC)
    writer.write("/text", START_NS, text("a"))
    writer.flush()
    writer.abort()
    (tmp_path / ".discarded_episode_000002").mkdir()
    (tmp_path / "episode_000001").mkdir()
    folder = EpisodeFolder(tmp_path)
    told = folder.recover()
    assert told[1] == "episode_000003 was interrupted; its 1 messages were saved"
    assert "episode_000001 was interrupted and holds nothing" in told[0]
    assert folder.episodes() == [3] and folder.next_index() == 4
    assert not (tmp_path / ".discarded_episode_000002").exists()
    with open_bag(folder.episode_path(3)) as bag:
        assert bag.custom_data == {"instruction": "wave", "interrupted": "true"}
    folder.close()


def test_two_recorders_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = EpisodeFolder(tmp_path)
    with pytest.raises(ConfigError, match="another recorder works there"):
        EpisodeFolder(tmp_path)
    folder.close()
    EpisodeFolder(tmp_path).close()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"camera_rate_hz": 60.0}, "camera_rate_hz 30.0 \\(now 60.0\\)"),
        ({"profile": "interbotix_main"}, "robot.name 'sim' \\(now 'interbotix_main'\\)"),
        ({"cameras": {"cam_high": {**CAMERAS["cam_high"], "width_px": 8}}}, "width_px 4 \\(now 8"),
        ({"cameras": {}}, "cameras.cam_high.topic '/a' \\(now None\\)"),
    ],
)
def test_a_data_set_is_not_continued_with_another_robot_rate_or_cameras(
    tmp_path: Path, changed: dict, expected: str
) -> None:
    recorder, folder = make_recorder(tmp_path)
    begin(recorder)
    recorder.close()
    config = replace(CONFIG, camera_rate_hz=changed.get("camera_rate_hz", 30.0))
    profile = load_profile(changed.get("profile", "sim"))
    other = EpisodeRecorder(folder, profile, config)
    cameras = changed.get("cameras", CAMERAS)
    with pytest.raises(Refused, match=expected) as refused:
        other.start(START_NS, "wave", STREAMS, cameras)
    assert "Choose another output_dir" in str(refused.value)
    assert folder.next_index() == 1
    folder.close()


def test_an_episode_is_not_started_and_a_running_one_is_ended_without_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, folder = make_recorder(tmp_path, replace(CONFIG, min_free_disk_gb=1.0))
    free = [2 * 2**30]
    monkeypatch.setattr(folder, "free_bytes", lambda: free[0])
    begin(recorder)
    record(recorder, Take(seconds=0.2))
    recorder.poll()
    assert recorder.state is State.RECORDING
    free[0] = 2**29
    recorder.poll()
    assert recorder.state is State.SAVING
    until_saved(recorder)
    assert "almost full" in recorder.status().reason and folder.episodes() == [0]
    with pytest.raises(Refused, match=r"0\.5 GB are free .* expected 1\.0 GB"):
        begin(recorder)
    folder.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB, where one may be mounted."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)  # lazily: a failed test may hold it


def test_a_full_disk_fails_with_its_reason_counts_what_is_lost_and_recovers_with_space(
    small_disk: Path,
) -> None:
    recorder, folder = make_recorder(small_disk, replace(CONFIG, buffer_mb=200))
    begin(recorder)
    data = text("x" * 500_000)
    for index in range(200):
        recorder.take(TOPIC, START_NS + index * 10_000_000, data)
    take = recorder._take
    assert take is not None
    until(lambda: take.recording.failed, "the disk to be full")
    recorder.poll()
    until_saved(recorder)
    status = recorder.status()
    assert status.state is State.FAILED and "the disk is full" in status.reason
    assert status.message_counts["/text"] + status.dropped_counts["/text"] == 200
    with open_bag(folder.episode_path(0)) as bag:
        assert len(bag.entries) == status.message_counts["/text"] > 40
        assert not bag.damage
    assert status.episodes_on_disk == 1
    with pytest.raises(Refused, match="the disk is full"):
        begin(recorder)
    recorder.discard()
    recorder.poll()
    assert recorder.state is State.IDLE
    assert begin(recorder) == 0
    recorder.close()
    folder.close()


def test_closed_grippers_fire_once_after_they_were_held_and_again_after_both_were_open() -> None:
    trigger = GripperTrigger(closed=0.1, hold_s=0.5)
    fired = []
    for index in range(500):
        stamp_ns = START_NS + index * NS // 100
        closed = 100 <= index < 300 or 350 <= index < 380 or index >= 420
        for arm, opening in (("left", 0.0 if closed else 0.5), ("right", 0.02 if closed else 1.0)):
            if trigger.add(arm, stamp_ns, opening):
                fired.append(index)
    assert fired == [150, 470]


def test_grippers_that_are_closed_from_the_beginning_or_one_alone_do_not_fire() -> None:
    trigger = GripperTrigger(closed=0.1, hold_s=0.0)
    assert not any(trigger.add(arm, n, 0.0) for n in range(100) for arm in ("left", "right"))
    trigger.add("left", 101, 0.9)
    trigger.add("right", 101, 0.9)
    assert not any(trigger.add("left", 102 + n, 0.0) for n in range(100))
    assert trigger.add("right", 300, 0.0)
