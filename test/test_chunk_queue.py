import contextlib
import importlib.util
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_oft_ros.aloha import ACTION_DIM, GRIPPERS
from vla_oft_ros.chunk_queue import ActionChunkQueue, ChunkRefused
from vla_oft_ros.chunk_report import JoinReport, JoinStatistics
from vla_oft_ros.chunk_timing import Fade, PlacedChunk
from vla_oft_ros.config import ChunkQueueConfig
from vla_oft_ros.types import ActionChunk

DT_NS = 40_000_000
K = 25
START_NS = 1_700_000_000_000_000_000
BY_TIME = ("latency_matched_blend", "replace", "temporal_ensemble")
PLAYED = ("sync", "append")
ARM = [joint for joint in range(ACTION_DIM) if joint not in GRIPPERS]


def at(tick: float) -> int:
    """Time of a tick; fractions lie between ticks."""
    return START_NS + round(tick * DT_NS)


def ramp_chunk(tick: float, bias: float = 0.0, slope: float = 0.01, rows: int = K) -> ActionChunk:
    """Predicts, from an observation at `tick`, the motion slope · tick + bias of every joint."""
    motion = slope * (tick + np.arange(rows)) + bias
    actions = np.repeat(motion[:, None], ACTION_DIM, axis=1)
    actions[:, GRIPPERS] = 1.0
    return ActionChunk(
        actions=actions, stamp_ns=at(tick), dt_ns=DT_NS, instruction="", inference_s=0.1
    )


def queue_of(join: str = "latency_matched_blend", **settings: object) -> ActionChunkQueue:
    return ActionChunkQueue(ChunkQueueConfig(join=join, **settings), DT_NS)  # type: ignore[arg-type]


def running(join: str = "latency_matched_blend", **settings: object) -> ActionChunkQueue:
    """A queue that has handed out rows 0 … 14 of a first chunk on ticks 0 … 14."""
    queue = queue_of(join, **settings)
    queue.put(ramp_chunk(0), at(0))
    for tick in range(15):
        assert queue.next_action(at(tick)) is not None
    return queue


def handed_out(queue: ActionChunkQueue, ticks: range) -> np.ndarray:
    """Joint 0 per tick, NaN where there was no action."""
    actions = [queue.next_action(at(tick)) for tick in ticks]
    return np.array([np.nan if action is None else action[0] for action in actions])


# Lessons of other projects.


@pytest.mark.parametrize("join", BY_TIME)
def test_a_chunk_is_entered_at_the_number_of_actions_executed_since_its_observation(join):
    queue = running(join)
    # Observed at tick 10; it arrives after tick 14 whatever its inference_s claims.
    report = queue.put(replace(ramp_chunk(10), inference_s=7.0), at(14.5))
    assert report.index == 5
    np.testing.assert_allclose(handed_out(queue, range(15, 35)), 0.01 * np.arange(15, 35))


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
@pytest.mark.parametrize("latency", (0.0, 0.7, 8.3))
def test_the_first_chunk_starts_at_row_0_however_late_it_comes(join, latency):
    queue = queue_of(join)
    assert queue.next_action(at(0)) is None
    chunk = ramp_chunk(0)
    report = queue.put(chunk, at(latency))
    assert report.first and report.index == 0
    first_tick = int(latency) + 1
    for row in range(K):
        np.testing.assert_allclose(queue.next_action(at(first_tick + row)), chunk.actions[row])
    assert queue.next_action(at(first_tick + K)) is None


@pytest.mark.parametrize("join", BY_TIME)
def test_time_without_actions_is_not_skipped_in_the_next_chunk(join):
    queue = queue_of(join, blend_steps=0)
    queue.put(ramp_chunk(0), at(0))
    assert not np.isnan(handed_out(queue, range(25))).any()
    assert np.isnan(handed_out(queue, range(25, 28))).all()
    # Observed at tick 20, five actions before the motion ended: the sixth one comes next.
    report = queue.put(ramp_chunk(20), at(27.5))
    assert report.index == 5
    np.testing.assert_allclose(handed_out(queue, range(28, 33)), 0.01 * np.arange(25, 30))


