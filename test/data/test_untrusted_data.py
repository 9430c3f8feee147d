"""Files from strangers: whatever bytes come, a reader gives data or a named error; it opens no
other file, runs nothing, and does not allocate for what is only claimed.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from data.episode_samples import make_episode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_oft_ros.data import cdr, policy_messages
from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.bag_storage import BagError, open_bag
from vla_oft_ros.data.mcap_reader import MAX_CHUNK_BYTES, DamagedRecord, McapReader, uncompress
from vla_oft_ros.data.mcap_records import MAGIC, Opcode, pack_text, record
from vla_oft_ros.image_decoding import (
    ENCODINGS,
    ImageError,
    compressed_size,
    decode_compressed,
    decode_image,
)

NAMED = (ValueError, OSError)
"""The errors that `vla_oft` shows as one line; everything else would be a fault of ours."""
MIB = 2**20
CAP = 64 * MIB
"""Of memory that Python may take for a file of some kilobytes."""
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextmanager
def bounded(cap: int = CAP) -> Iterator[None]:
    """Fails if what is done inside takes more memory than this at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < cap
    finally:
        tracemalloc.stop()


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Flips, cuts, repeats or overwrites a few places, most often near the front or the end."""
    kind = draw(st.sampled_from(["flip", "cut", "number", "repeat"]))
    places = draw(st.lists(st.floats(0, 1), min_size=1, max_size=6))
    front = draw(st.booleans())
    value = draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]))

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        for place in places:
            at = int((place**3 if front else place) * max(0, len(changed) - 1))
            if kind == "flip":
                changed[at] ^= 1 << int(place * 7)
            elif kind == "number":
                changed[at : at + 8] = struct.pack("<Q", value)
            elif kind == "repeat":
                changed[at:at] = changed[at : at + 64]
            else:
                del changed[at : at + 1 + int(place * 100)]
        return bytes(changed)

    return change


def survives(read: Callable[[], object]) -> None:
    """Reads; a named error is as good as a result."""
    try:
        with bounded():
            read()
    except NAMED:
        pass


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def jpeg(height: int = 24, width: int = 32) -> bytes:
    image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    return bytes(cv2.imencode(".jpg", image)[1])


# Images


def test_an_image_that_claims_gigabytes_is_refused_before_it_is_decoded() -> None:
    with bounded(), pytest.raises(ImageError, match="claim to be 30000x30000"):
        decode_compressed("png", png_claiming(30000, 30000))
    claiming = jpeg().replace(struct.pack(">HH", 24, 32), struct.pack(">HH", 65000, 65000))
    with bounded(), pytest.raises(ImageError, match="claim to be 65000x65000"):
        decode_compressed("jpeg", claiming)


def test_a_jpeg_that_claims_two_sizes_counts_as_the_larger() -> None:
    small = jpeg()
    at = small.index(b"\xff\xc0")
    length = 2 + int.from_bytes(small[at + 2 : at + 4], "big")
    head = bytearray(small[at : at + length])
    head[5:9] = struct.pack(">HH", 65000, 65000)
    both = small[: at + length] + bytes(head) + small[at + length :]
    assert compressed_size(np.frombuffer(both, dtype=np.uint8)) == (65000, 65000)


@pytest.mark.parametrize("ending", [".bmp", ".tiff", ".webp", ".ppm"])
def test_only_jpeg_and_png_reach_a_decoder(ending: str) -> None:
    done, data = cv2.imencode(ending, np.zeros((8, 8, 3), dtype=np.uint8))
    assert done
    with pytest.raises(ImageError, match="expected JPEG or PNG"):
        decode_compressed("jpeg", data.tobytes())


@FUZZ
@given(change=damage(), is_png=st.booleans())
def test_a_damaged_image_gives_pixels_or_a_named_error(
    change: Callable[[bytes], bytes], is_png: bool
) -> None:
    data = change(png_claiming(16, 20) if is_png else jpeg())
    survives(partial(decode_compressed, "jpeg", data))


@FUZZ
@given(
    encoding=st.sampled_from(sorted(ENCODINGS)),
    sizes=st.tuples(*[st.sampled_from([0, 1, 2, 3, 5, 2**16, 2**32 - 1])] * 3),
    data=st.binary(max_size=64),
)
def test_a_raw_image_of_any_claim_gives_pixels_or_a_named_error(
    encoding: str, sizes: tuple[int, int, int], data: bytes
) -> None:
    survives(partial(decode_image, encoding, *sizes, False, data))


# Messages


READERS = [
    cdr.read_joint_state, cdr.read_image, cdr.read_compressed_image, cdr.read_pose,
    cdr.read_string, cdr.read_stamp_ns,
    *(
        read for name, read in vars(policy_messages).items()
        if name.startswith("read_") and read.__module__ == policy_messages.__name__
    ),
]  # fmt: skip


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@FUZZ
@given(data=st.binary(max_size=200), order=st.sampled_from([b"\0\1\0\0", b"\0\0\0\0", b""]))
def test_any_bytes_as_a_message_give_values_or_a_named_error(
    read: Callable[[bytes], object], data: bytes, order: bytes
) -> None:
    survives(lambda: read(order + data))


# Bags


@pytest.fixture(scope="module")
def mcap(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with a schema, a channel, metadata and messages, in and out of chunks."""
    schema = struct.pack("<H", 1) + pack_text("std_msgs/msg/String") + pack_text("ros2msg")
    channel = struct.pack("<HH", 1, 1) + pack_text("/instruction") + pack_text("cdr")
    message = struct.pack("<HIQQ", 1, 0, 5, 5) + b"\0\1\0\0\3\0\0\0hi\0"
    inner = record(Opcode.MESSAGE, message) * 3
    packed = zstd(inner)
    chunk = struct.pack("<QQQI", 5, 5, len(inner), zlib.crc32(inner)) + pack_text("zstd")
    return b"".join(
        (
            MAGIC,
            record(Opcode.HEADER, pack_text("ros2") + pack_text("x")),
            record(Opcode.SCHEMA, schema + pack_text("string data")),
            record(Opcode.CHANNEL, channel + struct.pack("<I", 0)),
            record(Opcode.MESSAGE, message),
            record(Opcode.CHUNK, chunk + struct.pack("<Q", len(packed)) + packed),
            record(Opcode.DATA_END, bytes(4)),
            record(Opcode.FOOTER, bytes(20)),
            MAGIC,
        )
    )


