"""How long a camera image takes to become a joint target, span by span, over the running nodes.

    python benchmark/end_to_end.py [--seconds 30] [--chunks N] [--checkpoint DIR] [--device auto]
                                   [--json FILE]
    python benchmark/end_to_end.py --attach --seconds 60

Starts simulation, policy and controller as processes, on loopback, with a small random policy if
no checkpoint is given; `--attach` starts nothing and listens to a robot that runs. The nodes say
on `chunk_trace` when each chunk was where, by the system's clock, which all machines must share. A
simulated camera's stamp is counted from when the middleware sent that instant on /clock: rendering
is then part of the first span, as exposure and read-out are of a real camera's. Spans of one chunk
add up to its total exactly; even and odd chunks apart (A/A) show the noise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from latency.rounds import cpu_name
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rich.console import Console
from rich.table import Table
from rosgraph_msgs.msg import Clock

from vla_oft_ros.config import config_dir
from vla_oft_ros.ros import chunk_trace
from vla_oft_ros.ros.chunk_trace import COMPUTED, OBSERVED, PREPROCESSED, PUBLISHED, QUEUED
from vla_oft_ros.ros.conversions import stamp_from_msg
from vla_oft_ros.ros.processes import NodeProcesses, keep_on_loopback

CAPTURED, RECEIVED = "camera stamp", "received"
INSTANTS = (CAPTURED, RECEIVED, OBSERVED, PREPROCESSED, COMPUTED, QUEUED, PUBLISHED)
"""In order; a span lies between two neighbours. The oldest image counts as captured, the last one
that came as received."""
WARM_UP = 2
"""First chunks that do not count: they fill caches."""
START_TIMEOUT_S = 180.0
SMALL_INSTRUCTION = "pick up the cube"


def journey(
    instants: Mapping[str, int], to_system: Callable[[int], int | None]
) -> dict[str, int] | None:
    """One chunk's `INSTANTS`, nanoseconds of the system's clock.

    Args:
        instants: Of both nodes, see `chunk_trace`.
        to_system: Stamp of the nodes' clock → system's clock; None where it is not known.

    Returns:
        None if something is missing.
    """
    stamps, arrivals = (
        [value for name, value in instants.items() if name.startswith(prefix)]
        for prefix in (chunk_trace.STAMP, chunk_trace.RECEIVED)
    )
    captured = [to_system(stamp) for stamp in stamps]
    if not captured or None in captured or any(name not in instants for name in INSTANTS[2:]):
        return None
    given = {CAPTURED: min(captured), RECEIVED: max(arrivals), **instants}
    return {name: given[name] for name in INSTANTS}


def spans(one: Mapping[str, int]) -> dict[str, float]:
    """Span → milliseconds of one journey, and the total."""
    found = {
        f"{first} → {second}": (one[second] - one[first]) / 1e6
        for first, second in pairwise(INSTANTS)
    }
    return {**found, "total": (one[INSTANTS[-1]] - one[INSTANTS[0]]) / 1e6}


class Traces:
    """What was heard of chunks and of simulated time."""

    def __init__(self) -> None:
        self._chunks: dict[int, dict[str, int]] = {}
        self._sent_ns: dict[int, int] = {}

    def add_chunk(self, stamp_ns: int, instants: Mapping[str, int]) -> None:
        """What one node says of the chunk with this stamp; the other says the rest."""
        self._chunks.setdefault(stamp_ns, {}).update(instants)

    def add_clock(self, simulated_ns: int, sent_ns: int) -> None:
        """When, by the system's clock, an instant of simulated time was told."""
        self._sent_ns[simulated_ns] = sent_ns

    def _to_system(self, stamp_ns: int) -> int | None:
        return self._sent_ns.get(stamp_ns) if self._sent_ns else stamp_ns

    @property
    def heard(self) -> int:
        """Chunks of which anything was heard."""
        return len(self._chunks)

    @property
    def real_time_factor(self) -> float | None:
        """Simulated per real time; None without simulated time."""
        if len(self._sent_ns) < 2:
            return None
        first, last = min(self._sent_ns), max(self._sent_ns)
        return (last - first) / (self._sent_ns[last] - self._sent_ns[first])

    def journeys(self) -> dict[int, dict[str, int]]:
        """Stamp of the chunk → its journey: all complete ones but the first few, in order."""
        found = {
            stamp: journey(self._chunks[stamp], self._to_system)
            for stamp in sorted(self._chunks)[WARM_UP:]
        }
        return {stamp: one for stamp, one in found.items() if one is not None}

    def published(self) -> list[int]:
        """Stamps of the chunks that led to targets, from the first to the last journey."""
        stamps = list(self.journeys())
        return [
            stamp
            for stamp in sorted(self._chunks)
            if stamps and stamps[0] <= stamp <= stamps[-1] and PUBLISHED in self._chunks[stamp]
        ]


