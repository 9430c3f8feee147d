"""A few of the faults of `benchmark/faults.py`, done to running processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy

from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.fault_list import FAULTS
from vla_oft_ros.ros.faults import Session, inject, session

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
    verdict = inject(running, BY_NAME[name])
    assert verdict.problem == ""
