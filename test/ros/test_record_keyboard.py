"""The recorder in a terminal: every key does what its help says, and what is shown is so."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from ros.graph import Graph
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from vla_oft_ros.msg import EpisodeStatus

from vla_oft_ros.config import ConfigError
from vla_oft_ros.ros.record_keyboard import RecorderClient, RecordOptions, record


class FakeRecorder:
    """Answers the services of a recorder, remembers them, and says what a test wants it to."""

    def __init__(self, graph: Graph) -> None:
        self.asked: list[str] = []
        for name in ("start", "stop", "discard", "rerecord"):
            graph.ear.create_service(Trigger, f"recorder_node/{name}", self._answer(name))
        graph.ear.create_service(SetBool, "recorder_node/label", self._answer("label"))
        self._status = graph.ear.create_publisher(EpisodeStatus, "episode_status", 10)

    def _answer(self, name: str) -> Callable:
        def answer(request: object, response: Trigger.Response) -> Trigger.Response:
            told = f"{name} {getattr(request, 'data', '')}".strip()
            self.asked.append(told)
            response.success, response.message = True, f"did {told}"
            return response

        return answer

    def say(self, **fields: object) -> None:
        self._status.publish(EpisodeStatus(**fields))


class Terminal:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.recorder = FakeRecorder(graph)
        self.client: RecorderClient = graph.add(RecorderClient())
        for client in self.client._wishes.values():
            graph.until(client.service_is_ready, "the services")

    def until_heard(self, **fields: object) -> None:
        def heard() -> bool:
            self.recorder.say(**fields)
            return self.client.status == EpisodeStatus(**fields)

        self.graph.until(heard, "the status")

    def press(self, keys: str) -> list[str]:
        """Presses keys; what the recorder was asked for."""
        self.recorder.asked.clear()
        self.client.told = ""
        for key in keys:
            assert self.client.press(key)
        self.graph.listen_in_silence()
        return list(self.recorder.asked)

    def screen(self) -> str:
        console = Console(width=120, record=True, file=None)
        with console.capture() as captured:
            console.print(self.client.picture())
        return captured.get()


@pytest.fixture
def terminal(make_graph: Callable) -> Terminal:
    return Terminal(make_graph())


def test_every_key_asks_for_what_its_help_says(terminal: Terminal) -> None:
    terminal.until_heard(state=EpisodeStatus.STATE_IDLE)
    assert terminal.press(" ") == ["start"]
    assert terminal.press("\n") == ["start"]
    assert terminal.press("s") == ["label True"]
    assert terminal.press("f") == ["label False"]
    terminal.until_heard(state=EpisodeStatus.STATE_RECORDING)
    assert terminal.press(" ") == ["stop"]
    assert terminal.press("s") == ["stop", "label True"]
    assert terminal.press("f") == ["stop", "label False"]
    assert "did label False" in terminal.screen()
    assert terminal.press("x") == []
    assert not terminal.client.press("q")


def test_what_deletes_is_asked_for_twice_in_a_row(terminal: Terminal) -> None:
    terminal.until_heard(state=EpisodeStatus.STATE_REVIEW)
    assert terminal.press("d") == []
    assert "press d again" in terminal.screen()
    assert terminal.press("d") == ["discard"]
    assert terminal.press("d") == []
    assert terminal.press("sd") == ["label True"]
    assert terminal.press("rr") == ["rerecord"]
    assert terminal.press("dr") == []


def test_count_disk_verdict_and_losses_are_on_the_screen(terminal: Terminal) -> None:
    terminal.until_heard(
        state=EpisodeStatus.STATE_RECORDING,
        episode_index=7,
        episodes_on_disk=6,
        free_disk_bytes=5 * 2**30,
        duration_s=12.3,
        instruction="fold [the] shirt",
        topics=["/a", "/b"],
        message_counts=[100, 50],
        dropped_counts=[0, 3],
        quality=EpisodeStatus.QUALITY_BAD,
        quality_reasons=["cam_high: silent for 2.0 s"],
    )
    screen = terminal.screen()
    for shown in (
        *("RECORDING", "episode 7", "12.3 s", "6 on disk", "5.0 GB free", "bad"),
        *("fold [the] shirt", "cam_high: silent for 2.0 s", "/b", "3 dropped", "space start/stop"),
    ):
        assert shown in screen, screen


def test_an_instruction_reaches_those_who_listen_later(terminal: Terminal) -> None:
    from rclpy.qos import DurabilityPolicy, QoSProfile

    terminal.client.say("fold the shirt")
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    heard = terminal.graph.hear(String, "instruction", latched)
    terminal.graph.until(lambda: heard, "the instruction")
    assert heard[0].data == "fold the shirt"


def test_without_a_recorder_the_screen_waits_and_keys_say_how_to_start_one(
    make_graph: Callable,
) -> None:
    client: RecorderClient = make_graph().add(RecorderClient())
    assert client.press(" ")
    assert "aloha_record.launch.py" in client.told
    console = Console(width=120)
    with console.capture() as captured:
        console.print(client.picture())
    assert "waiting for the recorder" in captured.get()


def test_without_a_terminal_it_says_what_scripts_do_instead(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="services of recorder_node"):
        record(RecordOptions(output_dir=tmp_path), Console())