def zstd(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))


def test_the_undamaged_file_is_read_whole(mcap: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(mcap)
    reader = McapReader(tmp_path / "a.mcap", check=True)
    assert reader.content.damage is None
    assert [reader.read(place)[-3:] for place in reader.content.messages] == [b"hi\0"] * 4


@FUZZ
@given(change=damage())
def test_a_damaged_mcap_file_gives_messages_or_a_named_error(
    change: Callable[[bytes], bytes], mcap: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.mcap"
    path.write_bytes(change(mcap))

    def read() -> None:
        with open_bag(path, check=True) as bag:
            for entry in bag.entries:
                bag.read(entry)

    survives(read)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_chunk_is_not_unpacked_beyond_what_it_says(compression: str) -> None:
    bomb = bytes(32 * MIB)
    library = pytest.importorskip("lz4.frame") if compression == "lz4" else None
    data = library.compress(bomb) if library else zstd(bomb)
    assert len(data) < MIB
    with bounded(4 * MIB), pytest.raises(DamagedRecord, match="expected 1000"):
        uncompress(data, compression, 1000)
    with bounded(4 * MIB), pytest.raises(DamagedRecord, match="at most"):
        uncompress(data, compression, MAX_CHUNK_BYTES + 1)
    assert uncompress(data, compression, len(bomb)) == bomb


def database(path: Path, *statements: str) -> Path:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path


TOPICS = "CREATE TABLE topics (id INTEGER, name TEXT, type TEXT)"
MESSAGES = "CREATE TABLE messages (id INTEGER, topic_id INTEGER, timestamp INTEGER, data BLOB)"
ONE_TOPIC = "INSERT INTO topics VALUES (1, '/a', 'std_msgs/msg/String')"


def test_a_number_where_a_message_should_be_is_not_a_size(tmp_path: Path) -> None:
    path = database(
        tmp_path / "a.db3", TOPICS, MESSAGES, ONE_TOPIC,
        "INSERT INTO messages VALUES (1, 1, 5, 10000000000000)",
    )  # fmt: skip
    with open_bag(path) as bag, pytest.raises(BagError, match="expected message 1 as bytes"):
        bag.read(bag.entries[0])


def test_a_query_without_end_in_place_of_a_table_is_not_run(tmp_path: Path) -> None:
    endless = (
        "CREATE VIEW messages AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) "
        "SELECT i AS id, 1 AS topic_id, i AS timestamp, x'00' AS data FROM n"
    )
    path = database(tmp_path / "a.db3", TOPICS, endless, ONE_TOPIC)
    with pytest.raises(BagError, match="there is no table messages"):
        open_bag(path)


@pytest.mark.parametrize(
    "row", ["('1', 'x', 5, x'00')", "(1, 7, 5, x'00')", "(1, 1, 'late', x'00')"]
)
def test_rows_of_other_kinds_are_damage(row: str, tmp_path: Path) -> None:
    path = database(
        tmp_path / "a.db3", TOPICS, MESSAGES, ONE_TOPIC, f"INSERT INTO messages VALUES {row}"
    )
    with open_bag(path) as bag:
        assert bag.damage and not bag.entries


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100000, "a: &a [*a]", "rosbag2_bagfile_information: 7", "\xff",
        "!!python/name:os.system",
        "rosbag2_bagfile_information: {relative_file_paths: [7]}",
        "rosbag2_bagfile_information: {relative_file_paths: [../../etc/passwd]}",
        "rosbag2_bagfile_information: {relative_file_paths: [], custom_data: 7}",
    ],
    ids=range(8),
)  # fmt: skip
def test_metadata_of_a_stranger_end_in_a_named_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(BagError):
        open_bag(tmp_path)


