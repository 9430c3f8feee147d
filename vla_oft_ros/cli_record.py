"""The subcommands of `vla_oft` that record: at the keyboard, or by themselves in the simulation.

Like `cli`, this file only reads arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

_RECORD = """\
Starts the recorder and shows what it does: one rosbag2 (MCAP) per episode with every topic raw,
number of episodes and free disk, and whether the present episode is fit for training. Keys: space
starts and stops, s and f label success and failure, d discards, r records anew, i asks for an
instruction, q quits. Ends with 0 after q, with 1 if the recorder ended by itself."""

_RECORD_DEMO = """\
Records demonstrations without hardware: a scripted operator moves simulated leader arms, random
poses of the object, outcome from the task's reward; failed takes are labelled so. Started again it
goes on until the folder holds --episodes. All traffic stays on this machine. Ends with 0 if all of
them are there and the recorder calls each one good."""

AddCommand = Callable[[str, str, str], argparse.ArgumentParser]


def add_record_commands(add: AddCommand) -> None:
    """Adds the commands.

    Args:
        add: Makes the parser of one command from name, summary and description.
    """
    record = add("record", "record demonstrations with keys of this terminal", _RECORD)
    record.add_argument(
        "--output", type=Path, help="folder of the data set (default: recorder.yaml)"
    )
    record.add_argument(
        "--profile", default="", help="robot profile of aloha.yaml (default: recorder.yaml)"
    )
    record.add_argument(
        "--instruction", default="", help="what is done (default: recorder.yaml, or key i)"
    )
    record.add_argument(
        "--attach", action="store_true", help="use a recorder_node that runs already"
    )
    record.add_argument("--sim-time", action="store_true", help="follow simulated time")
    record.add_argument(
        "--config-dir", type=Path, help="folder of the YAML files (default: the shipped ones)"
    )
    record.set_defaults(run=_run_record)

    demo = add("record-demo", "record scripted demonstrations in the simulation", _RECORD_DEMO)
    demo.add_argument(
        "--episodes", type=int, default=10, help="how many there shall be (default: 10)"
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("recordings/record_demo"),
        help="folder of the data set (default: recordings/record_demo)",
    )
    demo.add_argument(
        "--raw", action="store_true", help="record raw images, 0.5 GB an episode, instead of JPEG"
    )
    demo.add_argument(
        "--miss-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the takes that miss the object on purpose (default: 0)",
    )
    demo.add_argument("--task", default="", help="transfer_cube or pick_cube (default: sim.yaml)")
    demo.add_argument(
        "--instruction", default="", help="say it in other words than the task's own"
    )
    demo.add_argument(
        "--seed", type=int, default=0, help="seed of the objects' poses and of what is asked for"
    )
    demo.add_argument(
        "--real-time-factor",
        type=float,
        default=1.0,
        help="fastest simulated time per real time; 0 is as fast as it goes (default: 1)",
    )
    demo.add_argument(
        "--config-dir", type=Path, help="folder of the YAML files (default: the shipped ones)"
    )
    demo.set_defaults(run=_run_record_demo)


def _run_record(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.ros.record_keyboard import RecordOptions, record

    return record(
        RecordOptions(
            output_dir=arguments.output,
            profile=arguments.profile,
            instruction=arguments.instruction,
            attach=arguments.attach,
            use_sim_time=arguments.sim_time,
            config_dir=arguments.config_dir,
        ),
        console,
    )


def _run_record_demo(arguments: argparse.Namespace, console: Console) -> int:
    from vla_oft_ros.ros.record_demo import RecordDemoOptions, record_demo

    return record_demo(
        RecordDemoOptions(
            episodes=arguments.episodes,
            output_dir=arguments.output,
            raw=arguments.raw,
            miss_share=arguments.miss_share,
            seed=arguments.seed,
            task=arguments.task,
            instruction=arguments.instruction,
            real_time_factor=arguments.real_time_factor,
            config_dir=arguments.config_dir,
        ),
        console,
    )
