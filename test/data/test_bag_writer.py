"""Bags: read back by implementations that are not ours, and spoiled neither by a killed process
nor by a full disk.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from bag_samples import NS, START_NS, Take, bag_topic, text
from mcap.reader import make_reader
from mcap.records import Chunk, MessageIndex
from mcap.stream_reader import StreamReader
from mcap_ros2.decoder import DecoderFactory
from rosbags.rosbag2 import Reader

from vla_oft_ros.data.bag_recovery import annotate_bag, recover_bag
from vla_oft_ros.data.bag_writer import BagWriter, DiskFull
from vla_oft_ros.data.mcap_reader import McapReader
from vla_oft_ros.data.mcap_writer import McapWriter

TESTS = Path(__file__).parent
STRING = "std_msgs/msg/String"


def read_all(path: Path) -> list[tuple[str, int, bytes]]:
    """Topic, log time and data of every message, by the mcap library, checksums compared."""
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        return [(c.topic, m.log_time, m.data) for _, c, m in reader.iter_messages()]


def mcap_of(bag: Path) -> Path:
    return next(bag.glob("*.mcap"))


def simple_bag(path: Path, count: int, step_ns: int = 10_000_000) -> Path:
    writer = BagWriter(path, {"instruction": "wave"})
    writer.add_topic(bag_topic("/text", STRING))
    for index in range(count):
        writer.write("/text", START_NS + index * step_ns, text(str(index)))
    writer.close({"outcome": "success"})
    return path


def test_every_message_comes_back_as_it_was_given(tmp_path: Path) -> None:
    take = Take(seconds=1.0)
    bag = take.write(tmp_path / "bag")
    sent = [(one.topic, one.log_ns, one.data) for one in take.messages()]
    assert read_all(mcap_of(bag)) == sent
    with Reader(bag) as reader:
        assert [(c.topic, t, bytes(d)) for c, t, d in reader.messages()] == sent


def test_the_mcap_tools_decode_the_messages_with_the_definitions_in_the_bag(
    tmp_path: Path,
) -> None:
    bag = Take(seconds=0.5).write(tmp_path / "bag")
    with mcap_of(bag).open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        decoded = [m for _, c, _, m in reader.iter_decoded_messages() if "left/joint" in c.topic]
    assert len(decoded) == 100  # follower and leader
    assert decoded[0].name[0] == "waist"


def test_metadata_names_topics_types_hashes_qos_counts_and_distribution(tmp_path: Path) -> None:
    bag = simple_bag(tmp_path / "bag", 30)
    content = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert content["version"] == 9
    assert content["ros_distro"] == "jazzy"
    assert content["message_count"] == 30
    assert content["duration"] == {"nanoseconds": 290_000_000}
    assert content["starting_time"] == {"nanoseconds_since_epoch": START_NS}
    assert content["custom_data"] == {"instruction": "wave", "outcome": "success"}
    (topic,) = content["topics_with_message_count"]
    # The hash that ROS 2 Jazzy itself computes for std_msgs/msg/String.
    string_hash = "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
    assert topic["topic_metadata"]["type_description_hash"] == string_hash
    assert topic["topic_metadata"]["offered_qos_profiles"][0]["depth"] == 10
    with mcap_of(bag).open("rb") as file:
        summary = make_reader(file).get_summary()
        assert summary is not None
        (channel,) = summary.channels.values()
    assert channel.metadata["topic_type_hash"] == string_hash
    assert yaml.safe_load(channel.metadata["offered_qos_profiles"])[0]["history"] == "keep_last"


def test_a_bag_folder_holds_its_two_files_and_nothing_else(tmp_path: Path) -> None:
    bag = simple_bag(tmp_path / "bag", 3)
    assert sorted(path.name for path in bag.iterdir()) == ["bag_0.mcap", "metadata.yaml"]


def test_every_index_entry_points_at_its_message(tmp_path: Path) -> None:
    bag = Take(seconds=1.0).write(tmp_path / "bag")
    found, chunk = 0, None
    with mcap_of(bag).open("rb") as file:
        for record in StreamReader(file, emit_chunks=True, validate_crcs=True).records:
            if isinstance(record, Chunk):
                chunk = record.data
            elif isinstance(record, MessageIndex):
                assert chunk is not None
                for log_ns, place in record.records:
                    opcode, _, channel, _, log = struct.unpack_from("<BQHIQ", chunk, place)
                    assert (opcode, channel, log) == (5, record.channel_id, log_ns)
                    found += 1
    assert found == len(Take(seconds=1.0).messages())


def test_a_bag_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    simple_bag(tmp_path / "bag", 3)
    with pytest.raises(FileExistsError):
        BagWriter(tmp_path / "bag", {})
    assert len(read_all(mcap_of(tmp_path / "bag"))) == 3


def test_a_topic_has_one_type(tmp_path: Path) -> None:
    writer = BagWriter(tmp_path / "bag", {})
    writer.add_topic(bag_topic("/text", STRING))
    with pytest.raises(ValueError, match=r"/text: expected one type per topic.*Two publishers"):
        writer.add_topic(bag_topic("/text", "std_msgs/msg/Int32"))


@pytest.mark.parametrize("cut", [1, 9, 40, 400, 4000])
def test_a_truncated_bag_gives_every_whole_chunk(tmp_path: Path, cut: int) -> None:
    bag = simple_bag(tmp_path / "bag", 1000)
    whole = read_all(mcap_of(bag))
    (bag / "metadata.yaml").unlink()
    with mcap_of(bag).open("r+b") as file:
        file.truncate(mcap_of(bag).stat().st_size - cut)
    recovery = recover_bag(bag, {"outcome": "failure"})
    kept = read_all(mcap_of(bag))
    assert not recovery.was_whole
    assert kept == whole[: len(kept)] and len(kept) == recovery.messages
    assert len(kept) >= 900
    with Reader(bag) as reader:
        assert reader.message_count == len(kept)
    told = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert told["custom_data"] == {"instruction": "wave", "outcome": "failure"}


def test_what_was_cut_off_is_gone_after_recovery(tmp_path: Path) -> None:
    bag = simple_bag(tmp_path / "bag", 100)
    whole = read_all(mcap_of(bag))
    with mcap_of(bag).open("r+b") as file:
        file.seek(-200, os.SEEK_END)  # into the index
        file.truncate()
        file.write(b"\x06" + (10**7).to_bytes(8, "little") + bytes(300_000))
    recovery = recover_bag(bag)
    assert recovery.dropped_bytes > 300_000
    assert mcap_of(bag).read_bytes().endswith(b"\x89MCAP0\r\n")
    assert mcap_of(bag).stat().st_size < 100_000
    assert read_all(mcap_of(bag)) == whole


def test_a_recording_that_was_killed_at_once_is_an_empty_bag(tmp_path: Path) -> None:
    writer = BagWriter(tmp_path / "bag", {"instruction": "wave"})
    writer.add_topic(bag_topic("/text", STRING))
    writer.write("/text", START_NS, text("never on disk"))
    writer.abort()
    recovery = recover_bag(tmp_path / "bag")
    assert (recovery.messages, recovery.was_whole) == (0, False)
    assert read_all(mcap_of(tmp_path / "bag")) == []
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count == 0
    (tmp_path / "bag" / "bag_0.mcap").write_bytes(b"\x89MCAP0\r\n")
    with pytest.raises(ValueError, match="nothing to recover"):
        recover_bag(tmp_path / "bag")


def test_recovering_twice_changes_nothing(tmp_path: Path) -> None:
    bag = simple_bag(tmp_path / "bag", 100)
    before = {path.name: path.read_bytes() for path in bag.iterdir()}
    assert recover_bag(bag).was_whole
    assert {path.name: path.read_bytes() for path in bag.iterdir()} == before


def test_a_flipped_bit_is_found_by_checksum(tmp_path: Path) -> None:
    file = mcap_of(simple_bag(tmp_path / "bag", 1000))
    data = bytearray(file.read_bytes())
    place = data.rindex(text("700"))
    data[place + 9] ^= 1
    file.write_bytes(data)
    reader = McapReader(file, check=True)
    assert reader.content.damage is not None and "checksum" in reader.content.damage
    assert 600 < len(reader.content.messages) <= 700
    reader.close()


def test_a_file_that_is_no_bag_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "bag.mcap").write_text("hello, hello")
    with pytest.raises(ValueError, match="expected an MCAP file"):
        recover_bag(tmp_path / "bag")
    with pytest.raises(ValueError, match=r"one \.mcap file; found 0"):
        recover_bag(tmp_path)


def test_annotating_changes_the_outcome_and_nothing_else(tmp_path: Path) -> None:
    bag = simple_bag(tmp_path / "bag", 10)
    before = yaml.safe_load((bag / "metadata.yaml").read_text())
    annotate_bag(bag, {"outcome": "failure"})
    after = yaml.safe_load((bag / "metadata.yaml").read_text())
    before["rosbag2_bagfile_information"]["custom_data"]["outcome"] = "failure"
    assert after == before


KILLED = """
import os, sys
from pathlib import Path
from bag_samples import START_NS, Take, bag_topic, text
from vla_oft_ros.data.bag_writer import BagWriter
writer = BagWriter(Path(sys.argv[1]), {"instruction": "wave"})
writer.add_topic(bag_topic("/text", "std_msgs/msg/String"))
padding = "x" * 2000
index = 0
while True:
    log_ns = START_NS + index * 5_000_000
    writer.write("/text", log_ns, text(f"{index} {padding}"))
    os.write(1, log_ns.to_bytes(8, "little"))
    index += 1
