"""The last word before the robot: whatever is wanted, what is given is within the limits.

`SafetyGate` is a state machine over plain values: it publishes nothing, asks no clock, and denies
by default. A *hold* is momentary (no action, old joint states, a forbidden pose): the arms brake
to rest, the grippers keep their grip, and the motion goes on with an ease-in when the reason is
gone. A *stop* (emergency stop, tracking error, end of the controller) also opens the grippers,
since ALOHA's gripper motors fault when they are left closed; an emergency stop stays until it is
reset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM, ACTION_NAMES, GRIPPERS, position_limits
from vla_oft_ros.clearance import Clearance
from vla_oft_ros.config import SafetyConfig
from vla_oft_ros.motion_limits import braking_steps, limited_step, parking_poses
from vla_oft_ros.safety_report import (
    Intervention,
    LastIntervention,
    SafetyDecision,
    SafetyState,
)

_ARM_JOINTS = np.array([index for index in range(ACTION_DIM) if index not in GRIPPERS])
_GRIPPERS = np.array(GRIPPERS)
_OPEN = 1.0
_LONGEST_PAUSE_NS = 200_000_000
"""A tick later than this finds the arm at rest, whatever it was doing: five periods at 25 Hz."""
_MAX_FUTURE_NS = 20_000_000
"""How far joint states may be ahead of the caller's clock, as for chunks."""
_PLAUSIBLE_RAD = 0.3
"""How far outside its limits a joint may be measured: servo offset and sag, not a broken message.
"""
_SAME = 1e-9
"""Difference of a wanted and a given value that is no intervention, rad."""

_Hold = tuple[str, str]
"""Kind and reason of a hold."""
_WHATEVER_IS_WANTED = ("joint_states", "late_tick", "deadman", "estop", "tracking_error", "stop")
"""Kinds of holds that have nothing to do with the target that was wanted."""