@pytest.mark.parametrize("join", BY_TIME)
def test_a_pause_counts_also_for_the_chunk_after_the_next(join):
    queue = queue_of(join, blend_steps=0)
    queue.put(ramp_chunk(0), at(0))
    handed_out(queue, range(28))  # three ticks without an action: 25, 26, 27
    queue.put(ramp_chunk(20), at(27.5))
    handed_out(queue, range(28, 30))
    # Observed at tick 24 of the motion: rows for 24 (executed at tick 24), then ticks 28 and 29.
    assert queue.put(ramp_chunk(24), at(30)).index == 3


def test_the_first_inference_stays_out_of_the_latency_statistics():
    queue, statistics = queue_of(), JoinStatistics()
    statistics.add(queue.put(ramp_chunk(0), at(40)))  # warm-up: 1.6 s
    assert statistics.percentile("staleness_s", 50) is None
    queue.next_action(at(40))
    statistics.add(queue.put(ramp_chunk(38), at(41)))
    assert statistics.percentile("staleness_s", 99) == pytest.approx(3 * 0.04)


def test_statistics_look_at_the_latest_hundred_joins():
    statistics = JoinStatistics()
    for index in range(250):
        statistics.add(
            JoinReport(
                first=False,
                index=index,
                seam_jump_rad=0.0,
                velocity_step_rad_s=0.0,
                staleness_s=float(index),
            )
        )
    assert statistics.percentile("staleness_s", 0) == 150.0
    assert statistics.percentile("index", 100) == 249.0


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
def test_nothing_is_made_up_when_no_chunk_covers_the_tick(join):
    queue = queue_of(join)
    assert queue.next_action(at(0)) is None
    queue.put(ramp_chunk(0, bias=1.0), at(0))
    values = handed_out(queue, range(1, 40))
    assert np.isnan(values[K:]).all()
    assert values[:K].min() >= 1.0  # never a padded zero
    assert queue.remaining(at(40)) == 0 and queue.age_s(at(40)) is None


def test_an_offset_between_prediction_and_motion_is_cancelled_on_arrival_and_fades():
    queue = running(blend_steps=8)
    queue.put(ramp_chunk(10, bias=-0.05), at(14.5))
    values = handed_out(queue, range(15, 35))
    wanted = 0.01 * np.arange(15, 35)
    assert abs(values[0] - wanted[0]) < 0.0005  # where the old motion would have been
    np.testing.assert_allclose(values[8:], wanted[8:] - 0.05)  # the new one after the fade
    offset = values[:9] - wanted[:9]
    assert np.all(np.diff(offset) < 0) and np.abs(np.diff(offset)).max() < 2 * 0.05 / 8


def test_the_fade_starts_with_the_old_velocity_also_without_an_old_tail():
    queue = running(blend_steps=8)
    handed_out(queue, range(15, 25))
    queue.put(ramp_chunk(16, bias=0.78, slope=-0.02), at(24.2))  # the old chunk ends at tick 24
    values = np.concatenate([[0.23, 0.24], handed_out(queue, range(25, 40))])
    assert abs(values[2] - 0.25) < 0.003
    assert np.abs(np.diff(values, n=2)).max() < 0.015  # replaced, it would be above 0.1


def test_the_motion_starts_from_rest_after_a_pause():
    queue = running(blend_steps=8)
    values = handed_out(queue, range(15, 28))
    assert np.isnan(values[-3:]).all()
    queue.put(ramp_chunk(20, bias=0.02), at(27.5))
    values = np.array([0.24, 0.24, *handed_out(queue, range(28, 45))])
    steps = np.diff(values)
    assert 0.0 < steps[1] < 0.004  # it moves at once, and slowly
    assert np.abs(np.diff(steps)).max() < 0.01
    np.testing.assert_allclose(values[-5:], 0.02 + 0.01 * np.arange(37, 42))


