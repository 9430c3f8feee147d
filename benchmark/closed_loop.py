"""How often policies succeed in the simulation: the tables of docs/results.md.

    python benchmark/closed_loop.py --table pruning --checkpoint DIR [--episodes 50] [--workers 2]
                                    [--write docs/results.md] [--json FILE]
    … --table language --checkpoint DIR --no-film DIR
    … --table joins --checkpoint DIR
    … --table heads --checkpoint DIR --discrete DIR --diffusion DIR

All rows of a table run on the same seeds, which no demonstration had, and take turns seed by seed.
Every finished episode is one line of --output: after a kill or Ctrl-C the same command goes on
where it was, and tables share what they have in common. A checkpoint is a directory or
shipped:<name>. Without --table it lists the tables.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Drawn
from success.report import (
    HEAD,
    cells,
    check_document,
    complete_seeds,
    make_rows,
    markdown,
    to_json,
    write_between,
)
from success.tables import TABLES, Given, Table

from vla_oft_ros.config import ChunkQueueConfig, ConfigError
from vla_oft_ros.evaluation import FIRST_SEED, evaluate
from vla_oft_ros.sim.loop_setting import EpisodeResult, LoopSetting

BAD_INPUT, DIED, INTERRUPTED = 2, 1, 130
CHECKPOINTS = {
    "checkpoint": "the policy; for heads the one with the L1 head, for language the one with FiLM",
    "no-film": "for language: trained alike, but without FiLM",
    "discrete": "for heads: with the discrete head",
    "diffusion": "for heads: with the diffusion head",
}
_LOCAL = {"workers", "output", "json", "write"}
"""Options that change nothing in a table."""
_FILE_WIDTH = 160
"""Characters of a line where nobody says how many there are."""


@dataclass
class Run:
    """A table while it is run.

    Attributes:
        table: What is run.
        seeds: Of the worlds.
        results: What has been run so far.
    """

    table: Table
    seeds: Sequence[int]
    results: dict[tuple[str, int], EpisodeResult] = field(default_factory=dict)

    def finish(self, output: Path, workers: int, console: Console) -> None:
        """Runs what is missing."""
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
            total = len(self.table.conditions) * len(self.seeds)
            task = progress.add_task("", total=total)
            episodes = evaluate(self.table.conditions, self.seeds, output, workers=workers)
            with closing(episodes):
                for condition, episode in episodes:
                    self.results[condition.name, episode.seed] = episode.result
                    what = "done" if episode.result.success else "not done"
                    told = f"{condition.name}, seed {episode.seed}: {what}"
                    progress.update(task, advance=1, description=escape(told))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a table; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    if not options.table:
        for name, make in TABLES.items():
            console.print(f"{name:<9} {(make.__doc__ or '').splitlines()[0]}", markup=False)
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="closed_loop_") as scratch:
            return _run(options, parser, console, Path(scratch))
    except (ValueError, OSError) as error:
        errors.print(f"closed_loop: {error}", markup=False, soft_wrap=True)
        return BAD_INPUT
    except BrokenProcessPool as error:
        errors.print(
            f"closed_loop: a process died ({error}). {options.output} has all finished episodes; "
            "the same command goes on",
            markup=False,
            soft_wrap=True,
        )
        return DIED


def build_parser() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], allow_abbrev=False
    )
    option = parser.add_argument
    option("--table", choices=TABLES, help="which one (default: list them)")
    for name, meaning in CHECKPOINTS.items():
        option(f"--{name}", default="", metavar="DIR", help=meaning)
    option("--episodes", type=int, default=50, help="per row (default: %(default)s)")
    option("--seed", type=int, default=FIRST_SEED, help="of the first (default: %(default)s)")
    option(
        "--join",
        default=ChunkQueueConfig.join,
        help="of chunks, but for joins (default: %(default)s)",
    )
    option(
        "--execute-steps",
        type=int,
        default=LoopSetting.execute_steps,
        help="control steps from question to question, but for sync (default: %(default)s)",
    )
    option(
        "--latency-ms", type=float, default=0.0, help="of an inference, but for joins (default: 0)"
    )
    option(
        "--time-limit-s",
        type=float,
        default=LoopSetting.time_limit_s,
        help="of an episode (default: %(default)s)",
    )
    option("--device", default="auto", help="torch device (default: auto)")
    option("--workers", type=int, default=1, help="processes (default: 1)")
    option(
        "--output",
        type=Path,
        default=Path("closed_loop.jsonl"),
        help="file of finished episodes (default: %(default)s)",
    )
    option("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    option("--write", type=Path, metavar="FILE", help="document whose table is replaced")
    return parser


def _run(
    options: argparse.Namespace, parser: argparse.ArgumentParser, console: Console, scratch: Path
) -> int:
    if options.episodes < 1 or options.seed < 0:
        raise ConfigError(
            "expected at least one episode and no negative seed; got --episodes "
            f"{options.episodes} --seed {options.seed}"
        )
    if options.write:
        check_document(options.write, options.table)
    if options.json and not options.json.absolute().parent.is_dir():
        raise ConfigError(f"--json: expected a file in a folder that exists; got {options.json}")
    table = TABLES[options.table](given(options, scratch))
    run = Run(table, range(options.seed, options.seed + options.episodes))
    try:
        run.finish(options.output, options.workers, console)
    except KeyboardInterrupt:
        console.print(
            f"stopped: {options.output} has all finished episodes; the same command goes on",
            markup=False,
            soft_wrap=True,
        )
        _show(run, console)
        return INTERRUPTED
    _show(run, console)
    rows = make_rows(table, run.seeds, run.results)
    told = command(options, parser), circumstances(options, table)
    if options.json:
        text = json.dumps(to_json(table, rows, run.seeds, *told), indent=1, ensure_ascii=False)
        options.json.write_text(f"{text}\n", encoding="utf-8")
    if options.write:
        write_between(options.write, table.name, markdown(table, rows, *told))
    return 0


def given(options: argparse.Namespace, scratch: Path) -> Given:
    """What the command line says about policies and how they are run."""
    return Given(
        checkpoints={name: getattr(options, name.replace("-", "_")) for name in CHECKPOINTS},
        scratch=scratch,
        device=options.device,
        loop=LoopSetting(
            queue=ChunkQueueConfig(join=options.join),
            execute_steps=options.execute_steps,
            latency_ms=options.latency_ms,
            time_limit_s=options.time_limit_s,
        ),
    )


def command(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command of a table: what changes it, and of a path the last part alone."""
    words = ["python", "benchmark/closed_loop.py"]
    for name, value in vars(options).items():
        if name in _LOCAL or (value == parser.get_default(name) and name != "episodes"):
            continue
        option = name.replace("_", "-")
        words += [f"--{option}", Path(value).name if option in CHECKPOINTS else str(value)]
    return shlex.join(words)


