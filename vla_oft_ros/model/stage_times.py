"""Where the time of a pass goes: marks between its stages, read after it.

On a GPU a mark is an event, which a captured graph records again at every replay; on a CPU it is
a clock. A pass without a watch records nothing.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A point in time that may lie in the device's future."""

    def record(self) -> None:
        """Takes the time, or lets the device take it when it gets here."""
        ...

    def elapsed_time(self, later: Mark) -> float:
        """Milliseconds from this mark to a later one."""
        ...


class _ClockMark:
    """The host's clock."""

    def __init__(self) -> None:
        self.taken_s = 0.0

    def record(self) -> None:
        self.taken_s = time.perf_counter()

    def elapsed_time(self, later: Mark) -> float:
        assert isinstance(later, _ClockMark)
        return (later.taken_s - self.taken_s) * 1e3


class StageTimes:
    """Marks of one pass.

    Args:
        device: Where the pass runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Mark]] = []

    def start(self) -> None:
        """Begins a pass: earlier marks are dropped."""
        self._marks = []
        self._add("")

    def end(self, stage: str) -> None:
        """Marks the end of a stage, which began where the one before ended."""
        self._add(stage)

    @property
    def marks(self) -> list[tuple[str, Mark]]:
        """Of the last pass; a captured pass keeps them to show them again after each replay."""
        return self._marks

    def show(self, marks: list[tuple[str, Mark]]) -> None:
        """Makes marks of a captured pass those of the last pass."""
        self._marks = marks

    def milliseconds(self) -> dict[str, float]:
        """Stage → ms, in order of running; waits for the device.

        Raises:
            RuntimeError: before the first pass.
        """
        if not self._marks:
            raise RuntimeError("StageTimes.milliseconds: run a pass first")
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return {stage: before.elapsed_time(mark) for (_, before), (stage, mark) in pairs}

    def _add(self, stage: str) -> None:
        # External: in a graph, a node that can be read and not an edge.
        event: Any = torch.cuda.Event
        on_gpu = self._device.type == "cuda"
        mark: Mark = event(enable_timing=True, external=True) if on_gpu else _ClockMark()
        mark.record()
        self._marks.append((stage, mark))
