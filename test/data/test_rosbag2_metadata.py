"""What rosbag2 0.26 (Jazzy) reads of a bag is there, in the form in which it reads it.

rosbag2 has no wheels, so its conversions are followed field by field here: each function below is
the `decode` of the class it is named after, and refuses what that would refuse. Source:
ros2/rosbag2, branch jazzy, rosbag2_storage/include/rosbag2_storage/yaml.hpp and
rosbag2_storage/src/rosbag2_storage/qos.cpp; names of policies: rmw/qos_string_conversions.h; the
MCAP records: rosbag2_storage_mcap/src/mcap_storage.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from bag_samples import START_NS, Take, bag_topic, text
from mcap.reader import make_reader

from vla_oft_ros.data.bag_recovery import annotate_bag, recover_bag
from vla_oft_ros.data.bag_writer import BagWriter, OfferedQos

HISTORIES = {"system_default", "keep_last", "keep_all", "unknown"}
RELIABILITIES = {"system_default", "reliable", "best_effort", "best_available", "unknown"}
DURABILITIES = {"system_default", "transient_local", "volatile", "best_available", "unknown"}
LIVELINESSES = {"system_default", "automatic", "manual_by_topic", "best_available", "unknown"}
INFINITE = (9223372036, 854775807)
"""RMW_DURATION_INFINITE, rmw/time.h."""


def unsigned(node: Any, bits: int = 64) -> int:
    assert type(node) is int and 0 <= node < 2**bits
    return node


def string(node: Any) -> str:
    assert type(node) is str
    return node


def rmw_time(node: Any) -> tuple[int, int]:
    return unsigned(node["sec"]), unsigned(node["nsec"])


def qos(node: Any) -> OfferedQos:
    """convert<rclcpp::QoS>: words and not numbers, which would be version 8."""
    assert node["history"] in HISTORIES and node["reliability"] in RELIABILITIES
    assert node["durability"] in DURABILITIES and node["liveliness"] in LIVELINESSES
    for name in ("deadline", "lifespan", "liveliness_lease_duration"):
        assert rmw_time(node[name]) == INFINITE
    assert type(node["avoid_ros_namespace_conventions"]) is bool
    return OfferedQos(
        history=node["history"],
        depth=unsigned(node["depth"], 31),
        reliability=node["reliability"],
        durability=node["durability"],
        liveliness=node["liveliness"],
    )


def topic_metadata(node: Any) -> tuple[str, str, list[OfferedQos], str]:
    assert string(node["serialization_format"]) == "cdr"
    assert type(node["offered_qos_profiles"]) is list  # since version 9; a string before
    profiles = [qos(entry) for entry in node["offered_qos_profiles"]]
    return (
        string(node["name"]),
        string(node["type"]),
        profiles,
        string(node["type_description_hash"]),
    )


def file_information(node: Any) -> tuple[str, int, int, int]:
    start_ns = unsigned(node["starting_time"]["nanoseconds_since_epoch"])
    duration_ns = unsigned(node["duration"]["nanoseconds"])
    return string(node["path"]), start_ns, duration_ns, unsigned(node["message_count"])


def bag_metadata(node: Any) -> dict[str, Any]:
    assert node["version"] == 9 and string(node["storage_identifier"]) == "mcap"
    assert string(node["compression_format"]) == string(node["compression_mode"]) == ""
    custom_data = node["custom_data"] or {}  # a null node is an empty map there
    assert all(type(word) is str for pair in custom_data.items() for word in pair)
    return {
        "start_ns": unsigned(node["starting_time"]["nanoseconds_since_epoch"]),
        "duration_ns": unsigned(node["duration"]["nanoseconds"]),
        "count": unsigned(node["message_count"]),
        "topics": [
            (*topic_metadata(entry["topic_metadata"]), unsigned(entry["message_count"]))
            for entry in node["topics_with_message_count"]
        ],
        "paths": [string(path) for path in node["relative_file_paths"]],
        "files": [file_information(entry) for entry in node["files"]],
        "custom_data": custom_data,
        "distribution": string(node["ros_distro"]),
    }


def read_metadata(bag: Path) -> dict[str, Any]:
    """MetadataIo::read_metadata."""
    node = yaml.safe_load((bag / "metadata.yaml").read_text(encoding="utf-8"))
    return bag_metadata(node["rosbag2_bagfile_information"])


def check_mcap(bag: Path, told: dict[str, Any]) -> None:
    """MCAPStorage::read_metadata and get_all_message_definitions."""
    ((path, *span, count),) = told["files"]
    assert told["paths"] == [path] == [file.name for file in bag.glob("*.mcap")]
    assert (told["start_ns"], told["duration_ns"], told["count"]) == (*span, count)
    with (bag / path).open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        assert reader.get_header().profile == "ros2"
        summary = reader.get_summary()
        (metadata,) = [m for m in reader.iter_metadata() if m.name == "rosbag2"]
    assert summary is not None and summary.statistics is not None
    statistics = summary.statistics
    assert statistics.message_count == count
    if count:
        end_ns = told["start_ns"] + told["duration_ns"]
        assert (statistics.message_start_time, statistics.message_end_time) == (
            told["start_ns"],
            end_ns,
        )
    embedded = bag_metadata(yaml.safe_load(metadata.metadata["serialized_metadata"]))
    assert embedded["topics"] == told["topics"] and embedded["distribution"] == "jazzy"
    found = []
    for number, channel in summary.channels.items():
        schema = summary.schemas[channel.schema_id]
        assert (channel.message_encoding, schema.encoding) == ("cdr", "ros2msg")
        assert schema.data and set(channel.metadata) == {"offered_qos_profiles", "topic_type_hash"}
        profiles = yaml.safe_load(channel.metadata["offered_qos_profiles"])
        found.append(
            (
                channel.topic,
                schema.name,
                [qos(entry) for entry in profiles],
                channel.metadata["topic_type_hash"],
                statistics.channel_message_counts.get(number, 0),
            )
        )
    assert sorted(found) == sorted(told["topics"])


OFFERED = [
    OfferedQos(),
    OfferedQos("unknown", 0, "best_effort", "volatile"),  # as of a publisher elsewhere
    OfferedQos("keep_all", 0, "reliable", "transient_local", "manual_by_topic"),
]


@pytest.mark.parametrize("offered", [[], OFFERED[:1], OFFERED])
def test_rosbag2_reads_each_field_as_it_was_meant(
    tmp_path: Path, offered: list[OfferedQos]
) -> None:
    known = bag_topic("/text", "std_msgs/msg/String")
    topic = replace(known, qos=offered)
    writer = BagWriter(tmp_path / "bag", {"instruction": 'say: "null", 0\n'})
    for name in ("/text", "/silent"):
        writer.add_topic(replace(topic, name=name))
    for index in range(5):
        writer.write("/text", START_NS + index, text("a"))
    writer.close({"dropped": "0", "outcome": ""})
    told = read_metadata(tmp_path / "bag")
    check_mcap(tmp_path / "bag", told)
    assert told["topics"] == [
        ("/text", topic.type, offered, topic.type_hash, 5),
        ("/silent", topic.type, offered, topic.type_hash, 0),
    ]
    assert (told["start_ns"], told["duration_ns"]) == (START_NS, 4)
    assert told["custom_data"] == {
        "instruction": 'say: "null", 0\n',
        "dropped": "0",
        "outcome": "",
    }


def test_rosbag2_reads_an_episode_labelled_or_not(tmp_path: Path) -> None:
    bag = Take(seconds=0.5).write(tmp_path / "bag")
    before = read_metadata(bag)
    check_mcap(bag, before)
    annotate_bag(bag, {"outcome": "failure"})
    told = read_metadata(bag)
    check_mcap(bag, told)
    assert told["custom_data"].pop("outcome") == "failure"
    assert {name: told[name] for name in told if name != "custom_data"} == {
        name: before[name] for name in before if name != "custom_data"
    }


@pytest.mark.parametrize("messages", [0, 30])
def test_rosbag2_reads_what_was_recovered(tmp_path: Path, messages: int) -> None:
    writer = BagWriter(tmp_path / "bag", {})
    writer.add_topic(bag_topic("/text", "std_msgs/msg/String"))
    for index in range(messages):
        writer.write("/text", START_NS + index, text("a"))
    if messages:
        writer.flush()
    writer.abort()
    recover_bag(tmp_path / "bag")
    told = read_metadata(tmp_path / "bag")
    assert told["count"] == messages
    check_mcap(tmp_path / "bag", told)
