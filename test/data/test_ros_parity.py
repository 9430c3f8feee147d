"""What ROS itself serialises is read as ROS itself reads it; types carry ROS's own hashes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from vla_oft_ros.aloha import JOINT_STATE_NAMES
from vla_oft_ros.data import cdr
from vla_oft_ros.data.message_types import MessageTypes
from vla_oft_ros.image_decoding import decode_compressed, decode_image

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")

ROOT = Path(__file__).parents[2]


def serialized(message: object) -> bytes:
    from rclpy.serialization import serialize_message

    return bytes(serialize_message(message))


@pytest.mark.parametrize("frame", ["", "a", "abcd", "base_link"])
@pytest.mark.parametrize("filled", [False, True])
def test_joint_states_of_fast_dds_are_read_padding_or_not(frame: str, filled: bool) -> None:
    from sensor_msgs.msg import JointState

    message = JointState(name=list(JOINT_STATE_NAMES), position=np.arange(9.0).tolist())
    message.header.frame_id = frame
    message.header.stamp.sec, message.header.stamp.nanosec = 1_700_000_000, 123
    if filled:
        message.velocity, message.effort = [1.5] * 9, [-2.5] * 9
    state = cdr.read_joint_state(serialized(message))
    assert state.stamp_ns == 1_700_000_000_000_000_123
    assert state.name == JOINT_STATE_NAMES
    assert np.array_equal(state.position, np.arange(9.0))
    assert state.velocity.tolist() == list(message.velocity)
    assert state.effort.tolist() == list(message.effort)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono16", "yuv422_yuy2", "bayer_rggb8"])
def test_images_of_a_bag_have_the_pixels_of_the_live_node(encoding: str) -> None:
    from sensor_msgs.msg import Image

    from vla_oft_ros.ros.conversions import image_from_msg

    octets = {"rgb8": 3, "bgr8": 3, "mono16": 2, "yuv422_yuy2": 2, "bayer_rggb8": 1}[encoding]
    step = 8 * octets + 5
    data = np.random.default_rng(0).integers(0, 256, 6 * step, dtype=np.uint8)
    message = Image(height=6, width=8, encoding=encoding, step=step, data=data.tobytes())
    fields = cdr.read_image(serialized(message))
    image = decode_image(
        *(fields.encoding, fields.height, fields.width, fields.step),
        *(fields.is_bigendian, fields.data),
    )
    assert np.array_equal(image, image_from_msg(message))


def test_compressed_images_and_texts_are_read_alike() -> None:
    from sensor_msgs.msg import CompressedImage
    from std_msgs.msg import String

    from vla_oft_ros.ros.conversions import compressed_image_from_msg

    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    message = CompressedImage(format="jpeg", data=data)
    image = decode_compressed(*cdr.read_compressed_image(serialized(message)))
    assert np.array_equal(image, compressed_image_from_msg(message))
    for text in ("", "wave", "Würfel übergeben"):
        assert cdr.read_string(serialized(String(data=text))) == text


@pytest.mark.parametrize(
    "name",
    [
        *(
            "sensor_msgs/msg/Image",
            "sensor_msgs/msg/JointState",
            "sensor_msgs/msg/CompressedImage",
        ),
        *("diagnostic_msgs/msg/DiagnosticArray", "std_msgs/msg/String"),
        *(f"vla_oft_ros/msg/{path.stem}" for path in sorted((ROOT / "msg").glob("*.msg"))),
    ],
)
def test_type_hashes_are_those_of_the_installed_types(name: str, tmp_path: Path) -> None:
    from ament_index_python import get_package_share_directory

    package, _, short = name.split("/")
    share = Path(get_package_share_directory(package)).parent
    described = share / package / "msg" / f"{short}.json"
    if not described.is_file():
        pytest.skip(f"{described} is not installed")
    types = MessageTypes([share])
    if package == "vla_oft_ros":  # the message of this tree may be newer than the installed one
        installed = (share / package / "msg" / f"{short}.msg").read_text(encoding="utf-8")
        if installed != (ROOT / "msg" / f"{short}.msg").read_text(encoding="utf-8"):
            pytest.skip(f"{name} has changed since it was installed")
    (entry,) = (
        entry
        for entry in json.loads(described.read_text())["type_hashes"]
        if entry["type_name"] == name
    )
    assert types.find(name).type_hash == entry["hash_string"]


def test_a_type_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tesla_msgs/msg/Car.*found in none"):
        MessageTypes([tmp_path]).find("tesla_msgs/msg/Car")