# Data sets


@pytest.fixture(scope="module")
def hdf5_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("h5py")
    from vla_oft_ros.data.hdf5 import write_hdf5

    path = tmp_path_factory.mktemp("hdf5") / "episode_0.hdf5"
    write_hdf5(make_episode(), path, compress=True)
    return path


def read_all_hdf5(path: Path) -> None:
    from vla_oft_ros.data.hdf5 import read_hdf5

    episode = read_hdf5(path)
    for images in episode.images.values():
        np.asarray(images[0])


@FUZZ
@given(change=damage())
def test_a_damaged_hdf5_file_gives_an_episode_or_a_named_error(
    change: Callable[[bytes], bytes], hdf5_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "episode_0.hdf5"
    path.write_bytes(change(hdf5_file.read_bytes()))
    survives(partial(read_all_hdf5, path))


def test_hdf5_reads_no_other_file_and_allocates_nothing_that_is_only_claimed(
    hdf5_file: Path, tmp_path: Path
) -> None:
    import h5py

    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(256)) * 8)
    path = tmp_path / "episode_0.hdf5"

    def outside(file: h5py.File) -> None:
        file["observations/images/cam_low"] = h5py.ExternalLink(str(hdf5_file), "/action")

    def stored_elsewhere(file: h5py.File) -> None:
        storage = [(str(secret), 0, 2048)]
        file["observations/images"].create_dataset("cam_low", (1, 2048), "uint8", external=storage)

    def joined(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((1, 14), "f4")
        layout[:] = h5py.VirtualSource(str(hdf5_file), "action", (1, 14))
        del file["observations/qvel"]
        file.create_virtual_dataset("observations/qvel", layout)

    def claimed(file: h5py.File) -> None:
        del file["action"]
        file.create_dataset("action", (10**9, 14), "f4", chunks=(1000, 14))

    def circle(file: h5py.File) -> None:
        file["observations/again"] = h5py.SoftLink("/observations")

    for strange in (outside, stored_elsewhere, joined, claimed, circle):
        shutil.copy(hdf5_file, path)
        with h5py.File(path, "a") as file:
            strange(file)
        with bounded(), pytest.raises(ValueError, match="expected"):
            read_all_hdf5(path)


def test_a_record_of_a_length_that_is_not_there_is_not_allocated(tmp_path: Path) -> None:
    pytest.importorskip("google_crc32c")
    from vla_oft_ros.data.tfrecord import RecordError, _checksum, read_records

    for length in (2**62, 2**64 - 1, 10**12):
        head = struct.pack("<Q", length)
        (tmp_path / "a").write_bytes(head + _checksum(head) + b"short")
        with bounded(), pytest.raises(RecordError, match="expected a record of"):
            list(read_records(tmp_path / "a"))


@FUZZ
@given(change=damage())
def test_a_damaged_example_gives_features_or_a_named_error(
    change: Callable[[bytes], bytes],
) -> None:
    from vla_oft_ros.data.tfrecord import pack_example, unpack_example

    whole = pack_example(
        {"a": [b"x", b"yz"], "b": np.zeros(3, np.float32), "c": np.arange(4, dtype=np.int64)}
    )
    survives(lambda: unpack_example(change(whole)))


@pytest.mark.parametrize(
    "content",
    [
        {}, [], 7, {"splits": 7},
        {"name": 7, "splits": [{"name": "train", "shardLengths": ["1"]}]},
        {"name": "../../x", "splits": [{"name": "train", "shardLengths": ["1"]}]},
    ],
    ids=range(6),
)  # fmt: skip
def test_a_strange_rlds_folder_ends_in_a_named_error(content: object, tmp_path: Path) -> None:
    from vla_oft_ros.data.rlds import read_dataset

    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "x-train.tfrecord-00000-of-00001").write_bytes(b"not to be read")
    with pytest.raises(NAMED) as refused:
        list(read_dataset(folder))
    assert "record at" not in str(refused.value)


