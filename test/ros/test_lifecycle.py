"""What every managed node promises: the order of its hooks, silence after a stop, clean ends."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node
from ros.graph import TIMEOUT_S, parameters
from std_msgs.msg import String

from vla_oft_ros.config import ConfigError, check_fields, doc
from vla_oft_ros.ros import lifecycle
from vla_oft_ros.ros.lifecycle import ManagedNode

S = State


@dataclass(frozen=True, kw_only=True)
class Config:
    autostart: bool = field(default=True, metadata=doc("Start."))
    rate: float = field(default=1.0, metadata=doc("A rate.", ge=0.0))

    def __post_init__(self) -> None:
        check_fields(self)


class Recorder(ManagedNode):
    """Writes down which hooks were called; `broken` maps a hook to what it raises."""

    def __init__(self, broken: dict[str, Exception] | None = None, name: str = "recorder") -> None:
        self.calls: list[str] = []
        self.broken = broken or {}
        super().__init__("recorder", Config)
        self.voice = self.create_lifecycle_publisher(String, "voice", 10)

    def _call(self, hook: str) -> None:
        self.calls.append(hook)
        self.voice.publish(String(data=hook))
        if hook in self.broken:
            raise self.broken[hook]

    def _setup(self) -> None:
        self._call("setup")

    def _start(self) -> None:
        self._call("start")

    def _stop(self) -> None:
        self._call("stop")

    def _teardown(self) -> None:
        self._call("teardown")


@pytest.fixture
def make_recorder(make_graph: Callable) -> Callable[..., tuple]:
    """The graph, a recorder in it, and what is heard of its voice."""

    def make(**broken: Exception) -> tuple:
        graph = make_graph()
        heard = graph.hear(String, "voice")
        node = graph.add(Recorder(broken))
        graph.until(lambda: graph.ear.count_publishers("voice"), "discovery")
        graph.until(lambda: node.count_subscribers("voice"), "discovery")
        return graph, node, heard

    return make


def words(heard: list[String]) -> list[str]:
    return [message.data for message in heard]


def test_the_hooks_are_called_in_the_order_of_a_life(make_recorder: Callable) -> None:
    graph, node, heard = make_recorder()
    states = []
    for step in ("configure", "activate", "deactivate", "activate", "deactivate", "cleanup"):
        getattr(node, f"trigger_{step}")()
        states.append(node.state_id)
    assert node.calls == ["setup", "start", "stop", "start", "stop", "teardown"]
    inactive, active = S.PRIMARY_STATE_INACTIVE, S.PRIMARY_STATE_ACTIVE
    life = [inactive, active, inactive, active, inactive, S.PRIMARY_STATE_UNCONFIGURED]
    assert states == life
    # Publishers are active from before `start` until after `stop`: the farewell is heard.
    graph.until(lambda: len(heard) >= 4, "four words")
    graph.listen_in_silence()
    assert words(heard) == ["start", "stop", "start", "stop"]


@pytest.mark.parametrize(
    ("error", "traceback"), [(ConfigError("expected a; got b"), False), (KeyError("oops"), True)]
)
def test_a_refused_configuration_says_why_and_leaves_nothing(
    error: Exception, traceback: bool, make_recorder: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    _, node, _ = make_recorder(setup=error)
    assert node.autostart() is False
    assert node.calls == ["setup", "teardown"]
    assert node.state_id == S.PRIMARY_STATE_UNCONFIGURED
    told = capfd.readouterr().err
    assert "cannot configure: expected a; got b" in told or "KeyError: 'oops'" in told
    # A mistake of the user is told in one line, one of ours with its place.
    assert ("Traceback" in told) is traceback


def test_a_start_that_fails_is_stopped_and_silent(make_recorder: Callable) -> None:
    graph, node, heard = make_recorder(start=RuntimeError("no"))
    assert node.autostart() is False
    assert node.calls == ["setup", "start", "stop"]
    assert node.state_id == S.PRIMARY_STATE_INACTIVE
    graph.until(lambda: len(heard) >= 2, "two words")
    node.voice.publish(String(data="too late"))
    graph.listen_in_silence()
    assert words(heard) == ["start", "stop"]


def test_a_stop_that_fails_ends_in_the_safe_state_and_not_in_active(
    make_recorder: Callable,
) -> None:
    graph, node, heard = make_recorder(stop=RuntimeError("no"))
    node.autostart()
    node.trigger_deactivate()
    assert node.state_id == S.PRIMARY_STATE_UNCONFIGURED
    assert node.calls == ["setup", "start", "stop", "stop", "teardown"]
    node.voice.publish(String(data="too late"))
    graph.listen_in_silence()
    assert "too late" not in words(heard)


def test_shutdown_from_active_stops_before_it_tears_down(make_recorder: Callable) -> None:
    graph, node, heard = make_recorder()
    node.autostart()
    node.trigger_shutdown()
    assert node.calls == ["setup", "start", "stop", "teardown"]
    assert node.state_id == S.PRIMARY_STATE_FINALIZED
    graph.until(lambda: len(heard) >= 2, "two words")
    assert words(heard) == ["start", "stop"]


@pytest.mark.parametrize(
    "transition",
    [
        Transition(id=Transition.TRANSITION_ACTIVATE),
        Transition(id=Transition.TRANSITION_CLEANUP),
        Transition(id=99),
        Transition(label="activate"),
        Transition(label="dance"),
    ],
    ids=str,
)
def test_a_transition_that_does_not_fit_is_refused_and_the_node_lives_on(
    transition: Transition, make_recorder: Callable
) -> None:
    graph, node, _ = make_recorder()
    answer = graph.call(
        ChangeState, "recorder/change_state", ChangeState.Request(transition=transition)
    )
    assert not answer.success and node.calls == []
    fitting = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    assert graph.call(ChangeState, "recorder/change_state", fitting).success
    assert node.calls == ["setup"] and node.state_id == S.PRIMARY_STATE_INACTIVE


@pytest.mark.parametrize("level", [logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG])
def test_the_core_s_log_is_told_by_the_node_at_its_level(
    level: int, make_recorder: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    make_recorder()
    logging.getLogger("vla_oft_ros.anything").log(level, "chunk %d refused", 7)
    told = [line for line in capfd.readouterr().err.splitlines() if "chunk" in line]
    if level == logging.DEBUG:
        assert told == []
    else:
        (line,) = told
        name = "WARN" if level == logging.WARNING else logging.getLevelName(level)
        assert line.startswith(f"[{name}] ") and line.endswith("[recorder]: chunk 7 refused")


@pytest.fixture
def signals() -> Iterator[None]:
    """Puts the handlers back that `run` replaces."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_0_after_stop_and_teardown(
    number: signal.Signals, signals: None
) -> None:
    made: list[Recorder] = []

    def make() -> Recorder:
        made.append(Recorder())
        made[0].create_timer(0.01, lambda: os.kill(os.getpid(), number))
        return made[0]

    assert lifecycle.run(make, []) == 0
    assert made[0].calls == ["setup", "start", "stop", "teardown"]


