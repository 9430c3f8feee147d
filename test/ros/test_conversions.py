"""Laws of the messages: what goes in comes out, whatever the encoding, padding or byte order."""

import array
import sys
from collections.abc import Callable
from types import ModuleType

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState

from vla_oft_ros import image_decoding
from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES
from vla_oft_ros.ros.conversions import (
    ImageError,
    camera_info_to_msg,
    chunk_from_msg,
    chunk_to_msg,
    compressed_image_from_msg,
    compressed_image_to_msg,
    image_decoder,
    image_from_msg,
    image_to_msg,
    joint_state_to_msg,
    retained_from_msg,
    retained_to_msg,
    stamp_from_msg,
    stamp_to_msg,
)
from vla_oft_ros.types import ActionChunk, RetainedTokens

HEIGHT, WIDTH = 6, 8

# The slow reference: encoding → channels, bytes per channel, and pixel (row, column) → RGB.
Raw = np.ndarray  # (H, W, C) of whole numbers
Pixel = Callable[[Raw, int, int], tuple[float, float, float]]


def pick(*places: int) -> Pixel:
    """Colour order: which channel is red, green, blue."""
    return lambda raw, row, column: tuple(float(raw[row, column, place]) for place in places)  # type: ignore[return-value]


def yuv(luma: int, chroma: int) -> Pixel:
    """Two pixels share U (of the first) and V (of the second); ITU-R BT.601, limited range."""

    def rgb(raw: Raw, row: int, column: int) -> tuple[float, float, float]:
        even = column - column % 2
        y = 1.164 * max(float(raw[row, column, luma]) - 16, 0.0)
        u = float(raw[row, even, chroma]) - 128
        v = float(raw[row, even + 1, chroma]) - 128
        return y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u

    return rgb


def bayer(pattern: str) -> Pixel:
    """Mean of the neighbours that carry the colour; the pattern names the first two rows."""

    def rgb(raw: Raw, row: int, column: int) -> tuple[float, float, float]:
        means = []
        for colour in "rgb":
            around = [
                (abs(down) + abs(right), float(raw[row + down, column + right, 0]))
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
                if pattern[2 * ((row + down) % 2) + (column + right) % 2] == colour
            ]
            nearest = min(distance for distance, _ in around)
            values = [value for distance, value in around if distance == nearest]
            means.append(np.floor(sum(values) / len(values) + 0.5))
        return tuple(means)  # type: ignore[return-value]

    return rgb


REFERENCE: dict[str, tuple[int, int, Pixel]] = {
    "rgb8": (3, 1, pick(0, 1, 2)),
    "bgr8": (3, 1, pick(2, 1, 0)),
    "rgba8": (4, 1, pick(0, 1, 2)),
    "bgra8": (4, 1, pick(2, 1, 0)),
    "rgb16": (3, 2, pick(0, 1, 2)),
    "bgr16": (3, 2, pick(2, 1, 0)),
    "rgba16": (4, 2, pick(0, 1, 2)),
    "bgra16": (4, 2, pick(2, 1, 0)),
    "mono8": (1, 1, pick(0, 0, 0)),
    "mono16": (1, 2, pick(0, 0, 0)),
    "yuv422": (2, 1, yuv(luma=1, chroma=0)),
    "uyvy": (2, 1, yuv(luma=1, chroma=0)),
    "yuv422_yuy2": (2, 1, yuv(luma=0, chroma=1)),
    "yuyv": (2, 1, yuv(luma=0, chroma=1)),
} | {
    f"bayer_{pattern}{8 * size}": (1, size, bayer(pattern))
    for pattern in ("rggb", "bggr", "gbrg", "grbg")
    for size in (1, 2)
}
BAYER_BORDER_PX = 1
"""OpenCV repeats what it made of the next row or column; the law holds inside."""


