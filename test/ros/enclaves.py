"""Processes that speak in enclaves of a keystore or in none, and what they have told: for tests of
DDS security.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from vla_oft_ros.security.environment import secured
from vla_oft_ros.security.keystore import make_keystore
from vla_oft_ros.security.policy import read_policy, shipped_policies

SPEAKER = Path(__file__).with_name("speaker.py")
START_S = 120.0
"""For a process to start and to be discovered, or a policy to be loaded, on a loaded machine."""


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


class Speakers:
    """Starts speakers, in an enclave of a keystore or (without one) without security.

    Args:
        folder: For what they tell.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Process] = []

    def __call__(self, *words: str, keystore: Path | None = None, enclave: str = "") -> Process:
        self._made.append(Process(self._folder, list(words), environment_of(keystore, enclave)))
        return self._made[-1]

    def end(self) -> None:
        for process in self._made:
            process.end()


def environment_of(keystore: Path | None, enclave: str) -> dict[str, str]:
    """Environment of a process in an enclave, or without security."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ROS_SECURITY")}
    return environment | secured(str(keystore or ""), enclave)


def new_keystore(folder: Path, profile: str = "sim") -> Path:
    enclaves = read_policy(shipped_policies()[profile])
    domain, now = int(os.environ["ROS_DOMAIN_ID"]), datetime.now(timezone.utc)
    make_keystore(folder, enclaves, domain_id=domain, valid_days=2, now=now)
    return folder
