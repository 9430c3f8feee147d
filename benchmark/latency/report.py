"""What the latency benchmarks print and write: rows, stages, ceilings, what was to be shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from latency.ceilings import Ceilings
from latency.oft_rows import Oft, relative_error
from latency.rounds import Ratio, Row, machine, ratio

CLOCKS = {"wall_s": "wall time", "cpu_s": "CPU time of the process"}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Something to be shown.

    Attributes:
        claim: What.
        measured: As a person reads it; why not, if it could not be measured.
        holds: Whether it is so; None if it could not be measured.
    """

    claim: str
    measured: str
    holds: bool | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was measured.

    Attributes:
        oft: Network and observation.
        rows: With their figures.
        rounds: Completed.
        calls: Per round.
        clock: Which of the `Times` decides.
        elsewhere: Rows of another network in the same rounds, which some are compared with.
        ceilings: None where no floor is told.
        layer_products_s: Tokens → seconds of one layer's products.
        stages_ms: Row → stage → milliseconds.
        reference: (K, A) actions in a wider format.
        bars: What was to be shown.
    """

    oft: Oft
    rows: Sequence[Row]
    rounds: int
    calls: int
    clock: str
    elsewhere: Sequence[Row] = ()
    ceilings: Ceilings | None = None
    layer_products_s: Mapping[int, float] = field(default_factory=dict)
    stages_ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    reference: np.ndarray | None = None
    bars: Sequence[Bar] = ()

    def row(self, name: str) -> Row | None:
        """A row that has figures; None if it has none."""
        known = (*self.rows, *self.elsewhere)
        return next((row for row in known if row.name == name and row.ran), None)

    def times_as_fast(self, fast: str, slow: str) -> Ratio | None:
        """How many times as fast one row is as another; None without both."""
        first, second = self.row(fast), self.row(slow)
        return None if first is None or second is None else ratio(second, first, self.clock)

    def floor_s(self, name: str, fp8: bool = False) -> float | None:
        """Least time that a row could take at this run's ceilings."""
        if self.ceilings is None or name not in self.oft.lengths:
            return None
        linear = self.ceilings.fp8_flop_per_s if fp8 else None
        return self.oft.work(name).floor_s(
            self.ceilings.flop_per_s, self.ceilings.bytes_per_s, linear
        )

    def over_floor(self, name: str) -> float | None:
        """Median time over the floor."""
        row, floor_s = self.row(name), self.floor_s(name, "fp8" in name)
        if row is None or floor_s is None:
            return None
        return float(np.median(row.values(self.clock))) / floor_s

    def error(self, name: str) -> float | None:
        """Relative error of a row's actions against the reference."""
        if self.reference is None or self.row(name) is None:
            return None
        return relative_error(self.oft.answers[name], self.reference)

    def figures(self, row: Row) -> dict[str, object]:
        """Everything about one row, for JSON."""
        if not row.ran:
            return {"name": row.name, "not_run": row.why_not or "no round was completed"}
        values = row.values(self.clock)
        p50, p99 = (float(one) for one in np.quantile(values, [0.5, 0.99]))
        device = row.values("device_s")
        found: dict[str, object] = {
            "name": row.name,
            "p50_ms": p50 * 1e3,
            "p99_ms": p99 * 1e3,
            "least_ms": float(values.min()) * 1e3,
            "p99_over_p50": p99 / p50,
            "wall_p50_ms": float(np.median(row.values("wall_s"))) * 1e3,
            "cpu_p50_ms": float(np.median(row.values("cpu_s"))) * 1e3,
            "device_p50_ms": None if None in device else float(np.median(device)) * 1e3,
            "tokens_per_layer": self.oft.lengths.get(row.name),
            "relative_error": self.error(row.name),
            "over_floor": self.over_floor(row.name),
        }
        for base in row.bases:
            found[f"times as fast as {base}"] = _plain(self.times_as_fast(row.name, base))
        return found

    def print(self, console: Console, *, host: bool = True) -> None:
        """All tables, `host` first."""
        if host:
            told = (f"{name} {value}" for name, value in machine(self.oft.device).items())
            console.print(", ".join(told), markup=False)
        console.print(
            f"{self.rounds} rounds of {self.calls} calls, {CLOCKS[self.clock]}; "
            f"{self.oft.layout.length} tokens; {self._dtype}; x ROW: times as fast as that row, "
            "median and range of the rounds"
        )
        if self.ceilings is not None:
            self._print_ceilings(console, self.ceilings)
        for bases in dict.fromkeys(row.bases for row in self.rows):
            console.print(self._table(bases))
        for name, stages in self.stages_ms.items():
            parts = ", ".join(f"{stage} {value:.2f}" for stage, value in stages.items())
            console.print(f"stages of {name}, ms: {parts}", markup=False)
        for bar in self.bars:
            verdict = {True: "shown", False: "NOT SHOWN", None: "not measured"}[bar.holds]
            console.print(f"{verdict}: {bar.claim}: {bar.measured}", markup=False)

    def record(self) -> dict[str, object]:
        """Everything, for JSON."""
        return {
            "machine": machine(self.oft.device),
            "rounds": self.rounds,
            "calls": self.calls,
            "clock": self.clock,
            "dtype": self._dtype,
            "tokens": self.oft.layout.length,
            "ceilings": None if self.ceilings is None else asdict(self.ceilings),
            "layer_products_s": self.layer_products_s,
            "stages_ms": self.stages_ms,
            "rows": [self.figures(row) for row in self.rows],
            "bars": [asdict(bar) for bar in self.bars],
        }

    @property
    def _dtype(self) -> str:
        return str(self.oft.dtype).removeprefix("torch.")

    def _table(self, bases: tuple[str, ...]) -> Table:
        """The rows that are compared with the same ones."""
        table = Table(box=None, pad_edge=False)
        table.add_column("row")
        gpu = self.oft.device.type == "cuda"
        columns = ["p50 ms", "p99 ms", "least ms", "GPU ms" if gpu else "wall ms"]
        columns += [f"x {base}" for base in bases]
        columns += ["floor ms", "x floor"] if self.ceilings else []
        for column in (*columns, "error"):
            table.add_column(column, justify="right")
        for row in (row for row in self.rows if row.bases == bases):
            if not row.ran:
                table.add_row(row.name, f"not run: {row.why_not or 'no round was completed'}")
                continue
            told = self.figures(row)
            cells = [_number(told[key], 2) for key in ("p50_ms", "p99_ms", "least_ms")]
            cells.append(_number(told["device_p50_ms" if gpu else "wall_p50_ms"], 2))
            for base in bases:
                cells.append(str(self.times_as_fast(row.name, base) or ""))
            if self.ceilings:
                floor_s = self.floor_s(row.name, "fp8" in row.name)
                cells.append(_number(None if floor_s is None else floor_s * 1e3, 2))
                cells.append(_number(told["over_floor"], 2))
            error = told["relative_error"]
            cells.append("" if error is None else f"{error:.1e}")
            table.add_row(row.name, *cells)
        return table

    def _print_ceilings(self, console: Console, ceilings: Ceilings) -> None:
        fp8 = ceilings.fp8_flop_per_s
        console.print(
            f"ceilings: {ceilings.flop_per_s / 1e12:.4g} TFLOP/s, "
            f"fp8 {'—' if fp8 is None else f'{fp8 / 1e12:.4g} TFLOP/s'}, "
            f"copy {ceilings.bytes_per_s / 1e9:.4g} GB/s"
        )
        for problem in ceilings.problems:
            console.print(f"not measured: {problem}", markup=False)
        steps = [
            f"{tokens}: {seconds * 1e6:.0f}"
            for tokens, seconds in self.layer_products_s.items()
            if tokens % 64 == 0
        ]
        console.print(f"products of one LLM layer, tokens: µs: {', '.join(steps)}", markup=False)


