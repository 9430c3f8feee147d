"""What is read from a bag is what the live node saw; what cannot be read so is named."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from bag_samples import NS, START_NS, Sent, Take, bag_topic, joint_state, jpeg_image, raw_image
from rosbags.rosbag2 import StoragePlugin, Writer

from vla_oft_ros.aloha import ARMS, CAMERAS, JOINT_STATE_NAMES, load_profile
from vla_oft_ros.data import cdr
from vla_oft_ros.data.bag import read_bag
from vla_oft_ros.data.bag_storage import BagError, open_bag
from vla_oft_ros.data.bag_streams import BagOptions
from vla_oft_ros.data.bag_writer import BagWriter
from vla_oft_ros.data.episode import Episode, EpisodeError
from vla_oft_ros.image_decoding import decode_compressed, decode_image
from vla_oft_ros.sync import ObservationBuilder
from vla_oft_ros.types import Observation


def live(take: Take, ticks_ns: list[int]) -> list[Observation]:
    """What a node sees that gets the messages as they arrive and asks at every tick; messages are
    taken apart by rosbags, and images decoded as `ros/conversions` does.
    """
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    builder = ObservationBuilder(CAMERAS)
    cameras = {take.profile.camera_topic(camera): camera for camera in CAMERAS}
    followers = dict(zip(take.profile.follower_joint_state_topics, ARMS, strict=True))
    seen, waiting = [], take.messages()
    for tick in ticks_ns:
        while waiting and waiting[0].log_ns <= tick:
            one = waiting.pop(0)
            name = one.topic.removesuffix("/compressed")
            if name not in cameras and name not in followers:
                continue
            message = store.deserialize_cdr(one.data, one.type)
            stamp = message.header.stamp.sec * NS + message.header.stamp.nanosec
            if one.type == cdr.IMAGE:
                fields = (message.encoding, message.height, message.width, message.step)
                builder.add_image(cameras[name], stamp, decode_image(*fields, False, message.data))
            elif one.type == cdr.COMPRESSED_IMAGE:
                image = decode_compressed(message.format, message.data)
                builder.add_image(cameras[name], stamp, image)
            else:
                qpos = take.profile.arm_qpos(message.name, message.position.tolist())
                builder.add_joints(followers[name], stamp, qpos)
        seen.append(builder.build(tick, take.instruction))
    return seen


@pytest.mark.parametrize(
    "take",
    [
        Take(),
        Take(compressed=True, seed=1),
        Take(encoding="bgr8", padding=5, seed=2),
        Take(leaders=False, targets=True, camera_hz=24.0),
    ],
    ids=["raw", "jpeg", "padded bgr", "targets"],
)
def test_a_bag_gives_step_for_step_and_bit_for_bit_what_the_live_node_saw(
    tmp_path: Path, take: Take
) -> None:
    episode = read_bag(take.write(tmp_path / "bag"))
    assert len(episode) > 40
    observations = live(take, episode.stamps_ns.tolist())
    for step, observation in enumerate(observations):
        assert np.array_equal(episode.qpos[step], observation.proprio)
        assert tuple(observation.images) == episode.cameras
        for camera, image in observation.images.items():
            assert np.array_equal(episode.images[camera][step], image)
            assert episode.image_stamps_ns is not None
            assert episode.image_stamps_ns[camera][step] == observation.image_stamps_ns[camera]


def test_ticks_can_be_those_of_the_live_node(tmp_path: Path) -> None:
    take = Take()
    ticks = [START_NS + NS // 2 + 31_000_000 * k for k in range(20)]
    episode = read_bag(take.write(tmp_path / "bag"), ticks_ns=ticks)
    assert episode.stamps_ns.tolist() == ticks
    expected = np.stack([seen.proprio for seen in live(take, ticks)])
    assert np.array_equal(episode.qpos, expected)


def test_the_action_is_what_the_leaders_did_at_the_tick(tmp_path: Path) -> None:
    take = Take(joint_hz=100.0)
    episode = read_bag(take.write(tmp_path / "bag"))
    for step in (0, 10, -1):
        newest = {}
        for one in take.messages():
            if "leader" in one.topic and one.log_ns <= episode.stamps_ns[step]:
                newest[one.topic] = cdr.read_joint_state(one.data)
        topics = take.profile.leader_joint_state_topics
        expected = [
            take.profile.leader_action(newest[t].name, newest[t].position.tolist()) for t in topics
        ]
        assert np.array_equal(episode.action[step], np.concatenate(expected))


def test_without_leaders_the_action_is_the_target_that_followed(tmp_path: Path) -> None:
    take = Take(leaders=False, targets=True)
    episode = read_bag(take.write(tmp_path / "bag"))
    times = [START_NS + round((index + 0.4) / 25 * NS) for index in range(50)]
    for step in range(len(episode)):
        index = next(k for k, t in enumerate(times) if t >= episode.stamps_ns[step])
        assert np.array_equal(episode.action[step], take.targets_at(index))


def test_a_target_of_the_same_instant_belongs_to_the_tick(tmp_path: Path) -> None:
    take = Take(leaders=False, targets=True)
    times = [START_NS + round((index + 0.4) / 25 * NS) for index in range(10, 20)]
    episode = read_bag(take.write(tmp_path / "bag"), ticks_ns=times)
    for step, index in enumerate(range(10, 20)):
        assert np.array_equal(episode.action[step], take.targets_at(index))


def test_of_raw_and_compressed_images_those_that_came_first_are_read(tmp_path: Path) -> None:
    topic = Take().profile.camera_topic("cam_high")
    for first in ("raw", "compressed"):
        take = Take(seconds=1.0)
        sent = take.messages()
        early = min(one.log_ns for one in sent if one.topic == topic)
        stamp_ns = early - 1 if first == "compressed" else early + 1
        extra = jpeg_image(START_NS, take.image("cam_high", 0))
        sent.append(Sent(stamp_ns, f"{topic}/compressed", cdr.COMPRESSED_IMAGE, extra))
        sent.sort(key=lambda one: one.log_ns)
        take.messages = sent.copy  # type: ignore[method-assign]
        bag = take.write(tmp_path / first)
        if first == "raw":
            assert len(read_bag(bag)) > 20
        else:  # one compressed image, and none after it: the camera died, as it would have live
            with pytest.raises(BagError, match="image cam_high ends"):
                read_bag(bag)


def test_messages_count_by_the_time_of_their_arrival_not_by_their_place(tmp_path: Path) -> None:
    take = Take(seconds=1.0)
    ordered = read_bag(take.write(tmp_path / "ordered"))
    shuffled = take.messages()
    np.random.default_rng(0).shuffle(shuffled)  # type: ignore[arg-type]
    take.messages = shuffled.copy  # type: ignore[method-assign]
    assert same(read_bag(take.write(tmp_path / "shuffled")), ordered)


def test_instruction_profile_rate_colour_and_outcome_travel_with_the_bag(tmp_path: Path) -> None:
    take = Take(instruction="fold the shirt")
    episode = read_bag(take.write(tmp_path / "bag", outcome="success"))
    assert (episode.instruction, episode.profile, episode.outcome) == (
        *("fold the shirt", "sim", "success"),
    )
    assert (episode.rate_hz, episode.color_order) == (25.0, "rgb")
    silent = Take(instruction="heard on the topic").write(tmp_path / "silent", instruction="")
    assert read_bag(silent).instruction == "heard on the topic"
    assert read_bag(silent, BagOptions(instruction="said")).instruction == "said"


def test_objects_are_where_they_were_at_the_first_step(tmp_path: Path) -> None:
    take = Take(objects=("red_box", "blue_box"))
    ticks = [START_NS + round(NS * (0.5 + 0.04 * step)) for step in range(5)]
    episode = read_bag(take.write(tmp_path / "bag"), ticks_ns=ticks)
    assert episode.object_poses is not None
    for place, name in enumerate(take.objects):
        assert np.array_equal(episode.object_poses[name], take.object_pose(place, 12))
    assert read_bag(Take().write(tmp_path / "none")).object_poses is None


def test_velocity_and_effort_are_those_of_the_same_message(tmp_path: Path) -> None:
    episode = read_bag(Take().write(tmp_path / "bag"))
    assert episode.qvel is not None and episode.effort is not None
    arm = [index for index in range(14) if index not in (6, 13)]
    assert np.allclose(episode.qvel[:, arm], 0.1 * episode.qpos[:, arm], rtol=0, atol=1e-15)
    assert np.allclose(episode.effort[:, arm], 10 * episode.qpos[:, arm], rtol=0, atol=1e-12)
    assert not episode.qvel[:, [6, 13]].any() and episode.effort[:, 6].any()


def copied(take: Take, path: Path, plugin: StoragePlugin) -> Path:
    """The same messages in a bag that rosbags writes."""
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        known = {}
        for one in take.messages():
            if one.topic not in known:
                known[one.topic] = writer.add_connection(one.topic, one.type, typestore=store)
            writer.write(known[one.topic], one.log_ns, one.data)
    return path


def same(first: Episode, second: Episode) -> bool:
    return (
        np.array_equal(first.qpos, second.qpos)
        and np.array_equal(first.action, second.action)
        and np.array_equal(first.stamps_ns, second.stamps_ns)
        and all(
            np.array_equal(first.images[camera][step], second.images[camera][step])
            for camera in first.cameras
            for step in range(len(first))
        )
    )


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_bags_of_other_writers_give_the_same_episode(
    tmp_path: Path, plugin: StoragePlugin
) -> None:
    take = Take(seconds=1.0)
    ours = read_bag(take.write(tmp_path / "ours"))
    theirs = read_bag(copied(take, tmp_path / "theirs", plugin), BagOptions(profile="sim"))
    assert same(ours, theirs)


def test_a_compressed_mcap_gives_the_same_episode(tmp_path: Path) -> None:
    from mcap.reader import make_reader
    from mcap.writer import CompressionType
    from mcap.writer import Writer as McapWriter

    take = Take(seconds=1.0)
    bag = take.write(tmp_path / "bag")
    for compression in (CompressionType.ZSTD, CompressionType.LZ4, CompressionType.NONE):
        path = tmp_path / f"{compression.name}.mcap"
        with (bag / "bag_0.mcap").open("rb") as source, path.open("wb") as target:
            writer = McapWriter(target, compression=compression, chunk_size=50_000)
            writer.start("ros2")
            channels = {}
            for schema, channel, message in make_reader(source).iter_messages():
                if channel.topic not in channels:
                    kind = writer.register_schema(schema.name, schema.encoding, schema.data)
                    channels[channel.topic] = writer.register_channel(channel.topic, "cdr", kind)
                writer.add_message(
                    channels[channel.topic], message.log_time, message.data, message.log_time
                )
            writer.finish()
        assert same(read_bag(bag), read_bag(path, BagOptions(profile="sim")))


def test_padding_behind_a_message_does_not_matter() -> None:
    data = joint_state(5 * NS, JOINT_STATE_NAMES, np.arange(9.0))
    for padded in (data, data + bytes(3)):
        fields = cdr.read_joint_state(padded)
        assert fields.stamp_ns == 5 * NS and fields.name == JOINT_STATE_NAMES
        assert np.array_equal(fields.position, np.arange(9.0)) and fields.velocity.size == 0


@pytest.mark.parametrize("cut", [3, 6, 11, 40, 80, 200])
def test_a_message_that_is_cut_off_is_refused(cut: int) -> None:
    with pytest.raises(cdr.CdrError):
        cdr.read_joint_state(joint_state(0, JOINT_STATE_NAMES, np.arange(9.0))[:cut])


def test_messages_are_read_in_either_byte_order() -> None:
    from bag_samples import types

    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    little = raw_image(7, image)
    store = types()._store  # serialize_cdr alone knows big endian
    message = store.deserialize_cdr(little, cdr.IMAGE)
    big = bytes(store.serialize_cdr(message, cdr.IMAGE, little_endian=False))
    for data in (little, big):
        fields = cdr.read_image(data)
        assert (fields.stamp_ns, fields.height, fields.width, fields.step) == (7, 2, 4, 12)
        assert bytes(fields.data) == image.tobytes()
    assert cdr.read_compressed_image(jpeg_image(7, image))[0].startswith("rgb8; jpeg")


def test_a_missing_camera_is_named_with_what_there_is(tmp_path: Path) -> None:
    bag = Take(missing=("cam_left_wrist",)).write(tmp_path / "bag")
    with pytest.raises(BagError, match=r"images of cam_left_wrist on /cam_left_wrist/.*--cameras"):
        read_bag(bag)
    episode = read_bag(bag, BagOptions(cameras=("cam_high", "cam_right_wrist")))
    assert episode.cameras == ("cam_high", "cam_right_wrist")


def test_missing_joints_or_actions_are_named(tmp_path: Path) -> None:
    bag = Take(missing=("follower_left",)).write(tmp_path / "a")
    with pytest.raises(BagError, match="joint states of the left follower"):
        read_bag(bag)
    bag = Take(leaders=False).write(tmp_path / "b")
    with pytest.raises(BagError, match="expected actions from auto"):
        read_bag(bag)


def test_a_bag_of_an_unknown_robot_asks_for_the_profile(tmp_path: Path) -> None:
    bag = Take().write(tmp_path / "bag", profile="")
    with pytest.raises(BagError, match="--profile"):
        read_bag(bag)


def test_a_camera_that_pauses_is_a_gap_and_never_filled(tmp_path: Path) -> None:
    take = Take(seconds=4.0)
    silence = (START_NS + 2 * NS, START_NS + 3 * NS)

    def paused() -> list[Sent]:
        return [
            one
            for one in Take.messages(take)
            if "cam_high" not in one.topic or not silence[0] < one.log_ns < silence[1]
        ]

    take.messages = paused  # type: ignore[method-assign]
    bag = take.write(tmp_path / "bag")
    with pytest.raises(BagError, match=r"cam_high is \d+ ms older.*--on-gap longest"):
        read_bag(bag)
    episode = read_bag(bag, BagOptions(on_gap="longest"))
    assert 45 <= len(episode) < 60
    assert "longest of 2 runs" in episode.notes[0]
    assert np.all(np.diff(episode.stamps_ns) == 40_000_000)


def test_a_camera_that_dies_is_not_taken_for_the_end_of_the_episode(tmp_path: Path) -> None:
    take = Take(seconds=3.0)
    end = START_NS + NS

    def died() -> list[Sent]:
        return [
            one for one in Take.messages(take) if "cam_high" not in one.topic or one.log_ns < end
        ]

    take.messages = died  # type: ignore[method-assign]
    bag = take.write(tmp_path / "bag")
    with pytest.raises(BagError, match=r"image cam_high ends 2\.0 s before the last stream"):
        read_bag(bag)
    episode = read_bag(bag, BagOptions(on_gap="longest"))
    assert 20 < len(episode) <= 25 and "left out" in episode.notes[0]


def test_a_truncated_bag_is_refused_or_read_as_far_as_it_goes(tmp_path: Path) -> None:
    take = Take(seconds=3.0)
    bag = take.write(tmp_path / "bag")
    whole = read_bag(bag)
    (bag / "metadata.yaml").unlink()
    file = bag / "bag_0.mcap"
    with file.open("r+b") as output:
        output.truncate(file.stat().st_size * 3 // 4)
    with pytest.raises(BagError, match=r"interrupted.*--on-damage repair"):
        read_bag(bag)
    part = read_bag(bag, BagOptions(on_damage="repair"))
    assert 40 < len(part) < len(whole)
    assert np.array_equal(part.qpos, whole.qpos[: len(part)])
    assert part.instruction == whole.instruction and any("damaged" in n for n in part.notes)


def test_a_bag_that_lost_its_end_afterwards_is_refused(tmp_path: Path) -> None:
    bag = Take(seconds=1.0).write(tmp_path / "bag")
    file = bag / "bag_0.mcap"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(BagError, match=r"bag_0\.mcap: .*--on-damage repair"):
        read_bag(bag)


def test_simulated_log_times_are_told_from_stamps(tmp_path: Path) -> None:
    take = Take(seconds=1.0)
    writer = BagWriter(tmp_path / "bag", {"profile": "sim"})
    for one in take.messages():
        if one.topic not in writer.counts:
            writer.add_topic(bag_topic(one.topic, one.type))
        writer.write(one.topic, one.log_ns + 3600 * NS, one.data)
    writer.close()
    episode = read_bag(tmp_path / "bag")
    assert len(episode) > 20 and "different clocks" in episode.notes[0]


def test_a_recorder_that_lags_behind_simulated_time_changes_no_observation(tmp_path: Path) -> None:
    """As `ros2 bag record --use-sim-time`: log times are those of the last /clock heard."""
    step_ns = NS // 25

    def recorded(name: str, clock: bool, lag: int) -> Path:
        writer = BagWriter(tmp_path / name, {"profile": "sim"})
        if clock:
            writer.add_topic(bag_topic("/clock", "rosgraph_msgs/msg/Clock"))
            writer.write("/clock", START_NS, bytes(12))
        # Stamped and sent at ticks of the simulation.
        for one in Take(seconds=1.0, camera_hz=25.0, joint_hz=50.0).messages():
            if one.topic not in writer.counts:
                writer.add_topic(bag_topic(one.topic, one.type))
            stamped = one.topic != "/instruction"
            sent_ns = cdr.read_stamp_ns(one.data) if stamped else one.log_ns
            writer.write(one.topic, sent_ns - lag * stamped, one.data)
        writer.close()
        return tmp_path / name

    prompt = read_bag(recorded("prompt", True, 0))
    late = read_bag(recorded("late", True, step_ns))
    assert len(prompt) > 20
    assert np.array_equal(late.qpos, prompt.qpos) and np.array_equal(late.action, prompt.action)
    assert np.array_equal(late.stamps_ns, prompt.stamps_ns)
    # In real time a stamp ahead of its arrival is a clock that nobody has synchronised.
    with pytest.raises(BagError, match="in the future; are the clocks synchronised"):
        read_bag(recorded("unsynchronised", False, step_ns))


def test_what_is_no_bag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="expected a rosbag2 folder"):
        open_bag(tmp_path)
    (tmp_path / "a.db3").write_bytes(b"no database at all" * 100)
    with pytest.raises(BagError, match="expected a r"):
        open_bag(tmp_path / "a.db3")
    sqlite3.connect(tmp_path / "b.db3").close()
    with pytest.raises(BagError, match="rosbag2 database"):
        open_bag(tmp_path / "b.db3")


def episode(steps: int = 6, rate_hz: float = 50.0) -> Episode:
    values = np.arange(steps * 14, dtype=np.float64).reshape(steps, 14)
    return Episode(
        images={"cam_high": np.zeros((steps, 2, 2, 3), np.uint8)},
        qpos=values,
        action=values,
        stamps_ns=np.arange(steps) * round(1e9 / rate_hz),
        rate_hz=rate_hz,
    )


def test_resampling_takes_every_second_step_and_makes_nothing_up() -> None:
    halved = episode().resampled(25.0)
    assert np.array_equal(halved.qpos, episode().qpos[::2]) and halved.rate_hz == 25.0
    assert len(halved.images["cam_high"]) == 3
    with pytest.raises(EpisodeError, match="at least 60 steps per second; got 50"):
        episode().resampled(60.0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"qpos": np.zeros((6, 13))}, r"qpos \(6, 14\)"),
        ({"action": np.full((6, 14), np.nan)}, "finite action; step 0"),
        ({"stamps_ns": np.zeros(6)}, "ascending"),
        ({"rate_hz": 0.0}, "rate_hz from 1"),
        ({"images": {"cam_high": np.zeros((5, 2, 2, 3), np.uint8)}}, "6 images of cam_high"),
        ({"color_order": "bgr"}, "readers convert"),
    ],
)
def test_an_episode_that_does_not_fit_together_is_refused(
    change: dict[str, object], expected: str
) -> None:
    good = episode()
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    with pytest.raises(EpisodeError, match=expected):
        Episode(**{**fields, **change})


def test_profiles_of_other_robots_find_their_topics(tmp_path: Path) -> None:
    take = Take(profile=load_profile("interbotix_2_0"), seconds=1.0)
    assert len(read_bag(take.write(tmp_path / "bag"))) > 20
