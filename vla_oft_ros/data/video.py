"""Images as video files, and single frames back out of them.

For training with a key frame every second frame, as LeRobot has it, since frames are read in
random order; for people as small as players like it, with chapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.episode import EpisodeError
from vla_oft_ros.data.optional import require
from vla_oft_ros.image_decoding import MAX_PIXELS

CODECS = {
    "h264": ("libx264", {"crf": "23", "g": "2", "preset": "veryfast"}),
    "av1": ("libsvtav1", {"crf": "30", "g": "2", "preset": "10"}),
}
"""Name → encoder and its options; av1 is LeRobot's default and takes three times as long."""
_FILM = ("libx264", {"crf": "24", "g": "50", "preset": "veryfast"})
"""A key frame every 50 frames: jumping to a place takes a moment, not seconds."""


def write_video(path: Path, images: Sequence[np.ndarray], rate_hz: int, codec: str) -> None:
    """Encodes T images for training, whole or not at all.

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
    frames = (images[step] for step in range(len(images)))
    _encode(path, frames, Fraction(rate_hz), CODECS[codec], [])


def write_film(
    path: Path,
    images: Iterable[np.ndarray],
    rate_hz: float,
    chapters: Sequence[tuple[float, str]] = (),
) -> None:
    """Encodes images as they come for people to look at, whole or not at all: H.264 as every
    player opens it.

    Args:
        path: MP4 file to write.
        images: (H, W, 3) uint8 RGB, of one size.
        rate_hz: Frames per second.
        chapters: Seconds since the beginning, ascending, and title of places to jump to.

    Raises:
        EpisodeError: for images that differ in size, or whose size is odd.
    """
    rate = Fraction(rate_hz).limit_denominator(1001)
    _encode(path, images, rate, _FILM, chapters)


def _encode(
    path: Path,
    images: Iterable[np.ndarray],
    rate: Fraction,
    codec: tuple[str, dict[str, str]],
    chapters: Sequence[tuple[float, str]],
) -> None:
    av = require("av")
    encoder, options = codec
    # For people the index comes in front, so that browsers can begin at once.
    flags = {"movflags": "+faststart"} if codec is _FILM else {}
    with (
        new_file(path) as part,
        av.open(str(part), "w", format="mp4", container_options=flags) as container,
    ):
        if chapters:
            container.set_chapters(_chapters(chapters))
        stream, shape = None, (0, 0, 0)
        for step, given in enumerate(images):
            image = np.ascontiguousarray(given)
            if stream is None:
                shape = height, width, _ = image.shape
                if height % 2 or width % 2:
                    raise EpisodeError(
                        f"video: expected an even height and width; got {width}x{height}"
                    )
                stream = container.add_stream(encoder, rate=rate, options=options)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.thread_count = 1  # episodes are encoded in parallel
                stream.codec_context.time_base = 1 / rate
            if image.shape != shape:
                raise EpisodeError(
                    f"video: expected {shape[1]}x{shape[0]} images; image {step} is "
                    f"{image.shape[1]}x{image.shape[0]}"
                )
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = step, 1 / rate
            container.mux(stream.encode(frame))
        if stream is None:
            raise EpisodeError("video: expected at least one image; got none")
        container.mux(stream.encode())


def _chapters(starts: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    """As PyAV wants them; each ends where the next begins."""
    milliseconds = [round(start_s * 1e3) for start_s, _ in starts]
    ends = [*milliseconds[1:], milliseconds[-1] + 1000]
    return [
        {
            "id": number,
            "start": start,
            "end": max(end, start + 1),
            "time_base": Fraction(1, 1000),
            "metadata": {"title": title},
        }
        for number, (start, end, (_, title)) in enumerate(
            zip(milliseconds, ends, starts, strict=True)
        )
    ]


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
                # Only MP4: a playlist under this name could make it open other files.
                self._container = av.open(str(self._path), format="mp4")
            stream = self._container.streams.video[0]
            if stream.width * stream.height > MAX_PIXELS:
                raise EpisodeError(
                    f"{self._path}: expected at most {MAX_PIXELS} pixels; got "
                    f"{stream.width}x{stream.height}"
                )
            if number != self._next:
                self._container.seek(int(number / self._rate_hz / stream.time_base), stream=stream)
                self._frames = self._container.decode(stream)
            for frame in self._frames:
                if round(frame.time * self._rate_hz) >= number:
                    self._next = number + 1
                    return np.asarray(frame.to_ndarray(format="rgb24"))
        except (av.FFmpegError, OSError, IndexError, TypeError, ZeroDivisionError) as error:
            raise EpisodeError(f"{self._path}: expected a video; {error}") from None
        raise EpisodeError(f"{self._path}: expected frame {number}; the video ends before")
