"""How fast the simulated ALOHA is: physics alone, three cameras, and both together at 25 Hz.

    python benchmark/sim_rendering.py [--json FILE] [--seconds S]

Each row runs a scripted demonstration, restarted as often as needed, so that contacts and views
are those of real use. Rounds of all rows are interleaved, so that a busy machine hits them alike;
the first row is measured twice under two names, and what differs between these two is noise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_oft_ros.aloha import ARMS, load_profile
from vla_oft_ros.sim.aloha_world import TIMESTEP_NS, AlohaWorld
from vla_oft_ros.sim.demonstrator import SCRIPTS, Demonstrator
from vla_oft_ros.sim.rendering import choose_backend

ROWS = (
    ("640x480", 640, 480),
    ("640x480 (A/A)", 640, 480),
    ("224x224", 224, 224),
)
ROUND_STEPS = 25
"""Control steps that one row runs before the next row has its turn: a second of simulated time."""


@dataclass(frozen=True)
class Figures:
    """What was measured in one row; times are medians over control steps, wall time.

    Attributes:
        physics_ms_per_step: One physics step of 2 ms.
        render_ms: All three cameras.
        render_p95_ms: The same, 95th percentile.
        control_step_ms: Targets, physics, joint states twice, three images and reward.
        control_step_p95_ms: The same, 95th percentile.
        steps_per_s: Control steps per second, from the total wall time.
        real_time_factor: Simulated time per wall time, from the total wall time.
        cpu_cores: CPU time per wall time, all threads.
    """

    name: str
    steps: int
    physics_ms_per_step: float
    render_ms: float
    render_p95_ms: float
    control_step_ms: float
    control_step_p95_ms: float
    steps_per_s: float
    real_time_factor: float
    cpu_cores: float


class Row:
    """One size of images, stepping through demonstrations and keeping the times of each step."""

    def __init__(self, name: str, width_px: int, height_px: int) -> None:
        gripper = load_profile("sim").gripper
        self.name = name
        self.world = AlohaWorld(gripper, width_px=width_px, height_px=height_px)
        self.plan = Demonstrator(self.world.model, SCRIPTS["transfer_cube"]).plan(
            self.world.cube_pose("red_box")
        )
        self.start = self.world.state()
        self.step = 0
        self.times_s: list[tuple[float, float, float]] = []  # physics, images, whole control step
        self.cpu_s = 0.0
        self.world.images()  # the first ones compile shaders

    def run_round(self) -> None:
        """Runs `ROUND_STEPS` control steps, as `sim_node` does them."""
        half_ns = self.world.control_period_ns // 2
        cpu_s = time.process_time()
        for _ in range(ROUND_STEPS):
            if self.step == len(self.plan):
                self.world.restore(self.start)
                self.step = 0
            begin_s = time.perf_counter()
            self.world.set_targets(self.plan[self.step])
            physics_s = 0.0
            for _ in range(2):
                before_s = time.perf_counter()
                self.world.advance(half_ns)
                physics_s += time.perf_counter() - before_s
                for arm in ARMS:
                    self.world.joint_state(arm)
            before_s = time.perf_counter()
            self.world.images()
            images_s = time.perf_counter() - before_s
            self.world.reward()
            self.times_s.append((physics_s, images_s, time.perf_counter() - begin_s))
            self.step += 1
        self.cpu_s += time.process_time() - cpu_s

    def figures(self) -> Figures:
        """The figures of all rounds so far."""
        physics_ms, images_ms, step_ms = np.array(self.times_s).T * 1e3
        wall_s = step_ms.sum() / 1e3
        period_s = self.world.control_period_ns * 1e-9
        return Figures(
            name=self.name,
            steps=len(self.times_s),
            physics_ms_per_step=float(np.median(physics_ms))
            * TIMESTEP_NS
            / self.world.control_period_ns,
            render_ms=float(np.median(images_ms)),
            render_p95_ms=float(np.percentile(images_ms, 95)),
            control_step_ms=float(np.median(step_ms)),
            control_step_p95_ms=float(np.percentile(step_ms, 95)),
            steps_per_s=len(step_ms) / wall_s,
            real_time_factor=len(step_ms) * period_s / wall_s,
            cpu_cores=self.cpu_s / wall_s,
        )


def main() -> None:
    """Measures, shows a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="simulated time per row (default 30)"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()

    measured = [Row(*row) for row in ROWS]
    for _ in range(max(1, round(arguments.seconds * 25 / ROUND_STEPS))):
        for entry in measured:
            entry.run_round()
    figures = [entry.figures() for entry in measured]
    for entry in measured:
        entry.world.close()
    machine = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "mujoco": version("mujoco"),
        "opengl": choose_backend(),
        "load_average_1min": os.getloadavg()[0],
    }

    table = Table(title="Simulated ALOHA: 3 cameras, 25 Hz control, 2 ms physics; ms: median, p95")
    for heading in ("images", "physics", "3 cameras", "control step", "steps/s", "RTF", "cores"):
        table.add_column(heading, justify="left" if heading == "images" else "right")
    for row in figures:
        table.add_row(
            row.name,
            f"{row.physics_ms_per_step:.3f}",
            f"{row.render_ms:.1f}, {row.render_p95_ms:.1f}",
            f"{row.control_step_ms:.1f}, {row.control_step_p95_ms:.1f}",
            f"{row.steps_per_s:.1f}",
            f"{row.real_time_factor:.2f}",
            f"{row.cpu_cores:.2f}",
        )
    console = Console()
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if arguments.json:
        report = {"machine": machine, "rows": [asdict(row) for row in figures]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
