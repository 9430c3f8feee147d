"""With security enforced a foreign node publishes neither chunks nor targets, and ours still work.

Needs a middleware that was built with DDS security; without, the reason is said and only what it
protects from is shown.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from ros.enclaves import Speakers, new_keystore
from ros.speaker import TOPICS

from vla_oft_ros.aloha import ACTION_NAMES
from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.processes import NodeProcesses
from vla_oft_ros.security.environment import secured

ENOUGH = 40
"""Messages of a stranger after the honest one was heard: two seconds of them."""
CHUNKS, TICKS = 3, 100
"""Of a closed loop: three answers of the policy, four simulated seconds of targets."""


def test_without_security_anybody_may_publish_chunks(start: Speakers) -> None:
    ear = start("hear", "chunks", "ear", "")
    start("say", "chunks", "policy_node", "stranger")
    assert set(ear.until(1, "heard")) == {"stranger"}


@pytest.mark.usefixtures("needs_security")
@pytest.mark.parametrize(
    ("what", "speaker", "listener"),
    [("chunks", "policy_node", "controller_node"), ("targets", "controller_node", "sim_node")],
)
def test_only_the_enclave_that_may_say_it_is_heard(
    what: str, speaker: str, listener: str, start: Speakers, tmp_path: Path
) -> None:
    keys, others = new_keystore(tmp_path / "keys"), new_keystore(tmp_path / "others")
    ear = start("hear", what, listener, "", keystore=keys, enclave=listener)
    strangers = [
        start("say", what, speaker, "without_keys"),
        start("say", what, speaker, "with_keys_of_its_own", keystore=others, enclave=speaker),
    ]
    for stranger in strangers:
        stranger.until(1, "said")
    honest = start("say", what, speaker, "honest", keystore=keys, enclave=speaker)
    ear.until(1, "heard")
    for process in (*strangers, honest):
        process.until(len(process.told("said")) + ENOUGH, "said")
    assert set(ear.told("heard")) == {"honest"}


@pytest.mark.usefixtures("needs_security")
@pytest.mark.parametrize("what", ["chunks", "targets"])
def test_an_enclave_that_may_not_say_it_is_refused_by_its_own_middleware(
    what: str, start: Speakers, tmp_path: Path
) -> None:
    keys = new_keystore(tmp_path / "keys")
    tool = start("say", what, "_ros2cli_1", "tool", keystore=keys, enclave="operator")
    assert tool.until(1, "refused") and tool.told("ready") and not tool.told("said")


@pytest.mark.usefixtures("needs_security")
def test_keys_of_a_robot_that_is_only_watched_move_no_arm(start: Speakers, tmp_path: Path) -> None:
    """In the profile agilex the controller may not say targets, not even to itself."""
    keys = new_keystore(tmp_path / "keys", "agilex")
    node = "controller_node"
    watcher = start("say", "targets", node, "wrong_profile", keystore=keys, enclave=node)
    assert watcher.until(1, "refused") and watcher.told("ready") and not watcher.told("said")


@pytest.mark.usefixtures("needs_security")
def test_permissions_that_somebody_changed_are_worth_nothing(
    start: Speakers, tmp_path: Path
) -> None:
    keys = new_keystore(tmp_path / "keys")
    signed = keys / "enclaves/vla_oft/operator/permissions.p7s"
    wanted = b"<topic>rt/instruction</topic>"
    content = signed.read_bytes()
    assert wanted in content
    signed.write_bytes(content.replace(wanted, wanted + b"<topic>rt/action_chunk</topic>"))
    thief = start("say", "chunks", "_ros2cli_1", "thief", keystore=keys, enclave="operator")
    assert thief.until(1, "refused") and not thief.told("ready")


@pytest.mark.sim
@pytest.mark.usefixtures("needs_security")
def test_the_closed_loop_works_in_its_enclaves_and_hears_no_stranger(
    start: Speakers, tmp_path: Path
) -> None:
    """The least privilege is enough: all that is said arrives, overlays are drawn; what strangers
    say all the while does not.
    """
    if any(find_spec(name) is None for name in ("torch", "mujoco", "gym_aloha")):
        pytest.skip("needs torch, MuJoCo and the meshes of gym-aloha")
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    make_random_checkpoint(tmp_path / "small", seed=0)
    keys, others = new_keystore(tmp_path / "keys"), new_keystore(tmp_path / "others")
    time_, checkpoint = {"use_sim_time": True}, str(tmp_path / "small")
    policy = {"policy.checkpoint_dir": checkpoint, "policy.device": "cpu", "instruction": "lift"}
    with NodeProcesses(config_dir(), tmp_path, os.environ) as nodes:
        for name, overrides in (
            ("sim_node", {}),
            ("policy_node", time_ | policy),
            ("controller_node", time_),
            ("token_viewer_node", time_),
            ("recorder_node", time_ | {"output_dir": str(tmp_path / "recordings")}),
        ):
            yaml = f"{name.removesuffix('_node')}.yaml"
            nodes.start(name, yaml, overrides, secured(str(keys), name))
        ear = start("hear", ",".join(TOPICS), "_ros2cli_1", "", keystore=keys, enclave="operator")
        ear.until(CHUNKS, "heard chunks")
        for what, count in {**dict.fromkeys(TOPICS, 1), "targets": TICKS}.items():
            ear.until(count, f"heard {what}")
        # Last and briefly: Cyclone DDS 0.10.2 dies of a handshake that has failed for 100 s.
        strangers = [
            start("say", what, name, word, keystore=store, enclave=name)
            for what, name in (("chunks", "policy_node"), ("targets", "controller_node"))
            for word, store in (("without_keys", None), ("with_keys_of_its_own", others))
        ]
        for stranger in strangers:
            stranger.until(ENOUGH, "said")
        ear.until(len(ear.told("heard targets")) + 1, "heard targets")
        assert set(ear.told("heard chunks")) == {"lift"}
        assert set(ear.told("heard targets")) == {ACTION_NAMES[0]}
        assert nodes.ended() == {}, {name: nodes.log_tail(name) for name in nodes.ended()}
