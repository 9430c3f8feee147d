"""With security enforced a foreign node publishes neither chunks nor targets, and ours still work.

Needs a middleware that was built with DDS security; without, the reason is said and only what it
protects from is shown.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import pytest

from vla_oft_ros import check
from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.processes import NodeProcesses
from vla_oft_ros.security.environment import secured
from vla_oft_ros.security.keystore import make_keystore
from vla_oft_ros.security.policy import read_policy, shipped_policies

SPEAKER = Path(__file__).with_name("speaker.py")
START_S = 120.0
"""For a process to start and to be discovered, or a policy to be loaded, on a loaded machine."""
ENOUGH = 40
"""Messages of a stranger after the honest one was heard: two seconds of them."""


@pytest.fixture(scope="module")
def needs_security() -> None:
    """Skips where the middleware cannot do it, with what it says."""
    pytest.importorskip("cryptography", reason="needs cryptography, of the extra security")
    finding = check._security()
    if not finding.good:
        pytest.skip(f"needs a middleware built with DDS security; here {finding.found}")


class Process:
    """A speaker, and what it has told so far."""

    def __init__(self, folder: Path, words: list[str], environment: Mapping[str, str]) -> None:
        self._log = folder / f"{'-'.join(filter(None, words))}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SPEAKER), *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip

    def told(self, what: str) -> list[str]:
        """The rest of every line that begins so."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line.removeprefix(what).strip() for line in lines if line.startswith(what)]

    def until(self, count: int, what: str) -> list[str]:
        """Waits for so many lines."""
        deadline_s = time.monotonic() + START_S
        while len(lines := self.told(what)) < count:
            told = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            assert time.monotonic() < deadline_s, f"{self._log.name}: no {count} {what!r}: {told}"
            time.sleep(0.05)
        return lines

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts speakers, in an enclave of a keystore or (without one) without security."""
    made: list[Process] = []

    def make(*words: str, keystore: Path | None = None, enclave: str = "") -> Process:
        made.append(Process(tmp_path, list(words), environment_of(keystore, enclave)))
        return made[-1]

    yield make
    for process in made:
        process.end()


def environment_of(keystore: Path | None, enclave: str) -> dict[str, str]:
    """Environment of a process in an enclave, or without security."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ROS_SECURITY")}
    return environment | secured(str(keystore or ""), enclave)


def new_keystore(folder: Path) -> Path:
    enclaves = read_policy(shipped_policies()["sim"])
    domain, now = int(os.environ["ROS_DOMAIN_ID"]), datetime.now(timezone.utc)
    make_keystore(folder, enclaves, domain_id=domain, valid_days=2, now=now)
    return folder


def test_without_security_anybody_may_publish_chunks(start: Callable[..., Process]) -> None:
    ear = start("hear", "chunks", "ear", "")
    start("say", "chunks", "policy_node", "stranger")
    assert set(ear.until(1, "heard")) == {"stranger"}


@pytest.mark.usefixtures("needs_security")
@pytest.mark.parametrize(
    ("what", "speaker", "listener"),
    [("chunks", "policy_node", "controller_node"), ("targets", "controller_node", "sim_node")],
)
def test_only_the_enclave_that_may_say_it_is_heard(
    what: str, speaker: str, listener: str, start: Callable[..., Process], tmp_path: Path
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
    what: str, start: Callable[..., Process], tmp_path: Path
) -> None:
    keys = new_keystore(tmp_path / "keys")
    tool = start("say", what, "_ros2cli_1", "tool", keystore=keys, enclave="operator")
    assert tool.until(1, "refused") and tool.told("ready") and not tool.told("said")


@pytest.mark.usefixtures("needs_security")
def test_permissions_that_somebody_changed_are_worth_nothing(
    start: Callable[..., Process], tmp_path: Path
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
def test_the_simulated_robot_works_with_every_node_in_its_enclave(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    """The least privilege is enough: chunks are said and executed, nothing dies."""
    if any(find_spec(name) is None for name in ("torch", "mujoco", "gym_aloha")):
        pytest.skip("needs torch, MuJoCo and the meshes of gym-aloha")
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    make_random_checkpoint(tmp_path / "small", seed=0)
    keys = new_keystore(tmp_path / "keys")
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
        chunks = start("hear", "chunks", "_ros2cli_1", "", keystore=keys, enclave="operator")
        targets = start("hear", "targets", "_ros2cli_2", "", keystore=keys, enclave="operator")
        chunks.until(3, "heard")
        targets.until(25, "heard")
        assert nodes.ended() == {}, {name: nodes.log_tail(name) for name in nodes.ended()}
