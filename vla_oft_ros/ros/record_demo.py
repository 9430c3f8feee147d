"""Demonstrations without hardware: sim, scripted teleoperation and recorder as processes.

Does what an operator does: puts everything back, starts an episode, teleoperates, stops, looks at
the outcome, labels. Everything is asked for by the recorder's own services; everything said is
what stands on the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from std_msgs.msg import Float32, String
from std_srvs.srv import SetBool, Trigger

from vla_oft_ros.aloha import RobotProfile, load_profile
from vla_oft_ros.config import ConfigError, RecorderConfig, SimConfig, load_node_config
from vla_oft_ros.config import config_dir as shipped_config_dir
from vla_oft_ros.data.bag_storage import open_bag
from vla_oft_ros.data.episode import SUCCESS
from vla_oft_ros.data.episode_folder import EpisodeFolder
from vla_oft_ros.data.verdict import Verdict
from vla_oft_ros.msg import EpisodeStatus
from vla_oft_ros.ros.processes import NodeProcesses, keep_on_loopback
from vla_oft_ros.sim.tasks import Task, load_task

_START_TIMEOUT_S = 120.0
_EPISODE_TIMEOUT_S = 300.0
_ANSWER_TIMEOUT_S = 30.0
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_NODES = {
    "sim_node": "sim.yaml",
    "teleop_node": "teleop.yaml",
    "recorder_node": "recorder.yaml",
}


class RecordingFailed(RuntimeError):
    """The demonstrations could not be recorded to the end; says what happened."""


@dataclass(frozen=True, kw_only=True)
class RecordDemoOptions:
    """What shall be recorded.

    Attributes:
        episodes: How many episodes the folder shall hold in the end.
        output_dir: Folder of the data set; what is there is kept and added to.
        raw: Record raw images (70 MB per second) instead of JPEG (6 MB).
        miss_share: Share of the takes that fail on purpose.
        seed: Of the objects' poses and of what is asked for.
        task: Task of the simulation; empty is that of sim.yaml.
        instruction: How the operator puts it; empty is what the episode asks for.
        real_time_factor: Fastest simulated time per real time; 0 is as fast as it goes.
        config_dir: Folder of the YAML files; None is the shipped one.
    """

    episodes: int
    output_dir: Path
    raw: bool = False
    miss_share: float = 0.0
    seed: int = 0
    task: str = ""
    instruction: str = ""
    real_time_factor: float = 1.0
    config_dir: Path | None = None


@dataclass(frozen=True)
class Take:
    """One recorded episode.

    Attributes:
        index: Its number.
        success: Whether the task was done.
        quality: The recorder's verdict.
        reasons: What is wrong with it.
    """

    index: int
    success: bool
    quality: Verdict
    reasons: tuple[str, ...]


class _Director(Node):
    """Watches status, reward and operator, and asks for what comes next."""

    def __init__(
        self,
        executor: SingleThreadedExecutor,
        nodes: NodeProcesses,
        task: Task,
        instruction: str,
        instruction_topic: str,
    ) -> None:
        super().__init__("record_demo")
        self._executor, self._processes, self._task = executor, nodes, task
        self._instruction = instruction
        self.status = EpisodeStatus()
        self._phase = ""
        self._rewards: list[int] = []
        self.create_subscription(EpisodeStatus, "episode_status", self._on_status, 10)
        self.create_subscription(Float32, "task_reward", self._on_reward, 100)
        self.create_subscription(String, "teleop_node/phase", self._on_phase, _LATCHED)
        self._say = self.create_publisher(String, instruction_topic, _LATCHED)

    def _on_status(self, message: EpisodeStatus) -> None:
        self.status = message

    def _on_reward(self, message: Float32) -> None:
        self._rewards.append(round(message.data))

    def _on_phase(self, message: String) -> None:
        self._phase = message.data

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Spins until something is so.

        Raises:
            RecordingFailed: if it does not happen, or a process has ended.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self._executor.spin_once(timeout_sec=0.1)
            if gone := self._processes.ended():
                name, code = next(iter(gone.items()))
                said = self._processes.log_tail(name)
                raise RecordingFailed(f"{name} ended with exit code {code}; it said\n{said}")
            if self.status.state == EpisodeStatus.STATE_FAILED:
                raise RecordingFailed(self.status.reason)
            if time.monotonic() > deadline_s:
                raise RecordingFailed(f"waited {timeout_s:g} s for {what}")

    def ask(self, kind: type, service: str, request: object) -> str:
        """Calls a service.

        Raises:
            RecordingFailed: if it refuses.
        """
        client = self.create_client(kind, service)
        try:
            self.until(client.service_is_ready, f"service {service}", _START_TIMEOUT_S)
            future = client.call_async(request)
            self.until(future.done, f"the answer of {service}", _ANSWER_TIMEOUT_S)
        finally:
            self.destroy_client(client)
        answer = future.result()
        if not answer.success:
            raise RecordingFailed(f"{service}: {answer.message}")
        return str(answer.message)

    def wait_for_streams(self, profile: RobotProfile) -> None:
        """Waits until the simulation draws and the recorder hears all of it."""
        needed = {*profile.follower_joint_state_topics, *profile.leader_joint_state_topics}

        def heard() -> bool:
            topics = set(self.status.topics)
            cameras = [{topic, f"{topic}/compressed"} & topics for topic in profile.camera_topics]
            return needed <= topics and all(cameras)

        self.until(heard, "cameras and arms", _START_TIMEOUT_S)

    def record(self) -> Take:
        """Records one episode and labels it."""
        self.ask(Trigger, "teleop_node/rest", Trigger.Request())
        asked = self.ask(Trigger, "sim_node/reset", Trigger.Request())
        instruction = self._instruction or asked
        self._say.publish(String(data=instruction))
        self.ask(Trigger, "recorder_node/start", Trigger.Request())
        recording = EpisodeStatus.STATE_RECORDING
        self.until(
            lambda: (self.status.state, self.status.instruction) == (recording, instruction),
            f"the recorder to hear {instruction!r}",
            _ANSWER_TIMEOUT_S,
        )
        self._rewards.clear()
        self.ask(Trigger, "teleop_node/demonstrate", Trigger.Request())
        self.until(lambda: self._phase == "demonstrating", "the operator", _ANSWER_TIMEOUT_S)
        self.until(lambda: self._phase == "done", "the demonstration", _EPISODE_TIMEOUT_S)
        success = self._task.is_success(self._rewards)
        self.ask(Trigger, "recorder_node/stop", Trigger.Request())
        self.ask(SetBool, "recorder_node/label", SetBool.Request(data=success))
        self.until(
            lambda: self.status.state == EpisodeStatus.STATE_IDLE and bool(self.status.label),
            "the episode to be saved",
            _EPISODE_TIMEOUT_S,
        )
        status = self.status
        quality, reasons = Verdict(status.quality), tuple(status.quality_reasons)
        return Take(status.episode_index, success, quality, reasons)


def record_demo(options: RecordDemoOptions, console: Console) -> int:
    """Records scripted demonstrations.

    Returns:
        0 if the folder holds what was asked for and every episode is good, else 1.

    Raises:
        ConfigError: for options that cannot be met.
    """
    if options.episodes < 1:
        raise ConfigError(f"--episodes: expected at least 1; got {options.episodes}")
    config_dir = (options.config_dir or shipped_config_dir()).resolve()
    sim = load_node_config(SimConfig, config_dir / "sim.yaml", "sim_node")
    task = load_task(options.task or sim.task)
    recorder = load_node_config(RecorderConfig, config_dir / "recorder.yaml", "recorder_node")
    output_dir = options.output_dir.resolve()
    before = len(_outcomes(output_dir))
    missing = options.episodes - before
    if missing <= 0:
        console.print(f"{escape(str(output_dir))}: {before} episodes are there already")
        return 0
    log_dir = output_dir / "log"
    log_dir.mkdir(parents=True, exist_ok=True)
    keep_on_loopback(os.environ, config_dir)
    os.environ["ROS_LOG_DIR"] = str(log_dir)
    takes: list[Take] = []
    failure = ""
    rclpy.init()
    executor = SingleThreadedExecutor()
    try:
        with NodeProcesses(config_dir, log_dir, os.environ) as nodes:
            director = _Director(
                executor, nodes, task, options.instruction, recorder.instruction_topic
            )
            executor.add_node(director)
            for name, overrides in _overrides(options, sim, task, recorder, before).items():
                nodes.start(name, _NODES[name], {"exit_with_parent": True, **overrides})
            try:
                director.wait_for_streams(load_profile(sim.profile, sim.profiles_path))
                _record_all(director, takes, missing, console)
            except RecordingFailed as error:
                failure = str(error)
            codes = nodes.stop()
            executor.remove_node(director)
            director.destroy_node()
    finally:
        executor.shutdown()
        rclpy.try_shutdown()
    problems = [failure] if failure else []
    problems += [f"{name} ended with exit code {code}" for name, code in codes.items() if code]
    return _report(output_dir, takes, before, problems, console)


def _overrides(
    options: RecordDemoOptions, sim: SimConfig, task: Task, recorder: RecorderConfig, before: int
) -> dict[str, dict[str, object]]:
    return {
        "sim_node": {
            "task": task.name,
            # Not the poses that the episodes before began with.
            "seed": options.seed + before,
            "publish_compressed": not options.raw,
            "real_time_factor": options.real_time_factor,
        },
        "teleop_node": {
            "use_sim_time": True,
            "task": task.name,
            "miss_share": options.miss_share,
            "seed": options.seed + before,
        },
        "recorder_node": {
            "use_sim_time": True,
            "output_dir": str(options.output_dir.resolve()),
            "camera_rate_hz": sim.control_rate_hz,
            "image_transport": "raw" if options.raw else "compressed",
            # Where everything lies, so that the episode can be replayed.
            "extra_topics": [
                *recorder.extra_topics,
                *(f"{sim.object_topic}/{cube.name}" for cube in task.cubes),
            ],
        },
    }


def _record_all(director: _Director, takes: list[Take], count: int, console: Console) -> None:
    columns = (TextColumn("recording"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        bar = progress.add_task("", total=count)
        for _ in range(count):
            take = director.record()
            takes.append(take)
            outcome = "success" if take.success else "failure"
            told = f"episode {take.index}: {outcome}, {take.quality.name.lower()}"
            if not console.is_terminal or take.reasons:
                progress.console.print("; ".join([told, *take.reasons]), soft_wrap=True)
            progress.update(bar, advance=1, description=told)


def _outcomes(output_dir: Path) -> list[str]:
    """The label of every complete episode that is really there."""
    if not output_dir.is_dir():
        return []
    folder = EpisodeFolder(output_dir)
    try:
        outcomes = []
        for index in folder.episodes():
            with open_bag(folder.episode_path(index)) as bag:
                outcomes.append(bag.custom_data.get("outcome", ""))
        return outcomes
    finally:
        folder.close()


def _report(
    output_dir: Path, takes: list[Take], before: int, problems: list[str], console: Console
) -> int:
    outcomes = _outcomes(output_dir)
    successes = sum(take.success for take in takes)
    console.print(
        f"{escape(str(output_dir))}: {len(outcomes)} episodes on disk, of them "
        f"{outcomes.count(SUCCESS)} successes; {len(takes)} recorded now, of them {successes} "
        "successes",
        soft_wrap=True,
    )
    if len(outcomes) != before + len(takes):
        problems.append(f"{before + len(takes)} episodes were said to be saved")
    problems += [
        f"episode {take.index} is {take.quality.name.lower()}: {'; '.join(take.reasons)}"
        for take in takes
        if take.quality is not Verdict.GOOD
    ]
    for problem in problems:
        console.print(f"[bold red]not good:[/] {escape(problem)}", soft_wrap=True)
    return 1 if problems else 0
