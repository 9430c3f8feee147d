"""The demo: sim, policy and controller as processes, watched from outside like a robot would be,
and judged.

Everything shown is counted from the messages on the wire, nothing is asked of the nodes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vla_oft_ros.config import ConfigError, SimConfig, load_node_config
from vla_oft_ros.config import config_dir as shipped_config_dir
from vla_oft_ros.ros.demo_attempts import DemoAttempts
from vla_oft_ros.ros.demo_monitor import DemoMonitor, Figures
from vla_oft_ros.ros.demo_recording import DemoRecording, recording_dir
from vla_oft_ros.ros.processes import NodeProcesses, keep_on_loopback
from vla_oft_ros.shipped_policies import PREFIX, checkpoint_path
from vla_oft_ros.sim.tasks import load_task

RANDOM = "random"
"""Names a small random policy in place of a checkpoint."""

_START_TIMEOUT_S = 180.0
_LONGEST_S = 86400.0
_SLOWEST_REAL_TIME_FACTOR = 0.05
_PLAIN_LINE_EVERY_S = 2.0
_WAITING_LINE_EVERY_S = 10.0
_REFRESH_PER_S = 5.0

START_GRIPPER = 0.1
"""Opening of the grippers when the simulation, and so every demonstration in it, begins."""
MIN_TARGET_SHARE = 745 / 750
"""Share of the control ticks that must have had a target."""
MIN_CAMERA_HZ = 24.0
MIN_ARM_MOTION_RAD = 0.02
"""Range that some joint of each arm must have covered in the physics."""


class DemoFailed(RuntimeError):
    """The demo could not run to its end; says which process ended and what it said."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the demo shall do.

    Attributes:
        seconds: Simulated time to watch, s.
        checkpoint: Directory of a checkpoint, `shipped:<name>`, or `random`, which makes a small
            one.
        instruction: What the robot shall do; empty is what the simulated task asks for.
        device: Torch device of the policy.
        seed: Seed of the objects' poses and of a random checkpoint.
        output_dir: Folder for figures, pictures and logs.
        config_dir: Folder of the YAML files; None is the shipped one.
        record_dir: Folder to keep a bag of the run in; None keeps none.
    """

    seconds: float
    checkpoint: str
    instruction: str
    device: str
    seed: int
    output_dir: Path
    config_dir: Path | None
    record_dir: Path | None = None


def run_demo(options: DemoOptions, console: Console) -> int:
    """Runs the demo and writes its results.

    Returns:
        0 if it went well, 1 if it ran but something is wrong with what was seen.

    Raises:
        ConfigError: for options that cannot be met.
    """
    if not 1.0 <= options.seconds <= _LONGEST_S:
        raise ConfigError(f"--seconds: expected 1 to {_LONGEST_S:g}; got {options.seconds:g}")
    if options.checkpoint != RANDOM and not checkpoint_path(options.checkpoint).is_dir():
        raise ConfigError(
            f"--checkpoint: expected a local checkpoint directory, {PREFIX}<name> or {RANDOM}; "
            f"there is no directory {options.checkpoint}. Nothing is downloaded here; for a model "
            "of Hugging Face: hf download NAME --local-dir DIR"
        )
    config_dir = (options.config_dir or shipped_config_dir()).resolve()
    needed = ["policy.yaml", "controller.yaml", "sim.yaml", "fastdds_loopback.xml"]
    record_dir = None if options.record_dir is None else recording_dir(options.record_dir)
    for name in [*needed, *(["recorder.yaml"] if record_dir else [])]:
        if not (config_dir / name).is_file():
            raise ConfigError(f"{config_dir}: expected the file {name}; give another --config-dir")
    output_dir = options.output_dir.resolve()
    log_dir = output_dir / "log"
    log_dir.mkdir(parents=True, exist_ok=True)
    sim = load_node_config(SimConfig, config_dir / "sim.yaml", "sim_node")
    task = load_task(sim.task)
    options = replace(options, instruction=options.instruction or next(iter(task.instructions)))
    checkpoint_dir = _checkpoint(options, output_dir, console)

    keep_on_loopback(os.environ, config_dir)
    os.environ["ROS_LOG_DIR"] = str(log_dir)
    rclpy.init()
    monitor = DemoMonitor(options.seconds, output_dir / "cameras.mp4")
    executor = SingleThreadedExecutor()
    executor.add_node(monitor)
    recording = DemoRecording(monitor, record_dir) if record_dir else None
    attempts = DemoAttempts(monitor, task)
    monitor.on_reward = attempts.on_reward
    try:
        with NodeProcesses(config_dir, log_dir, os.environ) as nodes:
            _start(nodes, options, checkpoint_dir)
            if recording:
                recording.start(nodes, options.instruction, config_dir)
            _watch(nodes, monitor, executor, console, options.seconds, attempts, recording)
            codes = nodes.stop()
    except DemoFailed as failure:
        console.print(f"[bold red]the demo failed:[/] {escape(str(failure))}", soft_wrap=True)
        return 1
    finally:
        executor.remove_node(monitor)
        monitor.close()
        monitor.destroy_node()
        rclpy.try_shutdown()
    figures = monitor.figures()
    problems = judge(figures)
    if options.checkpoint.startswith(PREFIX) and attempts.finished and not attempts.successes:
        problems.append(f"the task was not done in {len(attempts.finished)} attempts")
    problems += [
        f"{name} ended with exit code {code}" for name, code in codes.items() if code != 0
    ]
    if recording and recording.problem:
        problems.append(f"nothing was recorded: {recording.problem}")
    _report(figures, attempts, problems, options, output_dir, monitor, console)
    return 1 if problems else 0


def judge(figures: Figures) -> list[str]:
    """What is wrong with what was seen; empty if all is well."""
    problems = []
    if figures.targets < MIN_TARGET_SHARE * figures.ticks:
        problems.append(
            f"{figures.targets} joint targets for {figures.ticks} ticks of simulated time"
        )
    for camera, rate_hz in figures.camera_hz.items():
        if not rate_hz >= MIN_CAMERA_HZ:
            problems.append(f"{camera}: {rate_hz:.1f} Hz, expected at least {MIN_CAMERA_HZ:g}")
    for arm, motion_rad in figures.arm_motion_rad.items():
        if not motion_rad >= MIN_ARM_MOTION_RAD:
            problems.append(
                f"the {arm} arm moved {motion_rad:.4f} rad, expected at least "
                f"{MIN_ARM_MOTION_RAD:g}"
            )
    return problems


def _checkpoint(options: DemoOptions, output_dir: Path, console: Console) -> Path:
    if options.checkpoint != RANDOM:
        return checkpoint_path(options.checkpoint).resolve()
    directory = output_dir / f"random_checkpoint_{options.seed}"
    if not (directory / "config.json").is_file():
        from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

        console.print(f"Making a small random OFT+ policy in {escape(str(directory))}")
        # Under its name only when it is whole: the next demo takes it as it finds it.
        partial = directory.with_name(f"{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make_random_checkpoint(partial, seed=options.seed)
        partial.replace(directory)
    return directory


def _start(nodes: NodeProcesses, options: DemoOptions, checkpoint_dir: Path) -> None:
    simulated = {"use_sim_time": True, "exit_with_parent": True}
    # Policy and recorder take the JPEGs, so that the bag holds what the policy saw.
    sim: dict[str, object] = {"exit_with_parent": True, "seed": options.seed}
    camera: dict[str, object] = {}
    if options.record_dir is not None:
        sim["publish_compressed"] = True
        camera["image_transport"] = "compressed"
    nodes.start("sim_node", "sim.yaml", sim)
    nodes.start(
        "policy_node",
        "policy.yaml",
        {
            **simulated,
            **camera,
            "instruction": options.instruction,
            "policy.checkpoint_dir": str(checkpoint_dir),
            "policy.device": options.device,
            # The small policy is as fast on one core, and the physics needs the other.
            "policy.threads": 1,
        },
    )
    nodes.start(
        "controller_node",
        "controller.yaml",
        {**simulated, "safety.start_gripper": START_GRIPPER},
    )


def _watch(
    nodes: NodeProcesses,
    monitor: DemoMonitor,
    executor: SingleThreadedExecutor,
    console: Console,
    seconds: float,
    attempts: DemoAttempts,
    recording: DemoRecording | None,
) -> None:
    started_s = time.monotonic()
    limit_s = started_s + _START_TIMEOUT_S + seconds / _SLOWEST_REAL_TIME_FACTOR
    next_line_s = started_s
    with Live(console=console, refresh_per_second=_REFRESH_PER_S, transient=True) as live:
        while not monitor.done:
            executor.spin_once(timeout_sec=0.1)
            if recording:
                recording.poll()
            if monitor.started_ns is not None:
                attempts.update(monitor.now_ns - monitor.started_ns, monitor.qpos())
            now_s = time.monotonic()
            if gone := nodes.ended():
                name, code = next(iter(gone.items()))
                raise DemoFailed(
                    f"{name} ended with exit code {code}; it said\n{nodes.log_tail(name)}"
                )
            if monitor.started_ns is None and now_s > started_s + _START_TIMEOUT_S:
                raise DemoFailed(
                    f"no action chunk within {_START_TIMEOUT_S:g} s; the policy "
                    f"said\n{nodes.log_tail('policy_node') or 'nothing yet: is the machine busy?'}"
                    f"\nthe controller said\n{nodes.log_tail('controller_node')}"
                )
            if now_s > limit_s:
                raise DemoFailed(
                    f"simulated time is slower than {_SLOWEST_REAL_TIME_FACTOR:g} of real time"
                )
            if now_s >= next_line_s:
                waits = monitor.started_ns is None
                rest = f"{now_s - started_s:.0f} s" if waits else f" {attempts.line()}"
                line = f"{monitor.line()} {rest}"
                if console.is_terminal:
                    live.update(Text(line))
                    next_line_s = now_s + 1.0 / _REFRESH_PER_S
                else:
                    console.print(line, soft_wrap=True)
                    next_line_s = now_s + (_WAITING_LINE_EVERY_S if waits else _PLAIN_LINE_EVERY_S)


def _report(
    figures: Figures,
    attempts: DemoAttempts,
    problems: list[str],
    options: DemoOptions,
    output_dir: Path,
    monitor: DemoMonitor,
    console: Console,
) -> None:
    sheet = output_dir / "cameras.png"
    monitor.write_contact_sheet(sheet)
    record = {
        **figures.as_dict(),
        "instruction": options.instruction,
        "seed": options.seed,
        "checkpoint": options.checkpoint,
        "attempts": [asdict(attempt) for attempt in attempts.finished],
        "problems": problems,
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
    }
    (output_dir / "figures.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in figures.rows():
        table.add_row(name, value)
    table.add_row("Task", attempts.summary())
    console.print(table)
    if options.checkpoint == RANDOM:
        console.print(
            "The policy's weights are random: it moves the arms, but knows no task, so expect "
            "reward 0."
        )
    console.print(
        f"Figures {output_dir / 'figures.json'}\nVideo   {output_dir / 'cameras.mp4'}\nPicture "
        f"{sheet}"
    )
    if options.record_dir is not None:
        console.print(f"Bag     {escape(str(options.record_dir))}: vla_oft review shows it again")
    for problem in problems:
        console.print(f"[bold red]not good:[/] {escape(problem)}", soft_wrap=True)
    if not problems:
        console.print("[bold green]The policy moved both arms at 25 Hz.[/]")
