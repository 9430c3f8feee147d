"""Closing both leader grippers as a switch: what the operator of two arms has a hand free for."""

from __future__ import annotations

from vla_oft_ros.aloha import ARMS


class GripperTrigger:
    """Fires once when both grippers stay closed; again only after both were open.

    Args:
        closed: An opening below this is closed, above twice this is open; 0 … 1.
        hold_s: How long both must stay closed.
    """

    def __init__(self, closed: float, hold_s: float) -> None:
        self._closed, self._hold_ns = closed, round(hold_s * 1e9)
        self._openings: dict[str, float] = {}
        self._since_ns: int | None = None
        self._armed = False

    def add(self, arm: str, stamp_ns: int, opening: float) -> bool:
        """Takes the next opening of one leader's gripper, as an action; True if it fires."""
        self._openings[arm] = opening
        if len(self._openings) < len(ARMS):
            return False
        if all(value > 2 * self._closed for value in self._openings.values()):
            self._armed = True
        if not all(value < self._closed for value in self._openings.values()):
            self._since_ns = None
            return False
        if self._since_ns is None or stamp_ns < self._since_ns:
            self._since_ns = stamp_ns
        if not self._armed or stamp_ns - self._since_ns < self._hold_ns:
            return False
        self._armed = False
        return True