"""


def kill_while_writing(bag: Path, messages: int) -> int:
    """Kills a recording process after it has reported some messages; the last log time that it
    reported.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(bag)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parents[1]}{os.pathsep}{TESTS}"},
    )
    assert process.stdout is not None
    try:
        reported = process.stdout.read(8 * messages)
    finally:
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0]
    reported += rest[: len(rest) // 8 * 8]
    return int.from_bytes(reported[-8:], "little")


def check_killed(directory: Path, seed: int) -> None:
    earlier = simple_bag(directory / "episode_0", 50)
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    bag = directory / "episode_1"
    last_ns = kill_while_writing(bag, random.Random(seed).randint(1, 1500))
    assert not (bag / "metadata.yaml").exists()
    recovery = recover_bag(bag)
    assert last_ns - max(recovery.last_ns, START_NS) <= NS
    messages = read_all(mcap_of(bag))
    assert [time_ns for _, time_ns, _ in messages] == [
        START_NS + index * 5_000_000 for index in range(len(messages))
    ]
    with Reader(bag) as reader:
        assert reader.message_count == len(messages) == recovery.messages
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_recording_is_readable_up_to_a_second_before(tmp_path: Path, seed: int) -> None:
    check_killed(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_fifty_killed_recordings_are_readable_up_to_a_second_before(
    tmp_path: Path, seed: int
) -> None:
    check_killed(tmp_path, seed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB, where one may be mounted."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)  # even if somebody looks


def fill(path: Path) -> tuple[int, DiskFull]:
    writer = BagWriter(path, {"instruction": "wave"}, chunk_bytes=2**20)
    writer.add_topic(bag_topic("/text", STRING))
    data = text("x" * 100_000)
    for index in range(1000):
        try:
            writer.write("/text", START_NS + index * 10_000_000, data)
        except DiskFull as error:
            with pytest.raises(DiskFull):
                writer.write("/text", START_NS, data)
            writer.close({"outcome": ""})
            return index + 1 - writer.lost, error
    raise AssertionError("the disk never filled up")


def check_full(path: Path, written: int, error: DiskFull) -> None:
    assert "the disk is full" in str(error) and str(path) in str(error)
    assert len(read_all(mcap_of(path))) == written > 20
    assert not (path / ".reserve").exists()
    with Reader(path) as reader:
        assert reader.message_count == written


def test_a_full_disk_ends_the_recording_and_spoils_nothing(small_disk: Path) -> None:
    check_full(small_disk / "bag", *fill(small_disk / "bag"))


def test_a_write_that_fails_halfway_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = 5_000_000
    real = os.writev

    def writev(file: int, buffers: list[bytes]) -> int:
        room = quota - os.fstat(file).st_size
        if sum(map(len, buffers)) <= room:
            return real(file, buffers)
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(file, b"".join(buffers)[:room])

    def write(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real_write = os.write
    monkeypatch.setattr("vla_oft_ros.data.mcap_writer.os.writev", writev)
    calls = {"rest": 0}

    def rest(file: int, data: bytes) -> int:
        calls["rest"] += 1
        if os.fstat(file).st_size >= quota:
            return write(file, data)
        return real_write(file, data)

    monkeypatch.setattr("vla_oft_ros.data.mcap_writer.os.write", rest)
    written, error = fill(tmp_path / "bag")
    assert calls["rest"] > 0
    check_full(tmp_path / "bag", written, error)


def test_a_file_on_a_full_disk_ends_with_its_last_whole_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = McapWriter(tmp_path / "a.mcap", {}, chunk_bytes=1)
    channel = writer.add_channel(writer.add_schema("t", "ros2msg", ""), "/t", {})
    writer.write(channel, 0, 1, 1, bytes(1000))
    whole = (tmp_path / "a.mcap").read_bytes()

    def half(file: int, buffers: list[bytes]) -> int:
        os.write(file, b"".join(buffers)[:500])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="space"):
        patched.setattr("vla_oft_ros.data.mcap_writer.os.writev", half)
        writer.write(channel, 0, 2, 2, bytes(1000))
    assert (tmp_path / "a.mcap").read_bytes() == whole
    writer.close({})  # there is room again: what was in memory is written after all
    assert [time_ns for _, time_ns, _ in read_all(tmp_path / "a.mcap")] == [1, 2]


def test_a_chunk_is_on_disk_when_its_time_has_passed(tmp_path: Path) -> None:
    writer = McapWriter(tmp_path / "a.mcap", {}, chunk_bytes=10**9, chunk_ns=100)
    channel = writer.add_channel(writer.add_schema("t", "ros2msg", ""), "/t", {})
    for log_ns in (0, 99):
        writer.write(channel, 0, log_ns, log_ns, b"abc")
    assert writer.pending_messages == 2
    writer.write(channel, 0, 100, 100, b"abc")
    assert writer.pending_messages == 0
    reader = McapReader(tmp_path / "a.mcap")
    assert [m.log_ns for m in reader.content.messages] == [0, 99, 100]
    reader.close()
    writer.abort()