def reference(encoding: str, raw: Raw) -> np.ndarray:
    """(H, W, 3) uint8 RGB, pixel by pixel."""
    _, size, pixel = REFERENCE[encoding]
    height, width, _ = raw.shape
    border = BAYER_BORDER_PX if encoding.startswith("bayer") else 0
    made = np.zeros((height, width, 3))
    for row in range(border, height - border):
        for column in range(border, width - border):
            made[row, column] = pixel(raw, row, column)
    if size == 2:
        made = np.floor(made / 257 + 0.5)  # 65535 = 255 · 257
    return np.clip(np.round(made), 0, 255).astype(np.uint8)


def inside(encoding: str, image: np.ndarray) -> np.ndarray:
    return image[1:-1, 1:-1] if encoding.startswith("bayer") else image


def random_raw(encoding: str, seed: int = 0) -> Raw:
    channels, size, _ = REFERENCE[encoding]
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256**size, (HEIGHT, WIDTH, channels))


def message_of(
    encoding: str, raw: Raw, *, bigendian: bool = False, padding: int = 0, last: bool = True
) -> Image:
    """A raw image message; `last` says whether the last row is padded like the others."""
    _, size, _ = REFERENCE[encoding]
    height, width, channels = raw.shape
    rows = [
        row.astype(f"{'>' if bigendian else '<'}u{size}").tobytes() + bytes([170]) * padding
        for row in raw
    ]
    if not last:
        rows[-1] = rows[-1][: width * channels * size]
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(bigendian),
        step=width * channels * size + padding,
        data=array.array("B", b"".join(rows)),
    )


def test_the_reference_knows_every_encoding() -> None:
    assert set(REFERENCE) == set(image_decoding.ENCODINGS)


@pytest.mark.parametrize("encoding", REFERENCE)
@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize(("padding", "last"), [(0, True), (5, True), (5, False), (64, True)])
def test_every_encoding_becomes_what_the_slow_reference_says(
    encoding: str, bigendian: bool, padding: int, last: bool
) -> None:
    raw = random_raw(encoding)
    message = message_of(encoding, raw, bigendian=bigendian, padding=padding, last=last)
    image = image_from_msg(message)
    assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    assert image.flags.c_contiguous
    expected = reference(encoding, raw)
    # YUV: OpenCV calculates in fixed point.
    tolerance = 1 if "yu" in encoding or encoding == "uyvy" else 0
    np.testing.assert_allclose(
        inside(encoding, image).astype(int), inside(encoding, expected).astype(int), atol=tolerance
    )


