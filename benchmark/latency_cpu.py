"""Latency of one inference on a CPU: a Hugging Face baseline, our plain forward, and the engine.

    python benchmark/latency_cpu.py [--json FILE] [--tiny] [--width 256] [--layers 16] [--grid 16]
                                    [--rounds 7] [--calls 1] [--seconds 420] [--no-compile]

One process, one thread, one small network with random weights and, by default, the numbers of
tokens of the official one; in float32, and rounded to bfloat16 where the CPU multiplies it. Rows
run in interleaved rounds in random order and are compared within a round by the CPU time of the
process, which other work on the machine moves less than the clock; a row that runs twice (A/A)
shows the noise that is left. Rows that are given prepared images and rows that start from camera
frames have a baseline each. Ablation rows leave out one saving of the engine each.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch
from latency.oft_rows import Oft, Setting
from latency.random_oft import scaled_down, weight_count
from latency.report import Bar, Report, at_least, at_most, write
from latency.rounds import Row, bf16_problem, run
from rich.console import Console

from vla_oft_ros.config import PruningConfig
from vla_oft_ros.model.engine_regions import compile_problem
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.model.vla import ModelConfig
from vla_oft_ros.types import MotionMode

CPU = torch.device("cpu")
NORMAL = {"width": 256, "layers": 16, "grid": 16, "calls": 1}
TINY = {"width": 64, "layers": 4, "grid": 4, "calls": 5}
BASE, PLAIN, ENGINE = "Hugging Face", "ours, plain forward", "engine"
PRUNED = "engine, pruned, coarse"
FROM_FRAMES = ", from frames"
PAPER_COUNTS = PruningConfig(method="specprune")
PLATEAU_TOKENS = 32
"""Rows of a block of products in bfloat16 on a CPU with AMX; see `plateaus.py`."""
PLATEAU_COUNTS = replace(PAPER_COUNTS, length_multiple=PLATEAU_TOKENS)
ABLATION = (
    "batch_cameras",
    "cache_film",
    "skip_last_blocks",
    "fuse_projections",
    "skip_lm_head",
    "trim_last_layer",
    "dedup_actions",
)
"""Savings that a dense pass on a CPU can have; the others need a GPU, but for `flash_scores`."""
NOT_SLOWER = 1.0
BF16_ERROR = 1e-2


def sizes(width: int, layers: int, grid: int) -> ModelConfig:
    """A network of the official shape, `width` wide, with `grid`² patches per camera."""
    tower = {"tower_width": width // 2, "tower_depth": 3 if layers < 8 else 6}
    return scaled_down(width=width, layers=layers, heads=4, grid=grid, **tower)


def build_rows(oft: Oft, of: Callable[[str], str], why_no_compiler: str) -> list[Row]:
    """All rows of one format of the weights, the dispensable ones last.

    Args:
        oft: Network and observation.
        of: Name of a row → the same for this format.
        why_no_compiler: Why torch.compile does not work here; empty if it does.
    """
    dense = Setting(kind="eager")
    coarse = replace(dense, pruning=PAPER_COUNTS, mode=MotionMode.COARSE)
    fine = replace(coarse, mode=MotionMode.FINE)
    plateau = replace(coarse, pruning=PLATEAU_COUNTS)
    bases = tuple(dict.fromkeys([of(BASE), BASE]))  # in bfloat16 also with float32

    def engine(name: str, setting: Setting, why_not: str = "") -> Row:
        return oft.ours(of(name), setting, bases=bases, why_not=why_not)

    def from_frames(name: str, setting: Setting) -> Row:
        setting = replace(setting, images=True)
        return oft.ours(of(name + FROM_FRAMES), setting, bases=(of(BASE + FROM_FRAMES),))

    def without(saving: str, name: str, setting: Setting) -> Row:
        setting = replace(setting, savings=replace(Savings(), **{saving: False}))
        return oft.ours(of(f"{name}, without {saving}"), setting, bases=(of(name),))

    return [
        oft.baseline(of(BASE), bases=bases),
        oft.baseline(of(f"{BASE}, again (A/A)"), bases=bases),
        oft.plain(of(PLAIN), bases=bases),
        engine(ENGINE, dense),
        engine(PRUNED, coarse),
        engine("engine, pruned to plateaus, coarse", plateau),
        engine("engine, pruned, fine", fine),
        oft.baseline(of(BASE + FROM_FRAMES), bases=(of(BASE + FROM_FRAMES),), images=True),
        from_frames(ENGINE, dense),
        from_frames(PRUNED, coarse),
        oft.ours(of("engine, again (A/A)"), dense, bases=(of(ENGINE),)),
        *(without(saving, ENGINE, dense) for saving in ABLATION),
        oft.ours(
            of("engine, without any"),
            replace(dense, savings=Savings.none()),
            bases=(of(ENGINE),),
        ),
        oft.ours(of(f"{PRUNED}, again (A/A)"), coarse, bases=(of(PRUNED),)),
        without("flash_scores", PRUNED, coarse),
        oft.baseline(
            of(f"{BASE}, torch.compile"), bases=bases, compiled="default", why_not=why_no_compiler
        ),
        engine("engine, compiled", replace(dense, kind="compiled"), why_no_compiler),
    ]


def bars(report: Report, of: Callable[[str], str], largest_error: float) -> list[Bar]:
    """What is to be shown on a CPU (issue 8)."""
    frames = report.times_as_fast(of(ENGINE + FROM_FRAMES), of(BASE + FROM_FRAMES))
    return [
        at_least(
            "the engine as fast as the baseline",
            report.times_as_fast(of(ENGINE), of(BASE)),
            NOT_SLOWER,
        ),
        at_least("the same from camera frames", frames, NOT_SLOWER),
        at_most("relative error of the engine", report.error(of(ENGINE)), largest_error),
    ]


@torch.inference_mode()
def measure(arguments: argparse.Namespace, console: Console) -> list[Report]:
    """Runs everything: one report per format.

    Args:
        arguments: From the command line.
        console: Gets progress.
    """
    started_s = time.monotonic()

    def tell(text: str) -> None:
        console.print(f"[{time.monotonic() - started_s:5.0f} s] {text}", markup=False)

    torch.set_num_threads(1)
    config = sizes(arguments.width, arguments.layers, arguments.grid)
    wide = Oft(config, CPU, torch.float32)
    tell(f"{weight_count(wide.model) / 1e6:.1f} million weights, {wide.layout.length} tokens")
    if arguments.tiny or arguments.no_compile:
        why_no_compiler = "left out by --tiny or --no-compile"
    else:
        why_no_compiler = compile_problem(CPU) or ""
    names: dict[torch.dtype, Callable[[str], str]] = {torch.float32: str}
    ofts = [wide]
    problem = bf16_problem()
    if problem:
        tell(f"bfloat16: {problem}")
    else:
        ofts.append(Oft(config, CPU, torch.bfloat16, wide.model))
        names[torch.bfloat16] = "{}, bf16".format
    built = [
        [
            row
            for row in build_rows(oft, names[oft.dtype], why_no_compiler)
            if re.search(arguments.only, row.name)
        ]
        for oft in ofts
    ]
    # By importance, not by format: what comes last is left out when the time is over.
    everything = [row for pair in zip_longest(*built) for row in pair if row is not None]
    rounds = run(
        everything,
        CPU,
        rounds=arguments.rounds,
        calls=arguments.calls,
        warm_up=1,
        deadline_s=started_s + arguments.seconds,
        tell=tell,
    )
    reports = []
    for oft, rows in zip(ofts, built, strict=True):
        report = Report(
            oft=oft,
            rows=rows,
            rounds=rounds,
            calls=arguments.calls,
            clock="cpu_s",
            elsewhere=everything,
            reference=oft.reference(),
        )
        largest_error = BF16_ERROR if oft.dtype is torch.bfloat16 else 1e-5
        reports.append(replace(report, bars=bars(report, names[oft.dtype], largest_error)))
    tell("done")
    return reports


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--tiny", action="store_true", help="a network of a few ms, not compiled")
    parser.add_argument("--width", type=int, help="of the LLM (default: 256; tiny: 64)")
    parser.add_argument("--layers", type=int, help="of the LLM (default: 16; tiny: 4)")
    parser.add_argument("--grid", type=int, help="patches along an image (default: 16; tiny: 4)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--calls", type=int, help="timed calls per round (default: 1; tiny: 5)")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled rows")
    parser.add_argument("--only", default="", help="only rows whose names match this expression")
    parser.add_argument(
        "--seconds",
        type=float,
        default=420.0,
        help="time for all but the last word (default: 420)",
    )
    arguments = parser.parse_args()
    for name, value in (TINY if arguments.tiny else NORMAL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    console = Console(highlight=False, width=160)
    reports = measure(arguments, console)
    for report in reports:
        report.print(console, host=report is reports[0])
    if arguments.json:
        records = {str(one.oft.dtype).removeprefix("torch."): one.record() for one in reports}
        write(arguments.json, {"sizes": _sizes_of(arguments), **records})


def _sizes_of(arguments: argparse.Namespace) -> dict[str, int]:
    return {name: getattr(arguments, name) for name in NORMAL}


if __name__ == "__main__":
    main()
