"""LeRobot v3: what was written is read back, by us and by plain pyarrow and a video decoder."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from episode_samples import assert_same_images, assert_same_numbers, make_episode

from vla_oft_ros.data.episode import Episode, EpisodeError
from vla_oft_ros.data.lerobot import episode_readers, write_dataset, write_part
from vla_oft_ros.data.lerobot_stats import image_stats, joined_stats, vector_stats
from vla_oft_ros.data.video import VideoFrames, write_video


def dataset(directory: Path, episodes: list[Episode]) -> Path:
    folders = [directory / "parts" / str(number) for number in range(len(episodes))]
    for episode, folder in zip(episodes, folders, strict=True):
        write_part(episode, folder)
    write_dataset(directory / "set", folders)
    return directory / "set"


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [
        make_episode(steps=12 + seed, seed=seed, instruction=f"task {seed % 2}")
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> Path:
    return dataset(tmp_path_factory.mktemp("lerobot"), episodes)


def test_numbers_come_back_exactly_and_images_nearly(
    folder: Path, episodes: list[Episode]
) -> None:
    readers = episode_readers(folder)
    assert len(readers) == 3
    for episode, reader in zip(episodes, readers, strict=True):
        back = pickle.loads(pickle.dumps(reader))()
        assert_same_numbers(episode, back)
        assert_same_images(episode, back, tolerance=4.0)
        for name in ("profile", "color_order", "outcome"):
            assert getattr(episode, name) == getattr(back, name)


def test_frames_are_found_in_any_order(folder: Path) -> None:
    images = episode_readers(folder)[1]().images["cam_high"]
    forwards = [images[step].copy() for step in range(len(images))]
    for step in np.random.default_rng(0).permutation(len(images)).tolist():
        assert np.array_equal(images[step], forwards[step])


def test_the_tables_are_those_of_the_published_format(
    folder: Path, episodes: list[Episode]
) -> None:
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 25
    assert info["total_episodes"] == 3 and info["total_frames"] == 12 + 13 + 14
    assert info["splits"] == {"train": "0:3"} and info["total_tasks"] == 2
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    place = 0
    for index, (row, episode) in enumerate(zip(rows, episodes, strict=True)):
        assert row["episode_index"] == index and row["tasks"] == [episode.instruction]
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (
            place,
            place + len(episode),
        )
        where = (row["data/chunk_index"], row["data/file_index"])
        file = folder / "data" / f"chunk-{where[0]:03d}" / f"file-{where[1]:03d}.parquet"
        table = pq.read_table(file)
        assert table.column("index").to_pylist() == list(range(place, place + len(episode)))
        assert set(table.column("episode_index").to_pylist()) == {index}
        assert table.column("task_index")[0].as_py() == index % 2
        assert str(table.schema.field("action").type) == "fixed_size_list<element: float>[14]"
        times = np.array(table.column("timestamp").to_pylist())
        assert np.allclose(times, np.arange(len(episode)) / 25, atol=1e-6)
        assert row["videos/observation.images.cam_high/to_timestamp"] == len(episode) / 25
        place += len(episode)
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    assert tasks.to_pylist() == [{"task_index": i, "task": f"task {i}"} for i in range(2)]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_videos_hold_one_frame_per_row_at_its_time(folder: Path) -> None:
    path = folder / "videos/observation.images.cam_left_wrist/chunk-000/file-002.mp4"
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert [round(frame.time * 25) for frame in frames] == list(range(14))


def test_statistics_of_the_whole_are_those_of_all_rows(
    folder: Path, episodes: list[Episode]
) -> None:
    stats = json.loads((folder / "meta/stats.json").read_text())
    actions = np.concatenate([episode.action for episode in episodes])
    for name in ("min", "max", "mean", "std"):
        expected = getattr(np, name)(actions, axis=0)
        assert np.allclose(stats["action"][name], expected, rtol=0, atol=1e-9)
    assert stats["action"]["count"] == [39]
    image = stats["observation.images.cam_high"]
    assert np.shape(image["mean"]) == (3, 1, 1) and 0 < image["mean"][0][0][0] < 1


def test_joined_statistics_do_not_depend_on_the_cut() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    whole = vector_stats(values)
    parts = [{"x": vector_stats(part)} for part in (values[:7], values[7:])]
    joined = joined_stats(parts)["x"]
    for name, expected in whole.items():
        assert np.allclose(joined[name], expected)


def test_image_statistics_are_per_colour() -> None:
    images = np.zeros((4, 6, 8, 3), np.uint8)
    images[..., 1] = 255
    stats = image_stats(images)
    assert stats["mean"].reshape(3).tolist() == [0.0, 1.0, 0.0]


def test_a_set_of_several_rates_or_cameras_is_refused(tmp_path: Path) -> None:
    mixed = [make_episode(steps=4), make_episode(steps=4, rate_hz=50.0, seed=1)]
    with pytest.raises(ValueError, match=r"one rate_hz in all episodes; got 25 in episode 0; 50"):
        dataset(tmp_path / "a", mixed)
    mixed = [make_episode(steps=4), make_episode(steps=4, cameras=("cam_high",))]
    with pytest.raises(ValueError, match="one cameras in all"):
        dataset(tmp_path / "b", mixed)


def test_episodes_that_do_not_fit_the_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="expected an instruction"):
        write_part(make_episode(steps=3, instruction=""), tmp_path / "a")
    with pytest.raises(EpisodeError, match="whole number of frames"):
        write_part(make_episode(steps=3, rate_hz=12.5), tmp_path / "a")
    with pytest.raises(EpisodeError, match="even height and width; got 65x48"):
        write_part(make_episode(steps=3, size=(48, 65)), tmp_path / "a")
    with pytest.raises(ValueError, match="codec: expected one of h264, av1"):
        write_part(make_episode(steps=3), tmp_path / "a", codec="mpeg1")
    with pytest.raises(ValueError, match="metadata of a LeRobot data set"):
        episode_readers(tmp_path)


def test_a_video_that_is_none_or_too_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(EpisodeError, match=r"a\.mp4: expected a video"):
        VideoFrames(tmp_path / "a.mp4", 25.0).read(0)
    write_video(tmp_path / "b.mp4", make_episode(steps=3).images["cam_high"], 25, "h264")
    with pytest.raises(EpisodeError, match="expected frame 5; the video ends before"):
        VideoFrames(tmp_path / "b.mp4", 25.0).read(5)


READ_WITH_LEROBOT = """
import json, sys, types
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

