"""What each join policy makes of late and biased chunks: pauses, jumps, jerk and staleness.

    python benchmark/chunk_joins.py [--json FILE] [--seconds S] [--bias RAD] [--noise RAD]

Needs no robot, network or ROS. A synthetic policy predicts a smooth reference motion, off by a
constant per chunk and joint (and by noise, if asked for); it answers one latency after its
observation. The real queue joins the chunks at 25 Hz. `sync` asks when it has run dry, as the
paper's client does; all others ask every `--stride` steps. Time is simulated, so the figures are
exact and the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_oft_ros.aloha import ACTION_DIM, GRIPPERS
from vla_oft_ros.chunk_queue import ActionChunkQueue
from vla_oft_ros.chunk_report import JoinReport
from vla_oft_ros.config import ChunkQueueConfig
from vla_oft_ros.types import ActionChunk

DT_NS = 40_000_000
CHUNK_LEN = 25
JOINS = ("latency_matched_blend", "sync", "append", "replace", "temporal_ensemble")
LATENCIES_MS = (0, 28, 100, 200, 321, 400)
"""28 and 321 ms: a fast engine, and the paper's three-camera figure; 400 ms is the worst asked."""
_NEAR_JOIN_TICKS = 3
_FREQUENCIES_HZ = (0.11, 0.23, 0.41)
"""Of the reference motion: a reach of several seconds with corrections of about two."""
_AMPLITUDE_RAD = 0.25


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One synthetic world.

    Attributes:
        seconds: Simulated time.
        stride: Steps from one observation to the next, for all joins but `sync`.
        bias_rad: Standard deviation of what a whole chunk is off by, per joint.
        noise_rad: Standard deviation of what a single row is off by, per joint.
        seed: Of bias, noise and the phases of the motion.
    """

    seconds: float = 120.0
    stride: int = 15
    bias_rad: float = 0.01
    noise_rad: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One row of the table; jerk is the third difference of the targets, over arm joints.

    Attributes:
        join: Join policy.
        latency_ms: From observation to arrival.
        joins: Chunks that followed another one.
        idle_share: Ticks without an action, of all since the first action.
        seam_jump_mrad: Median of the largest difference at a join, before any blending.
        step_jump_mrad: Largest change of a target's step from one tick to the next.
        jerk_rad_s3: RMS jerk.
        jerk_ratio: RMS jerk within three ticks of joins over RMS jerk elsewhere.
        staleness_ms: Median age of the observation behind an action.
        staleness_p99_ms: The same, 99th percentile.
        error_mrad: RMS difference of the targets to the reference.
    """

    join: str
    latency_ms: int
    joins: int
    idle_share: float
    seam_jump_mrad: float
    step_jump_mrad: float
    jerk_rad_s3: float
    jerk_ratio: float
    staleness_ms: float
    staleness_p99_ms: float
    error_mrad: float


class SyntheticPolicy:
    """Predicts the reference from what was executed, with an error of its own per chunk."""

    def __init__(self, setting: Setting) -> None:
        self._generator = np.random.default_rng(setting.seed)
        self._setting = setting
        self._phases = self._generator.uniform(0, 2 * np.pi, (len(_FREQUENCIES_HZ), ACTION_DIM))

    def reference(self, progress: np.ndarray) -> np.ndarray:
        """(n, 14) reference after `progress` (n,) executed steps."""
        angle = 2 * np.pi * np.array(_FREQUENCIES_HZ)[:, None, None] * DT_NS * 1e-9
        waves = np.sin(angle * progress[None, :, None] + self._phases[:, None, :])  # (f, n, A)
        motion = _AMPLITUDE_RAD * waves.mean(axis=0)  # (n, A)
        motion[:, GRIPPERS] = 0.5
        return np.asarray(motion)

    def infer(self, progress: int, stamp_ns: int) -> ActionChunk:
        """Chunk from an observation made after `progress` executed steps."""
        rows = self.reference(progress + np.arange(CHUNK_LEN))
        rows += self._generator.normal(0.0, self._setting.bias_rad, ACTION_DIM)
        rows += self._generator.normal(0.0, self._setting.noise_rad, rows.shape)
        return ActionChunk(
            actions=rows, stamp_ns=stamp_ns, dt_ns=DT_NS, instruction="", inference_s=0.0
        )


def config_of(join: str, setting: Setting) -> ChunkQueueConfig:
    """Defaults, but `append` plays as many rows as pass between two observations."""
    return ChunkQueueConfig(join=join, play_steps=setting.stride if join == "append" else 0)


