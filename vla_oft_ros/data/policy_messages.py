"""The package's own messages, and diagnostics, out of a bag without ROS.

The same records as `ros/conversions.py` makes of them on the wire, read from CDR field by field in
the order of `msg/`. Knows no topics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_oft_ros.aloha import ACTION_NAMES
from vla_oft_ros.data.cdr import CdrError, CdrReader
from vla_oft_ros.data.verdict import Verdict
from vla_oft_ros.safety_report import SafetyState
from vla_oft_ros.types import ActionChunk, MotionMode, RetainedTokens

ACTION_CHUNK = "vla_oft_ros/msg/ActionChunk"
RETAINED_TOKENS = "vla_oft_ros/msg/RetainedTokens"
PRUNING_STATUS = "vla_oft_ros/msg/PruningStatus"
SAFETY_STATUS = "vla_oft_ros/msg/SafetyStatus"
EPISODE_STATUS = "vla_oft_ros/msg/EpisodeStatus"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
FLOAT = "std_msgs/msg/Float32"
RECORDER_STATES = ("inactive", "idle", "recording", "review", "saving", "failed")
"""The values of `state` in EpisodeStatus.msg."""
RECORDING = RECORDER_STATES.index("recording")


@dataclass(frozen=True)
class PruningReport:
    """PruningStatus: how the motion was judged and how much was kept.

    Attributes:
        stamp_ns: Stamp of the observation, nanoseconds.
        mode: Of the action-aware controller.
        translation, rotation, rise: (2,) left first, over the 99th percentile of the data set.
        reference_ticks: Control steps back to the reference image; 0 if there was none.
        retain_ratio: Share of the patches kept to the last layer.
    """

    stamp_ns: int
    mode: MotionMode
    translation: np.ndarray
    rotation: np.ndarray
    rise: np.ndarray
    reference_ticks: int
    retain_ratio: float


@dataclass(frozen=True)
class SafetyReport:
    """SafetyStatus: what the safety gate is doing.

    Attributes:
        stamp_ns: When, nanoseconds.
        state: Of the gate.
        reason: Why it holds or has stopped.
        counts: Kind of intervention → ticks since activation.
    """

    stamp_ns: int
    state: SafetyState
    reason: str
    counts: dict[str, int]


@dataclass(frozen=True)
class RecorderReport:
    """EpisodeStatus: what the recorder was doing.

    Attributes:
        stamp_ns: When, nanoseconds.
        state: Index into `RECORDER_STATES`.
        reason: Why.
        episode_index: Number of the episode.
        label: Outcome, empty if not labelled.
        quality: Verdict on it.
        quality_reasons: Why it is not good.
    """

    stamp_ns: int
    state: int
    reason: str
    episode_index: int
    label: str
    quality: Verdict
    quality_reasons: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """One status of a DiagnosticArray.

    Attributes:
        name: Node and part.
        level: 0 fine, 1 warning, 2 error, 3 stale (diagnostic_msgs/DiagnosticStatus).
        message: What is the matter.
    """

    name: str
    level: int
    message: str


def read_chunk(data: bytes) -> ActionChunk:
    """Reads an ActionChunk.

    Raises:
        CdrError: if it is none, or its sizes or its joints are not those of an ALOHA.
    """
    reader = CdrReader(data)
    stamp_ns, dt_s = reader.header(), float(reader.number("d"))
    names, length, positions = reader.texts(), int(reader.number("I")), reader.doubles()
    instruction, inference_s = reader.text(), float(reader.number("d"))
    if names != ACTION_NAMES or length < 1 or positions.size != length * len(names):
        raise CdrError(
            f"ActionChunk: expected chunk_len rows of {len(ACTION_NAMES)} positions, "
            f"{ACTION_NAMES[0]} first; got {length} rows, {positions.size} positions of "
            f"{len(names)} joints"
        )
    if not 0.0 < dt_s < 10.0:
        raise CdrError(f"ActionChunk: expected dt_s above 0 and below 10 s; got {dt_s!r}")
    return ActionChunk(
        actions=positions.reshape(length, len(names)),  # (K, A)
        stamp_ns=stamp_ns,
        dt_ns=round(dt_s * 1e9),
        instruction=instruction,
        inference_s=inference_s,
    )


def read_retained(data: bytes) -> RetainedTokens:
    """Reads a RetainedTokens.

    Raises:
        CdrError: if it is none, or indices and flags do not fit together or leave the grid.
    """
    reader = CdrReader(data)
    stamp_ns, camera = reader.header(), reader.text()
    rows, columns, layer = (int(reader.number("H")) for _ in range(3))
    indices, kept_by = reader.numbers("u4"), reader.numbers("u1")
    if not np.all(kept_by):
        raise CdrError("RetainedTokens: expected a reason for every patch; got 0")
    try:
        return RetainedTokens(
            camera=camera,
            stamp_ns=stamp_ns,
            grid=(rows, columns),
            layer=layer,
            patch_indices=indices.astype(np.int32),
            kept_by=kept_by,
        )
    except ValueError as error:
        raise CdrError(str(error)) from None


def read_pruning(data: bytes) -> PruningReport:
    """Reads a PruningStatus."""
    reader = CdrReader(data)
    stamp_ns, mode = reader.header(), int(reader.number("B"))
    translation, rotation, rise = (reader.numbers("f8", 2) for _ in range(3))
    ticks, ratio = int(reader.number("H")), float(reader.number("d"))
    how = MotionMode.FINE if mode == 1 else MotionMode.COARSE
    return PruningReport(stamp_ns, how, translation, rotation, rise, ticks, ratio)


def read_safety(data: bytes) -> SafetyReport:
    """Reads a SafetyStatus, but for the values of the last intervention.

    Raises:
        CdrError: if it is none, or its state or its counts make no sense.
    """
    reader = CdrReader(data)
    stamp_ns, state, reason = reader.header(), int(reader.number("B")), reader.text()
    reader.stamp_ns()
    kinds, counts = reader.texts(), reader.numbers("u8").tolist()
    if state not in list(SafetyState) or len(kinds) != len(counts):
        raise CdrError(
            f"SafetyStatus: expected a known state and one count per kind; got {state}, "
            f"{len(kinds)} kinds and {len(counts)} counts"
        )
    counted = dict(zip(kinds, counts, strict=True))
    return SafetyReport(stamp_ns, SafetyState(state), reason, counted)


def read_recorder(data: bytes) -> RecorderReport:
    """Reads an EpisodeStatus, but for what it counts."""
    reader = CdrReader(data)
    stamp_ns, state, reason = reader.header(), int(reader.number("B")), reader.text()
    index = int(reader.number("i"))
    reader.number("I")
    reader.text()
    label = reader.text()
    reader.number("d")
    reader.texts()
    for _ in range(2):
        reader.numbers("u8")  # message_counts, dropped_counts
    for _ in range(2):
        reader.number("Q")  # bytes, free_disk_bytes
    quality, reasons = int(reader.number("B")), reader.texts()
    if state >= len(RECORDER_STATES) or quality not in list(Verdict):
        raise CdrError(
            f"EpisodeStatus: expected a known state and quality; got {state}, {quality}"
        )
    return RecorderReport(stamp_ns, state, reason, index, label, Verdict(quality), reasons)


def read_diagnostics(data: bytes) -> list[Diagnosis]:
    """Reads a DiagnosticArray, without its values."""
    reader = CdrReader(data)
    reader.header()
    found = []
    for _ in range(int(reader.number("I"))):
        level, name, message = int(reader.number("B")), reader.text(), reader.text()
        reader.text()  # hardware_id
        for _ in range(int(reader.number("I"))):
            reader.text()
            reader.text()
        found.append(Diagnosis(name, level, message))
    return found


def read_float(data: bytes) -> float:
    """Reads a std_msgs/Float32."""
    return float(CdrReader(data).number("f"))
