"""security:=DIR: every process that a launch file starts is in its own enclave."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from launch import LaunchContext
from launch.actions import ExecuteProcess, IncludeLaunchDescription, OpaqueFunction
from launch.utilities import perform_substitutions

from vla_oft_ros.config import config_dir
from vla_oft_ros.security.environment import SPACE
from vla_oft_ros.security.policy import read_policy, shipped_policies

FOLDER = Path(__file__).resolve().parents[2] / "launch"
STARTED = {
    "aloha_policy": {
        "policy_node",
        "controller_node",
        "sim_node",
        "token_viewer_node",
        "operator",
    },
    "aloha_viewer": {"token_viewer_node"},
    "aloha_record": {"recorder_node", "sim_node", "teleop_node"},
}
"""Enclaves of the nodes that each file starts by itself."""


def environments(name: str, **arguments: str) -> list[dict[str, str]]:
    """Additional environment of every process that a launch file would start."""
    path = FOLDER / f"{name}.launch.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    context = LaunchContext()
    defaults = {key: value for key, (value, _) in module.ARGUMENTS.items()}
    context.launch_configurations.update(defaults | {"config_dir": str(config_dir())} | arguments)
    (start,) = (
        entity
        for entity in module.generate_launch_description().entities
        if isinstance(entity, OpaqueFunction)
    )
    found: list[dict[str, str]] = []
    for action in start.execute(context) or []:
        if isinstance(action, IncludeLaunchDescription):
            passed = dict(action.launch_arguments)
            found += environments("aloha_viewer", **{k: str(v) for k, v in passed.items()})
        elif isinstance(action, ExecuteProcess):
            found.append(
                {
                    perform_substitutions(context, key): perform_substitutions(context, value)
                    for key, value in action.additional_env or []
                }
            )
    return found


@pytest.mark.parametrize("name", STARTED)
def test_every_process_is_in_its_enclave_and_without_the_argument_in_none(
    name: str, tmp_path: Path
) -> None:
    for enclave in read_policy(shipped_policies()["sim"]):
        own = tmp_path / "enclaves" / enclave.lstrip("/")
        own.mkdir(parents=True)
        (own / "permissions.p7s").touch()
    more = {"viewer": "true", "record": "true"} if name == "aloha_policy" else {}
    secured = environments(name, sim="true", security=str(tmp_path), **more)
    expected = STARTED[name] | ({"token_viewer_node", "operator"} if more else set())
    found = {one["ROS_SECURITY_ENCLAVE_OVERRIDE"] for one in secured}
    assert found == {f"{SPACE}/{enclave}" for enclave in expected}
    assert all(one["ROS_SECURITY_STRATEGY"] == "Enforce" for one in secured)
    assert environments(name, sim="true", **more) == [{}] * len(secured)


def test_a_folder_without_keys_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Make one with vla_oft make-keystore"):
        environments("aloha_policy", security=str(tmp_path))
