"""Laws of a hold in the middle of a motion: what was not executed is not skipped."""

import numpy as np
import pytest

from vla_oft_ros.aloha import ACTION_DIM, GRIPPERS, start_pose
from vla_oft_ros.chunk_queue import ActionChunkQueue
from vla_oft_ros.config import ChunkQueueConfig, SafetyConfig
from vla_oft_ros.safety import SafetyGate
from vla_oft_ros.safety_report import SafetyDecision
from vla_oft_ros.types import ActionChunk

DT_NS = 40_000_000
K = 25
START_NS = 1_700_000_000_000_000_000
BY_TIME = ("latency_matched_blend", "replace", "temporal_ensemble")
PLAYED = ("sync", "append")
WAIST_STEP_RAD = 0.02


def at(tick: float) -> int:
    return START_NS + round(tick * DT_NS)


def chunk_from(pose: np.ndarray, tick: float) -> ActionChunk:
    """Seen at `tick` with the arms at `pose`: the left waist shall turn from there, 0.5 rad/s."""
    actions = np.repeat(pose[None], K, axis=0)
    actions[:, 0] += WAIST_STEP_RAD * np.arange(1, K + 1)
    return ActionChunk(
        actions=actions, stamp_ns=at(tick), dt_ns=DT_NS, instruction="", inference_s=0.1
    )


def queue_of(join: str, **settings: object) -> ActionChunkQueue:
    return ActionChunkQueue(ChunkQueueConfig(join=join, **settings), DT_NS)  # type: ignore[arg-type]


def held(queue: ActionChunkQueue, ticks: range, pose: np.ndarray) -> list[np.ndarray | None]:
    """What the queue handed out in ticks in which the robot held at `pose`."""
    wanted = []
    for tick in ticks:
        wanted.append(queue.next_action(at(tick)))
        queue.hold(at(tick), pose)
    return wanted


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
@pytest.mark.parametrize("ticks", (1, 10))
def test_after_a_hold_the_motion_goes_on_with_the_very_next_row(join, ticks):
    queue = queue_of(join, blend_steps=0)
    chunk = chunk_from(start_pose(), 0)
    queue.put(chunk, at(0))
    for tick in range(8):
        np.testing.assert_allclose(queue.next_action(at(tick)), chunk.actions[tick], atol=1e-12)
    wanted = held(queue, range(8, 8 + ticks), chunk.actions[7])
    np.testing.assert_allclose(wanted, chunk.actions[[8] * ticks], atol=1e-12)
    assert queue.remaining(at(8 + ticks)) == K - 8
    for row in range(8, K):
        action = queue.next_action(at(row + ticks))
        np.testing.assert_allclose(action, chunk.actions[row], atol=1e-12)
    assert queue.next_action(at(K + ticks)) is None


@pytest.mark.parametrize("join", BY_TIME)
def test_a_chunk_seen_during_a_hold_starts_where_the_robot_stands(join):
    queue = queue_of(join, blend_steps=0)
    queue.put(chunk_from(start_pose(), 0), at(0))
    for tick in range(8):
        pose = queue.next_action(at(tick))
    held(queue, range(8, 15), pose)
    seen = chunk_from(pose, 10)
    assert queue.put(seen, at(14.5)).index == 0
    held(queue, range(15, 20), pose)
    for row in range(5):
        np.testing.assert_allclose(queue.next_action(at(20 + row)), seen.actions[row])


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
def test_a_chunk_does_not_outlive_a_long_hold(join):
    queue = queue_of(join, max_chunk_age_s=1.0)
    queue.put(chunk_from(start_pose(), 0), at(0))
    pose = queue.next_action(at(0))
    held(queue, range(1, 70), pose)  # 2.8 s: older than its age and its length together
    assert queue.next_action(at(70)) is None
    assert queue.remaining(at(70)) == 0


@pytest.mark.parametrize("join", (*BY_TIME, *PLAYED))
def test_a_hold_without_an_action_changes_nothing(join):
    queue, untouched = queue_of(join), queue_of(join)
    untouched.next_action(at(0))
    held(queue, range(1), start_pose())
    for each in (queue, untouched):
        each.put(chunk_from(start_pose(), 0), at(0.5))
    queue.hold(at(0.7), start_pose())  # of the tick before: already taken back
    for tick in range(1, K + 2):
        action, expected = queue.next_action(at(tick)), untouched.next_action(at(tick))
        np.testing.assert_array_equal(action, expected)


