"""A run looked at again: nothing that happened is lost or told twice, and what is shown as seen is
what was seen.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import run_samples as samples
from bag_samples import NS, START_NS, Take, bag_topic
from hypothesis import given
from hypothesis import strategies as st
from run_samples import GRID, Run, frame_color

from vla_oft_ros import cli
from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.config import ConfigError
from vla_oft_ros.data import policy_messages as own
from vla_oft_ros.data import run_events as happened
from vla_oft_ros.data.bag_storage import BagError
from vla_oft_ros.data.bag_writer import BagWriter
from vla_oft_ros.data.cdr import CdrError
from vla_oft_ros.data.review import ReviewOptions, find_run, write_review
from vla_oft_ros.data.review_cameras import TILE_PX, CameraPanel
from vla_oft_ros.data.review_page import SIZE_PX, ReviewPage
from vla_oft_ros.data.review_timeline import LANE_PX, LANES, NAME_PX, Timeline, color_of
from vla_oft_ros.data.run_events import EventCollector, RunEvent, summarize
from vla_oft_ros.data.run_log import RunLog
from vla_oft_ros.data.run_reader import read_run
from vla_oft_ros.data.verdict import Verdict
from vla_oft_ros.safety_report import SafetyState
from vla_oft_ros.types import MotionMode

TICK_S = 0.04


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run().write(tmp_path_factory.mktemp("run") / "bag")


def of_kind(log: RunLog, kind: str) -> list[RunEvent]:
    return [event for event in log.events if event.kind == kind]


def test_the_own_messages_are_read_as_they_were_written() -> None:
    stamp = START_NS + 7
    actions = np.arange(28.0).reshape(2, 14)
    chunk = own.read_chunk(samples.chunk(stamp, actions, "fold it"))
    assert (chunk.stamp_ns, chunk.dt_ns, chunk.instruction) == (stamp, 40_000_000, "fold it")
    assert np.array_equal(chunk.actions, actions) and chunk.inference_s == 0.125
    kept = own.read_retained(samples.retained("cam_high", stamp, 7, [1, 5]))
    assert (kept.camera, kept.stamp_ns, kept.layer, kept.grid) == ("cam_high", stamp, 7, GRID)
    assert kept.patch_indices.tolist() == [1, 5] and kept.kept_by.tolist() == [2, 2]
    motion = own.read_pruning(samples.pruning(stamp, mode=1, ratio=0.3))
    assert motion.mode is MotionMode.FINE and motion.retain_ratio == 0.3
    assert motion.translation.tolist() == [0.1, 0.2] and motion.rise.tolist() == [-0.5, 0.6]
    assert (motion.stamp_ns, motion.reference_ticks) == (stamp, 7)
    gate = own.read_safety(samples.safety(stamp, samples.ESTOP, "why", velocity=3, shape=1))
    assert gate == own.SafetyReport(stamp, SafetyState.ESTOP, "why", {"velocity": 3, "shape": 1})
    told = own.read_recorder(samples.episode_status(stamp, 2, 9))
    expected = own.RecorderReport(stamp, 2, "", 9, "success", Verdict.SUSPECT, ("dark",))
    assert told == expected
    (found,) = own.read_diagnostics(samples.diagnostics(stamp, "/p: gpu", 2, "hot"))
    assert found == own.Diagnosis("/p: gpu", 2, "hot")


@pytest.mark.parametrize("cut", [3, 20, 200])
def test_own_messages_that_are_cut_off_are_refused_not_guessed(cut: int) -> None:
    data = samples.chunk(START_NS, np.zeros((3, 14)))
    with pytest.raises(CdrError):
        own.read_chunk(data[:cut])


def test_everything_that_happened_is_an_event_once_at_its_time(bag: Path) -> None:
    with read_run(bag) as log:
        found = [
            (event.kind, round(event.start_s, 3), round(event.end_s, 3), event.times)
            for event in log.events
        ]
    expected = [
        ("instruction", 0.0, 0.0, 1),
        ("hold", 0.0, 0.64, 1),
        ("episode", 0.5, 2.5, 1),
        *(("chunk", time_s, time_s, 1) for time_s in Run().chunk_times_s),
        ("intervention", 1.0, 1.12, 8),
        ("fault", 1.5, 2.5, 1),
        ("intervention", 1.6, 1.6, 1),
        ("e-stop", 2.0, 2.2, 1),
        ("reward", 2.1, 2.1, 1),
    ]
    assert sorted(found) == sorted(expected)


def test_the_latency_of_a_chunk_is_its_way_from_the_observation_to_the_controller(
    bag: Path,
) -> None:
    with read_run(bag) as log:
        for event in of_kind(log, "chunk"):
            assert event.latency_s == pytest.approx(5 / 25) and event.inference_s == 0.125


def test_a_summary_names_the_longest_hold_the_worst_latency_and_the_first_trouble() -> None:
    make = lambda kind, start_s, end_s, **more: RunEvent(  # noqa: E731
        kind=kind, start_s=start_s, end_s=end_s, text="", **more
    )
    events = [
        make("hold", 0.0, 1.0),
        make("chunk", 1.0, 1.0, latency_s=0.2),
        make("warning", 1.5, 1.6),
        make("hold", 2.0, 4.0),
        make("chunk", 2.5, 2.5, latency_s=0.9),
        make("silence", 3.0, 4.0),
        make("fault", 4.0, 5.0),
        make("intervention", 4.5, 5.0, times=12),
    ]
    summary = summarize(events, 6.0)
    assert summary.longest_hold is events[3] and summary.worst_chunk is events[4]
    assert summary.first_trouble is events[5]
    assert summary.counts["intervention"] == 12 and summary.counts["hold"] == 2
    empty = summarize([], 1.0)
    assert empty.longest_hold is empty.worst_chunk is empty.first_trouble is None


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 3), st.integers(0, 3), st.booleans()),
        max_size=40,
    )
)
def test_every_intervention_belongs_to_exactly_one_event(
    ticks: list[tuple[int, int, int, bool]],
) -> None:
    """Counts of a gate that is activated anew begin at 0 again; none of its ticks is lost."""
    collector, counts, total, now = EventCollector(), {"velocity": 0, "shape": 0}, 0, 0.0
    collector.safety(0.0, own.SafetyReport(0, SafetyState.ACTIVE, "", dict(counts)))
    for step, velocity, shape, anew in ticks:
        now += step * TICK_S
        more = {"velocity": velocity, "shape": shape}
        # A gate that is activated anew is seen as such if it has counted less than before.
        if anew and all(more[kind] < counts[kind] for kind in more):
            counts = dict.fromkeys(counts, 0)
        counts = {kind: counts[kind] + more[kind] for kind in counts}
        total += velocity + shape
        collector.safety(now, own.SafetyReport(0, SafetyState.ACTIVE, "", dict(counts)))
    events = collector.finish(now)
    assert sum(event.times for event in events) == total
    for event in events:
        assert event.kind == "intervention" and event.end_s <= now


def test_what_is_still_so_at_the_end_ends_there() -> None:
    collector = EventCollector()
    collector.safety(1.0, own.SafetyReport(0, SafetyState.HOLD, "late", {}))
    collector.diagnostics(1.5, [own.Diagnosis("a", 2, "b")])
    events = collector.finish(4.0)
    assert [(e.kind, e.start_s, e.end_s) for e in events] == [("hold", 1, 4), ("fault", 1.5, 4)]


def test_every_event_has_exactly_one_mark_drawn_in_the_lane_of_its_kind(bag: Path) -> None:
    with read_run(bag) as log:
        events, duration_s = log.events, log.duration_s
    assert {event.kind for event in events} >= {"chunk", "hold", "e-stop", "fault", "episode"}
    timeline = Timeline(events, duration_s, (0.0, duration_s), 1600)
    assert [mark.event for mark in timeline.marks] == events
    empty = Timeline([], duration_s, (0.0, duration_s), 1600).at(duration_s)
    for event in events:
        alone = Timeline([event], duration_s, (0.0, duration_s), 1600)
        (mark,) = alone.marks
        assert event.kind in LANES[mark.lane][1]
        rows, columns = np.nonzero((alone.at(duration_s) != empty).any(axis=2))
        assert sorted(set(columns)) == list(range(mark.left_px, mark.right_px + 1))
        assert {int(row) // LANE_PX for row in rows} == {mark.lane}
        middle = alone.at(duration_s)[mark.lane * LANE_PX + LANE_PX // 2, mark.left_px]
        assert tuple(middle) == color_of(event)


def test_the_place_of_a_mark_is_the_place_of_its_time_under_the_cursor(bag: Path) -> None:
    with read_run(bag) as log:
        timeline = Timeline(log.events, log.duration_s, (0.0, log.duration_s), 1600)
    for mark in timeline.marks:
        across = (mark.left_px - NAME_PX) / (timeline.column(log.duration_s) - NAME_PX)
        assert across * log.duration_s == pytest.approx(mark.event.start_s, abs=2e-3)
        image = timeline.at(mark.event.start_s)
        assert (image[4, mark.left_px] == 232).any()  # the cursor stands on it


def used_tile(panel: np.ndarray, camera: str) -> np.ndarray:
    left = CAMERAS.index(camera) * TILE_PX[0]
    return panel[TILE_PX[1] :, left : left + TILE_PX[0]]


def patch_center(tile: np.ndarray, index: int) -> tuple[int, ...]:
    row, column = divmod(index, GRID[1])
    y = (row + 0.5) * tile.shape[0] / GRID[0]
    x = (column + 0.5) * tile.shape[1] / GRID[1]
    return tuple(int(value) for value in tile[int(y), int(x)])


@pytest.mark.parametrize("number", range(4))
def test_the_overlay_lies_on_the_frame_with_the_stamp_of_its_tokens(
    number: int, bag: Path
) -> None:
    run = Run()
    with read_run(bag) as log:
        time_s = run.chunk_times_s[number] + 0.3
        panel = CameraPanel(log, 1.0).at(time_s, log.answers.at(time_s))
    for camera in CAMERAS:
        color = frame_color(camera, run.used_frame(number))
        tile = used_tile(panel, camera)
        for index in range(12):  # the label covers the last row
            kept = index in run.kept[number]
            expected = color if kept else tuple(int(0.3 * value) for value in color)
            assert patch_center(tile, index) == expected, (camera, index)
        now = panel[TILE_PX[1] // 2, CAMERAS.index(camera) * TILE_PX[0] + TILE_PX[0] // 2]
        newest = log.pictures[camera].index(time_s)
        assert tuple(now) == frame_color(camera, newest) != color


def test_where_the_used_frame_is_not_in_the_bag_no_other_is_shown(tmp_path: Path) -> None:
    run = Run(silent={"cam_left_wrist": (0.35, 0.55)})
    with read_run(run.write(tmp_path / "bag")) as log:
        answer = log.answers.at(0.7)
        assert answer is not None
        stamp_ns = answer.retained["cam_left_wrist"].stamp_ns
        assert log.picture_with_stamp("cam_left_wrist", stamp_ns) is None
        panel = CameraPanel(log, 1.0).at(0.7, answer)
    shown = {tuple(color) for color in used_tile(panel, "cam_left_wrist")[:60].reshape(-1, 3)}
    assert len(shown) == 1  # nothing but the panel's ground
    assert patch_center(used_tile(panel, "cam_high"), 0) == frame_color("cam_high", 10)


def test_tokens_go_with_the_chunk_they_came_with_though_both_saw_the_same_image(
    tmp_path: Path,
) -> None:
    """Two chunks of one slow camera's image: each has its own tokens."""
    run = Run(chunk_times_s=(0.6, 0.72), kept=((1,), (2, 3)))
    run.used_frame = lambda number: 10  # type: ignore[method-assign]
    with read_run(run.write(tmp_path / "bag")) as log:
        first, second = log.answers.values
    for camera in CAMERAS:
        assert first.retained[camera].patch_indices.tolist() == [1]
        assert second.retained[camera].patch_indices.tolist() == [2, 3]
        assert first.retained[camera].stamp_ns == second.retained[camera].stamp_ns


