"""The subcommands of `vla_oft` for learning: make-demos, train.

Like `cli`, this file only reads arguments and prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

_MAKE_DEMOS = """\
Lets the scripted teleoperator do the task in the simulation, records what robot and cameras saw,
and writes one ALOHA HDF5 file per episode. Episodes that exist are kept, so the command can be
repeated with more of them. Takes that failed are labelled so; training leaves them out. Ends with
0 when all episodes are there."""

_TRAIN = """\
Fine-tunes OpenVLA-OFT(+) on HDF5 episodes or LeRobot v3 sets and writes checkpoints in the
official layout. Started again with the same settings it goes on where it stopped. On several GPUs:
torchrun --nproc-per-node N "$(which vla_oft)" train ... Ends with 0 when max_steps are done."""


def add_training_commands(
    add: Callable[[str, str, str], argparse.ArgumentParser],
) -> None:
    """Adds them to the parser.

    Args:
        add: Makes a subcommand of name, summary and description.
    """
    demos = add(
        "make-demos",
        "record scripted demonstrations of the simulated ALOHA as HDF5",
        _MAKE_DEMOS,
    )
    demos.add_argument("directory", type=Path, help="folder of the episodes")
    demos.add_argument("--episodes", type=int, default=50, help="how many (default: 50)")
    demos.add_argument(
        "--seed", type=int, default=0, help="seed of the first episode's poses (default: 0)"
    )
    demos.add_argument(
        "--task",
        default="transfer_cube",
        help="transfer_cube, or pick_cube: one of three colours (default: transfer_cube)",
    )
    demos.add_argument(
        "--image-px",
        type=int,
        default=0,
        help="store images as a network of this input size sees them (default: 0, 640x480)",
    )
    demos.add_argument(
        "--disturbance",
        type=float,
        default=0.0,
        metavar="RAD",
        help="push the arms off their targets, so that the policy learns to come back "
        "(default: 0)",
    )
    demos.set_defaults(run=_run_make_demos)

    train = add("train", "fine-tune a policy on demonstrations", _TRAIN)
    train.add_argument(
        "--config",
        type=Path,
        help="YAML file of settings, or the name of a shipped one, such as finetune_small.yaml "
        "(default: finetune.yaml)",
    )
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="overrides",
        help="override one setting, such as data.paths='[demos/]'; may be given several times",
    )
    train.set_defaults(run=_run_train)


def _run_make_demos(arguments: argparse.Namespace, console: Console) -> int:
    from rich.progress import track

    from vla_oft_ros.train.demonstrations import make_demonstrations

    takes = make_demonstrations(
        arguments.directory,
        arguments.episodes,
        seed=arguments.seed,
        task=arguments.task,
        image_px=arguments.image_px,
        disturbance_rad=arguments.disturbance,
    )
    shown = track(takes, "recording", arguments.episodes, console=console)
    outcomes = [take.success for take in shown]
    console.print(
        f"{escape(str(arguments.directory))}: {outcomes.count(True)} successes, "
        f"{outcomes.count(False)} failures, {outcomes.count(None)} there before",
        soft_wrap=True,
    )
    return 0


def _run_train(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.config import FinetuneConfig, config_dir, load_tool_config

    path = _shipped(arguments.config or Path("finetune.yaml"), config_dir())
    settings = load_tool_config(FinetuneConfig, path, arguments.overrides)
    from vla_oft_ros.train.finetune import finetune  # seconds of imports: after the settings

    finetune(settings, console)
    return 0


def _shipped(path: Path, directory: Path) -> Path:
    """A settings file as given, else the shipped one of that name."""
    return path if path.is_file() or not (directory / path).is_file() else directory / path