class SafetyGate:
    """Turns wanted joint targets into safe ones, one per tick.

    Laws, whatever is handed in: every target is finite and within the position limits (a start
    outside of them only moves inward); from tick to tick it moves no faster than the velocity
    limits, and its velocity changes no faster than the acceleration limit; the grippers stay in
    the workspace and the arms apart, as far as they were at the start. The exception is a target
    that takes over the measured pose: the first one after `activate` and after `reset`.
    """

    def __init__(self, config: SafetyConfig, dt_ns: int) -> None:
        """Starts inactive.

        Args:
            config: The limits.
            dt_ns: Control period, nanoseconds.

        Raises:
            ValueError: if `dt_ns` is not positive.
        """
        if dt_ns <= 0:
            raise ValueError(f"SafetyGate: expected a positive dt_ns; got {dt_ns}")
        self._config = config
        self._dt_ns = dt_ns
        dt_s = dt_ns * 1e-9
        lower, upper = position_limits()
        lower[_ARM_JOINTS] += config.position_margin_rad
        upper[_ARM_JOINTS] -= config.position_margin_rad
        self._limits = lower, upper
        poses = np.stack([*parking_poses("sleep"), lower, upper])  # (poses, A)
        self._parking_limits = poses.min(axis=0), poses.max(axis=0)
        self._largest = np.full(ACTION_DIM, config.max_velocity_rad_s * dt_s)
        self._largest[_GRIPPERS] = config.max_gripper_speed * dt_s
        self._brake = np.full(ACTION_DIM, config.max_acceleration_rad_s2 * dt_s**2)
        self._brake[_GRIPPERS] = 2.0 * self._largest[_GRIPPERS]  # no limit: they stop at once
        self._clearance = Clearance(config)
        self._state = SafetyState.INACTIVE
        self._estop_reason = ""
        self._parking = False
        self.counts: Counter[tuple[str, str]] = Counter()
        self.last_intervention: LastIntervention | None = None
        self._forget()

    def _forget(self) -> None:
        self._target: np.ndarray | None = None
        self._step = np.zeros(ACTION_DIM)
        self._wanted_before: np.ndarray | None = None
        self._retreat: np.ndarray | None = None
        self._reason = ""
        self._stop_reason = ""
        self._last_now_ns: int | None = None
        self._deadman_ns: int | None = None
        self._lagging_since_ns: int | None = None
        self._ease_in_since_ns = 0
        self._holding_since_ns: int | None = None

    @property
    def state(self) -> SafetyState:
        """State after the last call."""
        return self._state

    @property
    def holding_since_ns(self) -> int | None:
        """When the present hold or stop began, nanoseconds; None while targets are followed."""
        return self._holding_since_ns

    @property
    def target(self) -> np.ndarray | None:
        """(14,) the last target given, None if there is none."""
        return None if self._target is None else self._target.copy()

    def kind_counts(self) -> dict[str, int]:
        """Interventions since activation by kind, all joints together."""
        kinds: Counter[str] = Counter()
        for (kind, _), count in self.counts.items():
            kinds[kind] += count
        return dict(kinds)

    def activate(self) -> None:
        """Begins to give targets, at first the measured pose; an emergency stop stays latched."""
        self._forget()
        self.counts.clear()
        self.last_intervention = None
        self._state = SafetyState.ESTOP if self._estop_reason else SafetyState.HOLD

    def deactivate(self) -> None:
        """Gives no more targets."""
        self._forget()
        self._state = SafetyState.INACTIVE

    def stop(self, reason: str) -> None:
        """Brakes the arms and opens the grippers until `deactivate`; the orderly end."""
        self._stop_reason = reason

    def estop(self, reason: str) -> None:
        """Latches the emergency stop, in any state; only `reset` ends it."""
        self._estop_reason = reason or "emergency stop"
        if self._state is not SafetyState.INACTIVE:
            self._state = SafetyState.ESTOP

    def reset(self) -> None:
        """Ends an emergency stop; the arms go on from the pose that is measured then."""
        if not self._estop_reason:
            return
        self._estop_reason = ""
        if self._state is not SafetyState.INACTIVE:
            self._forget()
            self._state = SafetyState.HOLD

    def press_deadman(self, now_ns: int) -> None:
        """Tells that the deadman switch is pressed now."""
        self._deadman_ns = now_ns

    def set_parking(self, parking: bool) -> None:
        """Allows the way to the sleep pose, outside the joint limits, at parking speed only."""
        self._parking = parking

    def check(
        self,
        wanted: np.ndarray | Sequence[float] | None,
        measured: np.ndarray | None,
        now_ns: int,
        measured_stamp_ns: int | None,
    ) -> SafetyDecision:
        """Decides what the robot is told in this tick.

        Args:
            wanted: (14,) targets, rad and gripper openings; anything else holds. None: no action.
            measured: (14,) newest joint states, rad and gripper openings on the scale of targets
                (`RobotProfile.holding_target`); None if there are none.
            now_ns: Present time, nanoseconds.
            measured_stamp_ns: When `measured` was read, nanoseconds, on the same clock.

        Returns:
            The target and what was changed; a second call within half a period repeats the target.
        """
        if self._state is SafetyState.INACTIVE:
            return SafetyDecision(
                target=None, state=self._state, reason="not active", interventions=()
            )
        late = False
        if self._last_now_ns is not None and self._target is not None:
            since_ns = now_ns - self._last_now_ns
            if abs(since_ns) < self._dt_ns // 2:
                return self._decision(())
            late = not 0 < since_ns <= max(_LONGEST_PAUSE_NS, 2 * self._dt_ns)
        self._last_now_ns = now_ns
        hold = self._joint_problem(measured, now_ns, measured_stamp_ns)
        if self._target is None:
            if hold or measured is None or self._estop_reason:
                return self._hold(hold or self._latched(), wanted, now_ns)
            self._target = np.array(measured, dtype=np.float64)
            self._target[_GRIPPERS] = np.clip(self._target[_GRIPPERS], 0.0, _OPEN)
        if late:  # the arms have come to rest, and what was timed is worth nothing
            self._step = np.zeros(ACTION_DIM)
            self._deadman_ns = self._lagging_since_ns = None
            hold = hold or ("late_tick", "the tick before was long ago")
        if not hold and measured is not None:
            self._watch_tracking(np.asarray(measured, dtype=np.float64), now_ns)
        values = _as_vector(wanted)
        hold = self._latched() or hold or self._unfit(wanted, values, now_ns)
        if hold is None and values is not None:
            return self._follow(values, now_ns)
        return self._hold(hold, wanted, now_ns)

    def _joint_problem(
        self, measured: np.ndarray | None, now_ns: int, stamp_ns: int | None
    ) -> _Hold | None:
        if measured is None or stamp_ns is None:
            return "joint_states", "no joint states yet"
        values = _as_vector(measured)
        if values is None or not np.all(np.isfinite(values)):
            return "joint_states", "joint states are incomplete or not finite"
        lower, upper = self._parking_limits
        outside = np.maximum(lower - values, values - upper)[_ARM_JOINTS]
        if outside.max() > _PLAUSIBLE_RAD:
            joint = _ARM_JOINTS[int(outside.argmax())]
            return "joint_states", f"{ACTION_NAMES[joint]} cannot be at {values[joint]:.3g} rad"
        age_s = (now_ns - stamp_ns) * 1e-9
        if age_s > self._config.max_joint_age_s or now_ns < stamp_ns - _MAX_FUTURE_NS:
            limit_s = self._config.max_joint_age_s
            return "joint_states", f"joint states are {age_s:.3f} s old, limit {limit_s:g} s"
        return None

    def _watch_tracking(self, measured: np.ndarray, now_ns: int) -> None:
        error = np.abs(measured - self._target)[_ARM_JOINTS]
        worst = int(error.argmax())
        if error[worst] <= self._config.max_tracking_error_rad:
            self._lagging_since_ns = None
            return
        if self._lagging_since_ns is None:
            self._lagging_since_ns = now_ns
        lasting_s = (now_ns - self._lagging_since_ns) * 1e-9
        if lasting_s >= self._config.max_tracking_error_s and not self._estop_reason:
            self.estop(
                f"{ACTION_NAMES[_ARM_JOINTS[worst]]} is {error[worst]:.2f} rad from its target "
                f"(safety.max_tracking_error_rad {self._config.max_tracking_error_rad:g})"
            )
            self._retreat = np.clip(measured, *self._parking_limits)

    def _latched(self) -> _Hold | None:
        if self._estop_reason:
            return "estop" if self._retreat is None else "tracking_error", self._estop_reason
        return ("stop", self._stop_reason) if self._stop_reason else None

    def _unfit(self, wanted: object, values: np.ndarray | None, now_ns: int) -> _Hold | None:
        """Why what is wanted must not be followed at all."""
        timeout_s = self._config.deadman_timeout_s
        if timeout_s and (
            self._deadman_ns is None or (now_ns - self._deadman_ns) * 1e-9 > timeout_s
        ):
            return "deadman", "the deadman switch is released"
        if wanted is None:
            return "no_action", "no action for this tick"
        if values is None:
            return "shape", f"expected {ACTION_DIM} numbers as a target"
        if not np.all(np.isfinite(values)):
            bad = [ACTION_NAMES[place] for place in np.flatnonzero(~np.isfinite(values))]
            return "non_finite", f"the target of {', '.join(bad)} is not finite"
        assert self._target is not None  # the caller has made sure
        return self._clearance.problem(self._target, np.clip(values, *self._bounds())[None])

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return self._parking_limits if self._parking else self._limits

    def _follow(self, values: np.ndarray, now_ns: int) -> SafetyDecision:
        assert self._target is not None  # the caller has made sure
        wanted = np.clip(values, *self._bounds())
        self._watch_ease_in(wanted, now_ns)
        largest = self._largest_steps(now_ns)
        present = self._target
        hold = self._advance(wanted, largest)
        if hold:
            return self._hold(hold, values, now_ns)
        self._wanted_before = wanted
        self._holding_since_ns = None
        self._reason = ""
        interventions = []
        for joint in np.flatnonzero(np.abs(values - self._target) > _SAME):
            if abs(values[joint] - wanted[joint]) > _SAME:
                kind = "position"
            elif abs(wanted[joint] - present[joint]) <= largest[joint]:
                kind = "acceleration"
            else:
                kind = "ease_in" if self._state is SafetyState.EASE_IN else "velocity"
            interventions.append(
                Intervention(
                    kind=kind,
                    joint=ACTION_NAMES[joint],
                    wanted=float(values[joint]),
                    given=float(self._target[joint]),
                )
            )
        return self._decision(interventions, values)

    def _watch_ease_in(self, wanted: np.ndarray, now_ns: int) -> None:
        near = np.abs(wanted - self._target)[_ARM_JOINTS].max() <= (
            self._config.ease_in_tolerance_rad
        )
        if self._state is SafetyState.HOLD:
            self._state = SafetyState.EASE_IN
            self._ease_in_since_ns = now_ns
        easing_s = (now_ns - self._ease_in_since_ns) * 1e-9
        if near or easing_s >= self._config.ease_in_s:
            self._state = SafetyState.ACTIVE

    def _largest_steps(self, now_ns: int) -> np.ndarray:
        config, dt_s = self._config, self._dt_ns * 1e-9
        velocity = config.max_velocity_rad_s
        if self._state is SafetyState.EASE_IN:
            share = (now_ns - self._ease_in_since_ns) * 1e-9 / config.ease_in_s
            slow = config.ease_in_velocity_rad_s
            velocity = slow + min(share, 1.0) * (velocity - slow)
        if self._parking:
            velocity = min(velocity, config.parking_velocity_rad_s)
        largest = self._largest.copy()
        largest[_ARM_JOINTS] = velocity * dt_s
        return largest

    def _advance(self, wanted: np.ndarray, largest: np.ndarray) -> _Hold | None:
        """Moves one tick toward what is wanted, unless that way or its end is forbidden."""
        assert self._target is not None  # the caller has made sure
        lower, upper = self._bounds()
        step = limited_step(
            self._target,
            self._step,
            wanted,
            wanted if self._wanted_before is None else self._wanted_before,
            lower=lower,
            upper=upper,
            largest=largest,
            brake=self._brake,
        )
        # Every place on the way to rest is looked at, so that braking is allowed at any tick.
        steps = np.concatenate([step[None], braking_steps(step, self._brake)])  # (1 + n, A)
        hold = self._clearance.problem(self._target, self._target + np.cumsum(steps, axis=0))
        if hold is None:
            self._target, self._step = self._target + step, step
        return hold

    def _hold(self, hold: _Hold | None, wanted: object, now_ns: int) -> SafetyDecision:
        """Brakes the arms; on a stop the grippers open, else they keep their grip."""
        assert hold is not None  # the caller has made sure
        kind, self._reason = hold
        self._state = SafetyState.ESTOP if self._estop_reason else SafetyState.HOLD
        if self._holding_since_ns is None:
            self._holding_since_ns = now_ns
        self._wanted_before = None
        waits = kind in _WHATEVER_IS_WANTED
        if self._target is None:
            return self._decision((), wanted, waits=waits)
        goal = self._target.copy() if self._retreat is None else self._retreat.copy()
        goal[_GRIPPERS] = self._target[_GRIPPERS]
        if self._config.open_grippers_on_stop and self._latched():
            goal[_GRIPPERS] = _OPEN
        if self._retreat is None or self._advance(goal, self._largest):
            step = np.sign(self._step) * np.maximum(np.abs(self._step) - self._brake, 0.0)
            opening = (goal - self._target)[_GRIPPERS]
            step[_GRIPPERS] = np.clip(opening, -self._largest[_GRIPPERS], self._largest[_GRIPPERS])
            self._target, self._step = self._target + step, step
        nothing = Intervention(kind=kind, joint="", wanted=np.nan, given=np.nan)
        return self._decision([nothing], wanted, waits=waits)

    def _decision(
        self, interventions: Sequence[Intervention], wanted: object = None, *, waits: bool = False
    ) -> SafetyDecision:
        for one in interventions:
            self.counts[one.kind, one.joint] += 1
        if interventions and self._target is not None and self._last_now_ns is not None:
            values = _as_vector(wanted)
            self.last_intervention = LastIntervention(
                kind=interventions[0].kind,
                stamp_ns=self._last_now_ns,
                wanted=np.full(ACTION_DIM, np.nan) if values is None else values,
                given=self._target.copy(),
            )
        return SafetyDecision(
            target=self.target,
            state=self._state,
            reason=self._estop_reason or self._reason,
            interventions=tuple(interventions),
            waits=waits,
        )


def _as_vector(values: object) -> np.ndarray | None:
    """(14,) float64, or None for anything that is no such vector."""
    try:
        vector = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return vector if vector.shape == (ACTION_DIM,) else None