def test_a_join_in_the_middle_of_a_fade_continues_the_faded_motion():
    calm, queue = running(blend_steps=8), running(blend_steps=8)
    for one in (calm, queue):
        one.put(ramp_chunk(10, bias=-0.05), at(14.5))
    before = handed_out(queue, range(15, 19))
    handed_out(calm, range(15, 19))
    report = queue.put(ramp_chunk(14, bias=0.05), at(19.0))
    undisturbed, values = calm.next_action(at(19))[0], handed_out(queue, range(19, 30))
    assert values[0] == pytest.approx(undisturbed, abs=1e-12)
    assert report.seam_jump_rad > 0.05
    around = [before[-1], *values[:2]]
    assert abs(np.diff(around, n=2)[0]) < 0.004  # without the slope of the fade 0.012


def test_a_chunk_that_comes_just_after_the_last_row_continues_the_motion():
    queue = running()
    handed_out(queue, range(15, 25))  # row 24 was the last one
    queue.put(ramp_chunk(16), at(25))
    np.testing.assert_allclose(handed_out(queue, range(25, 30)), 0.01 * np.arange(25, 30))


def test_a_chunk_that_arrives_does_not_touch_the_action_that_is_due():
    calm, joined = running(), running()
    joined.put(ramp_chunk(10, bias=-0.3, slope=0.05), at(15.0))
    np.testing.assert_allclose(joined.next_action(at(15)), calm.next_action(at(15)), atol=1e-12)


def test_changing_an_array_after_handing_it_in_does_not_reach_the_robot():
    queue, chunk = queue_of(), ramp_chunk(0)
    queue.put(chunk, at(0))
    chunk.actions[:] = 9.0
    action = queue.next_action(at(0))
    assert action[0] == 0.0
    action[:] = 9.0
    assert queue.next_action(at(0))[0] == 0.0


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
def test_changing_an_action_after_it_was_handed_out_does_not_change_the_next_join(join):
    calm, queue = queue_of(join), queue_of(join)
    for one in (calm, queue):
        one.put(ramp_chunk(0), at(0))
        for tick in range(K):
            action = one.next_action(at(tick))
            if one is queue:
                action[:] = 9.0
        one.next_action(at(K))
    chunk = ramp_chunk(K, bias=0.1)
    assert queue.put(chunk, at(K + 5)) == calm.put(chunk, at(K + 5))


# Refusals.


