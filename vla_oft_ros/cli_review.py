"""The subcommand of `vla_oft` that shows a recorded run again.

Like `cli`, this file only reads arguments and prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from vla_oft_ros.data.run_log import RunLog

_REVIEW = """\
Shows a recorded run again: what the policy saw, kept and did, for the failure that nobody was
watching. Writes a video with the three cameras, the retained tokens on the very frames that were
used, planned chunk, targets and measured joints, what safety gate, diagnostics and recorder said,
and a timeline of the whole run: chunks, holds, interventions, e-stops, silences, faults. Holds,
stops and faults are chapters of the video. Beside it are its events as .events.csv and
.events.json. Any bag will do, of recorder_node, `vla_oft demo --record` or `ros2 bag record`,
finished or not; what it lacks is said. Ends with 0 once the video is written, with 2 if the bag
cannot be used."""


def add_review_command(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Adds the subcommand; `add` takes a name, a summary and a description."""
    review = add("review", "a recorded run as a video with a timeline", _REVIEW)
    review.add_argument(
        "bag", type=Path, metavar="run", help="bag folder or .mcap file, or a folder of one bag"
    )
    review.add_argument(
        "--output",
        type=Path,
        default=Path("review.mp4"),
        help="video to write (default: review.mp4)",
    )
    review.add_argument(
        "--from", dest="from_s", type=float, default=0.0, metavar="S", help="begin here, s"
    )
    review.add_argument(
        "--to", dest="to_s", type=float, metavar="S", help="end here, s (default: the end)"
    )
    review.add_argument(
        "--speed", type=float, default=1.0, help="seconds of the run per second (default: 1)"
    )
    review.add_argument(
        "--fps", type=float, default=12.5, help="frames per second of video (default: 12.5)"
    )
    review.add_argument("--profile", default="", help="robot profile (default: what is recorded)")
    review.add_argument("--profiles", default="", help="profile file (default: the shipped one)")
    review.add_argument(
        "--crop-area",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="share of each image that the network saw: 0.9 with center_crop, else 1",
    )
    review.set_defaults(run=_run_review)


def _run_review(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.data.review import ReviewOptions, find_run, write_review
    from vla_oft_ros.data.run_reader import read_run

    options = ReviewOptions(
        from_s=arguments.from_s,
        to_s=arguments.to_s,
        speed=arguments.speed,
        fps=arguments.fps,
        crop_area=arguments.crop_area,
    )
    with console.status("reading the bag"):
        log = read_run(find_run(arguments.bag), arguments.profile, arguments.profiles)
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with log:
        for note in log.notes:
            console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
        total = len(options.frame_times_s(log.duration_s))
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=total)
            files = write_review(
                log, arguments.output, options, on_frame=lambda: progress.advance(task)
            )
    _print_summary(log, console)
    for file in files:
        console.print(escape(str(file)), soft_wrap=True)
    return 0


def _print_summary(log: RunLog, console: Console) -> None:
    from vla_oft_ros.data.run_events import summarize

    summary = summarize(log.events, log.duration_s)
    counts = ", ".join(f"{count} {kind}" for kind, count in summary.counts.items() if count)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("Run", f"{log.duration_s:.1f} s, profile {log.profile.name}")
    table.add_row("Events", counts or "none")
    for name, event, what in (
        ("Longest hold", summary.longest_hold, "duration_s"),
        ("Worst latency", summary.worst_chunk, "latency_s"),
        ("First trouble", summary.first_trouble, "duration_s"),
    ):
        told = "none"
        if event is not None:
            length_s = getattr(event, what) or 0.0
            told = f"{length_s:.2f} s at {event.start_s:.2f} s: {event.kind}, {event.text}"
        table.add_row(name, escape(told))
    console.print(table)
