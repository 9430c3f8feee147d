"""What the safety gate decides and reports: plain records for topics and diagnostics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class SafetyState(IntEnum):
    """What the gate is doing; the values of SafetyStatus.msg."""

    INACTIVE = 0
    HOLD = 1
    EASE_IN = 2
    ACTIVE = 3
    ESTOP = 4


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """One change of what was wanted.

    Attributes:
        kind: Which limit or fault: position, velocity, ease_in, acceleration; workspace,
            arm_distance, shape, non_finite, no_action, joint_states, late_tick, deadman,
            tracking_error, estop, stop.
        joint: Name of the joint, empty if it concerns all of them.
        wanted: Wanted value, rad or opening; NaN if none.
        given: Value given instead; NaN if all joints are concerned.
    """

    kind: str
    joint: str
    wanted: float
    given: float


@dataclass(frozen=True, kw_only=True)
class SafetyDecision:
    """The outcome of one tick.

    Attributes:
        target: (14,) float64 what the robot shall be told, or None to tell it nothing.
        state: State after this tick.
        reason: Why it holds or has stopped, one sentence; empty when nothing is the matter.
        interventions: What was changed in this tick.
        waits: True if it held whatever was wanted: the action of this tick was not executed, and
            the motion can go on from it later. False also where a hold is the action's own fault.
    """

    target: np.ndarray | None
    state: SafetyState
    reason: str
    interventions: tuple[Intervention, ...]
    waits: bool = False


@dataclass(frozen=True, kw_only=True)
class LastIntervention:
    """The latest tick with an intervention, for the status topic.

    Attributes:
        kind: Its first kind.
        stamp_ns: When, nanoseconds.
        wanted: (14,) what was wanted, NaN if nothing usable was.
        given: (14,) what was given.
    """

    kind: str
    stamp_ns: int
    wanted: np.ndarray
    given: np.ndarray