def broken_chunks():
    good = ramp_chunk(14)
    bad_value = good.actions.copy()
    bad_value[3, 9] = np.inf
    return {
        "expected \\(K, 14\\)": replace(good, actions=good.actions[:, :7]),
        "row 3, right/elbow: inf": replace(good, actions=bad_value),
        "got 20.000 ms": replace(good, dt_ns=DT_NS // 2),
        "in the future": replace(good, stamp_ns=at(17)),
        "at most 2 s": replace(good, stamp_ns=at(-60)),
        "after that of the last chunk": replace(good, stamp_ns=at(0)),
    }


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
@pytest.mark.parametrize("message", broken_chunks())
def test_a_chunk_that_does_not_fit_is_refused_and_changes_nothing(join, message):
    calm, queue = running(join), running(join)
    with pytest.raises(ChunkRefused, match=message):
        queue.put(broken_chunks()[message], at(14.5))
    np.testing.assert_array_equal(
        handed_out(queue, range(15, 30)), handed_out(calm, range(15, 30))
    )


@pytest.mark.parametrize("join", BY_TIME)
def test_a_chunk_of_which_nothing_is_left_is_refused(join):
    queue = running(join)
    with pytest.raises(ChunkRefused, match="5 steps were executed"):
        queue.put(ramp_chunk(10, rows=4), at(15))


def test_append_refuses_more_than_may_wait():
    queue = queue_of("append", max_waiting_chunks=2)
    queue.put(ramp_chunk(0), at(0))
    queue.put(ramp_chunk(1), at(1))
    with pytest.raises(ChunkRefused, match="execute_steps"):
        queue.put(ramp_chunk(2), at(2))


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
def test_a_chunk_that_waited_while_the_ticks_stood_still_is_never_executed(join):
    queue = queue_of(join)
    queue.put(ramp_chunk(0), at(1))
    assert queue.next_action(at(100)) is None


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
def test_a_chunk_is_not_continued_after_the_ticks_stood_still(join):
    queue = running(join)
    unasked = running(join)
    assert queue.next_action(at(150)) is None
    for one in (queue, unasked):
        assert one.put(ramp_chunk(145), at(150)).index == 0


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
def test_a_clock_that_goes_back_empties_the_queue_and_work_goes_on(join, caplog):
    queue = running(join)
    with caplog.at_level(logging.WARNING):
        assert queue.next_action(at(-500)) is None
    assert "clock went back" in caplog.text
    assert queue.put(ramp_chunk(-500), at(-499)).first
    assert queue.next_action(at(-498)) is not None


# The joins.


def test_replace_jumps_by_the_difference_that_it_reports():
    queue = running("replace")
    report = queue.put(ramp_chunk(10, bias=-0.05, slope=0.02), at(15))
    after = queue.next_action(at(15))[0]
    assert report.seam_jump_rad == pytest.approx(abs(after - 0.15))
    assert report.velocity_step_rad_s == pytest.approx(0.01 / 0.04)
    assert report.staleness_s == pytest.approx(0.2)


def test_sync_plays_every_row_of_a_chunk_before_the_newest_one():
    queue = running("sync")
    queue.put(ramp_chunk(5, bias=1.0), at(14.2))
    queue.put(ramp_chunk(12, bias=2.0), at(14.4))
    expected = [*(0.01 * np.arange(15, 25)), *(2.0 + 0.01 * (12 + np.arange(25)))]
    np.testing.assert_allclose(handed_out(queue, range(15, 50)), expected)
    assert queue.next_action(at(50)) is None


def test_append_plays_chunks_in_the_order_of_arrival_and_no_more_rows_than_asked():
    queue = queue_of("append", play_steps=5)
    for tick in range(3):
        queue.put(ramp_chunk(tick, bias=float(tick)), at(tick))
    assert queue.remaining(at(3)) == 15
    expected = np.concatenate([tick + 0.01 * (tick + np.arange(5)) for tick in range(3)])
    np.testing.assert_allclose(handed_out(queue, range(3, 18)), expected)
    assert queue.next_action(at(18)) is None and queue.remaining(at(18)) == 0


def test_temporal_ensemble_weights_the_oldest_chunk_most():
    queue = running("temporal_ensemble", ensemble_decay=0.5)
    queue.put(ramp_chunk(10, bias=0.1), at(14.5))
    queue.put(ramp_chunk(13, bias=0.2), at(14.6))
    weights = np.exp([0.0, -0.5, -1.0])
    expected = 0.15 + (weights @ [0.0, 0.1, 0.2]) / weights.sum()
    assert queue.next_action(at(15))[0] == pytest.approx(expected)


def test_temporal_ensemble_does_not_mix_two_instructions():
    queue = running("temporal_ensemble")
    queue.put(replace(ramp_chunk(10, bias=0.1), instruction="fold the shirt"), at(14.5))
    assert queue.next_action(at(15))[0] == pytest.approx(0.25)


@pytest.mark.parametrize("join", ("latency_matched_blend", "temporal_ensemble"))
def test_a_gripper_switches_at_once_and_is_never_averaged(join):
    queue = running(join)
    closing = ramp_chunk(10)
    closing.actions[:, GRIPPERS] = 0.0
    queue.put(closing, at(14.5))
    assert {queue.next_action(at(tick))[GRIPPERS[0]] for tick in range(15, 30)} == {0.0}


@pytest.mark.parametrize("join", ("latency_matched_blend", "temporal_ensemble"))
def test_a_gripper_keeps_still_while_a_new_chunk_is_undecided(join):
    queue = running(join, blend_steps=8, gripper_hysteresis=0.1)
    undecided = ramp_chunk(10)
    undecided.actions[:, GRIPPERS] = 0.45
    queue.put(undecided, at(14.5))
    values = [queue.next_action(at(tick))[GRIPPERS[1]] for tick in range(15, 30)]
    assert values[:7] == [1.0] * 7 and values[8:] == [0.45] * 7


def test_a_gripper_follows_a_new_chunk_that_agrees_although_it_is_half_open():
    queue = queue_of(gripper_hysteresis=0.1)
    half = ramp_chunk(0)
    half.actions[:, GRIPPERS] = 0.5
    queue.put(half, at(0))
    handed_out(queue, range(15))
    agreeing = ramp_chunk(10)
    agreeing.actions[:, GRIPPERS] = 0.55
    queue.put(agreeing, at(14.5))
    assert queue.next_action(at(15))[GRIPPERS[0]] == 0.55


def test_remaining_counts_the_actions_that_will_be_handed_out():
    for join in (*BY_TIME, *PLAYED):
        queue = running(join)
        expected = queue.remaining(at(15))
        assert expected == 10 == int(np.isfinite(handed_out(queue, range(15, 40))).sum())


def test_age_is_that_of_the_newest_observation():
    queue = running()
    assert queue.age_s(at(14)) == pytest.approx(14 * 0.04)
    queue.put(ramp_chunk(10), at(15))
    assert queue.age_s(at(15)) == pytest.approx(5 * 0.04)


def test_clear_forgets_the_motion():
    queue = running()
    queue.clear()
    assert queue.remaining(at(15)) == 0 and queue.next_action(at(15)) is None
    assert queue.put(ramp_chunk(10, bias=3.0), at(15.5)).first
    assert queue.next_action(at(16))[0] == pytest.approx(3.1)


def test_a_period_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="positive dt_ns"):
        ActionChunkQueue(ChunkQueueConfig(), 0)


