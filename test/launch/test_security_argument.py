"""security:=DIR: every process that a launch file starts is in its own enclave."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch.actions import ExecuteProcess
from launch.utilities import perform_substitutions
from launched import ROOT, Launched

from vla_oft_ros.ros import launch_nodes
from vla_oft_ros.security.environment import SPACE
from vla_oft_ros.security.policy import read_policy, shipped_policies

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
    "aloha_sim": {"sim_node"},
}
"""Enclaves of the nodes that each file starts by itself."""


def environments(name: str, **arguments: str) -> list[dict[str, str]]:
    """Additional environment of every process that a launch file would start."""
    launched = Launched(ROOT / "launch" / f"{name}.launch.py", **arguments)
    return [
        {
            perform_substitutions(launched.context, key): perform_substitutions(
                launched.context, value
            )
            for key, value in action.additional_env or []
        }
        for action in launched.actions
        if isinstance(action, ExecuteProcess)
    ]


@pytest.mark.parametrize("name", STARTED)
def test_every_process_is_in_its_enclave_and_without_the_argument_in_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_nodes, "is_installed", lambda package: package != "vla_oft_ros")
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