if find_spec("torchvision") is None:
    # LeRobot imports it for augmentations, which are not used here, and decodes videos with its
    # VideoReader, which newer ones no longer have: the same by PyAV.
    import av, torch

    class VideoReader:
        def __init__(self, path, stream):
            self.container = av.open(path)

        def seek(self, time_s, keyframes_only):
            self.container.seek(int(time_s * av.time_base), backward=True)

        def __iter__(self):
            for frame in self.container.decode(video=0):
                image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                yield {"data": image, "pts": frame.time}

    def module(name, **content):
        made = sys.modules[name] = types.ModuleType(name)
        made.__spec__ = ModuleSpec(name, None)
        made.__dict__.update(content)
        return made

    functional = module("torchvision.transforms.v2.functional")
    v2 = module("torchvision.transforms.v2", Transform=object, functional=functional)
    transforms = module("torchvision.transforms", v2=v2)
    io = module("torchvision.io", VideoReader=VideoReader)
    module("torchvision", transforms=transforms, io=io, set_video_backend=lambda name: None)

import lerobot
from lerobot.datasets.lerobot_dataset import LeRobotDataset

chunk = {"action": [step / 25 for step in range(4)]}
data = LeRobotDataset("local/set", sys.argv[1], delta_timestamps=chunk, video_backend="pyav")
items = [data[index] for index in range(len(data))]
cameras = [name for name in data.features if "images" in name]
print("TOLD" + json.dumps({
    "version": lerobot.__version__,
    "fps": data.fps,
    "episodes": data.num_episodes,
    "state_names": data.features["observation.state"]["names"],
    "stats": data.meta.stats["action"]["mean"].tolist(),
    "frames": [
        {
            "state": item["observation.state"].tolist(),
            "actions": item["action"].tolist(),
            "behind_the_end": item["action_is_pad"].tolist(),
            "task": item["task"],
            "episode": int(item["episode_index"]),
            "frame": int(item["frame_index"]),
            "images": {
                name.rsplit(".", 1)[1]: (item[name] * 255).round().int().tolist()
                for name in cameras
            },
        }
        for item in items
    ],
}))
"""


@pytest.mark.slow
def test_lerobot_reads_the_same(
    folder: Path, episodes: list[Episode], request: pytest.FixtureRequest
) -> None:
    python = request.config.getoption("--lerobot-python")
    if python is None and find_spec("lerobot") is None:
        pytest.skip("needs lerobot here or behind --lerobot-python")
    done = subprocess.run(
        [python or sys.executable, "-c", READ_WITH_LEROBOT, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder.parent), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.split("TOLD")[1])
    assert (told["fps"], told["episodes"]) == (25, len(episodes))
    assert len(told["frames"]) == sum(map(len, episodes))
    assert np.allclose(told["stats"], np.concatenate([e.action for e in episodes]).mean(0))
    frames = iter(told["frames"])
    for number, episode in enumerate(episodes):
        for step in range(len(episode)):
            frame = next(frames)
            assert (frame["episode"], frame["frame"]) == (number, step)
            assert frame["task"] == episode.instruction
            assert np.array_equal(np.float32(frame["state"]), np.float32(episode.qpos[step]))
            ahead = [min(step + later, len(episode) - 1) for later in range(4)]
            assert np.array_equal(np.float32(frame["actions"]), np.float32(episode.action[ahead]))
            behind = [step + later >= len(episode) for later in range(4)]
            assert frame["behind_the_end"] == behind
            for camera in episode.cameras:
                image = np.moveaxis(np.array(frame["images"][camera]), 0, -1)  # (H, W, 3)
                shown = np.asarray(episode.images[camera][step], np.int64)
                assert np.abs(image - shown).mean() <= 4.0  # H.264 is lossy
