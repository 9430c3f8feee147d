"""LeRobot v3.0 data sets, written and read with pyarrow and a video encoder alone.

One Parquet file and one video per camera for each episode, which the format allows and which lets
episodes be encoded in parallel. What LeRobot has no place for (profile, colour order, outcome) is
in meta/vla_oft_ros.json. Source: huggingface/lerobot, docs of data set format v3.0.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM, ACTION_NAMES
from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.episode import Episode, EpisodeError, LazyImages
from vla_oft_ros.data.lerobot_stats import image_stats, joined_stats, nested_stats, vector_stats
from vla_oft_ros.data.optional import require
from vla_oft_ros.data.video import VideoFrames, write_video

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
EXTRA_PATH = "meta/vla_oft_ros.json"
CHUNK_FILES = 1000
"""Files per folder, LeRobot's default."""
_MAX_EPISODES = 10**6
_MAX_ROWS = 10**7
"""Of one file: some kilobytes of Parquet may claim billions."""
_NOT_LEROBOT = (OSError, LookupError, TypeError, AttributeError, NotImplementedError)
"""What pyarrow and Python make of a folder with other things in it."""
_VECTORS = {"observation.state": "qpos", "action": "action"}
_EXTRA = ("profile", "color_order", "outcome", "source")


def video_key(camera: str) -> str:
    """LeRobot's name of a camera."""
    return f"observation.images.{camera}"


def write_part(episode: Episode, folder: Path, codec: str = "h264") -> None:
    """Writes videos and numbers of one episode, from which `write_dataset` makes a data set.

    Raises:
        EpisodeError: if it has no instruction, or its rate is no whole number.
    """
    if not episode.instruction:
        raise EpisodeError(
            f"{episode.source}: expected an instruction, LeRobot's task; the episode has none. "
            "Give one with --instruction"
        )
    if episode.rate_hz != int(episode.rate_hz):
        raise EpisodeError(
            f"{episode.source}: expected a whole number of frames per second; got "
            f"{episode.rate_hz:g}. Resample it"
        )
    told: dict[str, Any] = {
        "rate_hz": int(episode.rate_hz),
        "instruction": episode.instruction,
        "cameras": list(episode.cameras),
        "shapes": {camera: list(images[0].shape) for camera, images in episode.images.items()},
        "codec": codec,
        **{name: getattr(episode, name) for name in _EXTRA},
    }
    for camera, images in episode.images.items():
        write_video(folder / f"{camera}.mp4", cast(Any, images), int(episode.rate_hz), codec)
    told["image_stats"] = {
        camera: {name: values.tolist() for name, values in image_stats(images).items()}
        for camera, images in episode.images.items()
    }
    with new_file(folder / "numbers.npz") as part, part.open("wb") as file:
        np.savez(file, qpos=episode.qpos, action=episode.action)
    with new_file(folder / "part.json") as part:
        part.write_text(json.dumps(told), encoding="utf-8")


@dataclass
class _Part:
    """One episode on its way into the data set."""

    index: int
    first_row: int
    told: dict[str, Any]
    qpos: np.ndarray
    action: np.ndarray

    @property
    def place(self) -> dict[str, int]:
        """Where its files lie."""
        return {"chunk_index": self.index // CHUNK_FILES, "file_index": self.index % CHUNK_FILES}

    @property
    def span(self) -> dict[str, int]:
        """Its rows."""
        end = self.first_row + len(self.qpos)
        return {"dataset_from_index": self.first_row, "dataset_to_index": end}


def write_dataset(directory: Path, folders: Sequence[Path]) -> None:
    """Makes a data set of parts; their videos are moved into it.

    Args:
        directory: Root of the data set.
        folders: Parts, in the order of the data set.

    Raises:
        ValueError: if the parts differ in rate, cameras or image size.
    """
    parts: list[_Part] = []
    row = 0
    for index, folder in enumerate(folders):
        told = json.loads((folder / "part.json").read_text(encoding="utf-8"))
        with np.load(folder / "numbers.npz") as numbers:
            parts.append(_Part(index, row, told, numbers["qpos"], numbers["action"]))
        row += len(parts[-1].qpos)
    for name in ("rate_hz", "cameras", "shapes"):
        values = {json.dumps(part.told[name]): part.told["source"] for part in parts}
        if len(values) != 1:
            listed = "; ".join(f"{value} in {source}" for value, source in values.items())
            raise ValueError(f"LeRobot: expected one {name} in all episodes; got {listed}")
    tasks = list(dict.fromkeys(part.told["instruction"] for part in parts))
    stats = []
    for part, folder in zip(parts, folders, strict=True):
        stats.append(_write_rows(directory, part, tasks))
        for camera in part.told["cameras"]:
            target = directory / VIDEO_PATH.format(video_key=video_key(camera), **part.place)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / f"{camera}.mp4", target)
    _write_meta(directory, parts, tasks, stats)


