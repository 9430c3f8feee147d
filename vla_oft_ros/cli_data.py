"""The subcommands of `vla_oft` for demonstrations: recover, inspect, doctor, convert, stats.

Like `cli`, this file only reads arguments and prints.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from vla_oft_ros.data.sources import ReadOptions, Source

_COLOURS = {"good": "green", "suspect": "yellow", "bad": "red", "unknown": "dim"}

_RECOVER = """\
Finishes bags whose recording was cut short (crash, power, full disk): writes the missing index and
metadata.yaml. Messages stay where they are; only what was cut off at the end is removed. Whole
bags stay as they are. Ends with 2 if a folder holds no bag of which anything can be read."""

_INSPECT = """\
Shows what is in bags, HDF5 files and LeRobot sets: steps, rate, cameras, instruction, profile,
outcome, and what had to be assumed. Folders are searched to any depth. Ends with 1 if some episode
cannot be read, and says why."""

_DOCTOR = """\
Examines every episode by itself and against the others: gaps, frozen, repeated and dark images,
camera skew, grippers out of range, actions beyond limits, rest and pauses, swapped arms, cameras
and colours, data of Interbotix' branch 2.0, copies and outliers. Writes doctor.json and a picture
per episode. Ends with 1 if some episode is bad or cannot be read."""

_CONVERT = """\
Turns bags, HDF5 files or LeRobot sets into one training set, and writes its
dataset_statistics.json beside it:
  hdf5     ALOHA's own files (ACT, openpi); --compress for Interbotix' JPEG form, --preprocessed
           for openvla-oft's 256x256 form with folders train and val
  rlds     a TensorFlow data set as openvla-oft trains from, written without TensorFlow
  lerobot  LeRobot v3.0
