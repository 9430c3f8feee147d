"""The launch files: what they declare, refuse and start, and with which parameters."""

import sys
from pathlib import Path

import pytest
from ament_index_python.packages import PackageNotFoundError
from launch import LaunchContext
from launch.actions import LogInfo, RegisterEventHandler
from launched import (
    FILES,
    POLICY,
    RECORD,
    ROOT,
    SIM,
    VIEWER,
    Launched,
    declared,
    edited_config,
    load,
    shipped,
)

from vla_oft_ros.config import (
    ConfigError,
    ControllerConfig,
    PolicyNodeConfig,
    RecorderConfig,
    SimConfig,
    TeleopConfig,
    TokenViewerConfig,
    from_mapping,
    nest,
)
from vla_oft_ros.ros import launch_nodes
from vla_oft_ros.ros.launch_nodes import SHARED

NODES = {
    "policy_node": PolicyNodeConfig,
    "controller_node": ControllerConfig,
    "sim_node": SimConfig,
}
ROBOT = {"policy_node", "controller_node"}
VIEWER_NODE = "token_viewer_node"
CONFIGS = NODES | {VIEWER_NODE: TokenViewerConfig}
RECORDING = {
    "recorder_node": RecorderConfig,
    "sim_node": SimConfig,
    "teleop_node": TeleopConfig,
}
TEXT = '12: it\'s "the" cube, {yes} #1'
"""An instruction that YAML would take for something else than a text."""


