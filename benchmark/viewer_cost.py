"""What the viewer costs the others: policy, control and simulation with it, without it, looked at.

    python benchmark/viewer_cost.py [--rounds 4] [--seconds 8] [--checkpoint DIR] [--json FILE]

Simulation, policy and controller run as processes, on loopback, all the time; the viewer comes
and goes. Rounds take turns between three states: no viewer; a viewer at which nobody looks; one
whose three overlays and markers somebody listens to. CPU seconds are per second of simulated time,
so that other work on the machine lengthens nothing; times are of the wall. What a viewer does for
nobody it does by real time, so its own cost is told per real second too. The spread between rounds
of the same state is the noise.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rclpy
from latency.rounds import cpu_name
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import Image, JointState
from visualization_msgs.msg import MarkerArray

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.conversions import stamp_from_msg
from vla_oft_ros.ros.processes import NodeProcesses, keep_on_loopback

STATES = ("no viewer", "viewer, nobody looks", "viewer, looked at")
NODES = ("sim_node", "policy_node", "controller_node")
VIEWER = "token_viewer_node"
SETTLE_S = 1.0
"""Simulated time after a viewer has come or gone, before anything counts."""
START_TIMEOUT_S = 600.0
SLOWEST = 0.01
"""Simulated per real time below which a window is given up."""


@dataclass(frozen=True)
class Window:
    """One stretch of one state.

    Attributes:
        state: One of `STATES`.
        simulated_s: Simulated time that passed.
        real_s: Real time that passed.
        inference_ms: Median time of an inference, as the policy says.
        period_ms: Median distance of two joint targets of the wall.
        period_p95_ms: Its 95th percentile.
        cpu: Node → CPU seconds per simulated second.
        overlays: Overlays that came, per simulated second.
    """

    state: str
    simulated_s: float
    real_s: float
    inference_ms: float
    period_ms: float
    period_p95_ms: float
    cpu: Mapping[str, float]
    overlays: float


class Ear:
    """Listens to what policy and controller send, and to the viewer on request."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("viewer_cost")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.stamps_ns: list[int] = []
        self.arrivals_s: list[float] = []
        self.inference_s: list[float] = []
        self.overlays = self.markers = 0
        self._watching: list = []
        deep = QoSProfile(depth=100)
        self.node.create_subscription(JointState, "joint_targets", self._on_targets, deep)
        self.node.create_subscription(messages.ActionChunk, "action_chunk", self._on_chunk, deep)

    def _on_targets(self, message: JointState) -> None:
        self.stamps_ns.append(stamp_from_msg(message.header.stamp))
        self.arrivals_s.append(time.monotonic())

    def _on_chunk(self, message: messages.ActionChunk) -> None:
        self.inference_s.append(message.inference_s)

    def _on_overlay(self, _: Image) -> None:
        self.overlays += 1

    def _on_markers(self, _: MarkerArray) -> None:
        self.markers += 1

    def look(self, wanted: bool) -> None:
        """Begins or ends to listen to the viewer."""
        for subscription in self._watching:
            self.node.destroy_subscription(subscription)
        make = self.node.create_subscription
        self._watching = (
            [
                *(make(Image, f"viewer/overlay/{c}", self._on_overlay, 2) for c in CAMERAS),
                make(MarkerArray, "viewer/markers", self._on_markers, 2),
            ]
            if wanted
            else []
        )

    def forget(self) -> None:
        """Begins to count anew."""
        self.stamps_ns, self.arrivals_s, self.inference_s = [], [], []
        self.overlays = self.markers = 0

    def until(
        self,
        done: Callable[[], bool],
        nodes: Sequence[NodeProcesses],
        what: str,
        patience_s: float = START_TIMEOUT_S,
    ) -> None:
        """Listens until something is so.

        Raises:
            SystemExit: if it does not happen, or a process ends.
        """
        limit_s = time.monotonic() + patience_s
        while not done():
            self.executor.spin_once(timeout_sec=0.05)
            for processes in nodes:
                for name, code in processes.ended().items():
                    raise SystemExit(f"{name} ended with {code}:\n{processes.log_tail(name)}")
            if time.monotonic() > limit_s:
                raise SystemExit(f"{what} did not come within {patience_s:g} s")

    def listen(self, seconds: float, nodes: Sequence[NodeProcesses]) -> None:
        """Listens anew, for some simulated time."""
        self.forget()

        def is_over() -> bool:
            return bool(self.stamps_ns) and self.stamps_ns[-1] - self.stamps_ns[0] >= seconds * 1e9

        self.until(is_over, nodes, f"{seconds:g} s of simulated time", seconds / SLOWEST)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5), stat: fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(ear: Ear, state: str, seconds: float, nodes: Sequence[NodeProcesses]) -> Window:
    """One window of a state that has settled."""
    pids = {name: pid for processes in nodes for name, pid in processes.pids().items()}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    ear.listen(seconds, nodes)
    spent = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    simulated_s = (ear.stamps_ns[-1] - ear.stamps_ns[0]) / 1e9
    periods_ms = 1e3 * np.diff(ear.arrivals_s)
    return Window(
        state=state,
        simulated_s=simulated_s,
        real_s=ear.arrivals_s[-1] - ear.arrivals_s[0],
        inference_ms=1e3 * float(np.median(ear.inference_s or [np.nan])),
        period_ms=float(np.median(periods_ms)),
        period_p95_ms=float(np.quantile(periods_ms, 0.95)),
        cpu={name: value / simulated_s for name, value in spent.items()},
        overlays=ear.overlays / simulated_s,
    )