@pytest.mark.parametrize(
    "pattern",
    ["/etc/passwd", "../{chunk_index}", "{chunk_index.__class__}", "{0}", "a/../../b"],
)
def test_a_lerobot_path_stays_in_its_data_set(pattern: str, tmp_path: Path) -> None:
    from vla_oft_ros.data import lerobot

    with pytest.raises(ValueError, match="expected a path within the data set"):
        lerobot._inside(tmp_path, pattern, chunk_index=0, file_index=0)
    place = {"chunk_index": 1, "file_index": 23}
    inside = lerobot._inside(tmp_path, lerobot.DATA_PATH, **place)
    assert inside == tmp_path / lerobot.DATA_PATH.format(**place)


def test_a_playlist_under_the_name_of_a_video_opens_no_other_file(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from vla_oft_ros.data.video import VideoFrames, write_video

    target, playlist = tmp_path / "target.mp4", tmp_path / "list.mp4"
    write_video(target, [np.zeros((16, 16, 3), np.uint8)] * 3, 25, "h264")
    assert VideoFrames(target, 25.0).read(0).shape == (16, 16, 3)
    playlist.write_text(f"ffconcat version 1.0\nfile '{target}'\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a video"):
        VideoFrames(playlist, 25.0).read(0)
    with new_file(tmp_path / "hls.mp4") as part:
        part.write_text(f"#EXTM3U\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a video"):
        VideoFrames(tmp_path / "hls.mp4", 25.0).read(0)