Bags are sampled by the code that the live policy uses. Interrupted conversions go on when called
again. Episodes labelled as failures are left out unless --keep-failures is given; the numbers of
episodes in and out are always said. Ends with 2, and names them, if episodes cannot be used,
unless --on-bad skip is given."""

_STATS = """\
Writes dataset_statistics.json: bounds, means and quantiles of states and actions as openvla-oft
computes them, and how fast the grippers move. Ranges of dimensions that hardly moved are widened
and named. Ends with 2 if an episode cannot be read or rates differ."""


def add_data_commands(
    add: Callable[[str, str, str], argparse.ArgumentParser],
) -> None:
    """Adds the subcommands; `add` takes a name, a summary and a description."""
    recover = add("recover", "finish bags whose recording was cut short", _RECOVER)
    recover.add_argument("bags", type=Path, nargs="+", help="bag folders")
    recover.set_defaults(run=_run_recover)

    inspect = add("inspect", "show what is in recorded episodes", _INSPECT)
    add_reading_options(inspect)
    inspect.set_defaults(run=_run_inspect)

    doctor = add("doctor", "find out whether demonstrations are good", _DOCTOR)
    add_reading_options(doctor)
    doctor.add_argument(
        "--output",
        type=Path,
        default=Path("doctor"),
        help="folder to write (default: doctor)",
    )
    _add_workers(doctor)
    doctor.set_defaults(run=_run_doctor)

    convert = add("convert", "make a training set of recorded episodes", _CONVERT)
    add_reading_options(convert)
    convert.add_argument(
        "--to", required=True, choices=["hdf5", "rlds", "lerobot"], help="format to write"
    )
    convert.add_argument("--output", type=Path, required=True, help="new folder to write")
    convert.add_argument("--name", default="aloha", help="name of the data set (default: aloha)")
    convert.add_argument(
        "--on-bad",
        choices=["stop", "skip"],
        default="stop",
        help="what to do with episodes that cannot be used (default: stop)",
    )
    convert.add_argument(
        "--keep-failures", action="store_true", help="convert episodes labelled failure as well"
    )
    convert.add_argument("--compress", action="store_true", help="hdf5: JPEG images")
    convert.add_argument(
        "--preprocessed", action="store_true", help="hdf5: openvla-oft's 256x256 form"
    )
    convert.add_argument(
        "--codec", choices=["h264", "av1"], default="h264", help="lerobot: codec (default: h264)"
    )
    convert.add_argument(
        "--val-share",
        type=float,
        default=0.05,
        help="rlds and preprocessed hdf5: share of episodes for validation (default: 0.05)",
    )
    convert.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    _add_workers(convert)
    convert.set_defaults(run=_run_convert)

    stats = add("stats", "write dataset_statistics.json", _STATS)
    add_reading_options(stats)
    stats.add_argument("--name", default="aloha", help="name of the data set (default: aloha)")
    stats.add_argument(
        "--output",
        type=Path,
        default=Path("dataset_statistics.json"),
        help="file to write (default: dataset_statistics.json)",
    )
    stats.add_argument(
        "--min-range",
        type=float,
        default=0.04,
        help="narrower ranges are widened to this, rad or opening (default: 0.04)",
    )
    stats.set_defaults(run=_run_stats)


def add_reading_options(
    parser: argparse.ArgumentParser,
    paths: str = "bags, HDF5 files, LeRobot sets, or folders of them",
) -> None:
    """Adds what says which episodes are read and how; `paths` says what may be named."""
    parser.add_argument("paths", type=Path, nargs="+", help=paths)
    parser.add_argument("--profile", default="", help="robot profile (default: what is recorded)")
    parser.add_argument("--profiles", default="", help="profile file (default: the shipped one)")
    parser.add_argument("--instruction", default="", help="what was asked for, where unrecorded")
    parser.add_argument(
        "--rate",
        type=float,
        default=0.0,
        help="steps per second (default: bags 25, else kept)",
    )
    parser.add_argument(
        "--cameras", default="", help="bags: cameras to read, separated by commas (default: all 3)"
    )
    parser.add_argument(
        "--action-from",
        choices=["auto", "leaders", "targets"],
        default="auto",
        help="bags: what counts as the action (default: leaders where recorded)",
    )
    parser.add_argument(
        "--on-gap",
        choices=["refuse", "longest"],
        default="refuse",
        help="bags: refuse gaps, or keep the longest run without one (default: refuse)",
    )
    parser.add_argument(
        "--on-damage",
        choices=["refuse", "repair"],
        default="refuse",
        help="bags: refuse damaged ones, or read what can be read (default: refuse)",
    )
    parser.add_argument(
        "--on-2-0",
        choices=["refuse", "repair"],
        default="refuse",
        help="hdf5: refuse data of Interbotix' branch 2.0, or put them right (default: refuse)",
    )
    parser.add_argument(
        "--color-order",
        choices=["rgb", "bgr"],
        default="",
        help="hdf5: colour order, where the file does not say",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=int, default=0, help="processes (default: one per processor)"
    )


def _workers(arguments: argparse.Namespace) -> int:
    return int(arguments.workers) or os.cpu_count() or 1


def read_options(arguments: argparse.Namespace) -> ReadOptions:
    """What `add_reading_options` has read."""
    from vla_oft_ros.aloha import CAMERAS
    from vla_oft_ros.data.bag_streams import CONTROL_RATE_HZ, BagOptions
    from vla_oft_ros.data.hdf5 import Hdf5Options
    from vla_oft_ros.data.sources import ReadOptions

    cameras = tuple(name for name in arguments.cameras.split(",") if name)
    if arguments.rate < 0.0:
        raise ValueError(f"--rate: expected a positive rate; got {arguments.rate:g}")
    return ReadOptions(
        bag=BagOptions(
            profile=arguments.profile,
            profiles_path=arguments.profiles,
            cameras=cameras or CAMERAS,
            rate_hz=arguments.rate or CONTROL_RATE_HZ,
            instruction=arguments.instruction,
            action_from=arguments.action_from,
            on_gap=arguments.on_gap,
            on_damage=arguments.on_damage,
        ),
        hdf5=Hdf5Options(
            instruction=arguments.instruction,
            profile=arguments.profile,
            color_order=arguments.color_order,
            on_2_0=arguments.on_2_0,
        ),
        rate_hz=arguments.rate,
    )


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def _sources(arguments: argparse.Namespace) -> list[Source]:
    from vla_oft_ros.data.sources import find_sources

    return find_sources(arguments.paths)


def _run_recover(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.data.bag_recovery import recover_bag

    for path in arguments.bags:
        recovery = recover_bag(path)
        what = "is whole" if recovery.was_whole else f"finished ({recovery.damage})"
        console.print(
            f"{escape(str(path))}: {escape(what)}, {recovery.messages} messages, "
            f"{recovery.dropped_bytes} bytes cut off"
        )
    return 0


def _run_inspect(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.data.sources import read_source

    sources, options = _sources(arguments), read_options(arguments)
    told = ("steps", "Hz", "cameras", "instruction", "profile", "outcome")
    table = Table(Column("episode", overflow="fold"), *told)
    problems, notes, steps = [], [], 0
    for source in sources:
        try:
            episode = read_source(source, options)
        except ValueError as error:
            problems.append(str(error))
            continue
        cameras = "\n".join(
            f"{camera} {images[0].shape[1]}x{images[0].shape[0]}"
            for camera, images in episode.images.items()
        )
        steps += len(episode)
        numbers = (str(len(episode)), f"{episode.rate_hz:g}", cameras)
        words = (episode.instruction, episode.profile, episode.outcome)
        table.add_row(*map(escape, (str(source), *numbers, *words)))
        notes += [f"{source}: {note}" for note in episode.notes]
    console.print(table)
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    for problem in problems:
        console.print(f"[red]cannot be read:[/] {escape(problem)}", soft_wrap=True)
    console.print(f"{len(sources) - len(problems)} of {len(sources)} episodes, {steps} steps")
    return 1 if problems else 0


def _run_doctor(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.data.doctor import check_set, examine
    from vla_oft_ros.data.doctor_report import write_report

    sources, options = _sources(arguments), read_options(arguments)
    with _progress(console) as progress:
        task = progress.add_task("examining", total=len(sources))
        results = examine(
            sources, options, workers=_workers(arguments), on_one=lambda: progress.advance(task)
        )
    problems = [result for result in results if isinstance(result, str)]
    reports = check_set([result for result in results if not isinstance(result, str)])
    table = Table(Column("episode", overflow="fold"), "verdict", "steps", "findings")
    for report in reports:
        verdict = report.verdict.name.lower()
        findings = "\n".join(finding.text for finding in report.findings)
        table.add_row(
            escape(report.source),
            f"[{_COLOURS[verdict]}]{verdict}[/]",
            str(report.steps),
            escape(findings),
        )
    console.print(table)
    for problem in problems:
        console.print(f"[red]cannot be read:[/] {escape(problem)}", soft_wrap=True)
    path = write_report(arguments.output, reports, problems)
    counts = [f"{sum(r.verdict.name.lower() == v for r in reports)} {v}" for v in _COLOURS]
    console.print(f"{len(sources)} episodes: {', '.join(counts[:3])}, {len(problems)} unreadable")
    console.print(f"{escape(str(path))} and {len(reports)} pictures", soft_wrap=True)
    return 1 if problems or any(report.verdict.name == "BAD" for report in reports) else 0


def _run_convert(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.data.convert import ConvertOptions, convert

    options = ConvertOptions(
        to=arguments.to,
        name=arguments.name,
        read=read_options(arguments),
        on_bad=arguments.on_bad,
        keep_failures=arguments.keep_failures,
        compress=arguments.compress,
        preprocessed=arguments.preprocessed,
        codec=arguments.codec,
        val_share=arguments.val_share,
        seed=arguments.seed,
    )
    sources = _sources(arguments)
    with _progress(console) as progress:
        task = progress.add_task("converting", total=len(sources))

        def advance(result: Any) -> None:
            progress.advance(task)

        report = convert(
            sources, arguments.output, options, workers=_workers(arguments), on_part=advance
        )
    for result in report.converted:
        for note in result.notes:
            console.print(f"[yellow]note:[/] {escape(f'{result.source}: {note}')}", soft_wrap=True)
    for result in report.skipped:
        console.print(f"[red]left out:[/] {escape(result.problem)}", soft_wrap=True)
    _print_floored(report.statistics.floored, console)
    splits = ", ".join(f"{count} {split}" for split, count in report.splits.items())
    steps = sum(result.steps for result in report.converted)
    console.print(
        f"{len(sources)} episodes found, {report.episodes} on disk ({splits}), "
        f"{len(report.failures)} failures and {len(report.skipped)} unusable left out, "
        f"{sum(result.resumed for result in report.converted)} done before; {steps} steps in "
        f"{escape(str(report.folder))}",
        soft_wrap=True,
    )
    return 0


def _run_stats(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.data.sources import read_source
    from vla_oft_ros.data.statistics import StatisticsCollector, write_statistics

    sources, options = _sources(arguments), read_options(arguments)
    collector = StatisticsCollector(min_range=arguments.min_range)
    with _progress(console) as progress:
        for source in progress.track(sources, description="reading"):
            collector.add(read_source(source, options))
    statistics = collector.finish()
    write_statistics(arguments.output, arguments.name, statistics)
    _print_floored(statistics.floored, console)
    content = statistics.content
    console.print(
        f"{escape(str(arguments.output))}: {content['num_trajectories']} episodes, "
        f"{content['num_transitions']} steps",
        soft_wrap=True,
    )
    return 0


def _print_floored(floored: tuple[str, ...], console: Console) -> None:
    if floored:
        console.print(
            f"[yellow]note:[/] hardly moved, range widened: {escape(', '.join(floored))}",
            soft_wrap=True,
        )
