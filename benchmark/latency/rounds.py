"""Rows of a benchmark, run in interleaved rounds so that a busy machine hits all alike.

A row is something to call. One that cannot run here, or fails while it runs, stays in the table
with the reason; the others go on. Ratios are taken within a round and reported as median and range
over rounds. Knows nothing of models.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch

BF16_FLAGS = ("avx512_bf16", "amx_bf16")
"""What Linux calls the instructions for bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """One call, seconds: by the clock, of this process's CPU, and between two events of the GPU
    (None without one).
    """

    wall_s: float
    cpu_s: float
    device_s: float | None


@dataclass(kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: Unique.
        prepare: Makes what is timed; called once, where it may compile or capture.
        why_not: Why the row cannot run here, or why it failed; empty if it can.
        bases: Names of the rows that it is compared with.
        call: From `prepare`.
        rounds: Times of every call, one list per round.
    """

    name: str
    prepare: Callable[[], Callable[[], object]]
    why_not: str = ""
    bases: tuple[str, ...] = ()
    call: Callable[[], object] | None = None
    rounds: list[list[Times]] = field(default_factory=list)

    @property
    def ran(self) -> bool:
        """Whether there are figures."""
        return not self.why_not and bool(self.rounds)

    def values(self, clock: str) -> np.ndarray:
        """All times by one clock, a field of `Times`."""
        return np.array([getattr(times, clock) for one in self.rounds for times in one])

    def medians(self, clock: str) -> list[float]:
        """Median of each round."""
        return [median(getattr(times, clock) for times in one) for one in self.rounds]

    def fail(self, error: BaseException) -> None:
        """Notes why, and lets go of what it held."""
        first = str(error).strip().splitlines()
        self.why_not = f"{type(error).__name__}: {first[0] if first else ''}"
        self.call, self.rounds = None, []
        free_memory()


def time_call(call: Callable[[], object], device: torch.device) -> Times:
    """Runs it once; on a GPU, until the GPU has finished."""
    if device.type != "cuda":
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        call()
        return Times(
            wall_s=time.perf_counter() - start_s,
            cpu_s=time.process_time() - start_cpu_s,
            device_s=None,
        )
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return Times(
        wall_s=time.perf_counter() - start_s,
        cpu_s=time.process_time() - start_cpu_s,
        device_s=begin.elapsed_time(end) * 1e-3,
    )


def run(
    rows: Sequence[Row],
    device: torch.device,
    *,
    rounds: int,
    calls: int,
    warm_up: int,
    deadline_s: float = float("inf"),
    tell: Callable[[str], None] = lambda _: None,
) -> int:
    """Prepares all rows, then measures them.

    Args:
        rows: Filled in place.
        device: Where they run.
        rounds: Every row has one turn in each, in random order.
        calls: Timed calls in one turn.
        warm_up: Calls before the first round.
        deadline_s: `time.monotonic` after which no further row is prepared, nor round begun.
        tell: Gets a line of progress.

    Returns:
        Rounds that were completed.
    """
    for row in rows:
        if row.why_not:
            tell(f"{row.name}: {row.why_not}")
            continue
        if time.monotonic() > deadline_s:
            row.why_not = "no time was left to prepare it"
            continue
        start_s = time.monotonic()
        with _noting_failure(row):
            row.call = row.prepare()
            for _ in range(warm_up):
                time_call(row.call, device)
        tell(f"{row.name}: {row.why_not or f'ready after {time.monotonic() - start_s:.1f} s'}")
    order = np.random.default_rng(0)
    for done in range(rounds):
        if time.monotonic() > deadline_s:
            tell(f"no time was left for more than {done} rounds")
            return done
        for index in order.permutation(len(rows)):
            row = rows[index]
            if row.call is None:
                continue
            with _noting_failure(row):
                call = row.call
                row.rounds.append([time_call(call, device) for _ in range(calls)])
    return rounds


class _noting_failure:  # noqa: N801 - reads as a with statement
    """Turns an exception into the row's reason for having no figures."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._row.fail(error)
        return True


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast: median over rounds, and the range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(slow: Row, fast: Row, clock: str) -> Ratio | None:
    """Time of the one over time of the other, by round; None if either has no figures."""
    if not (slow.ran and fast.ran):
        return None
    pairs = zip(slow.medians(clock), fast.medians(clock), strict=True)
    each = [one / other for one, other in pairs]
    return Ratio(median=median(each), low=min(each), high=max(each))


def free_memory() -> None:
    """Returns what nobody holds any more to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def machine(device: torch.device) -> dict[str, object]:
    """What the figures were measured on."""
    found: dict[str, object] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "gpu_processors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "nvidia_smi": _nvidia_smi(),
        }
    return found


def cpu_name() -> str:
    """The model of the host's CPU, with what decides about its matrix products."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = set(text.split())
    extras = [flag for flag in ("avx2", "avx512f", *BF16_FLAGS) if flag in flags]
    return " ".join([name[1] if name else platform.processor(), *extras])


def bf16_problem() -> str:
    """Why products in bfloat16 make no sense on the host's CPU; empty if it has units for them."""
    known = cpu_name()
    if any(flag in known.split() for flag in BF16_FLAGS):
        return ""
    return f"needs a CPU with {' or '.join(BF16_FLAGS)}"


def _nvidia_smi() -> str:
    """Driver, clocks, power and temperature now; only read, never set."""
    if shutil.which("nvidia-smi") is None:
        return "not installed"
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields},temperature.gpu", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "no answer"
    return f"{fields},temperature.gpu: {answer.stdout.strip()}"
