"""A few of the faults of `benchmark/faults.py`, done to running processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy

from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.fault_list import FAULTS
from vla_oft_ros.ros.faults import Session, inject, session
from vla_oft_ros.ros.stepped_clock import SteppedClock, has_compiler

pytestmark = pytest.mark.timeout(240)
QUICK = (
    "camera dead",
    "camera black",
    "joint states dead",
    "joint NaN",
    "joint names shuffled",
    "chunk for another robot",
    "e-stop when active",
    "policy killed",
    "system clock steps forward",
    "system clock steps back",
    "policy's clock steps forward",
)
BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def running(own_ros: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    rclpy.init()
    log_dir: Path = tmp_path_factory.mktemp("faults")
    try:
        with session(config_dir(), log_dir, dict(os.environ)) as started:
            yield started
    finally:
        rclpy.try_shutdown()


def test_every_fault_has_a_name_of_its_own_and_there_are_at_least_twenty() -> None:
    assert len(BY_NAME) == len(FAULTS) >= 20


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_ends_as_it_must_and_is_over_when_it_is_over(running: Session, name: str) -> None:
    if BY_NAME[name].wall_clock and not has_compiler():
        pytest.skip("stepping a wall clock needs a C compiler (cc)")
    verdict = inject(running, BY_NAME[name])
    assert verdict.problem == ""


@pytest.mark.skipif(not has_compiler(), reason="needs a C compiler (cc)")
def test_a_stepped_clock_moves_the_wall_clock_of_its_process_only_and_no_steady_clock(
    tmp_path: Path,
) -> None:
    """A child tells its clocks whenever it is asked; rclpy's system clock is one of them."""
    code = (
        "import sys, time\n"
        "from rclpy.clock import Clock\n"
        "for _ in sys.stdin:\n"
        "    walls = time.time_ns(), Clock().now().nanoseconds, int(time.time() * 1e9)\n"
        "    print(*walls, time.monotonic_ns(), flush=True)\n"
    )
    clock = SteppedClock(tmp_path, "child")
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:

        def tell() -> list[float]:
            """Wall clocks and steady clock of the child, seconds ahead of ours."""
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            *walls, steady = map(int, child.stdout.readline().split())
            ahead_ns = [wall - time.time_ns() for wall in walls]
            return [ns * 1e-9 for ns in (*ahead_ns, steady - time.monotonic_ns())]

        for step_s, offset_s in ((0.0, 0.0), (3600.0, 3600.0), (-7200.0, -3600.0)):
            clock.step(step_s)
            assert tell() == pytest.approx([offset_s] * 3 + [0.0], abs=60.0)
        child.communicate()
