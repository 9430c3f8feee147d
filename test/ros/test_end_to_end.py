"""The measurement of the way from camera to joint target: its arithmetic, and over real nodes."""

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
sys.path.append(str(Path(__file__).parents[2] / "benchmark"))

from end_to_end import INSTANTS, WARM_UP, Traces, journey, spans, summary

SCRIPT = Path(__file__).parents[2] / "benchmark" / "end_to_end.py"
CHUNKS = 2
IN_ORDER = (
    "camera stamp",
    "received",
    "observed",
    "preprocessed",
    "computed",
    "queued",
    "published",
)
POLICY = {
    "stamp cam_high": 1_000,
    "stamp cam_left_wrist": 1_040,
    "received cam_high": 5_000_000,
    "received cam_left_wrist": 4_000_000,
    "observed": 6_000_000,
    "started": 6_500_000,
    "preprocessed": 8_000_000,
    "computed": 20_000_000,
    "sent": 21_000_000,
}
CONTROLLER = {"queued": 22_000_000, "published": 40_000_000}
EXPECTED = dict(
    zip(
        IN_ORDER,
        (1_000, 5_000_000, 6_000_000, 8_000_000, 20_000_000, 22_000_000, 40_000_000),
        strict=True,
    )
)


def later(instants: dict[str, int], shift_ns: int) -> dict[str, int]:
    return {name: value + shift_ns for name, value in instants.items()}


def told(chunks: int) -> Traces:
    """Chunks a second apart, of each of which both nodes said their share."""
    traces = Traces()
    for count in range(chunks):
        for share in (POLICY, CONTROLLER):
            traces.add_chunk(count * 10**9, later(share, count * 10**9))
    return traces


def test_a_journey_begins_with_the_oldest_image_and_waits_for_the_last_to_arrive() -> None:
    assert INSTANTS == IN_ORDER
    found = journey({**CONTROLLER, **POLICY}, lambda stamp_ns: stamp_ns)
    assert found is not None and list(found.items()) == list(EXPECTED.items())


@pytest.mark.parametrize("missing", ["observed", "computed", "queued", "published"])
def test_a_chunk_of_which_an_instant_is_not_known_has_no_journey(missing: str) -> None:
    instants = {**POLICY, **CONTROLLER}
    del instants[missing]
    assert journey(instants, lambda stamp_ns: stamp_ns) is None
    assert journey({**POLICY, **CONTROLLER}, {1_000: 7}.get) is None


def test_spans_add_up_to_the_total() -> None:
    found = spans(EXPECTED)
    assert list(found) == [*(f"{a} → {b}" for a, b in pairwise(IN_ORDER)), "total"]
    assert found["computed → queued"] == 2.0
    assert found["total"] == pytest.approx(sum(list(found.values())[:-1])) == 39.999


def test_both_nodes_shares_are_joined_and_the_first_chunks_do_not_count() -> None:
    traces = told(WARM_UP + 2)
    traces.add_chunk(99 * 10**9, later(POLICY, 99 * 10**9))  # on its way still
    assert traces.heard == WARM_UP + 3
    stamps = [count * 10**9 for count in range(WARM_UP, WARM_UP + 2)]
    assert traces.journeys() == {stamp: later(EXPECTED, stamp) for stamp in stamps}
    assert traces.published() == stamps


def test_a_target_from_a_chunk_without_a_journey_is_counted_as_published() -> None:
    """So that a measurement which loses sight of chunks can be seen to."""
    traces, lost = told(WARM_UP + 2), WARM_UP * 10**9 + 1
    shares = {**POLICY, **CONTROLLER}
    del shares["preprocessed"]
    traces.add_chunk(lost, later(shares, lost))
    assert lost not in traces.journeys()
    assert lost in traces.published()


def test_a_simulated_stamp_counts_from_when_the_clock_told_it() -> None:
    traces = told(WARM_UP + 1)
    assert traces.real_time_factor is None
    stamp = WARM_UP * 10**9
    for simulated_ns in (stamp + 1_000, stamp + 1_040):
        traces.add_clock(simulated_ns, stamp + 2 * simulated_ns - 2 * stamp)
    [found] = traces.journeys().values()
    assert found["camera stamp"] == stamp + 2_000
    assert traces.real_time_factor == 0.5


def test_quantiles_and_halves_are_taken_over_chunks() -> None:
    journeys = [{**EXPECTED, "published": 40_000_000 + n * 10**6} for n in range(10)]
    row = summary(journeys)["queued → published"]
    assert (row["p50"], row["max"]) == (22.5, 27.0)
    assert row["p50"] < row["p95"] < row["p99"] < row["max"]
    assert (row["p50_even"], row["p50_odd"]) == (22.0, 23.0)


@pytest.mark.timeout(420)
def test_every_chunk_that_moved_the_robot_is_traced_from_camera_to_joint_target(
    tmp_path: Path,
) -> None:
    file = tmp_path / "told.json"
    command = [sys.executable, str(SCRIPT), "--chunks", str(CHUNKS), "--seconds", "120"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(file.read_text())
    journeys = record["journeys_ns"]
    assert record["published"] == record["chunks"] == len(journeys) >= CHUNKS
    for one in journeys:
        assert tuple(one) == IN_ORDER
        assert list(one.values()) == sorted(one.values())
    # An earlier picture never overtakes a later one.
    captured = [one["camera stamp"] for one in journeys]
    assert captured == sorted(captured)
    assert list(record["spans_ms"])[-1] == "total"
