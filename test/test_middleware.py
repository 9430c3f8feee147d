"""The Fast DDS profiles: room for raw images in both, loopback only in one."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from vla_oft_ros.config import config_dir

IMAGE_BYTES = 640 * 480 * 3
DDS = "{http://www.eprosima.com}"


def transports(name: str) -> dict[str, ElementTree.Element]:
    """Kind of transport → its description, of those that the profile uses."""
    profiles = ElementTree.parse(Path(config_dir()) / name).getroot()
    described = {
        entry.findtext(f"{DDS}transport_id", ""): entry
        for entry in profiles.iter(f"{DDS}transport_descriptor")
    }
    used = profiles.findall(f".//{DDS}userTransports/{DDS}transport_id")
    assert profiles.findtext(f".//{DDS}useBuiltinTransports") == "false"
    return {
        described[entry.text or ""].findtext(f"{DDS}type", ""): described[entry.text or ""]
        for entry in used
    }


@pytest.mark.parametrize("name", ["fastdds_loopback.xml", "fastdds_robot.xml"])
def test_shared_memory_holds_a_second_of_a_raw_camera(name: str) -> None:
    segment = transports(name)["SHM"].findtext(f"{DDS}segment_size", "0")
    assert int(segment) >= 25 * IMAGE_BYTES


def test_the_loopback_profile_lets_nothing_out() -> None:
    used = transports("fastdds_loopback.xml")
    assert set(used) == {"SHM", "UDPv4"}
    listed = used["UDPv4"].find(f"{DDS}interfaceWhiteList")
    assert listed is not None and [entry.text for entry in listed] == ["127.0.0.1"]


def test_the_robots_profile_reaches_other_machines() -> None:
    used = transports("fastdds_robot.xml")
    assert set(used) == {"SHM", "UDPv4"}
    assert used["UDPv4"].find(f"{DDS}interfaceWhiteList") is None