def test_no_plugin_imports_test_files_to_look_for_launch_tests(
    pytestconfig: pytest.Config,
) -> None:
    for name in ("launch_testing", "launch_ros"):
        assert not pytestconfig.pluginmanager.has_plugin(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_launch_file_makes_a_description_and_explains_its_arguments(path: Path) -> None:
    found = declared(path)
    table = {**load(path).ARGUMENTS, **SHARED}
    assert set(found) == set(table)
    context = LaunchContext()
    for name, argument in table.items():
        said = "".join(part.perform(context) for part in found[name].default_value)
        assert (said, found[name].description) == (argument.default, argument.description)
        assert argument.description.endswith(".")
        assert not argument.choices or argument.default in argument.choices


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
    launches = [Launched(sim=sim, viewer="true", profile="interbotix_main")]
    launches += [Launched(path, sim=sim, profile="interbotix_main") for path in (RECORD, SIM)]
    for started, name in ((one, name) for one in launches for name in one.nodes):
        parameters = started.parameters(name)
        uses_sim_time = parameters.pop("use_sim_time", False)
        assert uses_sim_time is (sim == "true" and name != "sim_node")
        config = from_mapping((CONFIGS | RECORDING)[name], nest(parameters), name)
        assert config.exit_with_parent is True  # type: ignore[attr-defined]
        assert config.profile == "interbotix_main"  # type: ignore[attr-defined]


def test_empty_arguments_keep_what_the_files_say() -> None:
    both = Launched(sim="true", viewer="true"), Launched(RECORD, sim="true"), Launched(SIM)
    of_sim = {"instruction_topic": "instruction"}, {}, {}
    for launched, changed in zip(both, of_sim, strict=True):
        for name in launched.nodes:
            parameters = launched.parameters(name)
            parameters.pop("use_sim_time", None)
            expected = shipped(name) | {"exit_with_parent": True}
            expected |= changed if name == "sim_node" else {}
            expected |= {"camera_rate_hz": 25.0} if name == "recorder_node" else {}
            assert parameters == expected, name


@pytest.mark.parametrize(
    ("given", "file", "topic"),
    [("", "", "instruction"), ("a", "", "task_instruction"), ("", "b", "task_instruction")],
)
def test_a_simulated_task_says_what_to_do_where_nobody_else_does(
    given: str, file: str, topic: str, tmp_path: Path
) -> None:
    own = edited_config(tmp_path, 'instruction: ""', f'instruction: "{file}"')
    launched = Launched(sim="true", instruction=given, config_dir=str(own))
    assert launched.parameters("sim_node")["instruction_topic"] == topic
    assert launched.parameters("policy_node")["instruction"] == given or file


@pytest.mark.parametrize("path", [POLICY, RECORD, SIM, VIEWER], ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("pushed", "own", "expected"),
    [("", "robot_1", "/robot_1"), ("lab", "", "/lab"), ("lab", "robot_1", "/lab/robot_1")],
)
def test_in_a_namespace_every_node_still_reads_its_file(
    path: Path, pushed: str, own: str, expected: str
) -> None:
    launched = Launched(path, pushed=pushed, namespace=own, sim="true")
    assert launched.nodes
    for name, node in launched.nodes.items():
        assert node.node_name == f"{expected}/{name}"
        assert set(shipped(name)) <= set(launched.parameters(name))
        assert f"{expected[1:].replace('/', '.')}.{name}:=info" in launched.words(name)


def test_a_section_that_a_namespace_hides_is_refused(tmp_path: Path) -> None:
    own = str(edited_config(tmp_path, "/**/controller_node:", "controller_node:"))
    assert Launched(config_dir=own).nodes
    for hidden in ({"namespace": "robot_1"}, {"pushed": "robot_1"}):
        with pytest.raises(ConfigError, match=r"expected a section '/\*\*/controller_node: ros"):
            Launched(config_dir=own, **hidden)


def test_profiles_of_the_chosen_folder_are_used_unless_the_file_names_others(
    tmp_path: Path,
) -> None:
    own = edited_config(tmp_path, 'profiles_path: ""', 'profiles_path: ""')
    for name in NODES:
        launched = Launched(sim="true", config_dir=str(own))
        assert launched.parameters(name)["profiles_path"] == str(own / "aloha.yaml")
    own = edited_config(tmp_path, 'profiles_path: ""', "profiles_path: /srv/robots.yaml")
    launched = Launched(sim="true", config_dir=str(own))
    assert launched.parameters("policy_node")["profiles_path"] == "/srv/robots.yaml"


@pytest.mark.parametrize(("given", "expected"), [("", True), ("true", True), ("false", False)])
def test_shadow_mode_is_what_the_argument_says_or_the_file(
    given: str, expected: bool, tmp_path: Path
) -> None:
    own = edited_config(tmp_path, "shadow: false", "shadow: true")
    launched = Launched(shadow=given, config_dir=str(own))
    assert launched.parameters("controller_node")["shadow"] is expected


def test_the_recorder_expects_simulated_cameras_at_the_rate_of_the_simulation(
    tmp_path: Path,
) -> None:
    own = edited_config(tmp_path, "control_rate_hz: 25.0", "control_rate_hz: 12.5")
    simulated = Launched(RECORD, sim="true", config_dir=str(own)).parameters("recorder_node")
    assert simulated["camera_rate_hz"] == 12.5
    real = Launched(RECORD, config_dir=str(own)).parameters("recorder_node")
    assert real["camera_rate_hz"] == shipped("recorder_node")["camera_rate_hz"]


def test_the_seed_of_the_simulation_is_the_argument_or_the_file(tmp_path: Path) -> None:
    own = str(edited_config(tmp_path, "seed: 0", "seed: 5"))
    assert Launched(SIM, config_dir=own).parameters("sim_node")["seed"] == 5
    assert Launched(SIM, config_dir=own, seed="7").parameters("sim_node")["seed"] == 7
    with pytest.raises(ValueError, match="launch argument seed: expected an integer"):
        Launched(SIM, seed="1.5")


@pytest.mark.parametrize("text", [TEXT, "12", "true", "off", "1e3", "a: b", "[x]", " ~ "])
def test_texts_reach_the_nodes_as_they_were_typed(text: str) -> None:
    recorded = Launched(RECORD, instruction=text, output=text, gripper_trigger=text)
    names = ("instruction", "output_dir", "gripper_trigger")
    assert [recorded.parameters("recorder_node")[name] for name in names] == [text] * len(names)
    launched = Launched(instruction=text, checkpoint=text, device=text, profile=text)
    parameters = launched.parameters("policy_node")
    names = ("instruction", "policy.checkpoint_dir", "policy.device", "profile")
    assert [parameters[name] for name in names] == [text] * len(names)
    assert launched.parameters("controller_node")["profile"] == text


@pytest.fixture
def installed_packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages that the launch files find besides this one; none at first."""
    found: set[str] = set()

    def prefix(name: str) -> str:
        if name not in found:
            raise PackageNotFoundError(name)
        return "/opt/somewhere"

    monkeypatch.setattr(launch_nodes, "get_package_prefix", prefix)
    return found


def test_recording_is_started_only_when_asked_for(
    installed_packages: set[str], tmp_path: Path
) -> None:
    installed_packages |= {"ros2bag", "rosbag2_storage_mcap"}
    assert Launched().processes == []
    folder = str(tmp_path / "my bag")
    (command,) = Launched(sim="true", record="true", bag=folder).processes
    assert command[:3] == ["ros2", "bag", "record"]
    assert command[-2:] == ["--output", folder] and "--use-sim-time" in command
    (command,) = Launched(record="true").processes
    assert "--output" not in command and "--use-sim-time" not in command
    with pytest.raises(ValueError, match="launch argument bag: expected a folder that is to be"):
        Launched(record="true", bag=str(tmp_path))


def test_a_recording_that_cannot_be_made_starts_nothing(installed_packages: set[str]) -> None:
    installed_packages.add("ros2bag")
    with pytest.raises(ValueError, match="missing rosbag2_storage_mcap"):
        Launched(record="true")


def test_where_pip_installed_the_package_its_modules_are_run(installed_packages: set[str]) -> None:
    launched = Launched(sim="true")
    for name in launched.nodes:
        module = f"vla_oft_ros.ros.{name}"
        assert launched.words(name)[:3] == [sys.executable, "-m", module]


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


@pytest.mark.parametrize(
    ("path", "argument", "expected"),
    [
        *((POLICY, name, "true or false; got") for name in ("sim", "viewer", "rviz", "record")),
        (POLICY, "shadow", "empty, true or false; got"),
        (RECORD, "sim", "true or false; got"),
        (VIEWER, "rviz", "true or false; got"),
        *((path, "log_level", "debug, info, warn, error or fatal; got") for path in FILES),
        *((path, "config_dir", "a folder; .* is none") for path in FILES),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_with_what_was_expected(
    path: Path, argument: str, expected: str
) -> None:
    with pytest.raises(ValueError, match=f"launch argument {argument}: expected {expected}"):
        Launched(path, **{argument: "maybe"})


@pytest.mark.parametrize(
    ("word", "told"),
    [("chekpoint:=/x", "checkpoint"), ("log-level:=debug", "log_level"), ("map:=office", "")],
)
def test_a_misspelt_argument_is_told_and_what_is_meant_for_others_is_not(
    word: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    logger = launch_nodes.get_logger("vla_oft_ros")
    monkeypatch.setattr(logger, "warning", said.append)
    Launched(argv=[word, "sim:=false"])
    assert [one.rpartition("did you mean ")[2] for one in said] == ([f"{told}?"] if told else [])


def test_a_misspelt_key_in_an_edited_file_would_be_refused(tmp_path: Path) -> None:
    own = edited_config(tmp_path, "queue:", "queu:")
    parameters = Launched(config_dir=str(own)).parameters("controller_node")
    parameters.pop("use_sim_time")
    with pytest.raises(ConfigError, match="unknown key 'queu'; did you mean 'queue'"):
        from_mapping(ControllerConfig, nest(parameters), "file")
