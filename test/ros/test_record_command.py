"""`vla_oft record` at a terminal: a pseudo-terminal presses the keys."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

CODE = "import sys; from vla_oft_ros.cli import main; sys.exit(main())"
PATIENCE_S = 120.0


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What the terminal shows, up to something; the other end may close it."""
    shown, limit_s = b"", time.monotonic() + PATIENCE_S
    while wanted not in shown and time.monotonic() < limit_s:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # Linux: the last one on the other side has gone
                break
    return shown


def test_record_shows_the_recorder_and_ends_with_0_after_q(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = ["record", "--output", str(tmp_path / "set"), "--instruction", "fold the shirt"]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(theirs)
    try:
        shown = read_until(ours, b"fold the shirt")
        assert b"fold the shirt" in shown, shown.decode(errors="replace")
        os.write(ours, b"q")
        read_until(ours, b"never shown")
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