def circumstances(options: argparse.Namespace, table: Table) -> str:
    """What all rows share."""
    last = options.seed + options.episodes - 1
    seen = ", ".join(f"--{option} {digest}" for option, digest in table.identities.items())
    loop = (
        f"a question every {options.execute_steps} control steps (with sync: when the chunk has "
        f"been played), at most {options.time_limit_s:g} s of simulated time"
    )
    if table.name != "joins":
        loop = f"Join {options.join} at {options.latency_ms:g} ms of latency, {loop}"
    else:
        loop = loop.capitalize()
    return (
        f"Seeds {options.seed} to {last}, the same for every row. {loop}. Checkpoint: {seen}; one "
        f"CPU thread per process, device {options.device}."
    )


def _show(run: Run, console: Console) -> None:
    """Draws what can be compared so far."""
    seeds = complete_seeds(run.table, run.seeds, run.results)
    if not seeds:
        return
    drawn = Drawn(title=f"{run.table.name}, {len(seeds)} of {len(run.seeds)} seeds")
    for index, name in enumerate(HEAD):
        drawn.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row in make_rows(run.table, seeds, run.results):
        drawn.add_row(*map(escape, cells(row)))
    console.print(drawn)
    for note in run.table.notes:
        console.print(note, markup=False)


if __name__ == "__main__":
    sys.exit(main())
