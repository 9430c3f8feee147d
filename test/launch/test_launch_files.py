"""The launch files: what they declare, what they start with which parameters, and a whole walk."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetLaunchConfiguration,
)
from launch.substitutions import TextSubstitution
from launch_ros.actions import Node
from ros.graph import Graph
from sensor_msgs.msg import Image, JointState

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES
from vla_oft_ros.config import (
    ConfigError,
    ControllerConfig,
    PolicyNodeConfig,
    SimConfig,
    TokenViewerConfig,
    config_dir,
    from_mapping,
    load_yaml,
    nest,
)

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
POLICY = ROOT / "launch" / "aloha_policy.launch.py"
VIEWER = ROOT / "launch" / "aloha_viewer.launch.py"
NODES = {
    "policy_node": PolicyNodeConfig,
    "controller_node": ControllerConfig,
    "sim_node": SimConfig,
}
ROBOT = {"policy_node", "controller_node"}
VIEWER_NODE = "token_viewer_node"
CONFIGS = NODES | {VIEWER_NODE: TokenViewerConfig}
TEXT = '12: it\'s "the" cube, {yes} #1'
"""An instruction that YAML would take for something else than a text."""
ROS2 = "from ros2cli.cli import main; main()"
DECIDES = (
    LaunchDescription,
    IncludeLaunchDescription,
    DeclareLaunchArgument,
    SetLaunchConfiguration,
    OpaqueFunction,
)
WALK_S = 120.0
"""Start of three nodes, a checkpoint and the first picture, on a loaded machine."""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declared(path: Path) -> dict[str, DeclareLaunchArgument]:
    entities = load(path).generate_launch_description().entities
    return {
        entity.name: entity for entity in entities if isinstance(entity, DeclareLaunchArgument)
    }


class Launched:
    """What a launch file would start with these arguments; what it includes counts as its own."""

    def __init__(self, path: Path = POLICY, **arguments: str) -> None:
        self.context = LaunchContext()
        self.context.launch_configurations.update({"config_dir": str(config_dir())} | arguments)
        self.actions: list = []
        self._walk(load(path).generate_launch_description())

    def _walk(self, entity: LaunchDescriptionEntity) -> None:
        """Goes through what decides and includes; keeps what would be started."""
        if not isinstance(entity, DECIDES):
            self.actions.append(entity)
            return
        for inner in entity.visit(self.context) or []:
            self._walk(inner)

    @property
    def nodes(self) -> dict[str, Node]:
        return {action.node_executable: action for action in self.actions if type(action) is Node}

    @property
    def processes(self) -> list[list[str]]:
        """Command lines of what is no node."""
        return [
            ["".join(part.perform(self.context) for part in word) for word in action.cmd]
            for action in self.actions
            if type(action) is ExecuteProcess
        ]

    def parameters(self, name: str) -> dict[str, object]:
        """Parameters of a node as its process will read them; later files win."""
        node = self.nodes[name]
        node._perform_substitutions(self.context)
        # Other words need a running launch or an installed package.
        words = [
            "".join(part.text for part in word if isinstance(part, TextSubstitution))
            for word in node.cmd
        ]
        merged: dict[str, object] = {}
        for place, word in enumerate(words):
            if word == "--params-file":
                for section, content in load_yaml(Path(words[place + 1])).items():
                    assert section in ("/**", name), f"{words[place + 1]}: {section}"
                    merged |= flat(content["ros__parameters"])
        return merged


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in values.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_launch_file_makes_a_description_and_explains_its_arguments(path: Path) -> None:
    found = declared(path)
    assert found
    for argument in found.values():
        assert argument.description.endswith(".") and argument.default_value is not None


@pytest.mark.parametrize("path", [POLICY, VIEWER], ids=lambda path: path.name)
def test_every_argument_of_the_table_is_declared_with_its_default(path: Path) -> None:
    table, found = load(path).ARGUMENTS, declared(path)
    assert {"sim", "rviz"} <= set(table)
    assert set(found) == set(table)
    context = LaunchContext()
    for name, (default, description) in table.items():
        said = "".join(part.perform(context) for part in found[name].default_value)
        assert (said, found[name].description) == (default, description)


@pytest.mark.parametrize(
    ("sim", "expected"),
    [("", ROBOT), ("false", ROBOT), ("true", set(NODES)), ("True", set(NODES))],
)
def test_the_simulated_robot_is_started_only_when_asked_for(sim: str, expected: set[str]) -> None:
    assert set(Launched(**({"sim": sim} if sim else {})).nodes) == expected


def test_nodes_are_named_as_their_sections_and_their_executables_exist() -> None:
    launched = Launched(sim="true", viewer="true")
    assert set(launched.nodes) == set(CONFIGS)
    for name, node in launched.nodes.items():
        assert (ROOT / "vla_oft_ros" / "ros" / f"{name}.py").is_file()
        launched.parameters(name)
        assert node.node_name.rpartition("/")[2] == name


@pytest.mark.parametrize("sim", ["true", "false"])
def test_every_node_gets_a_legal_configuration_and_the_right_time(sim: str) -> None:
    launched = Launched(sim=sim, viewer="true", profile="interbotix_main")
    for name in launched.nodes:
        parameters = launched.parameters(name)
        uses_sim_time = parameters.pop("use_sim_time", False)
        assert uses_sim_time is (sim == "true" and name != "sim_node")
        config = from_mapping(CONFIGS[name], nest(parameters), name)
        assert config.exit_with_parent is True  # type: ignore[attr-defined]
        assert config.profile == "interbotix_main"  # type: ignore[attr-defined]


def test_empty_arguments_keep_what_the_files_say() -> None:
    launched = Launched(sim="true", viewer="true")
    for name, cls in CONFIGS.items():
        parameters = launched.parameters(name)
        parameters.pop("use_sim_time", None)
        path = config_dir() / f"{name.removesuffix('_node')}.yaml"
        section = flat(load_yaml(path)[name]["ros__parameters"]) | {"exit_with_parent": True}
        assert parameters == section, cls


@pytest.mark.parametrize("text", [TEXT, "12", "true", "1e3", "a: b", "[x]", " ~ "])
def test_texts_reach_the_nodes_as_they_were_typed(text: str) -> None:
    launched = Launched(instruction=text, checkpoint=text, device=text, profile=text)
    parameters = launched.parameters("policy_node")
    names = ("instruction", "policy.checkpoint_dir", "policy.device", "profile")
    assert [parameters[name] for name in names] == [text] * len(names)
    assert launched.parameters("controller_node")["profile"] == text


def test_recording_is_started_only_when_asked_for() -> None:
    assert Launched().processes == []
    (command,) = Launched(sim="true", record="true", bag="/tmp/my bag").processes
    assert command[:3] == ["ros2", "bag", "record"]
    assert command[-2:] == ["-o", "/tmp/my bag"] and "--use-sim-time" in command
    (command,) = Launched(record="true").processes
    assert "-o" not in command and "--use-sim-time" not in command


@pytest.fixture
def installed_packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages that the launch files find besides this one; none at first."""
    found: set[str] = set()

    def prefix(name: str) -> str:
        if name not in found:
            raise PackageNotFoundError(name)
        return "/opt/somewhere"

    monkeypatch.setattr("ament_index_python.packages.get_package_prefix", prefix)
    return found