def test_a_silent_camera_is_an_event_with_its_length(tmp_path: Path) -> None:
    run = Run(silent={"cam_high": (1.0, 2.0)})
    with read_run(run.write(tmp_path / "bag")) as log:
        (silence,) = of_kind(log, "silence")
        assert silence.start_s == pytest.approx(0.96, abs=0.01)
        assert silence.duration_s == pytest.approx(1.04, abs=0.01)
        assert "cam_high" in silence.text
        panel = CameraPanel(log, 1.0)
        quiet, red = panel.at(1.9, None)[: TILE_PX[1]], (255, 84, 76)
        assert (quiet[:, : TILE_PX[0]] == red).all(axis=2).any()  # its age, in red
        assert not (quiet[:, TILE_PX[0] :] == red).all(axis=2).any()


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        (ReviewOptions(fps=10.0), 30),
        (ReviewOptions(fps=25.0, from_s=1.0, to_s=2.0), 25),
        (ReviewOptions(fps=10.0, speed=2.0), 15),
        (ReviewOptions(fps=12.5, speed=0.5, to_s=0.8), 20),
    ],
)
def test_a_video_has_duration_times_fps_frames_that_decode(
    options: ReviewOptions, frames: int, bag: Path, tmp_path: Path
) -> None:
    told = []
    with read_run(bag) as log:
        files = write_review(log, tmp_path / "a.mp4", options, lambda: told.append(1))
        expected = ReviewPage(log, (0.0, log.duration_s), 0.9).at(options.from_s)
    with av.open(str(files[0])) as video:
        stream = video.streams.video[0]
        images = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
        assert stream.codec_context.name == "h264" and float(stream.average_rate) == options.fps
        assert stream.codec_context.pix_fmt == "yuv420p"
    assert len(images) == len(told) == frames
    assert images[0].shape == (SIZE_PX[1], SIZE_PX[0], 3)
    assert np.abs(images[0].astype(int) - expected)[:600].mean() < 4.0


