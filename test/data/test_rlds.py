"""RLDS without TensorFlow: our own reader gives back what was written, and where TensorFlow
Datasets is installed, so does it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from episode_samples import make_episode
from hypothesis import given
from hypothesis import strategies as st

from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.data.episode import Episode, EpisodeError
from vla_oft_ros.data.rlds import IMAGE_KEYS, RldsPart, read_dataset, write_dataset, write_record
from vla_oft_ros.data.tfrecord import (
    RecordError,
    frame,
    pack_example,
    read_records,
    unpack_example,
)
from vla_oft_ros.model.image_ops import resize_bicubic


@given(
    st.lists(st.binary(max_size=300)),
    st.lists(st.integers(-(2**63), 2**63 - 1)),
    st.lists(st.floats(width=32, allow_nan=False)),
)
def test_an_example_comes_back_as_it_was(
    blobs: list[bytes], integers: list[int], floats: list[float]
) -> None:
    features = {
        "a/blobs": blobs,
        "integers": np.array(integers, dtype=np.int64),
        "floats": np.array(floats, dtype=np.float32),
    }
    back = unpack_example(pack_example(features))
    assert back["a/blobs"] == blobs
    assert np.array_equal(back["integers"], features["integers"])
    assert np.array_equal(back["floats"], features["floats"])


def test_the_framing_is_that_of_tensorflow(tmp_path: Path) -> None:
    # Written by tf.io.TFRecordWriter (TensorFlow 2.21) for b"abc".
    known = "0300000000000000b099490e6162636e57f121"
    assert frame(b"abc").hex() == known
    (tmp_path / "a").write_bytes(frame(b"abc") + frame(b""))
    assert list(read_records(tmp_path / "a")) == [b"abc", b""]


@pytest.mark.parametrize("place", [0, 9, 13, 17])
def test_a_flipped_bit_or_a_cut_is_found(tmp_path: Path, place: int) -> None:
    data = bytearray(frame(b"abc"))
    (tmp_path / "cut").write_bytes(data[:place] or data[:5])
    data[place] ^= 1
    (tmp_path / "flipped").write_bytes(data)
    for name in ("cut", "flipped"):
        with pytest.raises(RecordError):
            list(read_records(tmp_path / name))


def dataset(directory: Path, episodes: list[Episode], val: int = 1) -> Path:
    parts = []
    for number, episode in enumerate(episodes):
        path = directory / "parts" / f"{number}"
        write_record(episode, path)
        parts.append(RldsPart(path, "val" if number < val else "train"))
    return write_dataset(directory, "transfer_cube", parts)


def test_a_data_set_gives_back_numbers_exactly_and_images_nearly(tmp_path: Path) -> None:
    episodes = [make_episode(steps=5 + seed, seed=seed) for seed in range(3)]
    folder = dataset(tmp_path, episodes)
    back = [*read_dataset(folder, "val"), *read_dataset(folder, "train")]
    assert len(back) == 3
    for episode, other in zip(episodes, back, strict=True):
        assert np.array_equal(episode.qpos, other.qpos)
        assert np.array_equal(episode.action, other.action)
        for name in ("instruction", "profile", "rate_hz", "color_order", "outcome", "source"):
            assert getattr(episode, name) == getattr(other, name)
        for camera in CAMERAS:
            for step in range(len(episode)):
                sent = resize_bicubic(episode.images[camera][step], 256).astype(int)
                assert np.abs(sent - other.images[camera][step]).mean() < 2.0


def test_large_data_sets_are_cut_into_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_oft_ros.data.rlds.SHARD_BYTES", 1)
    folder = dataset(tmp_path, [make_episode(steps=3, seed=seed) for seed in range(3)], val=0)
    information = json.loads((folder / "dataset_info.json").read_text())
    assert information["splits"][0]["shardLengths"] == ["1", "1", "1"]
    sources = [episode.source for episode in read_dataset(folder)]
    assert sources == ["episode 0", "episode 1", "episode 2"]


def test_what_the_loader_cannot_do_without_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=r"expected an instruction.*--instruction"):
        write_record(make_episode(steps=3, instruction=""), tmp_path / "a")
    with pytest.raises(EpisodeError, match="cam_left_wrist, cam_right_wrist missing"):
        write_record(make_episode(steps=3, cameras=("cam_high",)), tmp_path / "a")
    with pytest.raises(ValueError, match="letters, digits"):
        write_dataset(tmp_path, "put X", [])
    with pytest.raises(ValueError, match="expected an RLDS data set"):
        list(read_dataset(tmp_path))


READ_WITH_TFDS = """
import json, sys
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
skip = {"steps": {"observation": {
    key: tfds.decode.SkipDecoding() for key in ("image", "left_wrist_image", "right_wrist_image")
}}}
told = {}
for split, info in builder.info.splits.items():
    plain = list(builder.as_dataset(split=split, shuffle_files=False))
    encoded = list(builder.as_dataset(split=split, shuffle_files=False, decoders=skip))
    assert len(plain) == len(encoded) == info.num_examples
    told[split] = []
    for episode, raw in zip(plain, encoded):
        steps, undecoded = list(episode["steps"]), list(raw["steps"])
        for step, other in zip(steps, undecoded):
            for key in ("image", "left_wrist_image", "right_wrist_image"):
                image = step["observation"][key].numpy()
                assert image.shape == (256, 256, 3) and image.dtype == np.uint8
                assert np.array_equal(
                    image, tf.io.decode_jpeg(other["observation"][key]).numpy()
                )
        told[split].append({
            "action": [s["action"].numpy().tolist() for s in steps],
            "state": [s["observation"]["state"].numpy().tolist() for s in steps],
            "instruction": [s["language_instruction"].numpy().decode() for s in steps],
            "first": [bool(s["is_first"]) for s in steps],
            "last": [bool(s["is_last"]) for s in steps],
            "mean": [float(s["observation"]["image"].numpy().mean()) for s in steps],
            "rate_hz": float(episode["episode_metadata"]["rate_hz"]),
            "profile": episode["episode_metadata"]["profile"].numpy().decode(),
        })
print("TOLD" + json.dumps(told))
"""


@pytest.mark.slow
def test_tensorflow_datasets_reads_the_same(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    python = request.config.getoption("--tfds-python")
    if python is None and find_spec("tensorflow_datasets") is None:
        pytest.skip("needs tensorflow and tensorflow-datasets here or behind --tfds-python")
    episodes = [make_episode(steps=4 + seed, seed=seed) for seed in range(3)]
    folder = dataset(tmp_path, episodes)
    done = subprocess.run(
        [python or sys.executable, "-c", READ_WITH_TFDS, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.split("TOLD")[1])
    assert {split: len(found) for split, found in told.items()} == {"val": 1, "train": 2}
    for episode, found in zip(episodes, [*told["val"], *told["train"]], strict=True):
        assert np.array_equal(np.array(found["action"]), episode.action)
        assert np.array_equal(np.array(found["state"]), episode.qpos)
        assert set(found["instruction"]) == {episode.instruction}
        assert found["first"] == [True] + [False] * (len(episode) - 1)
        assert found["last"] == [False] * (len(episode) - 1) + [True]
        assert (found["rate_hz"], found["profile"]) == (25.0, "sim")
        for step, mean in enumerate(found["mean"]):
            image = resize_bicubic(episode.images["cam_high"][step], 256)
            assert abs(image.mean() - mean) < 1.0


def test_image_names_are_those_of_openvla_oft() -> None:
    assert IMAGE_KEYS == {
        "cam_high": "image",
        "cam_left_wrist": "left_wrist_image",
        "cam_right_wrist": "right_wrist_image",
    }
