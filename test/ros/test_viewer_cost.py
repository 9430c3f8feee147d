"""The measurement of what the viewer costs, over nodes that really run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("mujoco", reason="needs the extra sim")

SCRIPT = Path(__file__).parents[2] / "benchmark" / "viewer_cost.py"


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(900)
def test_every_state_is_measured_and_a_viewer_works_only_while_somebody_looks(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told.json"
    command = [sys.executable, str(SCRIPT), "--rounds", "1", "--seconds", "3"]
    done = subprocess.run(
        [*command, "--json", str(told)], capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    alone, idle, watched = json.loads(told.read_text())["windows"]
    states = [window["state"] for window in (alone, idle, watched)]
    assert states == ["no viewer", "viewer, nobody looks", "viewer, looked at"]
    assert "token_viewer_node" not in alone["cpu"]
    assert alone["overlays"] == idle["overlays"] == 0 < watched["overlays"]
    assert watched["cpu"]["token_viewer_node"] > 0
    for window in (alone, idle, watched):
        assert window["simulated_s"] > 0 and window["cpu"]["sim_node"] > 0