@pytest.mark.parametrize("encoding", [e for e in REFERENCE if e[:3] in ("rgb", "bgr", "bay")])
def test_a_pure_colour_survives_every_colour_encoding(encoding: str) -> None:
    channels, size, _ = REFERENCE[encoding]
    raw = np.zeros((HEIGHT, WIDTH, channels), dtype=int)
    if encoding.startswith("bayer"):
        pattern = encoding.removeprefix("bayer_")
        raw[pattern.index("r") // 2 :: 2, pattern.index("r") % 2 :: 2] = 256**size - 1
    else:
        raw[..., 0 if encoding.startswith("rgb") else 2] = 256**size - 1
    image = inside(encoding, image_from_msg(message_of(encoding, raw)))
    assert np.all(image == [255, 0, 0])


@pytest.mark.parametrize("encoding", REFERENCE)
def test_cv_bridge_says_the_same_about_every_encoding(encoding: str) -> None:
    pytest.importorskip("cv_bridge", reason="cv_bridge comes with a ROS installation only")
    theirs = image_decoder("cv_bridge")
    for padding in (0, 6):
        message = message_of(encoding, random_raw(encoding), padding=padding)
        try:
            image = theirs(message)
        except ImageError as error:
            pytest.skip(f"this cv_bridge does not know it: {error}")
        difference = image.astype(int) - image_from_msg(message).astype(int)
        assert np.abs(difference).max() == 0


@pytest.mark.parametrize("encoding", ["RGB8", "Bayer_RGGB8"])
def test_the_case_of_an_encoding_does_not_matter(encoding: str) -> None:
    raw = random_raw(encoding.lower())
    message = message_of(encoding.lower(), raw)
    expected = image_from_msg(message)
    message.encoding = encoding
    np.testing.assert_array_equal(image_from_msg(message), expected)


@pytest.mark.parametrize("encoding", ["", "32FC1", "16UC1", "jpeg", "8UC3"])
def test_what_is_no_colour_image_is_refused_with_all_that_would_be_taken(encoding: str) -> None:
    message = message_of("rgb8", random_raw("rgb8"))
    message.encoding = encoding
    with pytest.raises(ImageError) as refused:
        image_from_msg(message)
    told = str(refused.value)
    assert "expected one of rgb8, bgr8" in told and f"got {encoding!r}" in told
    assert "Choose a colour stream" in told


@pytest.mark.parametrize("encoding", REFERENCE)
@pytest.mark.parametrize(
    "changes",
    [
        {"height": 0},
        {"width": 0},
        {"height": 0, "width": 0, "step": 0, "data": array.array("B")},
        {"data": array.array("B")},
        {"height": HEIGHT + 1},
        {"step": 0},
        {"step": 7},
        {"step": 2**32 - 1},
        {"height": 2**32 - 1, "width": 2**32 - 1},
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_together_are_refused(encoding: str, changes: dict) -> None:
    message = message_of(encoding, random_raw(encoding))
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(ImageError, match=r"expected (step|an even width)"):
        image_from_msg(message)


@pytest.mark.parametrize("encoding", REFERENCE)
def test_one_missing_byte_is_noticed(encoding: str) -> None:
    message = message_of(encoding, random_raw(encoding), padding=3, last=False)
    message.data = message.data[:-1]
    with pytest.raises(ImageError, match=f"{WIDTH}x{HEIGHT}: expected step ≥ .* got step"):
        image_from_msg(message)


@pytest.mark.parametrize("encoding", REFERENCE)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 1), (3, 3), (2, 5)])
def test_the_smallest_images_are_decoded_or_refused_but_never_crash(
    encoding: str, height: int, width: int
) -> None:
    message = message_of(encoding, random_raw(encoding)[:height, :width])
    try:
        assert image_from_msg(message).shape == (height, width, 3)
    except ImageError as error:
        assert "expected an even width" in str(error) and width % 2


images = st.builds(
    lambda seed, height, width: np.random.default_rng(seed).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    ),
    st.integers(0, 2**32),
    st.integers(1, 20),
    st.integers(1, 20),
)


@given(image=images, stamp_ns=st.integers(0, 2**31 * 10**9 - 1))
def test_an_image_comes_back_from_its_message(image: np.ndarray, stamp_ns: int) -> None:
    message = deserialize_message(serialize_message(image_to_msg(image, stamp_ns, "eye")), Image)
    np.testing.assert_array_equal(image_from_msg(message), image)
    assert (stamp_from_msg(message.header.stamp), message.header.frame_id) == (stamp_ns, "eye")
    assert (message.encoding, message.step) == ("rgb8", 3 * image.shape[1])


