"""Camera images as they travel → RGB pixels: the one decoder of the live path and of recordings.

Numpy and OpenCV: exact on padded rows (`step > width · bytes`) and on either byte order, for every
encoding that a colour camera publishes. Nothing is guessed: what cannot be turned into RGB is
refused. Knows nothing of ROS messages; takes their fields.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

# Encoding → (dtype, channels, conversion to RGB or None). OpenCV names a Bayer pattern by its
# second row, ROS by its first, so rggb is OpenCV's BayerBG (cv_bridge/src/cv_bridge.cpp).
ENCODINGS: dict[str, tuple[type, int, int | None]] = {
    "rgb8": (np.uint8, 3, None),
    "bgr8": (np.uint8, 3, cv2.COLOR_BGR2RGB),
    "rgba8": (np.uint8, 4, cv2.COLOR_RGBA2RGB),
    "bgra8": (np.uint8, 4, cv2.COLOR_BGRA2RGB),
    "rgb16": (np.uint16, 3, None),
    "bgr16": (np.uint16, 3, cv2.COLOR_BGR2RGB),
    "rgba16": (np.uint16, 4, cv2.COLOR_RGBA2RGB),
    "bgra16": (np.uint16, 4, cv2.COLOR_BGRA2RGB),
    "mono8": (np.uint8, 1, cv2.COLOR_GRAY2RGB),
    "mono16": (np.uint16, 1, cv2.COLOR_GRAY2RGB),
    "yuv422": (np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (np.uint8, 2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (np.uint8, 2, cv2.COLOR_YUV2RGB_YUY2),
    "bayer_rggb8": (np.uint8, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (np.uint8, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (np.uint8, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (np.uint8, 1, cv2.COLOR_BayerGB2RGB),
    "bayer_rggb16": (np.uint16, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr16": (np.uint16, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg16": (np.uint16, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg16": (np.uint16, 1, cv2.COLOR_BayerGB2RGB),
}


MAX_PIXELS = 64 * 2**20
"""Of one image: more than any camera of a robot has; a compressed file of some kilobytes may claim
gigabytes."""
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG's segment that tells its size (ITU-T T.81, table B.1)."""

_MAX_SEGMENTS = 1000
"""In front of a JPEG's pixels; cameras write about ten."""


class ImageError(ValueError):
    """An image message that cannot be turned into RGB; says what was expected and what came."""


def decode_image(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: Any
) -> np.ndarray:
    """Decodes a raw image.

    Args:
        encoding: As sensor_msgs/Image names it, e.g. rgb8.
        height: Rows.
        width: Columns.
        step: Bytes from one row to the next.
        is_bigendian: Byte order of 16-bit values.
        data: Buffer of bytes; the last row may lack its padding.

    Returns:
        (H, W, 3) uint8 RGB, contiguous; for rgb8 without padding a view of `data`.

    Raises:
        ImageError: for an encoding that is not a colour image, or sizes that do not fit together.
    """
    if encoding.lower() not in ENCODINGS:
        raise ImageError(
            f"image encoding: expected one of {', '.join(ENCODINGS)}; got {encoding!r}. "
            "Choose a colour stream of the camera"
        )
    dtype, channels, conversion = ENCODINGS[encoding.lower()]
    itemsize = np.dtype(dtype).itemsize
    if channels == 2 and width % 2:
        raise ImageError(
            f"image {encoding}: expected an even width, two pixels share their colour; "
            f"got {width}x{height}"
        )
    row_bytes = width * channels * itemsize
    octets = np.frombuffer(data, dtype=np.uint8)
    if (
        height < 1
        or width < 1
        or step < row_bytes
        or octets.size < (height - 1) * step + row_bytes
    ):
        raise ImageError(
            f"image {encoding} {width}x{height}: expected step ≥ {row_bytes} and at least "
            f"(height - 1) · step + {row_bytes} bytes; got step {step} and {octets.size} bytes"
        )
    # The last row may lack its padding, so rows are taken by stride instead of by reshape.
    rows = np.lib.stride_tricks.as_strided(
        octets, (height, row_bytes), (step, 1)
    )  # (H, W · bytes)
    pixels: np.ndarray = (
        np.ascontiguousarray(rows).view(dtype).reshape(height, width, channels)
    )  # (H, W, C)
    if itemsize > 1 and is_bigendian != (np.dtype(dtype).newbyteorder("=").str[0] == ">"):
        pixels = pixels.byteswap()
    try:
        image = pixels if conversion is None else cv2.cvtColor(pixels, conversion)
    except cv2.error as error:
        raise ImageError(
            f"image {encoding} {width}x{height}: expected one that can be turned into RGB; "
            f"{_first_line(error)}"
        ) from None
    if image.dtype == np.uint16:
        # 16 to 8 bit as cv_bridge scales it: v · 255 / 65535, rounded.
        image = cv2.convertScaleAbs(image, alpha=255.0 / 65535.0)
    return np.asarray(image).reshape(height, width, 3)  # (H, W, 3)


def decode_compressed(format_name: str, data: Any) -> np.ndarray:
    """Decodes a JPEG or PNG image.

    Args:
        format_name: As sensor_msgs/CompressedImage names it; only compressed depth is recognised.
        data: Buffer of bytes.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: if the data is no JPEG or PNG, is a compressed depth image, or claims more than
            `MAX_PIXELS`.
    """
    if "compressedDepth" in format_name:
        raise ImageError(f"compressed image: expected a colour image; got format {format_name!r}")
    octets = np.frombuffer(data, dtype=np.uint8)
    height, width = compressed_size(octets)
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"compressed image: expected at most {MAX_PIXELS} pixels; {octets.size} bytes claim "
            f"to be {width}x{height}"
        )
    try:
        image = cv2.imdecode(octets, cv2.IMREAD_COLOR) if height * width else None
    except cv2.error as error:
        raise ImageError(f"compressed image: {_first_line(error)}") from None
    if image is None:
        raise ImageError(
            f"compressed image: expected JPEG or PNG; got {octets.size} bytes of format "
            f"{format_name!r}"
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def compressed_size(octets: np.ndarray) -> tuple[int, int]:
    """Height and width that a JPEG or PNG claims, without decoding it; zeros if it is neither.

    Args:
        octets: (n,) uint8.
    """
    head = octets[:24].tobytes()
    if head.startswith(_PNG) and len(head) == 24:
        return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
    place = 2 if head.startswith(_JPEG) else octets.size
    sizes = [(0, 0)]
    for _ in range(_MAX_SEGMENTS):  # 0xff, marker, length, content
        if place + 9 > octets.size:
            break
        mark, marker = int(octets[place]), int(octets[place + 1])
        if mark != 0xFF or marker == 0xDA:  # the scan begins
            break
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # filling, and no content
            place += 1 if marker == 0xFF else 2
            continue
        if marker in _JPEG_SIZES:
            height, width = octets[place + 5 : place + 9].view(">u2").tolist()
            sizes.append((height, width))
        place += 2 + max(2, int(octets[place + 2]) << 8 | int(octets[place + 3]))
    return max(sizes, key=lambda size: size[0] * size[1])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
