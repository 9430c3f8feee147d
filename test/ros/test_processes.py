"""Nodes as processes: parameters arrive as given, every end has its code, none is left behind.

The bad input of a user is tried here on real processes, started with real files.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from ros.graph import TIMEOUT_S, Graph

from vla_oft_ros.config import config_dir
from vla_oft_ros.ros import processes
from vla_oft_ros.ros.processes import NodeProcesses, keep_on_loopback

FILES = {
    "policy_node": "policy.yaml",
    "sim_node": "sim.yaml",
    "controller_node": "controller.yaml",
}
START_S = 60.0
"""How long a node may take to start or to refuse on a loaded machine."""


@pytest.fixture
def make_nodes(tmp_path: Path) -> Iterator[Callable[..., NodeProcesses]]:
    """Makes `NodeProcesses` over a folder of YAML files; ends what they started."""
    made: list[NodeProcesses] = []

    def make(files: Path | None = None) -> NodeProcesses:
        made.append(NodeProcesses(files or config_dir(), tmp_path, os.environ))
        return made[-1]

    yield make
    for nodes in made:
        nodes.stop()


def until(condition: Callable[[], object], what: str, timeout_s: float = START_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen in {timeout_s:g} s"
        time.sleep(0.05)


def end_of(nodes: NodeProcesses, name: str) -> tuple[int, str]:
    """Waits until a node has ended by itself; returns exit code and what it wrote."""
    until(lambda: name in nodes.ended(), f"the end of {name}")
    return nodes.ended()[name], nodes.log_path(name).read_text(encoding="utf-8")


def wait_for(graph: Graph, node: str) -> int:
    """Waits until a managed node answers; returns its state."""
    client = graph.ear.create_client(GetState, f"{node}/get_state")
    graph.until(client.service_is_ready, node, START_S)
    return int(graph.call(GetState, f"{node}/get_state", GetState.Request()).current_state.id)


def test_overrides_arrive_as_they_were_given_whatever_their_characters(
    make_nodes: Callable, make_graph: Callable
) -> None:
    given = {
        "autostart": False,
        "instruction": 'it\'s "this": {yes} #1, [y] \\n 茶 - & * ! | > %',
        "policy.checkpoint_dir": "true",
        "policy.unnorm_key": "12",
        "policy.device": "",
        "control_rate_hz": 12.5,
        "execute_steps": 7,
        "sync.max_skew_s": 1e-05,
        "policy.skip_self_tests": ["y", "1.0"],
    }
    nodes, graph = make_nodes(), make_graph()
    nodes.start("policy_node", "policy.yaml", given)
    wait_for(graph, "policy_node")
    answer = graph.call(
        GetParameters, "policy_node/get_parameters", GetParameters.Request(names=list(given))
    )
    got = [parameter_value_to_python(value) for value in answer.values]
    got = [value if isinstance(value, str | bool | float | int) else list(value) for value in got]
    assert dict(zip(given, got, strict=True)) == given
    assert nodes.ended() == {} and nodes.stop() == {"policy_node": 0}


def test_a_node_without_autostart_waits_unconfigured(
    make_nodes: Callable, make_graph: Callable
) -> None:
    nodes = make_nodes()
    nodes.start("controller_node", "controller.yaml", {"autostart": False})
    assert wait_for(make_graph(), "controller_node") == State.PRIMARY_STATE_UNCONFIGURED


@pytest.mark.parametrize("name", FILES)
def test_a_misspelt_key_in_a_node_s_file_ends_it_with_2_and_the_key(
    name: str, make_nodes: Callable, tmp_path: Path
) -> None:
    text = (config_dir() / FILES[name]).read_text(encoding="utf-8")
    assert " profile:" in text
    (tmp_path / FILES[name]).write_text(text.replace(" profile:", " profil:"), encoding="utf-8")
    nodes = make_nodes(tmp_path)
    nodes.start(name, FILES[name], {})
    code, told = end_of(nodes, name)
    assert code == 2
    assert f"parameters of /{name} (see config/*.yaml): unknown key 'profil'" in told
    assert "did you mean 'profile'?" in told and "Traceback" not in told


@pytest.mark.parametrize(("name", "code"), [("policy_node", 1), ("controller_node", 1)])
def test_an_unknown_robot_profile_is_answered_with_the_known_ones(
    name: str, code: int, make_nodes: Callable
) -> None:
    nodes = make_nodes()
    nodes.start(name, FILES[name], {"profile": "interbotix_man"})
    got, told = end_of(nodes, name)
    assert got == code
    assert "aloha.yaml: expected one of the profiles " in told and "interbotix_2_0" in told
    assert "got 'interbotix_man', did you mean 'interbotix_main'?" in told
    assert "Set the parameter 'profile'" in told and "Traceback" not in told


def test_the_simulation_refuses_an_unknown_profile_and_rates_that_do_not_fit(
    make_nodes: Callable,
) -> None:
    for overrides, expected in (
        ({"profile": "simm"}, "got 'simm', did you mean 'sim'?"),
        ({"joint_state_rate_hz": 60.0}, "expected a multiple of control_rate_hz 25; got 60"),
    ):
        nodes = make_nodes()
        nodes.start("sim_node", "sim.yaml", overrides)
        code, told = end_of(nodes, "sim_node")
        assert code == 2 and expected in told and "Traceback" not in told


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in the official layout."""
    pytest.importorskip("torch")
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    directory = tmp_path_factory.mktemp("checkpoint") / "small"
    make_random_checkpoint(directory, seed=0)
    return directory