def test_the_viewer_is_started_only_when_asked_for_and_without_rviz() -> None:
    assert set(Launched().nodes) == ROBOT
    assert set(Launched(viewer="true").nodes) == ROBOT | {VIEWER_NODE}
    assert set(Launched(VIEWER).nodes) == {VIEWER_NODE}


def test_rviz_comes_with_the_viewer_where_it_is_installed(installed_packages: set[str]) -> None:
    installed_packages.add("rviz2")
    assert set(Launched(rviz="true").nodes) == ROBOT | {VIEWER_NODE, "rviz2"}
    assert set(Launched(VIEWER, rviz="true").nodes) == {VIEWER_NODE, "rviz2"}


def test_rviz_that_is_not_installed_is_told_and_the_viewer_started(
    installed_packages: set[str],
) -> None:
    launched = Launched(rviz="true")
    assert set(launched.nodes) == ROBOT | {VIEWER_NODE}
    (told,) = [action for action in launched.actions if isinstance(action, LogInfo)]
    said = "".join(part.perform(launched.context) for part in told.msg)
    assert "expected rviz2 to be installed" in said and "Install ros-jazzy-rviz2" in said


def test_the_robot_goes_on_when_a_viewer_ends(installed_packages: set[str]) -> None:
    installed_packages.add("rviz2")

    def handlers(**arguments: str) -> int:
        actions = Launched(**arguments).actions
        return sum(isinstance(action, RegisterEventHandler) for action in actions)

    assert handlers(sim="true", rviz="true") == handlers(sim="true") == len(NODES)


@pytest.mark.parametrize("argument", ["sim", "viewer", "rviz", "record"])
def test_a_switch_that_is_neither_true_nor_false_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"launch argument {argument}: expected true or false"):
        Launched(**{argument: "maybe"})


def test_a_misspelt_key_in_an_edited_file_would_be_refused(tmp_path: Path) -> None:
    for path in config_dir().glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(text.replace("queue:", "queu:"), encoding="utf-8")
    parameters = Launched(config_dir=str(tmp_path)).parameters("controller_node")
    parameters.pop("use_sim_time")
    with pytest.raises(ConfigError, match="unknown key 'queu'; did you mean 'queue'"):
        from_mapping(ControllerConfig, nest(parameters), "file")


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
    names = ("policy_node", "controller_node", "sim_node", *([VIEWER_NODE] if viewer else []))
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
