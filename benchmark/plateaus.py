"""Where the time of an LLM layer steps as tokens are added, and what rounding a length up costs.

    python benchmark/plateaus.py [--from 384] [--to 1168] [--step 8] [--width 256] [--rounds 9]
                                 [--dtype bfloat16] [--device auto] [--seconds 240] [--json FILE]

Matrix units work on tiles: tokens beyond a full tile cost as much as another tile. One layer runs
as the engine runs it, with random weights, at every number of tokens, in interleaved rounds; the
least time counts, of the process on a CPU (one thread), between events on a GPU. Then every
length is rounded up to multiples of 8 … 256: where the longer sequence takes no longer, the
tokens that fill it are free, and `pruning.length_multiple` may be that multiple. The noise is what
odd and even rounds say apart (A/A).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from latency.rounds import machine, time_call
from rich.console import Console
from rich.table import Table

from vla_oft_ros.model.attention import mix
from vla_oft_ros.model.engine_llm import finish, project
from vla_oft_ros.model.engine_weights import layer_weights
from vla_oft_ros.model.llm import LlamaConfig, LlamaModel, Rotary

MULTIPLES = (8, 16, 32, 64, 128, 256)
STEP = 1.03
"""A step is where the next length takes longer by more than this beyond its share of tokens."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What it costs to round lengths up to a multiple.

    Attributes:
        multiple: Of tokens.
        median: Time of the rounded length over that of the length itself, over all lengths.
        worst: The largest of these.
        added: Tokens added, mean over the lengths.
        again: `median` by the other half of the rounds.
    """

    multiple: int
    median: float
    worst: float
    added: float
    again: float


def one_layer(width: int, device: torch.device, dtype: torch.dtype) -> Callable[[int], object]:
    """A function that runs one layer on so many tokens.

    Args:
        width: D; the rest is as in Llama 2.
        device: Where.
        dtype: Of weights and tokens.
    """
    heads = max(width // 128, 4)
    config = LlamaConfig(
        vocab=8,
        width=width,
        layers=1,
        heads=heads,
        kv_heads=heads,
        mlp_hidden=round(width * 11008 / 4096 / 8) * 8,
        rms_eps=1e-6,
        rope_theta=1e4,
    )
    torch.manual_seed(0)
    with device:
        weights = layer_weights(LlamaModel(config).to(dtype), fuse=True, fp8=False)[0]
        tokens = torch.randn(1, 8192, width)
        whole = Rotary.at(torch.arange(8192), config.head_dim, config.rope_theta, dtype)

    def run(length: int) -> object:
        hidden, rotary = tokens[:, :length], whole.rows(0, length)
        q, k, v = project(hidden, weights, rotary, config)
        return finish(hidden, mix(q, k, v), weights, config)

    return run


def sweep(
    lengths: Sequence[int],
    run: Callable[[int], object],
    device: torch.device,
    *,
    rounds: int,
    deadline_s: float,
) -> list[dict[int, float]]:
    """Length → seconds, one dict per round that was completed."""
    order, found = np.random.default_rng(0), []
    calls = 20 if device.type == "cuda" else 1
    for length in lengths:
        run(length)
    while len(found) < rounds and (len(found) < 2 or time.monotonic() < deadline_s):
        times = {}
        for index in order.permutation(len(lengths)):
            length = lengths[index]
            took = time_call(lambda n=length: [run(n) for _ in range(calls)], device)
            times[length] = (took.device_s or took.cpu_s) / calls
        found.append(times)
    return found


def least(rounds: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Length → least seconds of the rounds."""
    return {length: min(one[length] for one in rounds) for length in sorted(rounds[0])}


def rounding(times: Mapping[int, float], multiple: int) -> list[tuple[int, float]]:
    """(tokens added, time over time) of every length whose rounded one was measured too."""
    pairs = ((length, -(-length // multiple) * multiple) for length in times)
    return [
        (rounded - length, times[rounded] / times[length])
        for length, rounded in pairs
        if rounded in times and rounded != length
    ]


def roundings(rounds: Sequence[Mapping[int, float]]) -> list[Rounding]:
    """What each multiple costs."""
    all_rounds, odd = least(rounds), least(rounds[1::2])
    found = []
    for multiple in MULTIPLES:
        pairs, again = rounding(all_rounds, multiple), rounding(odd, multiple)
        if not pairs:
            continue
        found.append(
            Rounding(
                multiple=multiple,
                median=median(ratio for _, ratio in pairs),
                worst=max(ratio for _, ratio in pairs),
                added=float(np.mean([tokens for tokens, _ in pairs])),
                again=median(ratio for _, ratio in again),
            )
        )
    return found


def steps(times: Mapping[int, float]) -> list[int]:
    """Lengths after which the time steps: the next takes longer than its tokens explain."""
    lengths = sorted(times)
    return [
        length
        for length, after in pairwise(lengths)
        if times[after] / times[length] > STEP * after / length
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--from", type=int, default=384, dest="first", help="fewest tokens")
    parser.add_argument("--to", type=int, default=1168, dest="last", help="most tokens, ≤ 8192")
    parser.add_argument("--step", type=int, default=8, help="tokens (default: 8)")
    parser.add_argument("--width", type=int, help="of the LLM (default: 256; GPU: 4096)")
    parser.add_argument("--rounds", type=int, default=9, help="2 or more (default: 9)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--seconds", type=float, default=240.0, help="time to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = arguments.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, dtype = torch.device(name), getattr(torch, arguments.dtype)
    width = arguments.width or (4096 if device.type == "cuda" else 256)
    lengths = list(range(arguments.first, arguments.last + 1, arguments.step))
    with torch.inference_mode():
        rounds = sweep(
            lengths,
            one_layer(width, device, dtype),
            device,
            rounds=max(arguments.rounds, 2),
            deadline_s=time.monotonic() + arguments.seconds,
        )
    times, rows = least(rounds), roundings(rounds)
    console = Console(highlight=False, width=120)
    host = (f"{name} {value}" for name, value in machine(device).items())
    console.print(", ".join(host), markup=False)
    console.print(f"one layer of width {width}, {arguments.dtype}, least of {len(rounds)} rounds")
    shown = [f"{n}: {seconds * 1e6:.0f}" for n, seconds in times.items() if n % 32 == 0]
    console.print(f"tokens: µs: {', '.join(shown)}")
    both = set(steps(least(rounds[::2]))) & set(steps(least(rounds[1::2])))
    told = ", ".join(map(str, sorted(both))) or "no length"
    console.print(f"time steps after (in even and in odd rounds): {told}")
    table = Table(box=None, pad_edge=False)
    for column in ("rounded up to", "tokens added", "time, median", "worst", "median, A/A"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = (f"{value:.3f}" for value in (row.median, row.worst, row.again))
        table.add_row(str(row.multiple), f"{row.added:.1f}", *cells)
    console.print(table)
    if arguments.json:
        record = {
            "machine": machine(device),
            "width": width,
            "dtype": arguments.dtype,
            "rounds": len(rounds),
            "seconds": times,
            "roundings": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
