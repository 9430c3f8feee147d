"""The subcommand of `vla_oft` that does a recorded episode again: replay.

Like `cli`, this file only reads arguments, asks and prints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vla_oft_ros.cli_data import add_reading_options, read_options

if TYPE_CHECKING:
    from vla_oft_ros.data.episode import Episode

_REPLAY = """\
Does a recorded episode again.
  --sim    in the simulated ALOHA, started as the recording was: does it still do its task, and how
           far are the joints from where they were recorded? --video and --picture show both.
  --robot  on the robot: its targets go to the running controller in short chunks, so that the
           safety gate has the last word and silence is a hold. First it eases to where the episode
           begins. Nothing leaves before you have typed the robot's profile (or given --yes), and
           nothing at all to another robot than the one that recorded it. Ctrl-C stops and holds.
Ends with 0 if --sim did the task, or --robot came to the end; with 1 if not; with 2 if the episode
cannot be used or the controller is not fit for it."""


def add_replay_command(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Adds the subcommand; `add` takes a name, a summary and a description."""
    replay = add("replay", "do a recorded episode again, simulated or on the robot", _REPLAY)
    where = replay.add_mutually_exclusive_group(required=True)
    where.add_argument("--sim", action="store_true", help="in the simulated ALOHA")
    where.add_argument("--robot", action="store_true", help="on the robot, by its controller")
    add_reading_options(replay, "bag, HDF5 file or LeRobot set; a folder of several: --episode")
    replay.add_argument(
        "--episode", type=int, default=-1, metavar="N", help="which of several, 0 is the first"
    )
    replay.add_argument("--task", default="", help="sim: task (default: what the objects tell)")
    replay.add_argument(
        "--seed", type=int, default=0, help="sim: of objects whose places are unknown"
    )
    replay.add_argument("--video", type=Path, metavar="MP4", help="sim: recorded above replayed")
    replay.add_argument("--picture", type=Path, metavar="PNG", help="sim: a few moments of it")
    replay.add_argument(
        "--speed", type=float, default=1.0, help="robot: 0.5 is half as fast (default: 1)"
    )
    replay.add_argument(
        "--controller",
        default="/controller_node",
        help="robot: its name (default: /controller_node)",
    )
    replay.add_argument("--yes", action="store_true", help="robot: do not ask")
    replay.set_defaults(run=_run_replay)


def _run_replay(arguments: argparse.Namespace, console: Console) -> int:
    episode = _the_episode(arguments)
    for note in episode.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    run = _replay_in_sim if arguments.sim else _replay_on_robot
    return run(episode, arguments, console)


def _the_episode(arguments: argparse.Namespace) -> Episode:
    from vla_oft_ros.data.episode import EpisodeError
    from vla_oft_ros.data.sources import find_sources, read_source

    sources = find_sources(arguments.paths)
    number = arguments.episode
    if number < 0 and len(sources) == 1:
        number = 0
    if not 0 <= number < len(sources):
        raise EpisodeError(
            f"replay: expected one episode; found {len(sources)}. Name one of them, or say which "
            f"with --episode 0 … {len(sources) - 1}"
        )
    episode = read_source(sources[number], read_options(arguments))
    return replace(episode, profile=arguments.profile or episode.profile)


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
    )
    return Progress(*columns, TimeRemainingColumn(), console=console)


def _replay_in_sim(episode: Episode, arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.replay_in_sim import SimReplayOptions, replay_in_sim

    options = SimReplayOptions(
        task=arguments.task,
        seed=arguments.seed,
        profiles_path=arguments.profiles,
        film_path=arguments.video,
        picture_path=arguments.picture,
    )
    with _progress(console) as progress:
        bar = progress.add_task("replaying", total=len(episode))
        result = replay_in_sim(episode, options, lambda: progress.advance(bar))
    for note in result.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    arm, gripper = result.arm_error_rad, result.gripper_error
    recorded = f", recorded as {episode.outcome}" if episode.outcome else ""
    console.print(
        f"{escape(episode.source)}: {'success' if result.success else 'failure'} at "
        f"{result.task.name}, highest reward {max(result.rewards)} of {result.task.max_reward}"
        f"{escape(recorded)}\n"
        f"{len(episode)} steps, {episode.duration_s:.1f} s; joints from where they were recorded: "
        f"{arm.mean():.4f} rad on average, {arm.max():.4f} rad at most ({result.worst_joint}), "
        f"grippers {gripper.max():.3f} at most",
        soft_wrap=True,
    )
    for path in (arguments.video, arguments.picture):
        if path is not None:
            console.print(escape(str(path)), soft_wrap=True)
    return 0 if result.success else 1


def _replay_on_robot(episode: Episode, arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.ros.replay_robot import ReplayPlan, ReplayStopped, replay_on_robot

    if not arguments.yes and not sys.stdin.isatty():
        raise ValueError(
            "replay --robot: expected a terminal in which you can say yes; give --yes if nobody "
            "shall be asked"
        )
    progress = _progress(console)
    bar = progress.add_task("replaying", total=1.0)

    def confirm(plan: ReplayPlan) -> bool:
        console.print(
            f"{escape(episode.source)}: {plan.duration_s:.1f} s on {escape(plan.profile)}, of "
            f"them {plan.ease_in_s:.1f} s to where it begins, up to {plan.way_rad:.2f} rad away; "
            f"the fastest joint moves at {plan.fastest_rad_s:.2f} rad/s. [bold]The robot will "
            "move.[/] Ctrl-C stops it.",
            soft_wrap=True,
        )
        if arguments.yes or is_confirmed(plan.profile, console):
            progress.start()
            return True
        return False

    try:
        outcome = replay_on_robot(
            episode,
            controller=arguments.controller,
            speed=arguments.speed,
            confirm=confirm,
            on_progress=lambda share: progress.update(bar, completed=share),
        )
    except ReplayStopped as error:
        progress.stop()
        console.print(f"[bold red]stopped, the robot holds:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        progress.stop()
        console.print("stopped, the robot holds")
        raise
    finally:
        progress.stop()
    if outcome is None:
        console.print("nothing was sent")
        return 1
    changed = ", ".join(f"{count} {kind}" for kind, count in outcome.interventions.items())
    console.print(
        f"{outcome.targets} targets, at most {outcome.farthest_rad:.4f} rad from what was "
        f"recorded; changes by the safety gate: {escape(changed or 'none')}",
        soft_wrap=True,
    )
    return 0


def is_confirmed(profile: str, console: Console) -> bool:
    """Asks the person to type the robot's profile; anything else is no."""
    return console.input(f"Type {escape(profile)} to begin: ").strip() == profile
