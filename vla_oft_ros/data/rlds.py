"""RLDS data sets as openvla-oft trains from, written and read without TensorFlow.

One record per episode, 256x256 JPEG images, splits by episode; features.json and
dataset_info.json make it a data set that TensorFlow Datasets opens by its folder. Sources:
openvla-oft's ALOHA builder and `aloha_dataset_transform`; the field names are theirs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from vla_oft_ros.aloha import ACTION_DIM, CAMERAS
from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.episode import RGB, Episode, EpisodeError, LazyImages
from vla_oft_ros.data.tfrecord import frame, pack_example, read_records, unpack_example
from vla_oft_ros.image_decoding import decode_compressed
from vla_oft_ros.model.image_ops import JPEG_QUALITY, resize_bicubic

IMAGE_PX = 256
IMAGE_KEYS = dict(zip(CAMERAS, ("image", "left_wrist_image", "right_wrist_image"), strict=True))
"""Camera → name in openvla-oft's loader."""
VERSION = "1.0.0"
SHARD_BYTES = 256 * 2**20
"""About the size that TensorFlow Datasets aims at."""
_PACKAGE = "tensorflow_datasets.core.features"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_METADATA = ("file_path", "profile", "color_order", "outcome")


def write_record(episode: Episode, path: Path) -> None:
    """Writes one episode as a file of one record, from which `write_dataset` makes a data set.

    Raises:
        EpisodeError: if it has no instruction or lacks a camera.
    """
    if not episode.instruction:
        raise EpisodeError(
            f"{episode.source}: expected an instruction, which RLDS stores with every step; the "
            "episode has none. Give one with --instruction"
        )
    missing = [camera for camera in CAMERAS if camera not in episode.images]
    if missing:
        raise EpisodeError(
            f"{episode.source}: expected {', '.join(CAMERAS)}, as openvla-oft's loader; "
            f"{', '.join(missing)} missing"
        )
    with new_file(path) as part:
        part.write_bytes(frame(pack_example(_features(episode))))


def _features(episode: Episode) -> dict[str, Sequence[bytes] | np.ndarray]:
    steps = len(episode)
    last = np.zeros(steps, dtype=np.int64)
    last[-1] = 1
    failed = episode.outcome == "failure"
    features: dict[str, Sequence[bytes] | np.ndarray] = {
        f"steps/observation/{key}": [
            _jpeg(resize_bicubic(episode.images[camera][step], IMAGE_PX)) for step in range(steps)
        ]
        for camera, key in IMAGE_KEYS.items()
    }
    features |= {
        "steps/observation/state": episode.qpos.astype(np.float32).reshape(-1),  # (T · 14,)
        "steps/action": episode.action.astype(np.float32).reshape(-1),  # (T · 14,)
        "steps/language_instruction": [episode.instruction.encode()] * steps,
        "steps/discount": np.ones(steps, dtype=np.float32),
        "steps/reward": (last * (not failed)).astype(np.float32),
        "steps/is_first": np.eye(1, steps, dtype=np.int64)[0],
        "steps/is_last": last,
        "steps/is_terminal": last.copy(),
        "episode_metadata/rate_hz": np.array([episode.rate_hz], dtype=np.float32),
    }
    for name in _METADATA:
        value = episode.source if name == "file_path" else getattr(episode, name)
        features[f"episode_metadata/{name}"] = [str(value).encode()]
    return features


def _jpeg(image: np.ndarray) -> bytes:
    """As TensorFlow encodes it (quality 95, 4:2:0)."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return encoded.getvalue()


@dataclass(frozen=True)
class RldsPart:
    """One episode's record file and its split."""

    path: Path
    split: str


def write_dataset(directory: Path, name: str, parts: Sequence[RldsPart]) -> Path:
    """Puts records together into a data set.

    Args:
        directory: Folder of data sets; the data set is `<directory>/<name>/1.0.0`.
        name: Its name, which openvla-oft's configuration refers to.
        parts: Records, in the order of the data set.

    Returns:
        The folder to hand to `tfds.builder_from_directory`.

    Raises:
        ValueError: if the name is no identifier.
    """
    if not name.isidentifier():
        raise ValueError(
            f"name: expected letters, digits and underscores, as a data set of TensorFlow "
            f"Datasets needs; got {name!r}"
        )
    folder = directory / name / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    splits = []
    for split in dict.fromkeys(part.split for part in parts):
        files = [part.path for part in parts if part.split == split]
        shards = _shards(files)
        for number, shard in enumerate(shards):
            target = f"{name}-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
            with new_file(folder / target) as path, path.open("wb") as output:
                for file in shard:
                    output.write(file.read_bytes())
        splits.append(
            {
                "filepathTemplate": _TEMPLATE,
                "name": split,
                "numBytes": str(sum(file.stat().st_size for file in files)),
                "shardLengths": [str(len(shard)) for shard in shards],
            }
        )
    _write_json(folder / "features.json", feature_description())
    information = {
        "description": "Bimanual ALOHA demonstrations",
        "fileFormat": "tfrecord",
        "name": name,
        "releaseNotes": {VERSION: "Initial release."},
        "splits": splits,
        "version": VERSION,
    }
    _write_json(folder / "dataset_info.json", information)
    return folder