def simulate(config: ChunkQueueConfig, latency_ms: int, setting: Setting) -> Figures:
    """Runs one join policy at one latency."""
    policy, queue = SyntheticPolicy(setting), ActionChunkQueue(config, DT_NS)
    waits = config.join == "sync"
    answer: tuple[int, ActionChunk] | None = None
    reports: list[JoinReport] = []
    told: list[np.ndarray] = []
    ages_s: list[float] = []
    progress: list[int] = []  # executed steps before each tick
    joined_at: list[int] = []
    executed, idle, next_request = 0, 0, 0
    for tick in range(int(setting.seconds / (DT_NS * 1e-9))):
        now_ns = tick * DT_NS
        # Observations are made at ticks, before the action; sync asks once it has run dry.
        asks = queue.remaining(now_ns) == 0 if waits else tick >= next_request
        if answer is None and asks:
            answer = (now_ns + latency_ms * 1_000_000, policy.infer(executed, now_ns))
            next_request = tick + setting.stride
        if answer is not None and answer[0] <= now_ns:
            reports.append(queue.put(answer[1], now_ns))
            answer = None
        action, age_s = queue.next_action(now_ns), queue.age_s(now_ns)
        if action is None:
            if told:
                idle += 1
                told.append(told[-1])
                progress.append(executed - 1)
            continue
        if ages_s and age_s is not None and age_s < ages_s[-1] + 0.5 * DT_NS * 1e-9:
            joined_at.append(len(told))  # the observation behind the action has changed
        ages_s.append(ages_s[-1] + DT_NS * 1e-9 if age_s is None else age_s)
        told.append(action)
        progress.append(executed)
        executed += 1
    targets = np.array(told)
    arm = [joint for joint in range(ACTION_DIM) if joint not in GRIPPERS]
    jerk = np.diff(targets[:, arm], n=3, axis=0)  # row i: ticks i … i + 3
    near = np.zeros(len(jerk), dtype=bool)
    for join in joined_at:
        near[max(0, join - 1 - _NEAR_JOIN_TICKS) : max(0, join - 1 + _NEAR_JOIN_TICKS)] = True
    rms = [math.sqrt(float(np.mean(part**2))) for part in (jerk[near], jerk[~near])]
    later = [report for report in reports if not report.first]
    error = targets[:, arm] - policy.reference(np.array(progress))[:, arm]
    return Figures(
        join=config.join,
        latency_ms=latency_ms,
        joins=len(later),
        idle_share=idle / len(targets),
        seam_jump_mrad=1e3 * float(np.median([report.seam_jump_rad for report in later])),
        step_jump_mrad=1e3 * float(np.abs(np.diff(targets[:, arm], n=2, axis=0)).max()),
        jerk_rad_s3=math.sqrt(float(np.mean(jerk**2))) / (DT_NS * 1e-9) ** 3,
        jerk_ratio=rms[0] / rms[1],
        staleness_ms=1e3 * float(np.percentile(ages_s, 50)),
        staleness_p99_ms=1e3 * float(np.percentile(ages_s, 99)),
        error_mrad=1e3 * math.sqrt(float(np.mean(error**2))),
    )


def main() -> None:
    """Prints the table and writes it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write settings and figures to this file")
    parser.add_argument("--seconds", type=float, default=Setting.seconds)
    parser.add_argument("--stride", type=int, default=Setting.stride)
    parser.add_argument("--bias", type=float, default=Setting.bias_rad, help="rad")
    parser.add_argument("--noise", type=float, default=Setting.noise_rad, help="rad")
    args = parser.parse_args()
    setting = Setting(
        seconds=args.seconds, stride=args.stride, bias_rad=args.bias, noise_rad=args.noise
    )
    figures = [
        simulate(config_of(join, setting), latency_ms, setting)
        for join in JOINS
        for latency_ms in LATENCIES_MS
    ]
    table = Table(
        title=f"{setting.seconds:g} s, stride {setting.stride} of {CHUNK_LEN}, bias "
        f"{1e3 * setting.bias_rad:g} mrad, noise {1e3 * setting.noise_rad:g} mrad"
    )
    table.add_column("join", no_wrap=True)
    for title in (
        "latency ms",
        "idle ticks",
        "seam mrad",
        "step mrad",
        "jerk rad/s³",
        "jerk ratio",
        "age p50 ms",
        "age p99 ms",
        "error mrad",
    ):
        table.add_column(title, justify="right")
    for row in figures:
        table.add_row(
            row.join,
            f"{row.latency_ms}",
            f"{100 * row.idle_share:.1f} %",
            f"{row.seam_jump_mrad:.1f}",
            f"{row.step_jump_mrad:.1f}",
            f"{row.jerk_rad_s3:.1f}",
            f"{row.jerk_ratio:.2f}",
            f"{row.staleness_ms:.0f}",
            f"{row.staleness_p99_ms:.0f}",
            f"{row.error_mrad:.1f}",
            end_section=row.latency_ms == LATENCIES_MS[-1],
        )
    Console(width=120).print(table)
    if args.json:
        content = {"setting": asdict(setting), "figures": [asdict(row) for row in figures]}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
