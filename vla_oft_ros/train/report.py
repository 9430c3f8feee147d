"""What a training tells: a progress bar, lines of figures, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

METRICS_FILE = "metrics.jsonl"
"""One JSON object per log line: step, seconds since the start, and the figures."""


class TrainingReport:
    """Reports of the first process; a context manager, so that the bar ends with the training.

    Args:
        console: Where the bar and lines go.
        run_dir: Where metrics.jsonl and TensorBoard files go.
        first_step: Steps done before; later lines of an interrupted run are dropped.
        max_steps: Length of the bar.
        tensorboard: Whether to write TensorBoard files.

    Raises:
        ImportError: if TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        console: Console,
        run_dir: Path,
        *,
        first_step: int,
        max_steps: int,
        tensorboard: bool,
    ) -> None:
        self._writer = _summary_writer(run_dir, first_step) if tensorboard else None
        self._console = console
        self._start_s = time.monotonic()
        self._path = run_dir / METRICS_FILE
        _keep_lines(self._path, first_step)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task(
            "training", total=max_steps, completed=first_step, figures=""
        )

    def __enter__(self) -> TrainingReport:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._writer is not None:
            self._writer.close()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes one line everywhere."""
        seconds = round(time.monotonic() - self._start_s, 3)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "seconds": seconds, **figures}) + "\n")
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._progress.update(self._task, figures=text)
        self._console.print(f"step {step}  {text}", markup=False, soft_wrap=True)
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Prints one line."""
        self._console.print(text, markup=False, soft_wrap=True)


def _keep_lines(path: Path, first_step: int) -> None:
    """Drops lines of steps that a resumed training will do again; whole lines or nothing."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for line in lines:
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError):  # the last line of a killed process
            continue
        if step <= first_step:
            kept.append(line + "\n")
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(kept), encoding="utf-8")
    os.replace(part, path)


def _summary_writer(run_dir: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"tensorboard: true needs the package tensorboard ({error}); "
            "pip install 'vla_oft_ros[tensorboard]', or set tensorboard to false"
        ) from None
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)
