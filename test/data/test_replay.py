"""A replay starts where the robot is, never jumps, and ends where the episode ends."""

from __future__ import annotations

import numpy as np
import pytest
from episode_samples import make_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_oft_ros.aloha import ACTION_DIM
from vla_oft_ros.chunk_queue import ActionChunkQueue
from vla_oft_ros.config import ChunkQueueConfig
from vla_oft_ros.data.replay import (
    LOOK_AHEAD_STEPS,
    SETTLE_STEPS,
    ReplayChunks,
    replay_targets,
)
from vla_oft_ros.types import ActionChunk

DT_NS = 40_000_000


def test_a_robot_that_stands_at_the_first_action_gets_the_episode_as_it_is() -> None:
    episode = make_episode()
    targets = replay_targets(episode, episode.action[0], rate_hz=25.0)
    assert np.array_equal(targets, episode.action)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.1, 2.0))
def test_the_way_to_the_first_action_is_slow_and_without_a_jump(seed: int, limit: float) -> None:
    episode = make_episode(steps=5)
    present = np.random.default_rng(seed).uniform(-1.5, 1.5, 14)
    targets = replay_targets(episode, present, rate_hz=25.0, ease_in_rad_s=limit)
    ease = np.concatenate([present[None], targets[: len(targets) - len(episode)]])
    speed = np.abs(np.diff(ease, axis=0)).max() * 25.0
    assert speed <= limit * 1.001
    assert np.allclose(ease[-1], episode.action[0])
    assert np.array_equal(targets[-len(episode) :], episode.action)


def test_half_the_speed_is_twice_as_many_targets_on_the_same_path() -> None:
    episode = make_episode(steps=11)
    slow = replay_targets(episode, episode.action[0], rate_hz=25.0, speed=0.5)
    assert np.allclose(slow[::2], episode.action) and len(slow) == 21
    assert np.allclose(slow[1::2], (episode.action[1:] + episode.action[:-1]) / 2)
    fast_clock = replay_targets(episode, episode.action[0], rate_hz=50.0)
    assert np.allclose(fast_clock, slow)


def test_the_last_target_is_the_last_action_whatever_the_rate() -> None:
    episode = make_episode(steps=11)
    for rate in (7.0, 10.0, 33.3):
        targets = replay_targets(episode, episode.action[0], rate_hz=rate)
        assert np.array_equal(targets[-1], episode.action[-1])


@pytest.mark.parametrize(
    "wrong", [{"speed": 0.0}, {"speed": 1.5}, {"rate_hz": 0.0}, {"ease_in_rad_s": 9.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    episode = make_episode(steps=3)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replay_targets(episode, episode.action[0], **{"rate_hz": 25.0, **wrong})
    with pytest.raises(ValueError, match="present"):
        replay_targets(episode, np.full(14, np.nan), rate_hz=25.0)


class Controller:
    """A queue that is asked at every tick and gets its chunks some ticks late."""

    def __init__(self, join: str, delays: list[int]) -> None:
        self.queue = ActionChunkQueue(ChunkQueueConfig(join=join), DT_NS)
        self.tick_ns, self._delays = 7 * DT_NS, delays
        self._under_way: list[tuple[int, ActionChunk]] = []
        self._sent = self._last_ns = 0

    def send(self, chunk: ActionChunk | None) -> None:
        if chunk is not None:
            delay = self._delays[self._sent % len(self._delays)]
            # A topic never overtakes itself.
            self._last_ns = max(self._last_ns, self.tick_ns + delay * DT_NS)
            self._under_way.append((self._last_ns, chunk))
            self._sent += 1

    def tick(self) -> np.ndarray | None:
        self.tick_ns += DT_NS
        for due_ns, chunk in self._under_way:
            if due_ns < self.tick_ns:
                self.queue.put(chunk, self.tick_ns - DT_NS // 3)
        self._under_way = [one for one in self._under_way if one[0] >= self.tick_ns]
        return self.queue.next_action(self.tick_ns)


@pytest.mark.parametrize("join", ["latency_matched_blend", "replace"])
@settings(deadline=None, max_examples=25)
@given(
    delays=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    seed=st.integers(0, 100),
)
def test_chunks_in_a_queue_are_the_targets_each_at_its_tick(
    join: str, delays: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    targets = np.cumsum(rng.uniform(-0.2, 0.2, (30, ACTION_DIM)), axis=0)
    targets[:, 6::7] = rng.uniform(0.0, 1.0, (30, 2))  # grippers jump from step to step
    present = targets[0] + 0.1
    chunks = ReplayChunks(targets, present, DT_NS, "wave")
    controller = Controller(join, delays)
    followed = 0
    for _ in range(20):
        controller.send(chunks.hold(controller.tick_ns, present))
        followed += controller.tick() is not None
        if followed > SETTLE_STEPS:
            break
    chunks.begin(controller.tick_ns)
    got = []
    while chunks.step(controller.tick_ns) < len(targets) - 1:
        controller.send(chunks.due(controller.tick_ns))
        got.append(controller.tick())
    lead_in = len(got) - len(targets)
    assert np.allclose(np.array(got[:lead_in]), present, atol=1e-9) and lead_in >= 5
    assert np.allclose(np.array(got[lead_in:]), targets, atol=1e-9)


def test_a_queue_that_is_sent_nothing_more_is_empty_half_a_second_later() -> None:
    chunks = ReplayChunks(np.zeros((100, ACTION_DIM)), np.zeros(ACTION_DIM), DT_NS, "wave")
    controller = Controller("latency_matched_blend", [0])
    chunks.begin(controller.tick_ns)
    controller.send(chunks.due(controller.tick_ns))
    actions = [controller.tick() is not None for _ in range(30)]
    assert actions.index(False) <= LOOK_AHEAD_STEPS + 3 and not any(actions[20:])
    controller.send(chunks.hold(controller.tick_ns, np.ones(ACTION_DIM)))
    assert controller.tick() is not None  # and a hold is newer than what it holds


def test_a_chunk_is_not_sent_before_it_is_begun_nor_after_the_end() -> None:
    chunks = ReplayChunks(np.zeros((5, ACTION_DIM)), np.zeros(ACTION_DIM), DT_NS, "wave")
    with pytest.raises(RuntimeError, match="begin"):
        chunks.due(0)
    chunks.begin(0)
    first = next(tick for tick in range(99) if chunks.step(tick * DT_NS) == 0)
    due = [chunks.due(tick * DT_NS) is not None for tick in range(first + 9)]
    assert due[0] and not due[1] and any(due[first:]) and not any(due[first + 5 :])