class Ear:
    """Listens to traces and to simulated time.

    Attributes:
        node: That listens.
        traces: What it heard.
    """

    def __init__(self) -> None:
        self.node = rclpy.create_node("end_to_end")
        self.traces = Traces()
        self.node.create_subscription(
            DiagnosticArray, chunk_trace.TOPIC, self._on_trace, QoSProfile(depth=100)
        )
        self.node.create_subscription(Clock, "/clock", self._on_clock, QoSProfile(depth=1000))

    def _on_trace(self, message: DiagnosticArray) -> None:
        self.traces.add_chunk(*chunk_trace.trace_from_msg(message))

    def _on_clock(self, message: Clock, info: dict) -> None:
        self.traces.add_clock(stamp_from_msg(message.clock), info["source_timestamp"])


def listen(ear: Ear, nodes: NodeProcesses, *, seconds: float, chunks: int) -> None:
    """Waits for the warm-up, then for some seconds of chunks or some chunks.

    Args:
        ear: Listens.
        nodes: What was started.
        seconds: Of real time, at most.
        chunks: Complete journeys after which it is enough; 0 waits for the time.

    Raises:
        SystemExit: if no chunk comes, or a process ends.
    """
    executor = SingleThreadedExecutor()
    executor.add_node(ear.node)
    limit_s, end_s = time.monotonic() + START_TIMEOUT_S, None
    while end_s is None or time.monotonic() < end_s:
        executor.spin_once(timeout_sec=0.1)
        for name, code in nodes.ended().items():
            raise SystemExit(f"{name} ended with {code}; it said\n{nodes.log_tail(name)}")
        if chunks and len(ear.traces.journeys()) >= chunks:
            break
        if end_s is None and ear.traces.heard > WARM_UP:
            end_s = time.monotonic() + seconds
        if end_s is None and time.monotonic() > limit_s:
            raise SystemExit(f"no chunk within {START_TIMEOUT_S:g} s")
    executor.shutdown()


def start(nodes: NodeProcesses, arguments: argparse.Namespace, log_dir: Path) -> None:
    """Simulation, policy, controller."""
    checkpoint = arguments.checkpoint
    if checkpoint is None:
        from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

        checkpoint = log_dir / "random_checkpoint"
        make_random_checkpoint(checkpoint)
    simulated = {"use_sim_time": True, "exit_with_parent": True}
    nodes.start("sim_node", "sim.yaml", {"exit_with_parent": True})
    policy = {
        "instruction": arguments.instruction,
        "policy.checkpoint_dir": str(checkpoint),
        "policy.device": arguments.device,
        "policy.threads": arguments.threads,
    }
    nodes.start("policy_node", "policy.yaml", {**simulated, **policy})
    nodes.start("controller_node", "controller.yaml", simulated)


def summary(journeys: Sequence[Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """Span → p50, p95, p99, max and the medians of even and odd chunks, milliseconds."""
    columns: dict[str, list[float]] = {}
    for one in journeys:
        for name, value in spans(one).items():
            columns.setdefault(name, []).append(value)
    rows = {}
    for name, values in columns.items():
        quantiles = np.quantile(values, [0.5, 0.95, 0.99, 1.0])
        rows[name] = dict(zip(("p50", "p95", "p99", "max"), map(float, quantiles), strict=True))
        rows[name] |= {
            "p50_even": float(np.median(values[::2])),
            "p50_odd": float(np.median(values[1::2] or values)),
        }
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="real time to listen")
    parser.add_argument("--chunks", type=int, default=0, help="enough of them (default: any)")
    parser.add_argument("--attach", action="store_true", help="start nothing; listen only")
    parser.add_argument("--checkpoint", type=Path, help="policy (default: small, random)")
    parser.add_argument("--instruction", default=SMALL_INSTRUCTION)
    parser.add_argument("--device", default="auto", help="torch device of the policy")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the policy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    if not arguments.attach:
        keep_on_loopback(os.environ, config_dir())
    with tempfile.TemporaryDirectory(prefix="end_to_end_") as folder:
        log_dir = Path(folder)
        os.environ["ROS_LOG_DIR"] = folder
        rclpy.init()
        ear = Ear()
        try:
            with NodeProcesses(config_dir(), log_dir, os.environ) as nodes:
                if not arguments.attach:
                    start(nodes, arguments, log_dir)
                listen(ear, nodes, seconds=arguments.seconds, chunks=arguments.chunks)
        finally:
            ear.node.destroy_node()
            rclpy.try_shutdown()
    report(ear.traces, arguments)


def report(traces: Traces, arguments: argparse.Namespace) -> None:
    """Prints the table and writes the file."""
    journeys = list(traces.journeys().values())
    if not journeys:
        sys.exit(f"of {traces.heard} chunks none was traced by both nodes to its first target")
    rows = summary(journeys)
    factor = traces.real_time_factor
    title = f"{len(journeys)} chunks"
    if factor is not None:
        title += f", simulated per real time {factor:.2f}"
    table = Table(title=title)
    table.add_column("span, ms")
    for column in ("p50", "p95", "p99", "max", "p50 even / odd"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        cells = [f"{row[key]:.1f}" for key in ("p50", "p95", "p99", "max")]
        table.add_row(name, *cells, f"{row['p50_even']:.1f} / {row['p50_odd']:.1f}")
    console = Console(highlight=False)
    console.print(table)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} cores of {cpu_name()}, load average {load}")
    if arguments.json:
        record = {
            "chunks": len(journeys),
            "published": len(traces.published()),
            "journeys_ns": journeys,
            "real_time_factor": factor,
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
            "spans_ms": rows,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
