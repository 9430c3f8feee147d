"""Camera images as video files, and single frames back out of them.

Key frames every second frame, as LeRobot has it: training reads frames in random order.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.episode import EpisodeError
from vla_oft_ros.data.optional import require

CODECS = {
    "h264": ("libx264", {"crf": "23", "g": "2", "preset": "veryfast"}),
    "av1": ("libsvtav1", {"crf": "30", "g": "2", "preset": "10"}),
}
"""Name → encoder and its options; av1 is LeRobot's default and takes three times as long."""


def write_video(path: Path, images: Sequence[np.ndarray], rate_hz: int, codec: str) -> None:
    """Encodes T images, whole or not at all.

    Args:
        path: MP4 file to write.
        images: (H, W, 3) uint8 RGB, of one size.
        rate_hz: Frames per second.
        codec: A name in `CODECS`.

    Raises:
        ValueError: for an unknown codec.
        EpisodeError: for images that differ in size, or whose size is odd.
    """
    if codec not in CODECS:
        raise ValueError(f"codec: expected one of {', '.join(CODECS)}; got {codec!r}")
    av = require("av")
    encoder, options = CODECS[codec]
    height, width, _ = images[0].shape
    if height % 2 or width % 2:
        raise EpisodeError(f"video: expected an even height and width; got {width}x{height}")
    with new_file(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream(encoder, rate=rate_hz, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1  # episodes are encoded in parallel
        stream.codec_context.time_base = Fraction(1, rate_hz)
        for step in range(len(images)):
            image = np.ascontiguousarray(images[step])
            if image.shape != (height, width, 3):
                raise EpisodeError(
                    f"video: expected {width}x{height} images; image {step} is "
                    f"{image.shape[1]}x{image.shape[0]}"
                )
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = step, Fraction(1, rate_hz)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


class VideoFrames:
    """Frames of a video file by number.

    Args:
        path: The file.
        rate_hz: Its frames per second.
        first: Frame that counts as number 0: files may hold several episodes.
    """

    def __init__(self, path: Path, rate_hz: float, first: int = 0) -> None:
        self._path, self._rate_hz, self._first = path, rate_hz, first
        self._container: Any = None
        self._frames: Any = None
        self._next = -1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_container": None, "_frames": None, "_next": -1}

    def read(self, number: int) -> np.ndarray:
        """One frame, (H, W, 3) uint8 RGB.

        Raises:
            EpisodeError: if the file cannot be read or ends before.
        """
        av = require("av")
        number += self._first
        try:
            if self._container is None:
                self._container = av.open(str(self._path))
            stream = self._container.streams.video[0]
            if number != self._next:
                self._container.seek(int(number / self._rate_hz / stream.time_base), stream=stream)
                self._frames = self._container.decode(stream)
            for frame in self._frames:
                if round(frame.time * self._rate_hz) >= number:
                    self._next = number + 1
                    return np.asarray(frame.to_ndarray(format="rgb24"))
        except (av.FFmpegError, OSError) as error:
            raise EpisodeError(f"{self._path}: expected a video; {error}") from None
        raise EpisodeError(f"{self._path}: expected frame {number}; the video ends before")