# Laws.


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    join=st.sampled_from(BY_TIME),
    jitter=st.floats(0.0, 0.2),
    stride=st.integers(3, 24),
)
def test_no_action_is_older_or_newer_than_its_tick(data, join, jitter, stride):
    """Chunks that all predict the same motion give that motion, whatever latency and jitter."""
    if join == "latency_matched_blend":
        stride = min(stride, 13)  # never starved: after a pause it does not jump back to its time
    queue = queue_of(join)
    under_way: list[tuple[int, ActionChunk]] = []
    moved, pauses = 0, 0
    for tick in range(80):
        if tick % stride == 0:
            observed = replace(ramp_chunk(moved), stamp_ns=at(tick))
            under_way.append((tick + data.draw(st.integers(0, 12)), observed))
        for arrived in [pair for pair in under_way if pair[0] == tick]:
            under_way.remove(arrived)
            with contextlib.suppress(ChunkRefused):  # overtaken by a later one
                queue.put(arrived[1], at(tick))
        action = queue.next_action(at(tick + data.draw(st.floats(-jitter, jitter))))
        if action is None:
            pauses += 1
        else:  # the motion goes on by one step per executed tick; jitter is not amplified
            assert abs(action[0] - 0.01 * moved) <= 0.01 * (2 * jitter * (1 + pauses) + 1e-6)
            moved += 1