def _write_rows(directory: Path, part: _Part, tasks: Sequence[str]) -> dict[str, Any]:
    """Writes the Parquet file of an episode; returns its statistics."""
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    steps = len(part.qpos)
    index = np.arange(steps, dtype=np.int64)
    numbers = {
        "timestamp": (index / part.told["rate_hz"]).astype(np.float32),
        "frame_index": index,
        "episode_index": np.full(steps, part.index),
        "index": part.first_row + index,
        "task_index": np.full(steps, tasks.index(part.told["instruction"])),
    }
    columns: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    for key, name in _VECTORS.items():
        values = getattr(part, name).astype(np.float32)
        flat = pa.array(values.reshape(-1))
        columns[key] = pa.FixedSizeListArray.from_arrays(flat, ACTION_DIM)
        stats[key] = vector_stats(values)
    for key, values in numbers.items():
        columns[key] = pa.array(values)
        stats[key] = vector_stats(values[:, None])
    for camera, found in part.told["image_stats"].items():
        stats[video_key(camera)] = {name: np.array(values) for name, values in found.items()}
    with new_file(directory / DATA_PATH.format(**part.place)) as path:
        parquet.write_table(pa.table(columns), path)
    return stats


def _write_meta(
    directory: Path, parts: Sequence[_Part], tasks: Sequence[str], stats: Sequence[dict[str, Any]]
) -> None:
    first = parts[0].told
    _write_json(
        directory / "meta/info.json",
        {
            "codebase_version": VERSION,
            "robot_type": "aloha",
            "total_episodes": len(parts),
            "total_frames": sum(len(part.qpos) for part in parts),
            "total_tasks": len(tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 500,
            "fps": first["rate_hz"],
            "splits": {"train": f"0:{len(parts)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": _features(first),
        },
    )
    _write_json(directory / "meta/stats.json", nested_stats(joined_stats(stats)))
    _write_tasks(directory / "meta/tasks.parquet", tasks)
    _write_episodes(directory / EPISODES_PATH, parts, stats)
    extra = [{name: part.told[name] for name in _EXTRA} for part in parts]
    _write_json(directory / EXTRA_PATH, {"episodes": extra})


def _features(told: Mapping[str, Any]) -> dict[str, Any]:
    vector = {"dtype": "float32", "shape": [ACTION_DIM], "names": list(ACTION_NAMES)}
    features: dict[str, Any] = dict.fromkeys(_VECTORS, vector)
    for camera in told["cameras"]:
        height, width, channels = told["shapes"][camera]
        features[video_key(camera)] = {
            "dtype": "video",
            "shape": [height, width, channels],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.channels": channels,
                "video.codec": told["codec"],
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": told["rate_hz"],
                "has_audio": False,
            },
        }
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    return features


def _write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """LeRobot reads this with pandas and takes the text for the index of the frame."""
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": list(tasks)})
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_type}
        for name, kind, numpy_type in (
            *(("task_index", "int64", "int64"), ("task", "unicode", "object")),
        )
    ]
    told = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    table = table.replace_schema_metadata({"pandas": json.dumps(told)})
    with new_file(path) as part:
        parquet.write_table(table, part)