def rounds(
    ear: Ear, arguments: argparse.Namespace, nodes: NodeProcesses, log_dir: Path
) -> list[Window]:
    """All windows: in each round every state once, its order turned by one each time."""
    windows = []
    for number in range(arguments.rounds):
        turn = number % len(STATES)
        for state in STATES[turn:] + STATES[:turn]:
            with NodeProcesses(config_dir(), log_dir, os.environ) as viewer:
                if state != STATES[0]:
                    simulated = {"use_sim_time": True, "exit_with_parent": True}
                    viewer.start(VIEWER, "token_viewer.yaml", simulated)
                    ear.look(True)  # to know when it is there
                    ear.forget()
                    ear.until(lambda: ear.markers > 0, (nodes, viewer), "a marker")
                    ear.look(state == STATES[2])
                ear.listen(SETTLE_S, (nodes, viewer))
                windows.append(measure(ear, state, arguments.seconds, (nodes, viewer)))
                ear.look(False)
    return windows


def summary(windows: Sequence[Window]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """State → figure → median, lowest and highest of its windows."""
    told: dict[str, dict[str, tuple[float, float, float]]] = {}
    for state in STATES:
        mine = [window for window in windows if window.state == state]
        columns: dict[str, list[float]] = {
            "inference, ms": [window.inference_ms for window in mine],
            "control period, ms": [window.period_ms for window in mine],
            "control period p95, ms": [window.period_p95_ms for window in mine],
            "simulated per real time": [window.simulated_s / window.real_s for window in mine],
            "overlays per second": [window.overlays for window in mine],
        }
        for name in (*NODES, VIEWER):
            columns[f"CPU of {name}"] = [window.cpu.get(name, 0.0) for window in mine]
        columns["CPU of the viewer per real s"] = [
            window.cpu.get(VIEWER, 0.0) * window.simulated_s / window.real_s for window in mine
        ]
        told[state] = {
            name: (float(np.median(values)), min(values), max(values))
            for name, values in columns.items()
        }
    return told


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="windows of each state")
    parser.add_argument("--seconds", type=float, default=8.0, help="simulated time of a window")
    parser.add_argument("--checkpoint", type=Path, help="policy (default: small, random)")
    parser.add_argument("--device", default="auto", help="torch device of the policy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    keep_on_loopback(os.environ, config_dir())
    with tempfile.TemporaryDirectory(prefix="viewer_cost_") as folder:
        log_dir = Path(folder)
        os.environ["ROS_LOG_DIR"] = folder
        if arguments.checkpoint is None:
            from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

            arguments.checkpoint = log_dir / "random_checkpoint"
            make_random_checkpoint(arguments.checkpoint)
        rclpy.init()
        ear = Ear()
        try:
            with NodeProcesses(config_dir(), log_dir, os.environ) as nodes:
                start(nodes, arguments)
                ear.until(lambda: len(ear.inference_s) > 2, (nodes,), "a chunk")
                windows = rounds(ear, arguments, nodes, log_dir)
        finally:
            ear.executor.shutdown()
            ear.node.destroy_node()
            rclpy.try_shutdown()
    report(windows, arguments.json)


def start(nodes: NodeProcesses, arguments: argparse.Namespace) -> None:
    """Simulation, policy, controller."""
    simulated = {"use_sim_time": True, "exit_with_parent": True}
    nodes.start("sim_node", "sim.yaml", {"exit_with_parent": True})
    policy = {
        "instruction": "transfer the cube from the right gripper to the left gripper",
        "policy.checkpoint_dir": str(arguments.checkpoint),
        "policy.device": arguments.device,
        "policy.threads": 1,
    }
    nodes.start("policy_node", "policy.yaml", {**simulated, **policy})
    nodes.start("controller_node", "controller.yaml", simulated)


def report(windows: Sequence[Window], path: Path | None) -> None:
    """Prints the table and writes the file."""
    told = summary(windows)
    table = Table(title="median (lowest … highest window); CPU: s per simulated s")
    table.add_column("")
    for state in STATES:
        table.add_column(state, justify="right")
    for name in told[STATES[0]]:
        cells = [told[state][name] for state in STATES]
        table.add_row(name, *(f"{a:.3g} ({b:.3g} … {c:.3g})" for a, b, c in cells))
    console = Console(highlight=False, width=130)
    console.print(table)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} cores of {cpu_name()}, load average {load}")
    if path:
        record = {
            "summary": told,
            "windows": [asdict(window) for window in windows],
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
        }
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
