"""What happens before and after torque on one arm, as requests to its xs_sdk driver, in order.

Plain values: `interbotix.py` sends them as service calls, `xs_bring_up.py` makes them method calls
of `interbotix_xs_modules`, whose methods are named after the services. Names, modes and order:
Interbotix/aloha (robot_utils.py, dual_side_teleop.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ARM_GROUP, GRIPPER = "arm", "gripper"
ARM_MODE, GRIPPER_MODE = "position", "current_based_position"
GRIPPER_CURRENT_LIMIT = 300
"""Register Current_Limit of the follower's gripper, as teleoperation sets it on both arms
(dual_side_teleop.py); about 0.8 A."""

_ARM = {"cmd_type": "group", "name": ARM_GROUP}
_GRIPPER = {"cmd_type": "single", "name": GRIPPER}


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        service: Name of the service (interbotix_xs_msgs) under the driver's namespace.
        fields: Fields of its request.
    """

    service: str
    fields: Mapping[str, object]


def _set_mode(target: Mapping[str, str], mode: str) -> Request:
    # Profile 0 / 0: every command is taken as it is; the gate has limited it already.
    profile = {"profile_type": "velocity", "profile_velocity": 0, "profile_acceleration": 0}
    return Request("set_operating_modes", {**target, "mode": mode, **profile})


def _torque(*, enable: bool) -> tuple[Request, ...]:
    return tuple(
        Request("torque_enable", {**target, "enable": enable}) for target in (_ARM, _GRIPPER)
    )


REBOOT_GRIPPER = (Request("reboot_motors", {**_GRIPPER, "enable": True, "smart_reboot": False}),)
CEREMONIES: Mapping[str, tuple[Request, ...]] = {
    "prepare_arms": (
        *REBOOT_GRIPPER,
        _set_mode(_ARM, ARM_MODE),
        _set_mode(_GRIPPER, GRIPPER_MODE),
        Request(
            "set_motor_registers",
            {**_GRIPPER, "reg": "Current_Limit", "value": GRIPPER_CURRENT_LIMIT},
        ),
        *_torque(enable=True),
    ),
    "torque_on": _torque(enable=True),
    "torque_off": _torque(enable=False),
    "reboot_grippers": REBOOT_GRIPPER,
}
ASK_ARM = Request("get_robot_info", _ARM)
ASK_GRIPPER = Request("get_robot_info", _GRIPPER)
