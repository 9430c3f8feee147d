"""`vla_oft`, the one command line: every tool for a person is a subcommand.

This file only reads arguments and prints; the work is done by functions that scripts can call as
well. Nodes are not started from here but by `ros2 run`, `ros2 launch` or the demo.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vla_oft_ros import __version__

EXIT_BAD_INPUT = 2
"""Exit code for a mistake that the user can mend, as argparse uses it."""


_DEMO = """\
Starts the simulated ALOHA, the policy and the controller as processes of this machine and watches
them for --seconds of simulated time, in which the policy tries its task again and again. Writes a
summary, a JSON of the figures, a video and a contact sheet of the three cameras. All traffic stays
on this machine. Ends with 0 if the targets came at their rate, the arms moved, no camera starved,
and a policy that comes with the package did its task at least once, if it had the time."""

_MAKE_CHECKPOINT = """\
Writes a small random OFT+ checkpoint (a few million parameters) in the official layout, tokenizer
included: the whole forward pass without weights from anywhere. Its policy moves the arms gently
around the start pose and knows no task. Ends with 0 once it is written."""

_VIEW = """\
Lets the simulated robot work, asks the policy with token pruning as a node would, and writes a
picture of the three cameras: what was seen, and which patches were kept after each stage and why.
Needs no ROS. With a random policy the picture shows the mechanism and no sense. Ends with 0 once
the picture is written."""

_CHECK = """\
Looks at this machine: Python, ROS 2, messages, torch and GPU, MuJoCo and OpenGL, memory, disk,
real-time limits. Says for each what it found and what to do. Ends with 1 if something that the
simulated demo needs is missing."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="vla_oft",
        description="OpenVLA-OFT+ with SpecPrune on a bimanual ALOHA under ROS 2.",
        epilog="Begin with `vla_oft demo`. What a command does, needs and writes: vla_oft COMMAND "
        "--help.",
    )
    parser.add_argument("--version", action="version", version=f"vla_oft_ros {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    demo = _add(
        commands,
        "demo",
        "a policy moves a simulated ALOHA; no robot, GPU or weights needed",
        _DEMO,
    )
    demo.add_argument(
        "--seconds", type=float, default=30.0, help="simulated time to watch, s (default: 30)"
    )
    demo.add_argument(
        "--checkpoint",
        help="checkpoint directory, shipped:<name>, or random for a small random one (default: "
        "shipped:aloha_sim_transfer_cube)",
    )
    demo.add_argument(
        "--instruction",
        default="",
        help="what the robot shall do (default: what the simulated task asks for)",
    )
    demo.add_argument(
        "--device",
        default="auto",
        help="torch device of the policy: auto, cpu, cuda (default: auto)",
    )
    demo.add_argument(
        "--seed",
        type=int,
        default=10_000,
        help="seed of the objects' poses and of a random checkpoint; demonstrations had those "
        "below 10000 (default: 10000)",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("demo_output"),
        help="folder for figures, video and pictures (default: demo_output)",
    )
    demo.add_argument(
        "--config-dir", type=Path, help="folder of the YAML files (default: the shipped ones)"
    )
    demo.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="keep a bag of the run in this folder, for `vla_oft review` (6 MB per second)",
    )
    demo.set_defaults(run=_run_demo)

    make = _add(
        commands,
        "make-checkpoint",
        "write a small random checkpoint in the official layout",
        _MAKE_CHECKPOINT,
    )
    make.add_argument("directory", type=Path, help="folder to write; must not exist or be empty")
    make.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    make.set_defaults(run=_run_make_checkpoint)

    view = _add(commands, "view", "a picture of which parts of the images the policy keeps", _VIEW)
    view.add_argument("picture", type=Path, help="PNG file to write")
    view.add_argument(
        "--checkpoint",
        help="checkpoint directory, shipped:<name>, or random for a small random one (default: "
        "shipped:aloha_sim_transfer_cube)",
    )
    view.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    view.add_argument(
        "--inferences",
        type=int,
        default=4,
        help="passes of the policy; the last is shown (default: 4)",
    )
    view.add_argument(
        "--seed", type=int, default=0, help="of cube pose and random policy (default: 0)"
    )
    view.set_defaults(run=_run_view)

    check = _add(commands, "check", "look at this machine and say what to do", _CHECK)
    check.add_argument(
        "--json", type=Path, metavar="FILE", help="also write what was found as JSON"
    )
    check.set_defaults(run=_run_check)

    from vla_oft_ros.cli_record import add_record_commands

    add_record_commands(partial(_add, commands))

    from vla_oft_ros.cli_data import add_data_commands

    add_data_commands(partial(_add, commands))

    from vla_oft_ros.cli_replay import add_replay_command

    add_replay_command(partial(_add, commands))

    from vla_oft_ros.cli_review import add_review_command

    add_review_command(partial(_add, commands))

    from vla_oft_ros.cli_train import add_training_commands

    add_training_commands(partial(_add, commands))

    from vla_oft_ros.cli_eval import add_evaluation_command

    add_evaluation_command(partial(_add, commands))

    from vla_oft_ros.cli_security import add_security_command

    add_security_command(partial(_add, commands))

    from vla_oft_ros.cli_bench import add_bench_command

    add_bench_command(partial(_add, commands))
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _run_demo(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.ros.demo import DemoOptions, run_demo
    from vla_oft_ros.shipped_policies import DEMO_POLICY

    return run_demo(
        DemoOptions(
            seconds=arguments.seconds,
            checkpoint=arguments.checkpoint or DEMO_POLICY,
            instruction=arguments.instruction,
            device=arguments.device,
            seed=arguments.seed,
            output_dir=arguments.output,
            config_dir=arguments.config_dir,
            record_dir=arguments.record,
        ),
        console,
    )


def _run_make_checkpoint(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    make_random_checkpoint(arguments.directory, seed=arguments.seed)
    size = sum(path.stat().st_size for path in arguments.directory.rglob("*") if path.is_file())
    console.print(
        f"{escape(str(arguments.directory))}: random OFT+ checkpoint, {size / 1e6:.1f} MB"
    )
    return 0


def _run_view(arguments: argparse.Namespace, console: Console) -> int:
    from tempfile import TemporaryDirectory

    from vla_oft_ros.aloha import load_profile
    from vla_oft_ros.config import PolicyConfig, PruningConfig
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint
    from vla_oft_ros.policy import load_policy
    from vla_oft_ros.shipped_policies import DEMO_POLICY
    from vla_oft_ros.token_view import write_token_view

    if arguments.inferences < 1:
        raise ValueError(f"--inferences: expected at least 1; got {arguments.inferences}")
    with TemporaryDirectory() as made:
        checkpoint = arguments.checkpoint or DEMO_POLICY
        if checkpoint == "random":
            checkpoint = str(Path(made) / "checkpoint")
            make_random_checkpoint(Path(checkpoint), seed=arguments.seed)
        config = PolicyConfig(
            checkpoint_dir=checkpoint,
            device=arguments.device,
            pruning=PruningConfig(method="specprune"),
        )
        profile = load_profile("sim")
        policy = load_policy(config, profile=profile)
        chunk = write_token_view(
            policy,
            profile,
            arguments.picture,
            inferences=arguments.inferences,
            seed=arguments.seed,
        )
    for kept in chunk.retained:
        console.print(
            f"{kept.camera:<16} after layer {kept.layer:>2}: {kept.retain_ratio:.0%} kept"
        )
    console.print(f"{escape(str(arguments.picture))}")
    return 0


def _run_check(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.check import check_machine, print_findings, write_findings

    findings = check_machine()
    print_findings(findings, console)
    if arguments.json:
        write_findings(findings, arguments.json)
    return 1 if any(finding.needed and not finding.good for finding in findings) else 0


def _complain(text: str) -> int:
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
    return EXIT_BAD_INPUT


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: Command line without the program's name; None is the process's own.

    Returns:
        Exit code: 0 done, 1 done but not well, 2 for a mistake of the user.
    """
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help(sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    try:
        return int(parsed.run(parsed, Console(highlight=False)))
    except (ValueError, OSError) as error:
        return _complain(str(error))
    except ImportError as error:
        return _complain(f"{error}. `vla_oft check` says what is missing and how to get it")
    except KeyboardInterrupt:
        return 130
