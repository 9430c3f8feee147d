"""Windows of episodes: which frames are starts, what follows them, what is read when."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_up import CHUNK_LEN, STEPS, make_episode

from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.data.dataset import (
    OPEN_EPISODES,
    ChunkDataset,
    find_episodes,
    split_episodes,
)
from vla_oft_ros.data.episode import FAILURE, Episode, LazyImages
from vla_oft_ros.data.hdf5 import write_hdf5


def dataset(episodes: list[Episode], **options: object) -> ChunkDataset:
    readers = [lambda episode=episode: episode for episode in episodes]
    return ChunkDataset(readers, chunk_len=CHUNK_LEN, cameras=CAMERAS, **options)


def test_every_frame_starts_one_window_and_its_chunk_begins_with_its_own_action() -> None:
    episodes = [make_episode(0), make_episode(1, steps=5)]
    windows = dataset(episodes)
    assert len(windows) == STEPS + 5
    for index, window in enumerate(windows[i] for i in range(len(windows))):
        number, step = windows.locate(index)
        episode = episodes[number]
        assert (number, step) == ((0, index) if index < STEPS else (1, index - STEPS))
        assert np.array_equal(window.actions[0], episode.action[step])
        assert np.array_equal(window.proprio, episode.qpos[step])
        assert np.array_equal(window.images[1], episode.images[CAMERAS[1]][step])
        assert window.instruction == episode.instruction


def test_past_the_end_the_last_action_is_repeated_and_marked() -> None:
    episode = make_episode(0)
    windows = dataset([episode])
    for step in range(STEPS):
        window = windows[step]
        count = min(CHUNK_LEN, STEPS - step)
        assert window.valid.tolist() == [True] * count + [False] * (CHUNK_LEN - count)
        assert np.array_equal(window.actions[:count], episode.action[step : step + count])
        assert np.all(window.actions[count:] == episode.action[-1])


def test_the_official_rule_drops_the_last_frames_and_short_episodes() -> None:
    windows = dataset([make_episode(0), make_episode(1, steps=CHUNK_LEN - 1)], keep_ends=False)
    assert len(windows) == STEPS - (CHUNK_LEN - 1)
    assert all(windows[index].valid.all() for index in range(len(windows)))
    with pytest.raises(ValueError, match="none of 4 steps or more"):
        dataset([make_episode(1, steps=CHUNK_LEN - 1)], keep_ends=False)


def test_one_image_per_camera_is_read_per_window_and_few_episodes_are_open() -> None:
    opened: list[int] = []
    loaded: list[object] = []

    def reader(number: int) -> Callable[[], Episode]:
        def read() -> Episode:
            opened.append(number)
            episode = make_episode(number)

            def lazy(images: np.ndarray) -> LazyImages:
                return LazyImages(range(STEPS), lambda i: loaded.append(i) or images[i])

            return make_episode(number, images={c: lazy(episode.images[c]) for c in CAMERAS})

        return read

    count = OPEN_EPISODES + 3
    windows = ChunkDataset(
        [reader(n) for n in range(count)], chunk_len=CHUNK_LEN, cameras=CAMERAS[:2]
    )
    assert loaded == [] and len(opened) == count
    for number in range(count):
        windows[number * STEPS]
    assert len(loaded) == 2 * count
    assert len(windows._open) == OPEN_EPISODES


def test_a_dataset_travels_to_another_process_without_open_files(demos: Path) -> None:
    windows = ChunkDataset(
        find_episodes([demos], keep_failures=False), chunk_len=CHUNK_LEN, cameras=CAMERAS
    )
    first = windows[0]
    copy = pickle.loads(pickle.dumps(windows))
    assert not copy._open
    assert np.array_equal(copy[0].images[0], first.images[0])


@pytest.mark.parametrize(("count", "share"), [(20, 0.1), (3, 0.05), (2, 0.9), (1, 0.5), (7, 0.0)])
def test_the_split_is_by_episode_complete_and_repeatable(count: int, share: float) -> None:
    kept, held_out = split_episodes(count, share, seed=3)
    assert sorted(kept + held_out) == list(range(count))
    assert len(kept) >= 1
    assert bool(held_out) == (share > 0 and count > 1)
    assert split_episodes(count, share, seed=3) == (kept, held_out)


def test_failed_takes_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    write_hdf5(make_episode(0), tmp_path / "a.hdf5")
    write_hdf5(make_episode(1, outcome=FAILURE), tmp_path / "b.hdf5")
    assert len(find_episodes([tmp_path], keep_failures=False)) == 1
    assert len(find_episodes([tmp_path], keep_failures=True)) == 2
    with pytest.raises(ValueError, match="1 of them failures"):
        find_episodes([tmp_path / "b.hdf5"], keep_failures=False)


def test_what_is_missing_is_named_with_the_setting_that_mends_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cam_low missing, got cam_high.*Set data\.cameras"):
        ChunkDataset([lambda: make_episode(0)], chunk_len=2, cameras=["cam_low"])
    silent = make_episode(0, instruction="")
    with pytest.raises(ValueError, match=r"no instruction; set data\.instruction"):
        dataset([silent])
    assert dataset([silent], instruction="fold")[0].instruction == "fold"
    with pytest.raises(ValueError, match=r"data\.paths: .* does not exist"):
        find_episodes([tmp_path / "nowhere"], keep_failures=False)
    with pytest.raises(ValueError, match="expected HDF5 episodes or a LeRobot v3 set"):
        find_episodes([tmp_path], keep_failures=False)


def test_the_starts_are_the_first_windows_of_every_episode_and_no_others() -> None:
    windows = dataset([make_episode(0), make_episode(1, steps=2), make_episode(2)])
    starts = windows.starts(3)
    located = [windows.locate(int(index)) for index in starts]
    assert located == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_beginnings_come_as_often_as_asked_for_and_the_same_sample_is_always_the_same_frame(
    share: float,
) -> None:
    samples = pytest.importorskip("vla_oft_ros.train.samples")
    windows = dataset([make_episode(number, steps=200) for number in range(2)])
    preparation = SimpleNamespace(seed=7)
    drawn, again = (
        samples.TrainingSamples(windows, preparation, start_share=share, start_frames=2)
        for _ in range(2)
    )
    frames = [drawn.frame(number) for number in range(2000)]
    assert [again.frame(number) for number in reversed(range(2000))] == frames[::-1]
    begun = np.isin(frames, windows.starts(2)).mean()
    expected = share + (1.0 - share) * 4 / len(windows)
    assert begun == pytest.approx(expected, abs=0.03)  # three deviations of 2000 draws
