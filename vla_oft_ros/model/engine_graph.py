"""CUDA graphs: one pass recorded once and replayed, and a bounded number of them kept.

A graph reads and writes fixed memory. `StaticPass` owns that memory: it copies an observation in,
and leaves the answer where the graph puts it. How a function becomes something that can be
replayed is handed in, so that everything but `GpuCapture` runs on any machine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from vla_oft_ros.model.engine_pass import Network, PassInputs, PassOutput, PassShape
from vla_oft_ros.model.stage_times import Mark, StageTimes

Replay = Callable[[], None]
Capture = Callable[[Callable[[], PassOutput]], tuple[Replay, PassOutput]]

WARM_UP_PASSES = 3
"""Before a capture, outside the graph: kernels are chosen, compiled, and workspaces allocated
(torch, "CUDA semantics", recommends as many).
"""

Key = TypeVar("Key")
Value = TypeVar("Value")


class GpuCapture:
    """Records passes on the current GPU; one of its own for every engine.

    The passes share the memory of what lies between input and answer, some hundred megabytes at
    7B: an engine replays one at a time, and takes an answer away before the next replay.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._pool: Any = None

    def __call__(self, run: Callable[[], PassOutput]) -> tuple[Replay, PassOutput]:
        """Records the kernels of one call; returns what launches them again, and their output."""
        if self._stream is None:
            # Graphs that share memory must share the stream that they are recorded on, and torch's
            # own one belongs to the GPU of the process's first recording.
            stream: Any = torch.cuda.Stream  # torch gives it no types
            self._stream, self._pool = stream(), torch.cuda.graph_pool_handle()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_PASSES):
                run()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may call CUDA meanwhile: only this one is recorded.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            output = run()
        return graph.replay, output


class StaticPass:
    """A pass of one shape with memory of its own.

    Args:
        network: What to run.
        shape: Which pass.
        inputs: A first observation, which the recording runs on.
        capture: Makes a function replayable.
        times: What `network` marks its stages with.
    """

    def __init__(
        self,
        network: Network,
        shape: PassShape,
        inputs: PassInputs,
        capture: Capture,
        times: StageTimes | None = None,
    ) -> None:
        self._device = network.device
        self._inputs = inputs.map(partial(torch.empty_like, device=network.device))
        self._pinned: dict[int, Tensor] = {}
        self._prompt: Tensor | None = None
        self._times = times
        self.load(inputs)
        self._replay, self.output = capture(lambda: network(shape, self._inputs))
        self._marks: list[tuple[str, Mark]] = [] if times is None else times.marks

    def load(self, inputs: PassInputs) -> None:
        """Copies an observation in, and the instruction if it is another one."""
        if self._device.type == "cuda":
            # The copies of an earlier load may still read the pinned memory.
            torch.cuda.current_stream(self._device).synchronize()
        pairs = zip(self._inputs.of_observation(), inputs.of_observation(), strict=True)
        for index, (target, source) in enumerate(pairs):
            target.copy_(self._staged(index, source), non_blocking=True)
        if inputs.prompt is not self._prompt:
            for target, source in zip(
                self._inputs.of_instruction(), inputs.of_instruction(), strict=True
            ):
                target.copy_(source)
            self._prompt = inputs.prompt

    def replay(self) -> None:
        """Runs the pass on what was loaded; `output` holds the answer when the device is done."""
        self._replay()
        if self._times is not None:
            self._times.show(self._marks)

    def _staged(self, index: int, source: Tensor) -> Tensor:
        """The tensor in pinned memory, from which the device copies by itself."""
        if self._device.type != "cuda" or source.device.type != "cpu":
            return source
        if index not in self._pinned:
            self._pinned[index] = torch.empty_like(source, pin_memory=True)
        return self._pinned[index].copy_(source)


class LeastRecent(Generic[Key, Value]):
    """A mapping that holds a bounded number of entries; the one not used for longest goes first.

    Args:
        capacity: Entries at most, 1 or more.

    Attributes:
        capacity: The same.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"keep_graphs: expected 1 or more; got {capacity}")
        self.capacity = capacity
        self._entries: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """The entry, which is the most recent one from now on; None if there is none."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Key, value: Value) -> None:
        """Adds an entry; the least recent ones beyond the capacity go."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Drops everything."""
        self._entries.clear()