def test_a_missing_checkpoint_ends_the_policy_with_1_and_its_path(
    make_nodes: Callable, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    missing = tmp_path / "nowhere"
    nodes = make_nodes()
    nodes.start("policy_node", "policy.yaml", {"policy.checkpoint_dir": str(missing)})
    code, told = end_of(nodes, "policy_node")
    assert code == 1
    assert str(missing) in told and "expected a local checkpoint directory" in told
    assert "Change the section policy of policy.yaml" in told
    assert "Traceback" not in told


def test_a_policy_without_any_checkpoint_says_which_parameter_to_set(make_nodes: Callable) -> None:
    pytest.importorskip("torch")
    nodes = make_nodes()
    nodes.start("policy_node", "policy.yaml", {})
    code, told = end_of(nodes, "policy_node")
    assert code == 1 and "checkpoint_dir: expected a local checkpoint directory" in told
    assert "Traceback" not in told


def test_a_half_empty_checkpoint_ends_the_policy_with_1_and_all_that_is_missing(
    make_nodes: Callable, tmp_path: Path, checkpoint: Path
) -> None:
    half = tmp_path / "half"
    shutil.copytree(checkpoint, half)
    gone = [*half.glob("action_head*"), half / "tokenizer.json"]
    for path in gone:
        path.unlink()
    nodes = make_nodes()
    nodes.start("policy_node", "policy.yaml", {"policy.checkpoint_dir": str(half)})
    code, told = end_of(nodes, "policy_node")
    assert code == 1
    assert str(half) in told
    assert "action_head" in told and "tokenizer.json" in told and "Traceback" not in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_active_node_ends_with_0_on_a_signal(
    number: signal.Signals, make_nodes: Callable, make_graph: Callable
) -> None:
    nodes, graph = make_nodes(), make_graph()
    nodes.start("controller_node", "controller.yaml", {})
    graph.until(
        lambda: wait_for(graph, "controller_node") == State.PRIMARY_STATE_ACTIVE, "activation"
    )
    os.kill(nodes._processes["controller_node"].pid, number)
    code, told = end_of(nodes, "controller_node")
    assert code == 0 and "Traceback" not in told


def test_a_node_that_will_not_end_is_killed(
    make_nodes: Callable, make_graph: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_STOP_TIMEOUT_S", 0.2)
    nodes = make_nodes()
    nodes.start("controller_node", "controller.yaml", {"autostart": False})
    wait_for(make_graph(), "controller_node")
    os.kill(nodes._processes["controller_node"].pid, signal.SIGSTOP)
    assert nodes.stop() == {"controller_node": -signal.SIGKILL}


def test_the_tail_of_a_log_is_its_last_lines(make_nodes: Callable) -> None:
    nodes = make_nodes()
    nodes.log_path("a").write_bytes(b"\n".join(b"line %d \xff" % n for n in range(40)))
    lines = nodes.log_tail("a").splitlines()
    assert len(lines) == 15 and lines[-1].startswith("line 39")


def is_running(pid: int) -> bool:
    """False for what is gone, and for what is dead but was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


STARTER = """
import os, subprocess, sys, time
from pathlib import Path
if sys.argv[1] == "processes":
    from vla_oft_ros.config import config_dir
    from vla_oft_ros.ros.processes import NodeProcesses
    nodes = NodeProcesses(config_dir(), Path(sys.argv[2]), os.environ)
    nodes.start("controller_node", "controller.yaml", {})
    node = nodes._processes["controller_node"]
else:
    command = [sys.executable, "-m", "vla_oft_ros.ros.controller_node", "--ros-args"]
    node = subprocess.Popen([*command, "-p", "exit_with_parent:=true"])
print(node.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("way", ["processes", "parameter"])
def test_a_node_ends_when_its_starter_is_killed(
    way: str, make_graph: Callable, tmp_path: Path
) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, way, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        wait_for(make_graph(), "controller_node")
        assert is_running(pid)
    finally:
        starter.kill()
        starter.wait()
    until(lambda: not is_running(pid), "the end of the node", TIMEOUT_S)


def test_loopback_is_a_matter_of_the_environment_given_and_keeps_a_chosen_middleware() -> None:
    environment = {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp", "HOME": "/root"}
    keep_on_loopback(environment, config_dir())
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert 1 <= int(environment["ROS_DOMAIN_ID"]) <= 101
    assert Path(environment["FASTRTPS_DEFAULT_PROFILES_FILE"]).is_file()
    assert environment["RMW_IMPLEMENTATION"] == "rmw_cyclonedds_cpp"
    assert environment["HOME"] == "/root"