def _write_episodes(
    path: Path, parts: Sequence[_Part], stats: Sequence[Mapping[str, Any]]
) -> None:
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    rows = []
    for part, found in zip(parts, stats, strict=True):
        row: dict[str, Any] = {
            "episode_index": part.index,
            "tasks": [part.told["instruction"]],
            "length": len(part.qpos),
            **part.span,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        row |= {f"data/{name}": value for name, value in part.place.items()}
        for camera in part.told["cameras"]:
            key = f"videos/{video_key(camera)}"
            row |= {f"{key}/{name}": value for name, value in part.place.items()}
            row[f"{key}/from_timestamp"] = 0.0
            row[f"{key}/to_timestamp"] = len(part.qpos) / part.told["rate_hz"]
        for feature, values in nested_stats(found).items():
            row |= {f"stats/{feature}/{name}": value for name, value in values.items()}
        rows.append(row)
    with new_file(path) as target:
        parquet.write_table(pa.Table.from_pylist(rows), target)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with new_file(path) as part:
        part.write_text(json.dumps(content, indent=4), encoding="utf-8")


@dataclass(frozen=True)
class LerobotReader:
    """Reads one episode of a data set; a plain value, so that it travels between processes.

    Attributes:
        directory: Root of the data set.
        index: Number of the episode.
    """

    directory: Path
    index: int

    def __call__(self) -> Episode:
        """Reads the episode.

        Raises:
            ValueError: if the data set is not as its metadata say.
        """
        try:
            return _read(self.directory, self.index)
        except _NOT_LEROBOT as error:
            raise ValueError(
                f"{self.directory}: expected a LeRobot {VERSION} data set; {error!r}"
            ) from None


def episode_readers(directory: Path) -> list[LerobotReader]:
    """One reader per episode of a data set.

    Raises:
        ValueError: if there is none of version 3.0.
    """
    count = _info(directory).get("total_episodes")
    if not isinstance(count, int) or not 0 <= count <= _MAX_EPISODES:
        raise ValueError(
            f"{directory}: expected 0 … {_MAX_EPISODES} for total_episodes; got {count!r}"
        )
    return [LerobotReader(directory, index) for index in range(count)]


def _info(directory: Path) -> dict[str, Any]:
    path = directory / "meta/info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version = info["codebase_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected the metadata of a LeRobot data set; {error}") from None
    if version != VERSION:
        raise ValueError(f"{path}: expected codebase_version {VERSION}; got {version!r}")
    return cast(dict[str, Any], info)


def _read(directory: Path, index: int) -> Episode:
    parquet, compute = require("pyarrow.parquet"), require("pyarrow.compute")
    info = _info(directory)
    episodes = require("pyarrow.dataset").dataset(directory / "meta/episodes", format="parquet")
    wanted = compute.field("episode_index") == index
    columns = [name for name in episodes.schema.names if not name.startswith("stats/")]
    (row,) = episodes.to_table(columns=columns, filter=wanted).to_pylist()
    place = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
    file = _inside(directory, info["data_path"], **place)
    claimed = parquet.ParquetFile(file).metadata.num_rows
    if claimed > _MAX_ROWS:
        raise EpisodeError(f"{file}: expected at most {_MAX_ROWS} rows; it claims {claimed}")
    table = parquet.read_table(
        file,
        columns=[*_VECTORS, "index"],
        filters=wanted,
    )
    rate_hz, steps = float(info["fps"]), row["length"]
    if table.num_rows != steps:
        raise EpisodeError(
            f"{directory}: expected {steps} rows of episode {index}; got {table.num_rows}"
        )
    extra = _extra(directory, index)
    return Episode(
        images={
            key.removeprefix("observation.images."): _video(directory, info, row, key)
            for key, feature in info["features"].items()
            if feature["dtype"] == "video"
        },
        stamps_ns=np.round(np.arange(steps) * 1e9 / rate_hz).astype(np.int64),
        rate_hz=rate_hz,
        instruction=row["tasks"][0],
        qpos=_vectors(table, "observation.state"),
        action=_vectors(table, "action"),
        profile=extra.get("profile", ""),
        color_order=extra.get("color_order", "rgb"),
        outcome=extra.get("outcome", ""),
        source=f"{directory} episode {index}",
    )


def _inside(directory: Path, pattern: str, **values: int | str) -> Path:
    """A file of the data set from a pattern in its metadata, which must not lead out of it."""
    path = str(pattern)
    for name, value in values.items():
        number = f"{value:03d}" if isinstance(value, int) else value
        path = path.replace(f"{{{name}:03d}}", number).replace(f"{{{name}}}", number)
    if "{" in path or ".." in Path(path).parts or Path(path).is_absolute():
        raise EpisodeError(f"{directory}: expected a path within the data set; got {pattern!r}")
    return directory / path


def _vectors(table: Any, key: str) -> np.ndarray:
    return np.array(table.column(key).to_pylist(), dtype=np.float64)


def _extra(directory: Path, index: int) -> dict[str, str]:
    path = directory / EXTRA_PATH
    if not path.is_file():
        return {}
    return cast(dict[str, str], json.loads(path.read_text(encoding="utf-8"))["episodes"][index])


def _video(
    directory: Path, info: Mapping[str, Any], row: Mapping[str, Any], key: str
) -> LazyImages:
    place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    first = round(row[f"videos/{key}/from_timestamp"] * info["fps"])
    path = _inside(directory, info["video_path"], video_key=key, **place)
    frames = VideoFrames(path, float(info["fps"]), first)
    return LazyImages(range(row["length"]), partial(_frame, frames))


def _frame(frames: VideoFrames, step: Hashable) -> np.ndarray:
    return frames.read(cast(int, step))
