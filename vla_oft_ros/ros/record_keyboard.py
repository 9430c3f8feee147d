"""The recorder in the operator's terminal: its status as a live picture, one key per wish.

Everything shown is the recorder's own status, everything asked for one of its services; several
terminals may look at one recorder.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from vla_oft_ros.config import ConfigError
from vla_oft_ros.config import config_dir as shipped_config_dir
from vla_oft_ros.data.recorder import State
from vla_oft_ros.data.verdict import Verdict
from vla_oft_ros.msg import EpisodeStatus
from vla_oft_ros.ros.processes import NodeProcesses

_SILENT_S = 2.0
_REFRESH_S = 0.1
_STYLES = {
    Verdict.UNKNOWN: "dim",
    Verdict.GOOD: "bold green",
    Verdict.SUSPECT: "bold yellow",
    Verdict.BAD: "bold red",
}
_HELP = (
    "space start/stop · s success · f failure · d discard (twice) · r re-record (twice) · "
    "i instruction · q quit"
)


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """How the operator records.

    Attributes:
        output_dir: Folder of the data set; None keeps recorder.yaml.
        profile: Robot profile; empty keeps recorder.yaml.
        instruction: What is done; empty keeps recorder.yaml.
        attach: Use a recorder that runs already instead of starting one.
        use_sim_time: Follow simulated time.
        config_dir: Folder of the YAML files; None is the shipped one.
    """

    output_dir: Path | None = None
    profile: str = ""
    instruction: str = ""
    attach: bool = False
    use_sim_time: bool = False
    config_dir: Path | None = None


class RecorderClient(Node):
    """Speaks to a recorder node.

    Args:
        recorder: Its name.
    """

    def __init__(self, recorder: str = "recorder_node") -> None:
        super().__init__("record_keyboard")
        self.status: EpisodeStatus | None = None
        self.told = ""
        """The last answer."""
        self._heard_s = 0.0
        self._armed = ""
        self.create_subscription(EpisodeStatus, "episode_status", self._on_status, 10)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._instruction = self.create_publisher(String, "instruction", latched)
        self._wishes = {
            name: self.create_client(kind, f"{recorder}/{name}")
            for name, kind in (
                ("start", Trigger),
                ("stop", Trigger),
                ("discard", Trigger),
                ("rerecord", Trigger),
                ("label", SetBool),
            )
        }

    def _on_status(self, message: EpisodeStatus) -> None:
        self.status, self._heard_s = message, time.monotonic()

    @property
    def is_heard(self) -> bool:
        """True while the recorder speaks."""
        return time.monotonic() - self._heard_s < _SILENT_S

    def press(self, key: str) -> bool:
        """Does what a key means; False for the one that ends the program."""
        if key == "q":
            return False
        recording = self.status is not None and self.status.state == State.RECORDING
        if key in ("d", "r"):  # what cannot be undone is asked for twice
            service = {"d": "discard", "r": "rerecord"}[key]
            if self._armed != key:
                self._armed, self.told = key, f"press {key} again to delete this episode"
                return True
            self._ask(service, Trigger.Request())
        elif key in (" ", "\r", "\n"):
            self._ask("stop" if recording else "start", Trigger.Request())
        elif key in ("s", "f"):
            label = partial(self._ask, "label", SetBool.Request(data=key == "s"))
            if recording:
                self._ask("stop", Trigger.Request(), label)
            else:
                label()
        self._armed = ""
        return True

    def say(self, instruction: str) -> None:
        """Tells recorder, policy and everybody else what is done."""
        self._instruction.publish(String(data=instruction))
        self.told = f"instruction: {instruction}"

    def _ask(self, service: str, request: object, then: Callable[[], None] | None = None) -> None:
        client = self._wishes[service]
        if not client.service_is_ready():
            self.told = "no recorder answers; start it with `ros2 launch vla_oft_ros "
            self.told += "aloha_record.launch.py`, or leave --attach out"
            return

        def answered(future: object) -> None:
            self.told = future.result().message
            if then is not None:
                then()

        client.call_async(request).add_done_callback(answered)

    def picture(self) -> Group:
        """What the operator sees."""
        status = self.status
        if status is None or not self.is_heard:
            return Group(Text("waiting for the recorder …", style="yellow"), Text(_HELP, "dim"))
        verdict = Verdict(status.quality)
        head = Table.grid(padding=(0, 3))
        state = Text(State(status.state).name, style="bold red" if status.state == 2 else "bold")
        head.add_row(
            state,
            f"episode {status.episode_index}  {status.duration_s:.1f} s",
            Text(f"{status.episodes_on_disk} on disk", style="bold"),
            f"{status.free_disk_bytes / 2**30:.1f} GB free",
            Text(verdict.name.lower(), style=_STYLES[verdict]),
            Text(status.label, style="bold"),
        )
        topics = Table.grid(padding=(0, 3))
        dropped = list(status.dropped_counts)
        for name, count, lost in zip(status.topics, status.message_counts, dropped, strict=True):
            topics.add_row(name, str(count), Text(f"{lost} dropped" if lost else "", "bold red"))
        lines = [Text(f"instruction: {status.instruction or '(none)'}"), head]
        if status.reason:
            lines.append(Text(status.reason, style="red"))
        lines += [Text(reason, style=_STYLES[verdict]) for reason in status.quality_reasons]
        return Group(*lines, topics, Text(self.told, style="cyan"), Text(_HELP, style="dim"))


def record(options: RecordOptions, console: Console) -> int:
    """Shows a recorder and obeys the keyboard until q.

    Returns:
        0, or 1 if the recorder ended by itself.

    Raises:
        ConfigError: without a terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError(
            "record: expected a terminal to read keys from; standard input is none. Scripts call "
            "the services of recorder_node instead"
        )
    config_dir = (options.config_dir or shipped_config_dir()).resolve()
    log_dir = Path(os.environ.get("ROS_LOG_DIR") or "~/.ros/log").expanduser()
    log_dir.mkdir(parents=True, exist_ok=True)
    rclpy.init()
    client = RecorderClient()
    executor = SingleThreadedExecutor()
    executor.add_node(client)
    try:
        with NodeProcesses(config_dir, log_dir, os.environ) as nodes:
            if not options.attach:
                nodes.start("recorder_node", "recorder.yaml", _overrides(options))
            return _obey(client, executor, nodes, console)
    finally:
        executor.remove_node(client)
        client.destroy_node()
        rclpy.try_shutdown()


