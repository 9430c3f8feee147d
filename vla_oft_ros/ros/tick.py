"""The beat of the controller: a fixed period on a clock that nobody can step, without drift.

An executor answers a timer as soon as it has finished what it was doing, which is late by the
length of whatever that was. So the timer fires a little early and the rest is slept precisely, in
the same thread: no lock, and any executor will do. Measured by `benchmark/control_jitter.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from vla_oft_ros.ros.diagnostics import RollingTimes

LEAD_NS = 2_000_000
"""How early the timer fires: longer than any callback of the controller takes (0.3 ms for a joint
state, 1.2 ms for an action chunk on a 2.5 GHz core)."""
_WINDOW = 1500
"""Ticks that the figures look back on: a minute at 25 Hz."""


class Tick:
    """Calls a function once per period, from the executor's thread.

    Args:
        node: Its executor drives the tick.
        period_ns: Control period, nanoseconds.
        on_tick: What to call.
        simulated: True to follow the node's own (simulated) clock, where lateness means nothing.
    """

    def __init__(
        self, node: Node, period_ns: int, on_tick: Callable[[], None], *, simulated: bool
    ) -> None:
        self._node, self._period_ns, self._on_tick = node, period_ns, on_tick
        self._count: int | None = None
        self._last_s: float | None = None
        self.missed = 0
        """Periods without a tick since the start."""
        self.lateness = RollingTimes(_WINDOW)
        """Seconds between when a tick was due and when it began; not filled in simulated time."""
        self.periods = RollingTimes(_WINDOW)
        """Seconds of real time from tick to tick."""
        if simulated:
            self._timer = node.create_timer(period_ns / 1e9, self._run)
            return
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(period_ns / 1e9, self._wake, clock=self._clock)
        first_ns = self._clock.now().nanoseconds + self._timer.time_until_next_call()
        self._origin_ns = first_ns + LEAD_NS

    def cancel(self) -> None:
        """Ends it."""
        self._node.destroy_timer(self._timer)

    def _wake(self) -> None:
        now_ns = self._clock.now().nanoseconds
        since_ns = now_ns - self._origin_ns + LEAD_NS
        count = (since_ns + LEAD_NS // 2) // self._period_ns
        due_ns = self._origin_ns + count * self._period_ns
        if self._count is not None:
            if count <= self._count:
                return  # this period has had its tick
            self.missed += count - self._count - 1
        self._count = count
        if now_ns < due_ns:
            time.sleep((due_ns - now_ns) * 1e-9)
        self.lateness.add((self._clock.now().nanoseconds - due_ns) * 1e-9)
        self._run()

    def _run(self) -> None:
        now_s = time.monotonic()
        if self._last_s is not None:
            self.periods.add(now_s - self._last_s)
        self._last_s = now_s
        self._on_tick()
