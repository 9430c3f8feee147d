"""What a launch file would start, without starting it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
    PopLaunchConfigurations,
    PushLaunchConfigurations,
    SetLaunchConfiguration,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import TextSubstitution
from launch_ros.actions import Node, PushROSNamespace

from vla_oft_ros.config import config_dir, flatten, load_yaml, node_section

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
POLICY, RECORD, SIM, VIEWER = (
    ROOT / "launch" / f"aloha_{name}.launch.py" for name in ("policy", "record", "sim", "viewer")
)
DECIDES = (
    LaunchDescription,
    IncludeLaunchDescription,
    DeclareLaunchArgument,
    SetLaunchConfiguration,
    GroupAction,
    PushLaunchConfigurations,
    PopLaunchConfigurations,
    PushROSNamespace,
    OpaqueFunction,
)


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

    def __init__(
        self, path: Path = POLICY, *, pushed: str = "", argv: list[str] | None = None, **given: str
    ) -> None:
        self.context = LaunchContext(argv=argv)
        self.context.launch_configurations.update(given)
        self.actions: list = []
        self.nodes: dict[str, Node] = {}
        description = load(path).generate_launch_description()
        if pushed:
            source = PythonLaunchDescriptionSource(str(path))
            included = IncludeLaunchDescription(source, launch_arguments=given.items())
            description = LaunchDescription([GroupAction([PushROSNamespace(pushed), included])])
        self._walk(description)

    def _walk(self, entity: LaunchDescriptionEntity) -> None:
        """Goes through what decides and includes; keeps what would be started."""
        if not isinstance(entity, DECIDES):
            self.actions.append(entity)
            if type(entity) is Node:  # while its namespace is the one it is started in
                entity._perform_substitutions(self.context)
                name = entity.node_name.rpartition("/")[2]
                self.nodes[entity.node_executable if "<" in name else name] = entity
            return
        for inner in entity.visit(self.context) or []:
            self._walk(inner)

    @property
    def processes(self) -> list[list[str]]:
        """Command lines of what is no node."""
        return [
            ["".join(part.perform(self.context) for part in word) for word in action.cmd]
            for action in self.actions
            if type(action) is ExecuteProcess
        ]

    def words(self, name: str) -> list[str]:
        """Command line of a node; empty is what needs a running launch or an installed package."""
        return [
            "".join(part.text for part in word if isinstance(part, TextSubstitution))
            for word in self.nodes[name].cmd
        ]

    def parameters(self, name: str) -> dict[str, object]:
        """Parameters of a node as its process will read them; later files win."""
        words, merged = self.words(name), {}
        for place, word in enumerate(words):
            if word == "--params-file":
                for section, content in load_yaml(Path(words[place + 1])).items():
                    read = ("/**", f"/**/{name}", self.nodes[name].node_name)
                    assert section in read, f"{words[place + 1]}: {section}"
                    merged |= flatten(content["ros__parameters"])
        return merged


def shipped(name: str) -> dict[str, object]:
    """What the shipped file of a node says."""
    return flatten(node_section(config_dir() / f"{name.removesuffix('_node')}.yaml", name))


def edited_config(folder: Path, old: str, new: str) -> Path:
    """A copy of the shipped YAML files with one edit."""
    for path in config_dir().glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        (folder / path.name).write_text(text.replace(old, new), encoding="utf-8")
    return folder