def _shards(files: Sequence[Path]) -> list[list[Path]]:
    shards: list[list[Path]] = [[]]
    size = 0
    for file in files:
        if shards[-1] and size + file.stat().st_size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(file)
        size += file.stat().st_size
    return shards


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with new_file(path) as part:
        part.write_text(json.dumps(content, indent=2), encoding="utf-8")


def feature_description() -> dict[str, Any]:
    """What features.json says: names, shapes and types of everything in a record."""
    image = {
        "pythonClassName": f"{_PACKAGE}.image_feature.Image",
        "image": {
            "shape": {"dimensions": [str(IMAGE_PX), str(IMAGE_PX), "3"]},
            "dtype": "uint8",
            "encodingFormat": "jpeg",
        },
    }
    vector = _tensor("tensor_feature.Tensor", "float32", {"dimensions": [str(ACTION_DIM)]})
    number = _tensor("scalar.Scalar", "float32", {})
    flag = _tensor("scalar.Scalar", "bool", {})
    text = {"pythonClassName": f"{_PACKAGE}.text_feature.Text", "text": {}}
    steps = _dictionary(
        {
            "observation": _dictionary(
                {**dict.fromkeys(IMAGE_KEYS.values(), image), "state": vector}
            ),
            "action": vector,
            "language_instruction": text,
            "discount": number,
            "reward": number,
            "is_first": flag,
            "is_last": flag,
            "is_terminal": flag,
        }
    )
    return _dictionary(
        {
            "steps": {
                "pythonClassName": f"{_PACKAGE}.dataset_feature.Dataset",
                "sequence": {"feature": steps, "length": "-1"},
            },
            "episode_metadata": _dictionary({**dict.fromkeys(_METADATA, text), "rate_hz": number}),
        }
    )


def _tensor(kind: str, dtype: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    tensor = {"shape": shape, "dtype": dtype, "encoding": "none"}
    return {"pythonClassName": f"{_PACKAGE}.{kind}", "tensor": tensor}


def _dictionary(features: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_PACKAGE}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def read_dataset(folder: Path, split: str = "train") -> Iterator[Episode]:
    """The episodes of one split of a data set that `write_dataset` wrote.

    Raises:
        ValueError: if the folder, a file or the split is missing or damaged.
    """
    try:
        information = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        (found,) = [entry for entry in information["splits"] if entry["name"] == split]
        count = len(found["shardLengths"])
        prefix = Path(information["name"]).name  # never out of the folder
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{folder}: expected an RLDS data set with split {split}; {error}"
        ) from None
    for number in range(count):
        path = folder / f"{prefix}-{split}.tfrecord-{number:05d}-of-{count:05d}"
        for record in read_records(path):
            try:
                episode = _episode(unpack_example(record))
            except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
                raise ValueError(
                    f"{path}: expected an episode in ALOHA's layout; {error!r}"
                ) from None
            yield episode


def _episode(features: Mapping[str, Any]) -> Episode:
    def text(name: str) -> str:
        return cast(bytes, features[f"episode_metadata/{name}"][0]).decode()

    def vectors(name: str) -> np.ndarray:
        return np.asarray(features[name], dtype=np.float64).reshape(-1, ACTION_DIM)  # (T, 14)

    qpos = vectors("steps/observation/state")
    rate_hz = float(features["episode_metadata/rate_hz"][0])

    def images(key: str) -> LazyImages:
        stored = features[f"steps/observation/{key}"]

        def load(step: Hashable) -> np.ndarray:
            return decode_compressed("jpeg", stored[cast(int, step)])

        return LazyImages(range(len(qpos)), load)

    return Episode(
        images={camera: images(key) for camera, key in IMAGE_KEYS.items()},
        qpos=qpos,
        action=vectors("steps/action"),
        stamps_ns=np.round(np.arange(len(qpos)) * 1e9 / rate_hz).astype(np.int64),
        rate_hz=rate_hz,
        instruction=features["steps/language_instruction"][0].decode(),
        profile=text("profile"),
        color_order=text("color_order") or RGB,
        outcome=text("outcome"),
        source=text("file_path"),
    )
