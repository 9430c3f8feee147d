"""The subcommand of `vla_oft` that says how often a policy succeeds: eval.

Like `cli`, this file only reads arguments and prints. Tables that compare many conditions are made
by benchmark/closed_loop.py.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

ORACLE = "oracle"

_EVAL = """\
Runs a policy in the simulated ALOHA, episode after episode, without ROS and as fast as the machine
allows: the observations, chunk joins and safety gate of the live nodes, in simulated time, with a
latency that you set. Tells the share of successes with its 95 % interval. Every finished episode
is one line of --output; repeated, the command goes on where it was. Seeds start at 10000, poses
that no demonstration had. The policy 'oracle' is the scripted teleoperator: what fails with it is
not the fault of a policy. Ends with 0 when all episodes are done, however they went."""


def add_evaluation_command(add: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Adds it to the parser.

    Args:
        add: Makes a subcommand of name, summary and description.
    """
    command = add("eval", "how often a policy succeeds in the simulation", _EVAL)
    option = command.add_argument
    option("checkpoint", help="checkpoint directory, shipped:<name>, or oracle")
    option("--episodes", type=int, default=50, help="how many (default: 50)")
    option("--seed", type=int, default=10_000, help="of the first episode (default: 10000)")
    option("--task", default="transfer_cube", help="or pick_cube (default: transfer_cube)")
    option("--instruction", default="", help="what the policy hears (default: what is asked for)")
    option(
        "--join",
        default="latency_matched_blend",
        help="how a new chunk follows the old one: queue.join of the controller (default: "
        "latency_matched_blend)",
    )
    option(
        "--execute-steps",
        type=int,
        default=15,
        help="control steps from question to question (default: 15); with the join sync a chunk "
        "is played to its end",
    )
    option(
        "--latency-ms",
        type=float,
        default=0.0,
        help="simulated time from images to their chunk (default: 0)",
    )
    option(
        "--pruning",
        default="none",
        help="token pruning: none, specprune, random, fastv, divprune (default: none)",
    )
    option(
        "--alpha",
        type=float,
        default=0.8,
        help="specprune's α: less keeps fewer patches (default: 0.8)",
    )
    option(
        "--mode",
        default="action_aware",
        help="patches kept: fewer in coarse motion (action_aware), or as if it always were coarse "
        "or fine (default: action_aware)",
    )
    option(
        "--sight",
        default="own",
        help="images: own, or as a control blank (grey) or other (of another cube) (default: own)",
    )
    option("--diffusion-steps", type=int, default=50, help="of a diffusion policy (default: 50)")
    option("--device", default="auto", help="torch device (default: auto)")
    option("--workers", type=int, default=1, help="processes (default: 1)")
    option(
        "--output",
        type=Path,
        default=Path("evaluation.jsonl"),
        help="file of finished episodes (default: evaluation.jsonl)",
    )
    option("--json", type=Path, metavar="FILE", help="also write the summary as JSON")
    command.set_defaults(run=_run_eval)


def _run_eval(arguments: argparse.Namespace, console: Console) -> int:
    from rich.progress import track

    from vla_oft_ros.config import ChunkQueueConfig, ConfigError, PolicyConfig, PruningConfig
    from vla_oft_ros.evaluation import Condition, condition_key, evaluate
    from vla_oft_ros.sim.loop_setting import EpisodeResult, LoopSetting
    from vla_oft_ros.sim.success_rate import summarize
    from vla_oft_ros.sim.tasks import load_task

    if arguments.episodes < 1 or arguments.seed < 0:
        raise ConfigError(
            "eval: expected at least one episode and no negative seed; got --episodes "
            f"{arguments.episodes} --seed {arguments.seed}"
        )
    policy = PolicyConfig(
        checkpoint_dir=arguments.checkpoint,
        device=arguments.device,
        threads=1,
        diffusion_steps=arguments.diffusion_steps,
        pruning=PruningConfig(method=arguments.pruning, alpha=arguments.alpha),
    )
    condition = Condition(
        name=arguments.checkpoint,
        policy=None if arguments.checkpoint == ORACLE else policy,
        task=arguments.task,
        loop=LoopSetting(
            queue=ChunkQueueConfig(join=arguments.join),
            execute_steps=arguments.execute_steps,
            latency_ms=arguments.latency_ms,
            mode=arguments.mode,
            sight=arguments.sight,
            instruction=arguments.instruction,
            looks_back=arguments.pruning == "specprune",
        ),
    )
    condition_key(condition)  # a checkpoint that is not there is named before a bar is drawn
    max_reward = load_task(arguments.task).max_reward
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    episodes = evaluate([condition], seeds, arguments.output, workers=arguments.workers)
    results: list[EpisodeResult] = [
        episode.result
        for _, episode in track(episodes, "episodes", arguments.episodes, console=console)
    ]
    summary = summarize(arguments.checkpoint, results, max_reward)
    share, low, high = (
        100 * value for value in (summary.successes / summary.episodes, summary.low, summary.high)
    )
    reached = ", ".join(f"{reward}: {count}" for reward, count in enumerate(summary.rewards))
    done = f"done after {summary.done_s:.1f} s; " if summary.successes else ""
    console.print(
        f"{escape(summary.name)}: {summary.successes} of {summary.episodes} episodes succeeded, "
        f"{share:.0f} % (95 % interval {low:.0f} to {high:.0f} %)\n"
        f"highest reward {reached}; nearest to the cube {summary.nearest_mm:.0f} mm (median)\n"
        f"{done}{100 * summary.idle:.1f} % of the ticks without an action; "
        f"{summary.interventions:.0f} changes by the safety gate per episode\n"
        f"inference {summary.inference_ms:.0f} ms, {summary.inference_cpu_ms:.0f} ms of CPU; "
        f"{100 * summary.kept:.0f} % of the patches kept"
    )
    if arguments.json:
        told = {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(summary).items()
        }
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0