LATE = """
import os, signal, sys
from rclpy.node import Node
from vla_oft_ros.ros import lifecycle
class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
        kill(pid, number)
sys.late = Late()
def make():
    os.kill(os.getpid(), signal.SIGINT)
    return Node("interrupted")
sys.exit(lifecycle.run(make))
"""
"""A node that is interrupted, and again while Python takes its modules apart."""


def test_a_second_interrupt_does_not_kill_a_process_that_is_ending() -> None:
    assert subprocess.run([sys.executable, "-c", LATE], timeout=120, check=False).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_configuration_ends_it_at_once_and_leaves_nothing(
    number: signal.Signals, signals: None
) -> None:
    class Slow(Recorder):
        def _setup(self) -> None:
            self._call("setup")
            os.kill(os.getpid(), number)
            time.sleep(TIMEOUT_S)
            self._call("loaded")

        def _teardown(self) -> None:
            os.kill(os.getpid(), number)  # launch and terminal both send it
            self._call("teardown")

    made: list[Slow] = []
    assert lifecycle.run(lambda: made.append(Slow()) or made[0], []) == 0  # type: ignore[func-returns-value]
    assert made[0].calls == ["setup", "teardown"]


def test_a_callback_that_fails_stops_the_node_before_its_process_ends_with_1(
    signals: None, capfd: pytest.CaptureFixture[str]
) -> None:
    made: list[Recorder] = []

    def make() -> Recorder:
        made.append(Recorder())
        made[0].create_timer(0.01, lambda: 1 / 0)
        return made[0]

    assert lifecycle.run(make, []) == 1
    assert made[0].calls == ["setup", "start", "stop", "teardown"]
    told = capfd.readouterr().err
    assert "a callback failed" in told and "ZeroDivisionError" in told


@pytest.mark.parametrize(("session_of_init", "killed"), [(7, False), (1, True)])
def test_only_an_orphan_takes_process_1_for_a_starter_that_is_gone(
    session_of_init: int, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(lifecycle, "_PR_SET_PDEATHSIG", 0)  # no option: this process goes on
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(os, "getsid", lambda pid: session_of_init if pid == 1 else 7)
    monkeypatch.setattr(os, "kill", lambda *signal_to: sent.append(signal_to))
    lifecycle.exit_with_parent()
    assert sent == ([(os.getpid(), signal.SIGTERM)] if killed else [])


def test_a_refused_autostart_ends_the_process_with_1(signals: None) -> None:
    assert lifecycle.run(lambda: Recorder({"setup": ConfigError("no")}), []) == 1


def test_without_autostart_a_node_waits_unconfigured(signals: None) -> None:
    made: list[Recorder] = []

    def make() -> Recorder:
        made.append(Recorder())
        made[0].create_timer(0.01, lambda: os.kill(os.getpid(), signal.SIGTERM))
        return made[0]

    assert lifecycle.run(make, ["--ros-args", *parameters(autostart="false")]) == 0
    assert made[0].calls == []


def test_a_wrong_parameter_ends_the_process_with_2_and_says_so(
    signals: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert lifecycle.run(Recorder, ["--ros-args", *parameters(rat=1.0)]) == 2
    assert "unknown key 'rat'; did you mean 'rate'?" in capfd.readouterr().err


@pytest.mark.parametrize("content", [None, "a: [1, x", "a:\n  ros__parameters:\n    b: [1, x]\n"])
def test_a_parameter_file_that_ros_cannot_read_ends_the_process_with_2_and_its_name(
    content: str | None, signals: None, tmp_path: object, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"  # type: ignore[operator]
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert lifecycle.run(Recorder, ["--ros-args", "--params-file", str(path)]) == 2
    told = capfd.readouterr().err
    assert str(path) in told and "Traceback" not in told


def test_a_node_that_gives_up_ends_the_process_with_1(signals: None) -> None:
    class Failing(Node):
        failed = True

        def __init__(self) -> None:
            super().__init__("failing")

    assert lifecycle.run(Failing, []) == 1
