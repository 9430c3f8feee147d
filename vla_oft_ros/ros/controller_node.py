"""Action chunks in, one joint target per tick out: the only node between a policy and the robot.

It receives no images and imports no torch, so that nothing heavy shares its process. Queue and
safety gate decide; this file wires them to topics and keeps the stop order: refuse new chunks,
clear the queue, hold, fall silent.
"""

from __future__ import annotations

from vla_oft_ros.config import ControllerConfig
from vla_oft_ros.ros.lifecycle import ManagedNode

_COMPLAIN_EVERY_S = 5.0
_DIAGNOSTICS_PERIOD_S = 1.0


class ControllerNode(ManagedNode):
    """Publishes joint targets at the control rate. Parameters: `ControllerConfig`."""

    config: ControllerConfig