def test_holds_stops_and_faults_are_chapters_at_their_time_in_the_video(
    bag: Path, tmp_path: Path
) -> None:
    with read_run(bag) as log:
        options = ReviewOptions(fps=5.0, from_s=1.0, speed=2.0)
        (video, *_) = write_review(log, tmp_path / "a.mp4", options)
    with av.open(str(video)) as container:
        chapters = {
            one["metadata"]["title"]: float(one["start"] * one["time_base"])
            for one in container.chapters()
        }
    assert chapters == {
        "begin": 0.0,
        "fault: /p: gpu: hot": pytest.approx(0.25, abs=2e-3),
        "e-stop: asked for by service": pytest.approx(0.5, abs=2e-3),
    }


def test_the_tables_beside_the_video_hold_every_event(bag: Path, tmp_path: Path) -> None:
    with read_run(bag) as log:
        _, table, tree = write_review(log, tmp_path / "a.mp4", ReviewOptions(fps=1.0))
        rows = list(csv.DictReader(table.open(encoding="utf-8")))
        content = json.loads(tree.read_text(encoding="utf-8"))
        assert len(rows) == len(content["events"]) == len(log.events)
        for row, told, event in zip(rows, content["events"], log.events, strict=True):
            assert row["kind"] == told["kind"] == event.kind
            assert float(row["start_s"]) == told["start_s"] == round(event.start_s, 4)
            assert int(row["stamp_ns"]) == log.start_ns + round(event.start_s * 1e9)
    assert content["summary"]["counts"]["chunk"] == 4
    assert content["summary"]["first_trouble"]["kind"] == "fault"


