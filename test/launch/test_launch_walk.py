"""Whole walks of the launch files: nodes are started, move, and end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launched import POLICY
from ros.graph import Graph
from sensor_msgs.msg import Image, JointState

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES

TEXT = '12: it\'s "the" cube, {yes} #1'
"""An instruction that YAML would take for something else than a text."""
WALK_S = 120.0
"""Start of three nodes, a checkpoint and the first picture, on a loaded machine."""


@pytest.fixture(scope="module")
def installed() -> None:
    """Skips where `ros2 launch` would not find this package's executables."""
    try:
        prefix = Path(get_package_prefix("vla_oft_ros"))
    except PackageNotFoundError:
        pytest.skip("needs this package installed with colcon and its setup.bash sourced")
    if not (prefix / "lib" / "vla_oft_ros" / "policy_node").is_file():
        pytest.skip(f"{prefix} holds no executables of this package: build it with colcon")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    make_random_checkpoint(tmp_path / "small", seed=0)
    return tmp_path / "small"


class Walk:
    """`ros2 launch` as a process, with what it writes."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from ros2cli.cli import main; main()",
                    "launch",
                    *arguments,
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def interrupt(self, *, everybody: bool) -> None:
        """Ctrl-C: at the launch alone, which passes it on, or at all of its processes, as a
        terminal does.
        """
        if everybody:
            os.killpg(self.process.pid, signal.SIGINT)
        else:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(60.0)

    def left(self) -> list[str]:
        """Command lines of processes of its session that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (OSError, ValueError):
                continue
        return found

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Callable[..., Walk]]:
    pytest.importorskip("ros2cli", reason="needs the command ros2")
    walks: list[Walk] = []

    def start(*arguments: str) -> Walk:
        walks.append(Walk(tmp_path / "launch.log", *arguments))
        return walks[-1]

    yield start
    for started in walks:
        started.end()


@pytest.mark.sim
@pytest.mark.parametrize("viewer", [False, True])
def test_a_whole_walk_ends_with_exit_code_0_of_every_node(
    viewer: bool,
    installed: None,
    walk: Callable[..., Walk],
    checkpoint: Path,
    make_graph: Callable[..., Graph],
) -> None:
    pytest.importorskip("mujoco")
    arguments = ["sim:=true", f"checkpoint:={checkpoint}", "device:=cpu", f"instruction:={TEXT}"]
    started = walk(str(POLICY), *arguments, f"viewer:={str(viewer).lower()}")
    graph = make_graph()
    targets = graph.hear(JointState, "joint_targets")
    chunks = graph.hear(messages.ActionChunk, "action_chunk")
    overlays = graph.hear(Image, "viewer/overlay/cam_high")

    def moving() -> bool:
        assert started.process.poll() is None, started.said
        return len(targets) >= 25 and len(chunks) >= 2 and len(overlays) >= viewer

    graph.until(moving, "joint targets, chunks and overlays", WALK_S)
    assert targets[-1].name == list(ACTION_NAMES)
    assert chunks[-1].instruction == TEXT
    started.interrupt(everybody=viewer)
    names = (
        "policy_node",
        "controller_node",
        "sim_node",
        *(["token_viewer_node"] if viewer else []),
    )
    for place, name in enumerate(names, start=1):
        assert f"[{name}-{place}]: process has finished cleanly" in started.said, started.said
    assert "Traceback" not in started.said and "process has died" not in started.said
    assert started.left() == []


def test_one_node_that_refuses_takes_the_others_with_it(
    installed: None, walk: Callable[..., Walk], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    started = walk(str(POLICY), f"checkpoint:={tmp_path / 'nowhere'}")
    deadline_s = time.monotonic() + WALK_S
    while started.process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.1)
    said = started.said
    assert started.process.poll() is not None, said
    assert "[policy_node-1]: process has died" in said and "exit code 1" in said
    assert "expected a local checkpoint directory" in said
    assert "[controller_node-2]: process has finished cleanly" in said
    assert "Caught exception" not in said