@given(
    offset=st.floats(-1.0, 1.0),
    velocity=st.floats(-2.0, 2.0),
    length=st.integers(1, 50),
)
def test_a_fade_starts_with_offset_and_velocity_and_ends_with_neither(offset, velocity, length):
    fade = Fade(
        start_ns=at(3),
        length_ns=length * DT_NS,
        offset=np.array([offset]),
        velocity=np.array([velocity]),
    )
    assert fade.at(at(3))[0] == offset and fade.velocity_at(at(3))[0] == velocity
    for tick in (3 + length, 3 + length + 7):
        assert fade.at(at(tick))[0] == pytest.approx(0.0, abs=1e-12)
        assert fade.velocity_at(at(tick))[0] == pytest.approx(0.0, abs=1e-9)
    step_ns = 1000
    middle = at(3 + 0.37 * length)
    slope = (fade.at(middle + step_ns) - fade.at(middle - step_ns)) / (2e-9 * step_ns)
    assert slope[0] == pytest.approx(fade.velocity_at(middle)[0], abs=1e-4)


def squares() -> PlacedChunk:
    """Row k is k²; grippers open at row 3."""
    rows = np.repeat(np.arange(6.0)[:, None] ** 2, ACTION_DIM, axis=1)
    rows[:, GRIPPERS] = (np.arange(6) >= 3)[:, None]
    return PlacedChunk(rows=rows, stamp_ns=0, dt_ns=DT_NS, origin_ns=0, instruction="")


@pytest.mark.parametrize(
    ("row", "slope"), [(0.0, 1.0), (0.5, 1.0), (3.0, 5.0), (3.5, 7.0), (5.0, 9.0)]
)
def test_the_velocity_of_a_chunk_is_that_of_the_rows_that_lead_to_now(row, slope):
    velocity = squares().velocity(round(row * DT_NS))
    assert velocity[0] == pytest.approx(slope / 0.04)


def test_between_two_rows_arm_joints_are_interpolated_and_grippers_are_not():
    chunk = squares()
    assert chunk.sample(round(2.25 * DT_NS))[0] == pytest.approx(4.0 + 0.25 * 5.0)
    assert chunk.sample(round(2.25 * DT_NS))[GRIPPERS[0]] == 0.0
    assert chunk.sample(round(2.75 * DT_NS))[GRIPPERS[1]] == 1.0
    assert chunk.sample(round(5.4 * DT_NS))[0] == 25.0
    assert chunk.continued(round(5.4 * DT_NS))[0] == pytest.approx(25.0 + 0.4 * 9.0)


def test_a_chunk_of_one_row_stands_still():
    placed = PlacedChunk(
        rows=np.ones((1, ACTION_DIM)), stamp_ns=0, dt_ns=DT_NS, origin_ns=0, instruction=""
    )
    np.testing.assert_array_equal(placed.velocity(0), np.zeros(ACTION_DIM))
    np.testing.assert_array_equal(placed.sample(DT_NS // 3), np.ones(ACTION_DIM))
    assert placed.remaining(0) == 1 and placed.remaining(DT_NS // 2) == 0


# The figures that the joins are chosen by; benchmark/chunk_joins.py prints the whole table.


@pytest.fixture(scope="module")
def joins():
    path = Path(__file__).parent.parent / "benchmark" / "chunk_joins.py"
    spec = importlib.util.spec_from_file_location("chunk_joins", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_default_join_neither_pauses_nor_jerks_at_the_latency_of_the_paper(joins):
    setting = joins.Setting(seconds=60.0)
    figures = joins.simulate(ChunkQueueConfig(), 321, setting)
    assert figures.idle_share == 0.0
    assert figures.jerk_ratio <= 1.2
    replaced = joins.simulate(ChunkQueueConfig(join="replace"), 321, setting)
    assert figures.step_jump_mrad < replaced.step_jump_mrad / 5


def test_sync_pauses_for_nine_of_34_ticks_at_the_latency_of_the_paper(joins):
    setting = joins.Setting(seconds=34 * 0.04 * 20 + 9 * 0.04)  # the first answer, and 20 rounds
    figures = joins.simulate(ChunkQueueConfig(join="sync"), 321, setting)
    assert figures.idle_share == pytest.approx(9 / 34)
