"""The faults: what is done, and what must come of it."""

from __future__ import annotations

import signal

from lifecycle_msgs.msg import Transition

from vla_oft_ros.ros import fault_acts as do
from vla_oft_ros.ros.fault_acts import CONTROLLER, POLICY
from vla_oft_ros.ros.fault_world import DT_NS
from vla_oft_ros.ros.faults import (
    CHUNK_S,
    DEADMAN_S,
    JOINT_AGE_S,
    QUERY_S,
    Act,
    Fault,
)

CAMERA = "cam_high"
_QUEUE, _JOINTS = "/controller_node: queue", "/controller_node: joint states"
_SEEN = "/policy_node: observation"
_FREEZE_S = 0.5  # sync.max_frozen_s
_TRACKING_S = 2.0
"""Half a period of the motion, in which every joint leaves a place where it is stuck."""
_S = 1_000_000_000
_CLOCK_STEP_S = 5.0


def _fault(name: str, done: str, begin: Act, end: Act, outcome: str, **more: object) -> Fault:
    return Fault(name=name, done=done, begin=begin, end=end, outcome=outcome, **more)


CAMERA_FAULTS = (
    _fault(
        *("camera dead", "cam_high stops", do.change(silent={CAMERA}), do.heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("all cameras dead", "all three stop"),
        *(do.change(silent={"cam_high", "cam_left_wrist", "cam_right_wrist"}), do.heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("camera frozen", "cam_high repeats its last image under fresh stamps"),
        *(do.change(frozen={CAMERA}), do.heal, "hold"),
        reason="no action",
        limit_s=QUERY_S + _FREEZE_S + QUERY_S + CHUNK_S,
    ),
    _fault(
        *("camera black", "cam_high sends zeros", do.change(black={CAMERA}), do.heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("images late", "images arrive 500 ms after their stamp"),
        *(do.change(image_delay_ns=_S // 2), do.heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("images from the future", "camera clock 1 s ahead"),
        *(do.change(image_delay_ns=-_S), do.heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("images reordered", "every other image is older than the one before"),
        *(do.change(reordered=True), do.heal, "goes on"),
    ),
)

JOINT_FAULTS = (
    _fault(
        *(
            "joint states dead",
            "both drivers stop",
            do.change(silent={"left", "right"}),
            do.heal,
            "hold",
        ),
        reason="joint states are",
        limit_s=JOINT_AGE_S,
    ),
    _fault(
        *("one arm silent", "the left driver stops", do.change(silent={"left"}), do.heal, "hold"),
        reason="joint states are",
        limit_s=JOINT_AGE_S,
    ),
    _fault(
        *("joint names shuffled", "names and values in reverse order"),
        *(do.change(edit_joints=do.shuffled), do.heal, "goes on"),
    ),
    _fault(
        *("joint missing", "messages without the elbow"),
        *(do.change(edit_joints=do.without_elbow), do.heal, "hold"),
        reason="joint states are",
        limit_s=JOINT_AGE_S,
    ),
    _fault(
        *(
            "joint NaN",
            "the elbow is NaN",
            do.change(edit_joints=do.elbow_at(float("nan"))),
            do.heal,
            "hold",
        ),
        reason="joint states are",
        limit_s=JOINT_AGE_S,
    ),
    _fault(
        *("joint impossible", "the elbow is at 50 rad"),
        *(do.change(edit_joints=do.elbow_at(50.0)), do.heal, "hold"),
        reason="cannot be at",
    ),
    _fault(
        *("arms stuck", "the robot ignores its targets"),
        *(do.change(stuck=True), do.reset_and(do.heal), "stop"),
        reason="from its target",
        limit_s=_TRACKING_S,
    ),
)

POLICY_FAULTS = (
    _fault(
        *("policy killed", "SIGKILL; started again afterwards"),
        *(do.kill(POLICY), do.start(POLICY), "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("policy stalled", "SIGSTOP for 5 s", do.send(POLICY, signal.SIGSTOP), do.stall, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("chunk with NaN", "one number of a chunk", do.chunk(do.with_nan), do.nothing, "refused"),
        reason="finite",
        part=_QUEUE,
    ),
    _fault(
        *("chunk too short", "a number is missing", do.chunk(do.too_short), do.nothing, "refused"),
        reason="positions, at least one row",
        part=_QUEUE,
    ),
    _fault(
        *("chunk from the past", "observed 10 s ago"),
        *(do.chunk(do.as_it_is, shift_ns=-10 * _S), do.nothing, "refused"),
        reason="expected an observation",
        part=_QUEUE,
    ),
    _fault(
        *("chunk from the future", "observed in 5 s"),
        *(do.chunk(do.as_it_is, shift_ns=5 * _S), do.nothing, "refused"),
        reason="future",
        part=_QUEUE,
    ),
    _fault(
        *("chunk for another robot", "other joint names"),
        *(do.chunk(do.renamed), do.nothing, "refused"),
        reason="Is the policy for another robot?",
        part=_QUEUE,
    ),
    _fault(
        *("chunk at another rate", "50 Hz", do.chunk(do.as_it_is, dt_ns=DT_NS // 2), do.nothing),
        outcome="refused",
        reason="expected one action per",
        part=_QUEUE,
    ),
    _fault(
        *("targets far away", "a chunk one radian off, then silence"),
        *(do.far_for_a_while, do.send(POLICY, signal.SIGCONT), "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
)

CONTROLLER_FAULTS = (
    _fault(
        *("controller killed", "SIGKILL; started again afterwards"),
        *(do.kill(CONTROLLER), do.start(CONTROLLER), "silent"),
    ),
    _fault(
        *("controller deactivated", "lifecycle transition; activated afterwards"),
        lambda running: running.world.change_controller(Transition.TRANSITION_DEACTIVATE),
        lambda running: running.world.change_controller(Transition.TRANSITION_ACTIVATE),
        "silent",
    ),
    _fault(
        *("deadman released", "the heartbeat stops", do.change(deadman=False), do.heal, "hold"),
        reason="deadman",
        limit_s=DEADMAN_S,
    ),
    _fault(
        *("e-stop when active", "service call", do.call("estop"), do.call("reset_estop"), "stop"),
        reason="asked for by service",
    ),
    _fault(
        *("e-stop in a hold", "after the policy was stopped", do.estop_in_hold),
        do.reset_and(do.send(POLICY, signal.SIGCONT)),
        "stop",
        reason="asked for by service",
    ),
    _fault(
        *("e-stop after a hold", "as soon as the motion goes on", do.estop_in_ease_in),
        *(do.reset_and(do.heal), "stop"),
        reason="asked for by service",
    ),
    _fault(
        *("e-stop when inactive", "called before activation", do.estop_when_inactive),
        *(do.call("reset_estop"), "stop"),
        reason="asked for by service",
    ),
    _fault(
        *("e-stop on the way to a pose", "during go_to_start", do.estop_on_the_way),
        *(do.back_from_the_way, "stop"),
        reason="asked for by service",
    ),
)

WALL_CLOCK_FAULTS = (
    _fault(
        *("system clock steps forward", "the machine's clock jumps 5 s ahead"),
        *(do.step_machine(_CLOCK_STEP_S), do.nothing, "brief hold"),
        limit_s=DT_NS * 1e-9,
        wall_clock=True,
        recovers_s=_CLOCK_STEP_S / 2,
    ),
    _fault(
        *("system clock steps back", "the machine's clock jumps 5 s back"),
        *(do.step_machine(-_CLOCK_STEP_S), do.nothing, "brief hold"),
        limit_s=DT_NS * 1e-9,
        wall_clock=True,
        recovers_s=_CLOCK_STEP_S / 2,
    ),
    _fault(
        *("policy's clock steps forward", "that of the policy's machine alone, 5 s ahead"),
        *(do.step_policy(_CLOCK_STEP_S), do.step_policy(-_CLOCK_STEP_S), "hold"),
        reason="no action",
        limit_s=CHUNK_S,
        wall_clock=True,
        recovers_s=_CLOCK_STEP_S / 2,
    ),
    _fault(
        *("policy's clock steps back", "that of the policy's machine alone, 5 s back"),
        *(do.step_policy(-_CLOCK_STEP_S), do.step_policy(_CLOCK_STEP_S), "hold"),
        reason="no action",
        limit_s=CHUNK_S,
        wall_clock=True,
        recovers_s=_CLOCK_STEP_S / 2,
    ),
)

CLOCK_FAULTS = (
    _fault(
        *("simulated clock steps forward", "/clock jumps 10 s ahead"),
        *(do.step_clock(10.0), do.nothing, "brief hold"),
        limit_s=DT_NS * 1e-9,
        simulated=True,
    ),
    _fault(
        *("simulated clock steps back", "/clock jumps 10 s back"),
        *(do.step_clock(-10.0), do.nothing, "brief hold"),
        limit_s=DT_NS * 1e-9,
        simulated=True,
    ),
)

FAULTS = CAMERA_FAULTS + JOINT_FAULTS + POLICY_FAULTS + CONTROLLER_FAULTS
FAULTS += WALL_CLOCK_FAULTS + CLOCK_FAULTS
