"""Latency of one inference on a GPU: a Hugging Face baseline, torch.compile, and ours, row by row.

    python benchmark/latency_gpu.py [--json FILE] [--rounds 9] [--calls 20] [--only TEXT]
                                    [--seconds 460] [--tiny]

One process, one network of the official 7B sizes with random weights made on the device (no
checkpoint; latency does not depend on what was learnt), shared by all rows. Rows run in
interleaved rounds in random order; one row runs twice under two names (A/A) and shows the noise;
ratios are medians over rounds with their range. The floor is the operations that an inference
cannot do without over the rate of a large product in this very run, plus reading the action head.
Rows that are given prepared images and rows that start from camera frames have a baseline each.
Ablation rows switch one saving off each and come last: they are what is left out when --seconds
are over. Without a GPU, or with --tiny, a small network runs on the CPU, and rows that need a GPU
are named.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
from latency.ceilings import measure_ceilings, products_of_a_layer
from latency.oft_rows import Oft, Setting
from latency.random_oft import FULL, scaled_down, weight_count
from latency.report import Bar, Report, at_least, at_most, same, write
from latency.rounds import Row, free_memory, run
from rich.console import Console

from vla_oft_ros.config import PruningConfig
from vla_oft_ros.model.savings import Savings
from vla_oft_ros.types import MotionMode

TINY = scaled_down(width=64, layers=4, heads=4, tower_width=32, tower_depth=3, grid=4)
BASE, COMPILED = "Hugging Face", "Hugging Face, torch.compile"
BASE_FRAMES = "Hugging Face, from frames"
DENSE, AGAIN, EAGER = "ours, dense", "ours, dense, again (A/A)", "ours, dense, eager"
UNFUSED = "ours, dense, without fuse_pointwise"
PRUNED, PLATEAU = "ours, pruned", "ours, pruned to plateaus"
UNCHOSEN = "ours, first tokens instead of a choice, coarse"
FP8 = "ours, fp8"
COARSE, FINE = MotionMode.COARSE, MotionMode.FINE
PAPER_COUNTS = PruningConfig(method="specprune")
PLATEAU_TOKENS = 128
"""Products of this many more rows should cost a GPU nothing until the next multiple, its tiles:
a prediction, which `plateaus.py` tests.
"""
PLATEAU_COUNTS = replace(PAPER_COUNTS, length_multiple=PLATEAU_TOKENS)
NEEDS_GPU = "needs a CUDA GPU"
ABLATION_OF_PRUNING = ("flash_scores",)
ABLATION_FROM_FRAMES = ("device_preprocessing",)
ABLATION_ON_GPU = ("parallel_towers", "fuse_pointwise", "device_preprocessing")
SWEEP = range(384, 1169, 8)
"""Tokens at which the products of a layer are timed: where the plateaus are."""
STAGE_CALLS = 20


def build_rows(oft: Oft, *, gpu: bool) -> list[Row]:
    """All rows of the table, the dispensable ones last.

    Args:
        oft: Network and observation.
        gpu: Whether there is one; else the rows that need it say so.
    """
    kind, needs = ("cuda_graph", "") if gpu else ("eager", NEEDS_GPU)
    dense, bases = Setting(kind=kind), (BASE, COMPILED)
    coarse, fine = (replace(dense, pruning=PAPER_COUNTS, mode=mode) for mode in (COARSE, FINE))
    coarse_plateau, fine_plateau = (replace(s, pruning=PLATEAU_COUNTS) for s in (coarse, fine))

    def ours(name: str, setting: Setting, why_not: str = "") -> Row:
        return oft.ours(name, setting, bases=bases, why_not=why_not)

    def from_frames(name: str, setting: Setting, why_not: str = "") -> Row:
        setting = replace(setting, images=True)
        return oft.ours(name, setting, bases=(BASE_FRAMES,), why_not=why_not)

    rows = [
        ours(DENSE, dense),
        ours(AGAIN, dense),
        oft.baseline(BASE, bases=bases),
        oft.baseline(f"{BASE}, 4-D mask", bases=bases, attention="mask"),
        ours(EAGER, replace(dense, kind="eager")),
        ours(f"{PRUNED}, coarse", coarse),
        ours(f"{PLATEAU}, coarse", coarse_plateau),
        ours(f"{PRUNED}, fine", fine),
        ours(f"{PLATEAU}, fine", fine_plateau),
        ours(UNCHOSEN, replace(coarse, chooses=False)),
        ours(FP8, replace(dense, fp8=True), needs),
        ours(f"{FP8}, pruned, coarse", replace(coarse, fp8=True), needs),
        ours(f"{FP8}, pruned to plateaus, coarse", replace(coarse_plateau, fp8=True), needs),
        oft.baseline(COMPILED, bases=bases, compiled="reduce-overhead", why_not=needs),
        ours("ours, dense, compiled", replace(dense, kind="compiled"), needs),
        ours(f"{PRUNED}, coarse, eager", replace(coarse, kind="eager")),
        oft.baseline(BASE_FRAMES, bases=(BASE_FRAMES,), images=True),
        from_frames(f"{DENSE}, from frames", dense),
        from_frames(f"{PRUNED}, coarse, from frames", coarse),
        from_frames(f"{PLATEAU}, coarse, from frames", coarse_plateau),
    ]
    return rows + ablation(oft, dense, coarse, needs)


def ablation(oft: Oft, dense: Setting, pruned: Setting, needs: str) -> list[Row]:
    """One row per saving, without it, compared with the row that has them all.

    Args:
        oft: Network and observation.
        dense: With all savings.
        pruned: The same, pruned.
        needs: Why what needs a GPU cannot run; empty if it can.
    """
    rows = []
    for entry in fields(Savings):
        name, setting = DENSE, dense
        if entry.name in ABLATION_OF_PRUNING:
            name, setting = f"{PRUNED}, coarse", pruned
        if entry.name in ABLATION_FROM_FRAMES:
            name, setting = f"{name}, from frames", replace(setting, images=True)
        setting = replace(setting, savings=replace(Savings(), **{entry.name: False}))
        why_not = needs if entry.name in ABLATION_ON_GPU else ""
        title = f"{name}, without {entry.name}"
        rows.append(oft.ours(title, setting, bases=(name,), why_not=why_not))
    return rows


@torch.inference_mode()
def measure(arguments: argparse.Namespace, console: Console) -> Report:
    """Runs everything.

    Args:
        arguments: From the command line.
        console: Gets progress.
    """
    started_s = time.monotonic()
    deadline_s = started_s + arguments.seconds
    gpu = torch.cuda.is_available() and not arguments.tiny
    device = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu else torch.float32
    if not gpu:
        torch.set_num_threads(1)
        reason = "--tiny" if arguments.tiny else "torch sees no CUDA GPU"
        console.print(f"{reason}: a small network on the CPU; its times say nothing about a GPU")

    def tell(text: str) -> None:
        console.print(f"[{time.monotonic() - started_s:5.0f} s] {text}", markup=False)

    ceilings = measure_ceilings(device, dtype, tiny=not gpu)
    config = FULL if gpu else TINY
    lengths = SWEEP if gpu else range(64, 129, 64)
    sweep = products_of_a_layer(config.llm, lengths, device, dtype)
    free_memory()
    tell("ceilings measured")
    oft = Oft(config, device, dtype)
    tell(f"{weight_count(oft.model) / 1e6:.0f} million weights made")
    rows = [row for row in build_rows(oft, gpu=gpu) if arguments.only in row.name]
    completed = run(
        rows,
        device,
        rounds=arguments.rounds,
        calls=arguments.calls,
        warm_up=3 if gpu else 1,
        deadline_s=deadline_s,
        tell=tell,
    )
    stages: dict[str, dict[str, float]] = {}
    kind = "cuda_graph" if gpu else "eager"
    for name, pruning in ((DENSE, None), (f"{PRUNED}, {COARSE.value}", PAPER_COUNTS)):
        try:
            setting = Setting(kind=kind, pruning=pruning, images=True)
            stages[name] = oft.stages(setting, STAGE_CALLS if gpu else 2)
        except Exception as error:  # the table of rows is worth more than this one
            tell(f"stages of {name}: {type(error).__name__}: {error}")
    for row in rows:
        row.call = None
    free_memory()  # for the reference, as large as two networks
    reference = None
    try:
        reference = oft.reference()
    except Exception as error:
        tell(f"reference in float32: {type(error).__name__}: {error}")
    tell("done")
    report = Report(
        oft=oft,
        rows=rows,
        rounds=completed,
        calls=arguments.calls,
        clock="wall_s" if gpu else "cpu_s",
        ceilings=ceilings,
        layer_products_s=sweep,
        stages_ms=stages,
        reference=reference,
    )
    # The bars are for the full network on a GPU; small ones on a CPU say nothing about them.
    return replace(report, bars=bars(report)) if gpu else report


def bars(report: Report) -> list[Bar]:
    """What is to be shown on one H200 (issue 8)."""
    pruned, fast = f"{PRUNED}, {COARSE.value}", f"{PLATEAU}, {COARSE.value}"
    fp8 = f"{FP8}, pruned, {COARSE.value}"
    tail = report.row(DENSE)
    own_work = None
    unchosen = report.times_as_fast(UNCHOSEN, pruned)
    if unchosen is not None:
        own_work = 1.0 - 1.0 / unchosen.median

    def faster(claim: str, fast: str, slow: str, bar: float) -> Bar:
        return at_least(claim, report.times_as_fast(fast, slow), bar)

    return [
        faster("dense over the baseline", DENSE, BASE, 2.5),
        faster("pruned over the baseline", pruned, BASE, 4.5),
        faster("pruned to plateaus over the baseline", fast, BASE, 4.5),
        faster("fp8 and pruned over the baseline", fp8, BASE, 6.0),
        faster("pruned over dense", pruned, DENSE, 1.5),
        faster("dense over the compiled baseline", DENSE, COMPILED, 1.2),
        faster("pruned over the compiled baseline", pruned, COMPILED, 1.9),
        at_most("dense over its floor", report.over_floor(DENSE), 1.40),
        at_most("pruned over its floor", report.over_floor(pruned), 1.55),
        at_most("p99 over p50, dense", tail and float(report.figures(tail)["p99_over_p50"]), 1.05),
        at_most("share of pruning's own work", own_work, 0.03),
        at_most("relative error, dense", report.error(DENSE), 1e-2),
        same("graph replay equals the same pass run eagerly", report.oft, UNFUSED, EAGER),
        same("graph replay equals the compiled pass", report.oft, DENSE, "ours, dense, compiled"),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 9; tiny: 2)")
    parser.add_argument("--calls", type=int, help="timed calls per round (default: 20; tiny: 1)")
    parser.add_argument("--only", default="", help="only rows with this in their name")
    parser.add_argument(
        "--seconds",
        type=float,
        default=460.0,
        help="time for all but the last word (default: 460)",
    )
    parser.add_argument("--tiny", action="store_true", help="a small network on the CPU")
    arguments = parser.parse_args()
    tiny = arguments.tiny or not torch.cuda.is_available()
    arguments.rounds = arguments.rounds or (2 if tiny else 9)
    arguments.calls = arguments.calls or (1 if tiny else 20)
    console = Console(highlight=False, width=180)
    report = measure(arguments, console)
    report.print(console)
    if arguments.json:
        write(arguments.json, report.record())


if __name__ == "__main__":
    main()