def test_after_a_hold_the_motion_starts_from_what_the_robot_was_told_meanwhile():
    queue = queue_of("latency_matched_blend", blend_steps=8)
    queue.put(chunk_from(start_pose(), 0), at(0))
    for tick in range(8):
        queue.next_action(at(tick))
    pose = start_pose()
    pose[0] = 0.5  # braked somewhere else
    held(queue, range(8, 12), pose)
    first = queue.next_action(at(12))
    assert abs(first[0] - pose[0]) < WAIST_STEP_RAD


# The gate says which holds these are.


def decision_for(kind: str) -> SafetyDecision:
    gate = SafetyGate(SafetyConfig(deadman_timeout_s=0.1, ease_in_s=0.0), DT_NS)
    gate.activate()
    pose = start_pose(0.5)
    gate.press_deadman(at(0))
    assert not gate.check(pose, pose, at(0), at(0)).waits
    wanted: np.ndarray | None = pose
    measured: np.ndarray | None = pose
    tick = 1
    if kind == "deadman":
        tick = 4
        for early in (1, 2, 3):
            gate.check(pose, pose, at(early), at(early))
    elif kind == "joint_states":
        measured = None
    elif kind == "late_tick":
        tick = 100
        gate.press_deadman(at(tick))
    elif kind == "estop":
        gate.estop("test")
    elif kind == "stop":
        gate.stop("test")
    elif kind == "no_action":
        wanted = None
    elif kind == "shape":
        wanted = np.zeros(7)
    elif kind == "non_finite":
        wanted = np.full(ACTION_DIM, np.nan)
    elif kind == "workspace":
        wanted = pose + np.eye(ACTION_DIM)[1] * 1.6
    decision = gate.check(wanted, measured, at(tick), at(tick))
    assert {one.kind for one in decision.interventions} == {kind}
    return decision


@pytest.mark.parametrize("kind", ("deadman", "joint_states", "late_tick", "estop", "stop"))
def test_a_hold_that_is_not_the_actions_fault_lets_it_wait(kind):
    assert decision_for(kind).waits


@pytest.mark.parametrize("kind", ("no_action", "shape", "non_finite", "workspace"))
def test_a_hold_that_is_the_actions_own_fault_lets_the_chunk_go_on(kind):
    assert not decision_for(kind).waits


def test_before_the_first_joint_states_actions_wait():
    gate = SafetyGate(SafetyConfig(), DT_NS)
    gate.activate()
    decision = gate.check(start_pose(), None, at(0), None)
    assert decision.target is None and decision.waits


# Both together, as the controller runs them.


@pytest.mark.parametrize("join", BY_TIME)
def test_a_released_deadman_switch_does_not_make_the_arms_run_after_a_motion_that_went_on(join):
    queue = queue_of(join)
    gate = SafetyGate(SafetyConfig(deadman_timeout_s=0.1), DT_NS)
    gate.activate()
    pose, told = start_pose(0.5), []
    answers: dict[int, ActionChunk] = {}
    for tick in range(110):
        if tick in answers:
            queue.put(answers.pop(tick), at(tick))
        if tick % 15 == 0:
            answers[tick + 8] = chunk_from(pose, tick)  # the paper's latency, 0.32 s
        if not 40 <= tick < 80:
            gate.press_deadman(at(tick))
        wanted = queue.next_action(at(tick))
        decision = gate.check(wanted, pose, at(tick), at(tick))
        if decision.waits:
            queue.hold(at(tick), decision.target)
        elif tick >= 80:
            # Wanted is what is given: nothing was ever ahead of the arms.
            np.testing.assert_allclose(decision.target, wanted, atol=1e-9)
        pose = decision.target
        told.append(pose[0])
    steps = np.diff(told)
    assert np.all(np.abs(steps[44:79]) < 1e-12)  # at rest while it is released
    assert steps[79:].min() > -1e-9 and steps[79:].max() < 2.0 * WAIST_STEP_RAD
    np.testing.assert_array_equal(pose[list(GRIPPERS)], 0.5)