def test_a_teleoperation_shows_what_there_is(tmp_path: Path) -> None:
    path = Take(seconds=1.0).write(tmp_path / "bag")
    with read_run(path) as log:
        assert any("no action chunks" in note for note in log.notes)
        assert log.leaders["left"].values and not log.targets.values
        page = ReviewPage(log, (0.0, log.duration_s), 0.9)
        image = page.at(0.7)
        assert image[100:400, 100:600].std() > 5  # the large camera
        assert len(write_review(log, tmp_path / "a.mp4", ReviewOptions(fps=2.0))) == 3


@pytest.mark.parametrize("time_s", [0.0, 0.3, 1.5, 2.1, 2.99])
@pytest.mark.parametrize(
    "missing",
    [
        ("cam_left_wrist",),
        ("retained_tokens", "pruning"),
        ("action_chunk",),
        ("joint_states", "joint_targets"),
        ("safety", "diagnostics", "episode", "instruction", "reward"),
        tuple(CAMERAS),
    ],
)
def test_whatever_a_run_lacks_the_rest_is_shown(
    missing: tuple[str, ...], time_s: float, tmp_path: Path
) -> None:
    run = Run()
    sent = [one for one in run.messages() if not any(part in one.topic for part in missing)]
    writer = BagWriter(tmp_path / "bag", {"profile": "sim"})
    for one in sent:
        writer.add_topic(bag_topic(one.topic, one.type))
        writer.write(one.topic, one.log_ns, one.data)
    writer.close()
    with read_run(tmp_path / "bag") as log:
        assert ReviewPage(log, (0.0, log.duration_s), 0.9).at(time_s).shape == (900, 1600, 3)
        for camera in CAMERAS:
            is_noted = any(camera in note for note in log.notes)
            assert is_noted == (camera in missing)