def _overrides(options: RecordOptions) -> dict[str, object]:
    given: dict[str, object] = {
        "output_dir": str(options.output_dir.resolve()) if options.output_dir else "",
        "profile": options.profile,
        "instruction": options.instruction,
    }
    kept = {name: value for name, value in given.items() if value}
    return {**kept, "use_sim_time": options.use_sim_time}


def _obey(
    client: RecorderClient,
    executor: SingleThreadedExecutor,
    nodes: NodeProcesses,
    console: Console,
) -> int:
    with _single_keys() as read_key, Live(console=console, auto_refresh=False) as live:
        shown_s = 0.0
        while True:
            executor.spin_once(timeout_sec=0.02)
            for name, code in nodes.ended().items():
                live.stop()
                console.print(f"{name} ended with exit code {code}; it said", style="bold red")
                console.print(nodes.log_tail(name), markup=False)
                return 1
            key = read_key()
            if key == "i":
                live.stop()
                with _cooked():
                    client.say(console.input("instruction: ").strip())
                live.start()
            elif key and not client.press(key):
                return 0
            if time.monotonic() - shown_s >= _REFRESH_S:
                shown_s = time.monotonic()
                live.update(client.picture(), refresh=True)


@contextmanager
def _single_keys() -> Iterator[Callable[[], str]]:
    """Keys as they are pressed, without waiting and without echo; "" if there is none."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)

    def read() -> str:
        ready, _, _ = select.select([sys.stdin], [], [], 0.0)
        return os.read(sys.stdin.fileno(), 1).decode(errors="replace").lower() if ready else ""

    try:
        yield read
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def _cooked() -> Iterator[None]:
    """Whole lines with echo, for a moment."""
    before = termios.tcgetattr(sys.stdin)
    now = termios.tcgetattr(sys.stdin)
    now[3] |= termios.ICANON | termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, now)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
