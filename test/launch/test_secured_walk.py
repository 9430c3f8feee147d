"""security:=DIR with a middleware that enforces it: the robot moves, and hears no stranger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from launched import POLICY
from ros.enclaves import Speakers, new_keystore

from vla_oft_ros.aloha import ACTION_NAMES

CHUNKS, TARGETS, ENOUGH = 2, 25, 40
HEARD = ("chunks", "targets", "safety", "markers", "overlay")
END_S = 90.0
"""For four nodes to end, a policy after its inference, on a loaded machine."""


@pytest.mark.sim
@pytest.mark.usefixtures("needs_security")
def test_the_launch_file_starts_every_node_in_its_enclave_and_no_stranger_is_heard(
    start: Speakers, tmp_path: Path
) -> None:
    needed = ("ros2cli", "torch", "mujoco", "gym_aloha")
    if missing := [name for name in needed if find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    make_random_checkpoint(tmp_path / "small", seed=0)
    keys, log = new_keystore(tmp_path / "keys"), tmp_path / "launch.log"
    arguments = [f"security:={keys}", "sim:=true", "viewer:=true", "device:=cpu"]
    arguments += [f"checkpoint:={tmp_path / 'small'}", "instruction:=lift"]
    command = [sys.executable, "-c", "from ros2cli.cli import main; main()", "launch", str(POLICY)]
    with log.open("wb") as output:
        launch = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        ear = start("hear", ",".join(HEARD), "_ros2cli_1", "", keystore=keys, enclave="operator")
        strangers = [
            start("say", what, name, "stranger")
            for what, name in (("chunks", "policy_node"), ("targets", "controller_node"))
        ]
        counts = dict.fromkeys(HEARD, 1) | {"chunks": CHUNKS, "targets": TARGETS}
        for what, count in counts.items():
            ear.until(count, f"heard {what}")
        for stranger in strangers:
            stranger.until(ENOUGH, "said")
        assert set(ear.told("heard chunks")) == {"lift"}
        assert set(ear.told("heard targets")) == {ACTION_NAMES[0]}
        launch.send_signal(signal.SIGINT)
        launch.wait(END_S)
    finally:
        if launch.poll() is None:
            os.killpg(launch.pid, signal.SIGKILL)
            launch.wait()
    said = log.read_text(encoding="utf-8", errors="replace")
    for node in ("policy_node", "controller_node", "sim_node", "token_viewer_node"):
        assert f"keys/enclaves/vla_oft/{node}\n" in said, said
    assert said.count("process has finished cleanly") == 4, said