def write(path: Path, record: Mapping[str, object]) -> None:
    """A record of one report or several, as JSON."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def at_least(claim: str, measured: Ratio | None, bar: float) -> Bar:
    """The median ratio reaches a bar."""
    if measured is None:
        return Bar(claim=f"{claim} ≥ {bar:g}", measured="a row did not run", holds=None)
    return Bar(claim=f"{claim} ≥ {bar:g}", measured=str(measured), holds=measured.median >= bar)


def at_most(claim: str, measured: float | None, bar: float, digits: str = ".3g") -> Bar:
    """A figure stays below a bar."""
    if measured is None:
        return Bar(claim=f"{claim} ≤ {bar:g}", measured="a row did not run", holds=None)
    return Bar(
        claim=f"{claim} ≤ {bar:g}", measured=format(measured, digits), holds=measured <= bar
    )


def same(claim: str, oft: Oft, first: str, second: str) -> Bar:
    """Two rows answer the very same numbers."""
    if first not in oft.answers or second not in oft.answers:
        return Bar(claim=claim, measured="a row did not run", holds=None)
    largest = float(np.abs(oft.answers[first] - oft.answers[second]).max())
    return Bar(claim=claim, measured=f"largest difference {largest:.3g}", holds=largest == 0.0)


def _number(value: object, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else ""


def _plain(value: Ratio | None) -> dict[str, float] | None:
    return None if value is None else asdict(value)
