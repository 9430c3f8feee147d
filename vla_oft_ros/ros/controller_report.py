"""What the controller tells in `/diagnostics`: tick, queue, joins, safety, joints, shadow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict

from vla_oft_ros.chunk_report import JoinReport, JoinStatistics
from vla_oft_ros.parking import Parking
from vla_oft_ros.ros.diagnostics import OK, WARN
from vla_oft_ros.ros.robot_io import ArmStates
from vla_oft_ros.ros.tick import Tick
from vla_oft_ros.safety import SafetyGate
from vla_oft_ros.safety_report import SafetyState
from vla_oft_ros.shadow import ShadowComparison

_LATE_S = 0.005
"""A 99th percentile of lateness that is worth a warning: an eighth of a period at 25 Hz."""
_NAN = float("nan")
_TELL_EVERY_NS = 1_000_000_000
_NUMBER = re.compile(r"\d+(\.\d+)?")


class Tidings:
    """Which states of the gate are worth a line of the log: those in other words, not with other
    numbers, and one a second. An age that grows would else be told at every tick, and so would a
    cause that comes and goes. An emergency stop is told at once.
    """

    def __init__(self) -> None:
        self._told: str | None = None
        self._next_ns = 0

    def are_new(self, state: SafetyState, reason: str, now_ns: int) -> bool:
        """True if this is to be told now; `now_ns` is of a clock that nobody sets."""
        words = _NUMBER.sub("", reason)
        if words == self._told or (now_ns < self._next_ns and state is not SafetyState.ESTOP):
            return False
        self._told, self._next_ns = words, now_ns + _TELL_EVERY_NS
        return True


def controller_report(
    *,
    tick: Tick | None,
    ticks: int,
    queue: Mapping[str, object],
    age_s: float | None,
    join: JoinReport | None,
    joins: JoinStatistics,
    gate: SafetyGate,
    reason: str,
    parking: Parking,
    followers: ArmStates,
    shadow: ShadowComparison | None,
) -> dict[str, tuple[bytes, str, Mapping[str, object]]]:
    """Part → (level, message, values), for `Diagnostics.publish`."""
    moving = gate.state in (SafetyState.ACTIVE, SafetyState.EASE_IN)
    driven = parking.pose or (age_s is not None)
    parts = {
        "tick": _tick_part(tick, ticks),
        "queue": (
            OK if driven else WARN,
            "" if driven else "no action chunk to execute",
            {**queue, "age_s": _NAN if age_s is None else age_s},
        ),
        "joins": (OK, "", _join_values(join, joins)),
        "safety": (
            OK if moving else WARN,
            reason,
            {"state": gate.state.name, "parking": parking.pose or "no", **gate.kind_counts()},
        ),
        "joint states": (
            OK if not followers.refused else WARN,
            followers.problem,
            {"refused": followers.refused},
        ),
    }
    if shadow is not None:
        parts["shadow"] = (
            OK if shadow.compared else WARN,
            "" if shadow.compared else "nothing from the teleoperator yet",
            {"compared": shadow.compared, **shadow.figures()},
        )
    return parts


def _tick_part(tick: Tick | None, ticks: int) -> tuple[bytes, str, Mapping[str, object]]:
    if tick is None:
        return OK, "not running", {"ticks": ticks}
    late_s = tick.lateness.quantile(0.99)
    values = {
        "ticks": ticks,
        "missed": tick.missed,
        "period_ms_p50": tick.periods.quantile(0.5) * 1e3,
        "period_ms_p99": tick.periods.quantile(0.99) * 1e3,
        "period_ms_max": tick.periods.quantile(1.0) * 1e3,
        "late_ms_p99": late_s * 1e3,
        "late_ms_max": tick.lateness.quantile(1.0) * 1e3,
    }
    slow = late_s > _LATE_S
    return (WARN, "ticks come late; the machine is too busy", values) if slow else (OK, "", values)


def _join_values(join: JoinReport | None, joins: JoinStatistics) -> dict[str, object]:
    """The last join in full, and percentiles of the last hundred."""
    if join is None:
        return {}
    values: dict[str, object] = {f"last_{name}": value for name, value in asdict(join).items()}
    for what in ("seam_jump_rad", "velocity_step_rad_s", "staleness_s"):
        for percent in (50.0, 99.0):
            found = joins.percentile(what, percent)
            values[f"{what}_p{percent:.0f}"] = _NAN if found is None else found
    return values