def smooth_image() -> np.ndarray:
    """(48, 64, 3) uint8 whose channels differ, so that a swap of colours shows."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = ramp, 100, ramp[::-1]
    return image


def test_a_jpeg_comes_back_in_the_same_colours() -> None:
    image = smooth_image()
    message = compressed_image_to_msg(image, 7, "eye")
    message = deserialize_message(serialize_message(message), CompressedImage)
    assert "jpeg" in message.format and stamp_from_msg(message.header.stamp) == 7
    difference = np.abs(compressed_image_from_msg(message).astype(int) - image)
    assert difference.mean() < 2 and difference.max() < 20


def test_a_png_comes_back_exactly() -> None:
    image = smooth_image()
    data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    message = CompressedImage(format="rgb8; png compressed bgr8", data=array.array("B", data))
    np.testing.assert_array_equal(compressed_image_from_msg(message), image)


@pytest.mark.parametrize(
    ("form", "data", "expected"),
    [
        ("jpeg", b"", "got 0 bytes of format 'jpeg'"),
        ("jpeg", b"no image at all", "got 15 bytes of format 'jpeg'"),
        ("16UC1; compressedDepth png", b"", "got format '16UC1; compressedDepth png'"),
    ],
)
def test_compressed_data_that_is_no_picture_is_refused(
    form: str, data: bytes, expected: str
) -> None:
    with pytest.raises(ImageError) as refused:
        compressed_image_from_msg(CompressedImage(format=form, data=array.array("B", data)))
    assert expected in str(refused.value) and "expected" in str(refused.value)


def test_an_image_that_cannot_be_a_jpeg_is_refused() -> None:
    with pytest.raises(ImageError, match=r"JPEG encoding of a \(1, 70000, 3\) image failed"):
        compressed_image_to_msg(np.zeros((1, 70000, 3), dtype=np.uint8), 0, "")


def test_the_decoder_is_numpy_unless_cv_bridge_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert image_decoder("auto") is image_decoder("numpy") is image_from_msg
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    with pytest.raises(ImageError) as refused:
        image_decoder("cv_bridge")
    assert "expected cv_bridge to be installed" in str(refused.value)
    assert "set image_decoder to numpy" in str(refused.value)


def test_what_cv_bridge_refuses_is_an_image_error_like_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Bridge:
        def imgmsg_to_cv2(self, message: Image, desired_encoding: str) -> np.ndarray:
            assert desired_encoding == "rgb8"
            if message.encoding != "rgb8":
                raise TypeError("[32FC1] is not a color format")  # CvBridgeError is one
            return image_from_msg(message)

    module = ModuleType("cv_bridge")
    module.CvBridge = Bridge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    decode = image_decoder("cv_bridge")
    message = message_of("rgb8", random_raw("rgb8"))
    np.testing.assert_array_equal(decode(message), image_from_msg(message))
    message.encoding = "32FC1"
    with pytest.raises(ImageError, match=r"32FC1 8x6: expected .*not a color format"):
        decode(message)


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_a_stamp_comes_back_exactly(stamp_ns: int) -> None:
    message = stamp_to_msg(stamp_ns)
    assert stamp_from_msg(message) == stamp_ns
    assert stamp_to_msg(stamp_from_msg(message)) == message
    assert stamp_from_msg(Time(sec=1, nanosec=2)) == 1_000_000_002


def test_camera_info_holds_the_pinhole() -> None:
    intrinsics = np.array([[500.0, 0.0, 320.0], [0.0, 501.0, 240.0], [0.0, 0.0, 1.0]])
    message = camera_info_to_msg(intrinsics, 640, 480, 9, "eye")
    assert isinstance(message, CameraInfo)
    np.testing.assert_array_equal(np.reshape(message.k, (3, 3)), intrinsics)
    np.testing.assert_array_equal(np.reshape(message.p, (3, 4))[:, :3], intrinsics)
    np.testing.assert_array_equal(np.reshape(message.r, (3, 3)), np.eye(3))
    assert (message.width, message.height, list(message.d)) == (640, 480, [0.0] * 5)
    assert (stamp_from_msg(message.header.stamp), message.header.frame_id) == (9, "eye")


def test_joint_states_hold_what_was_given_and_nothing_else() -> None:
    full = joint_state_to_msg(["a", "b"], np.array([1.0, 2.0]), 3, np.ones(2), np.zeros(2))
    assert (full.name, list(full.position)) == (["a", "b"], [1.0, 2.0])
    assert (list(full.velocity), list(full.effort)) == ([1.0, 1.0], [0.0, 0.0])
    assert stamp_from_msg(full.header.stamp) == 3
    bare = joint_state_to_msg(["a"], np.array([1.0]), 3)
    assert isinstance(bare, JointState) and not bare.velocity and not bare.effort


def chunk(seed: int = 0, chunk_len: int = 25) -> ActionChunk:
    actions = np.random.default_rng(seed).normal(size=(chunk_len, len(ACTION_NAMES)))
    return ActionChunk(
        actions=actions,
        stamp_ns=1_234_567_890_123,
        dt_ns=40_000_000,
        instruction="place the 茶 cup",
        inference_s=0.25,
    )


@pytest.mark.parametrize("chunk_len", [1, 8, 25])
def test_a_chunk_comes_back_from_its_message(chunk_len: int) -> None:
    sent = chunk(chunk_len=chunk_len)
    message = chunk_to_msg(sent, ACTION_NAMES)
    message = deserialize_message(serialize_message(message), messages.ActionChunk)
    got = chunk_from_msg(message, ACTION_NAMES)
    np.testing.assert_array_equal(got.actions, sent.actions)
    for name in ("stamp_ns", "dt_ns", "instruction", "inference_s"):
        assert getattr(got, name) == getattr(sent, name)
    assert message.positions[14 : 2 * 14].tolist() == got.actions[1:2].ravel().tolist()


@given(st.floats(1.0, 100.0))
def test_the_period_of_every_rate_comes_back_exactly(rate_hz: float) -> None:
    sent = ActionChunk(
        actions=np.zeros((1, 14)),
        stamp_ns=0,
        dt_ns=round(1e9 / rate_hz),
        instruction="",
        inference_s=0.0,
    )
    assert chunk_from_msg(chunk_to_msg(sent, ACTION_NAMES), ACTION_NAMES).dt_ns == sent.dt_ns


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"joint_names": []}, "expected the joints left/waist, .* got none"),
        (
            {"joint_names": [*ACTION_NAMES[7:], *ACTION_NAMES[:7]]},
            "got right/waist.*another robot",
        ),
        ({"chunk_len": 24}, "= 336 positions, at least one row; got 350"),
        ({"chunk_len": 0, "positions": []}, "at least one row; got 0"),
        ({"positions": [0.0]}, "= 350 positions, at least one row; got 1"),
        ({"dt_s": 0.0}, "expected dt_s above 0 and below 10 s; got 0.0"),
        ({"dt_s": float("nan")}, "expected dt_s above 0 and below 10 s; got nan"),
        ({"dt_s": 1e-12}, "dt_ns must be positive"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused(changes: dict, expected: str) -> None:
    message = chunk_to_msg(chunk(), ACTION_NAMES)
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(ValueError, match=expected):
        chunk_from_msg(message, ACTION_NAMES)


@given(st.sets(st.integers(0, 255)), st.integers(0, 31))
def test_retained_tokens_come_back_from_their_message(kept: set[int], flags: int) -> None:
    sent = RetainedTokens(
        camera="cam_high",
        stamp_ns=5_000_000_001,
        grid=(8, 32),
        layer=17,
        patch_indices=np.array(sorted(kept), dtype=np.int32),
        kept_by=np.full(len(kept), flags, dtype=np.uint8),
    )
    message = deserialize_message(
        serialize_message(retained_to_msg(sent)), messages.RetainedTokens
    )
    got = retained_from_msg(message)
    for name in ("camera", "stamp_ns", "grid", "layer"):
        assert getattr(got, name) == getattr(sent, name)
    np.testing.assert_array_equal(got.patch_indices, sent.patch_indices)
    np.testing.assert_array_equal(got.kept_by, sent.kept_by)
    assert (got.patch_indices.dtype, got.kept_by.dtype) == (np.int32, np.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_indices": [3, 1]},
        {"patch_indices": [0, 256]},
        {"patch_indices": [0, 2**32 - 1]},
        {"kept_by": [1]},
        {"rows": 0},
    ],
    ids=str,
)
def test_retained_tokens_that_leave_their_grid_are_refused(changes: dict) -> None:
    message = messages.RetainedTokens(rows=16, columns=16, patch_indices=[0, 1], kept_by=[1, 1])
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(ValueError, match="RetainedTokens: "):
        retained_from_msg(message)
