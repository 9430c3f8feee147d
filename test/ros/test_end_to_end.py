"""The measurement of the way from camera to joint target, over nodes that really run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("mujoco", reason="needs the extra sim")

SCRIPT = Path(__file__).parents[2] / "benchmark" / "end_to_end.py"
CHUNKS = 3
IN_ORDER = (
    "camera stamp",
    "received",
    "observed",
    "preprocessed",
    "computed",
    "queued",
    "published",
)


@pytest.mark.timeout(420)
def test_every_chunk_that_moved_the_robot_is_traced_from_camera_to_joint_target(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told.json"
    command = [sys.executable, str(SCRIPT), "--chunks", str(CHUNKS), "--seconds", "120"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--json", str(told)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(told.read_text())
    journeys = record["journeys_ns"]
    assert record["published"] == record["chunks"] == len(journeys) >= CHUNKS
    for journey in journeys:
        assert tuple(journey) == IN_ORDER
        spans = [after - before for before, after in pairwise(journey.values())]
        assert min(spans) >= 0
        assert sum(spans) == journey["published"] - journey["camera stamp"]
    # An earlier picture never overtakes a later one.
    captured = [journey["camera stamp"] for journey in journeys]
    assert captured == sorted(captured)
    rows = record["spans_ms"]
    assert list(rows)[-1] == "total"
    assert list(rows)[:-1] == [f"{a} → {b}" for a, b in pairwise(IN_ORDER)]
    for row in rows.values():
        assert 0 <= row["p50"] <= row["p95"] <= row["p99"] <= row["max"]