def test_a_bag_that_ends_suddenly_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    path = Run().write(tmp_path / "bag")
    (path / "metadata.yaml").unlink()
    (file,) = path.glob("*.mcap")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    with read_run(path) as log:
        assert any("damaged" in note for note in log.notes)
        assert 0.5 < log.duration_s < 3.0 and of_kind(log, "chunk")
        assert ReviewPage(log, (0.0, log.duration_s), 0.9).at(0.5).any()


def test_messages_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    run = Run()
    broken = [
        replace(one, data=one.data[:40]) if one.topic == "/action_chunk" else one
        for one in run.messages()
    ]
    run.messages = lambda: broken  # type: ignore[method-assign]
    with read_run(run.write(tmp_path / "bag")) as log:
        assert any(note.startswith("/action_chunk: 4 messages") for note in log.notes)
        assert not log.answers.values


def test_a_broken_image_is_named_in_its_place(tmp_path: Path) -> None:
    run = Run(compressed=True)
    broken = [
        replace(one, data=one.data[:100]) if "cam_high" in one.topic else one
        for one in run.messages()
    ]
    run.messages = lambda: broken  # type: ignore[method-assign]
    with read_run(run.write(tmp_path / "bag")) as log:
        assert ReviewPage(log, (0.0, log.duration_s), 0.9).at(1.0).any()


def test_a_bag_that_does_not_name_its_robot_is_known_by_its_topics(tmp_path: Path) -> None:
    writer = BagWriter(tmp_path / "bag", {})
    for one in Run().messages():
        writer.add_topic(bag_topic(one.topic, one.type))
        writer.write(one.topic, one.log_ns, one.data)
    writer.close()
    with read_run(tmp_path / "bag") as log:
        assert len(log.pictures) == 3 and len(log.answers.values) == 4
        assert any("does not name its robot" in note for note in log.notes)


def test_a_bag_recorded_on_another_clock_is_told_in_the_time_of_its_stamps(
    tmp_path: Path,
) -> None:
    run = Run()
    hour_ns = 3600 * NS
    moved = [
        replace(one, log_ns=hour_ns + START_NS + 3 * (one.log_ns - START_NS))
        for one in run.messages()
    ]
    run.messages = lambda: moved  # type: ignore[method-assign]
    with read_run(run.write(tmp_path / "bag")) as log:
        assert any("different clocks" in note for note in log.notes)
        assert log.duration_s == pytest.approx(3.0, abs=0.05)
        starts = [event.start_s for event in of_kind(log, "chunk")]
        assert starts == pytest.approx(run.chunk_times_s, abs=0.05)


def test_what_is_no_run_of_this_robot_is_refused_with_a_reason(bag: Path, tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"expected cameras or joint states of profile 'agilex'"):
        read_run(bag, "agilex")
    with pytest.raises(ConfigError, match="expected one of the profiles"):
        read_run(bag, "robot")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        find_run(tmp_path / "empty")
    Take(seconds=0.2).write(tmp_path / "set" / "a")
    assert find_run(tmp_path / "set") == tmp_path / "set" / "a"
    Take(seconds=0.2).write(tmp_path / "set" / "b")
    with pytest.raises(BagError, match="expected one bag; found 2"):
        find_run(tmp_path / "set")
    BagWriter(tmp_path / "nothing", {"profile": "sim"}).close()
    with pytest.raises(BagError, match="no message in it"):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "9"], "--from: expected 0 to"),
        (["--from", "2", "--to", "1"], "--to: expected a time after"),
        (["--speed", "0"], "--speed: expected"),
        (["--fps", "nan"], "--fps: expected"),
        (["--crop-area", "2"], "--crop-area: expected"),
        (["--output", "a.avi"], "--output: expected a file name that ends in .mp4"),
        (["--profile", "nobody"], "expected one of the profiles"),
    ],
)
def test_the_command_refuses_what_makes_no_video(
    arguments: list[str],
    expected: str,
    bag: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["review", str(bag), *arguments]) == cli.EXIT_BAD_INPUT
    assert expected in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_video_and_says_what_happened(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "review.mp4"
    assert cli.main(["review", str(bag), "--output", str(video), "--fps", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 chunk" in said and "1 e-stop" in said and "9 intervention" in said
    assert "0.64 s at 0.00 s: hold" in said and "1.00 s at 1.50 s: fault" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "review.events.csv",
        "review.events.json",
        "review.mp4",
    ]


def test_every_kind_of_event_has_a_lane_and_a_colour() -> None:
    assert sorted(kind for _, kinds in LANES for kind in kinds) == sorted(happened.KINDS)
