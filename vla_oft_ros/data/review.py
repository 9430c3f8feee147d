"""A recorded run → a video to look at, and its events as tables: for the failure that nobody was
watching.

Beside `review.mp4` are `review.events.csv` and `review.events.json`. Pictures are drawn and
encoded one by one, so that memory does not grow with the length of the run.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.bag_storage import BagError
from vla_oft_ros.data.review_page import ReviewPage
from vla_oft_ros.data.run_events import (
    EPISODE,
    ESTOP,
    FAULT,
    HOLD,
    INSTRUCTION,
    SILENCE,
    RunEvent,
    summarize,
)
from vla_oft_ros.data.run_log import RunLog
from vla_oft_ros.data.sources import BAG, find_sources
from vla_oft_ros.data.video import write_film
from vla_oft_ros.model.image_ops import CROP_AREA

_CHAPTERS = (EPISODE, INSTRUCTION, HOLD, ESTOP, SILENCE, FAULT)


@dataclass(frozen=True, kw_only=True)
class ReviewOptions:
    """What of a run is shown, and how.

    Attributes:
        from_s: Where to begin, seconds since the run's first message.
        to_s: Where to end; None is the end.
        speed: Seconds of the run in a second of video.
        fps: Frames per second of video.
        crop_area: Share of the images' area that the network saw, its centre.

    Raises:
        ValueError: for a speed, a rate or a share that makes no video.
    """

    from_s: float = 0.0
    to_s: float | None = None
    speed: float = 1.0
    fps: float = 12.5
    crop_area: float = CROP_AREA

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("--speed", self.speed, 0.01, 1000.0),
            ("--fps", self.fps, 1.0, 120.0),
            ("--crop-area", self.crop_area, 0.1, 1.0),
        ):
            if not low <= value <= high:
                raise ValueError(f"{flag}: expected {low:g} to {high:g}; got {value:g}")

    def span_s(self, duration_s: float) -> tuple[float, float]:
        """Begin and end within a run of this length.

        Raises:
            ValueError: if there is nothing between them.
        """
        end_s = duration_s if self.to_s is None else min(self.to_s, duration_s)
        if not 0.0 <= self.from_s <= duration_s:
            raise ValueError(
                f"--from: expected 0 to {duration_s:.2f}, the length of the run in seconds; got "
                f"{self.from_s:g}"
            )
        if not self.from_s < end_s and duration_s > 0.0:
            raise ValueError(
                f"--to: expected a time after --from {self.from_s:g} s; got {end_s:g}"
            )
        return self.from_s, end_s

    def frame_times_s(self, duration_s: float) -> np.ndarray:
        """Time in the run of every frame of the video, (n,) seconds."""
        begin_s, end_s = self.span_s(duration_s)
        count = max(round((end_s - begin_s) / self.speed * self.fps), 1)
        return np.asarray(begin_s + np.arange(count) * self.speed / self.fps)


def find_run(path: Path) -> Path:
    """The one bag that a path means.

    Args:
        path: A bag, or a folder that holds one.

    Raises:
        BagError: if there is none, or several, naming them.
    """
    bags = [source.path for source in find_sources([path]) if source.kind == BAG]
    if len(bags) != 1:
        names = ", ".join(str(bag) for bag in bags[:6]) or "none"
        raise BagError(f"{path}: expected one bag; found {len(bags)}: {names}. Name one of them")
    return bags[0]


def write_review(
    log: RunLog,
    path: Path,
    options: ReviewOptions | None = None,
    on_frame: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Writes video and events of a run.

    Args:
        log: The run.
        path: MP4 file to write.
        options: What is shown, and how.
        on_frame: Called after every frame.

    Returns:
        The files that were written, the video first.

    Raises:
        ValueError: if options and run do not fit together, or the file is no .mp4.
    """
    options = options or ReviewOptions()
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"--output: expected a file name that ends in .mp4; got {path}")
    times_s = options.frame_times_s(log.duration_s)
    shown_s = options.span_s(log.duration_s)
    page = ReviewPage(log, shown_s, options.crop_area)

    def frames() -> Iterator[np.ndarray]:
        for time_s in times_s:
            yield page.at(float(time_s))
            on_frame()

    write_film(path, frames(), options.fps, _chapters(log, shown_s, options.speed))
    return [path, *write_events(log, path)]


def _chapters(log: RunLog, shown_s: tuple[float, float], speed: float) -> list[tuple[float, str]]:
    """Time in the video and title of what one may want to jump to; one chapter per time."""
    titles: dict[float, str] = {0.0: "begin"}  # players let the first chapter begin at 0
    for event in log.events:
        if event.kind in _CHAPTERS and shown_s[0] <= event.start_s < shown_s[1]:
            time_s, title = (event.start_s - shown_s[0]) / speed, f"{event.kind}: {event.text}"
            titles[time_s] = f"{titles[time_s]}; {title}" if titles.get(time_s) else title
    return sorted(titles.items())


def write_events(log: RunLog, video: Path) -> list[Path]:
    """Writes all events of a run beside its video, as CSV and as JSON.

    Returns:
        The two files.
    """
    table, tree = (video.with_suffix(f".events.{kind}") for kind in ("csv", "json"))
    names = [field.name for field in fields(RunEvent)]
    with new_file(table) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*names, "stamp_ns"])
        writer.writeheader()
        writer.writerows(_row(log, event) for event in log.events)
    content = {
        "run": str(log.path),
        "profile": log.profile.name,
        "start_ns": log.start_ns,
        "notes": log.notes,
        "summary": summarize(log.events, log.duration_s).as_mapping(),
        "events": [_row(log, event) for event in log.events],
    }
    with new_file(tree) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return [table, tree]


def _row(log: RunLog, event: RunEvent) -> dict[str, object]:
    return {**event.as_mapping(), "stamp_ns": log.start_ns + round(event.start_s * 1e9)}
