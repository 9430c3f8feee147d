"""The faults: what is done, and what must come of it."""

from __future__ import annotations

import signal

import numpy as np
from lifecycle_msgs.msg import Transition

from vla_oft_ros import msg as messages
from vla_oft_ros.ros.fault_world import DT_NS, FaultWorld
from vla_oft_ros.ros.faults import (
    CHUNK_S,
    DEADMAN_S,
    JOINT_AGE_S,
    QUERY_S,
    Act,
    Fault,
    Session,
)

CAMERA = "cam_high"
_CONTROLLER, _POLICY = "controller_node", "fault_policy"
_QUEUE, _JOINTS = "/controller_node: queue", "/controller_node: joint states"
_SEEN = "/policy_node: observation"
_FREEZE_S = 0.5  # sync.max_frozen_s
_TRACKING_S = 2.0
"""Half a period of the motion, in which every joint leaves a place where it is stuck."""
_S = 1_000_000_000
_STALL_S = 5.0
_STATE_TIMEOUT_S = 20.0


def _set(**attributes: object) -> Act:
    """Sets attributes of the world."""

    def act(running: Session) -> None:
        for name, value in attributes.items():
            setattr(running.world, name, value)

    return act


def _heal(running: Session) -> None:
    running.world.heal()


def _nothing(running: Session) -> None:
    pass


def _chunk(change: object, *, shift_ns: int = 0, dt_ns: int = DT_NS) -> Act:
    def act(running: Session) -> None:
        running.world.send_chunk(change, shift_ns=shift_ns, dt_ns=dt_ns)

    return act


def _signal(name: str, number: int) -> Act:
    return lambda running: running.nodes.send_signal(name, number)


def _kill(name: str) -> Act:
    return lambda running: running.kill(name)


def _start(name: str) -> Act:
    return lambda running: running.start(name)


def _call(*names: str) -> Act:
    def act(running: Session) -> None:
        for name in names:
            running.world.call(name)

    return act


def _after_state(world: FaultWorld, state: int) -> None:
    world.until(lambda: world.status is not None and world.status.state == state, _STATE_TIMEOUT_S)


def _shuffle(arm: str, names: list[str], values: np.ndarray) -> tuple[list[str], np.ndarray]:
    return names[::-1], values[::-1]


def _without_elbow(arm: str, names: list[str], values: np.ndarray) -> tuple[list[str], np.ndarray]:
    kept = [index for index, name in enumerate(names) if name != "elbow"]
    return [names[index] for index in kept], values[kept]


def _with(value: float) -> object:
    def edit(arm: str, names: list[str], values: np.ndarray) -> tuple[list[str], np.ndarray]:
        changed = values.copy()
        changed[2] = value
        return names, changed

    return edit


def _nan(message: messages.ActionChunk) -> None:
    message.positions[3] = float("nan")


def _short(message: messages.ActionChunk) -> None:
    message.positions = message.positions[:-1]


def _renamed(message: messages.ActionChunk) -> None:
    message.joint_names = [name.replace("waist", "panda_joint1") for name in message.joint_names]


def _far(message: messages.ActionChunk) -> None:
    message.positions = [value + 1.0 for value in message.positions]


def _as_it_is(message: messages.ActionChunk) -> None:
    pass


def _far_for_a_while(running: Session) -> None:
    """The policy is replaced by one that wants the arms a radian away."""
    running.nodes.send_signal(_POLICY, signal.SIGSTOP)
    running.world.send_chunk(_far)


def _stall(running: Session) -> None:
    """Lets what is left of the stall pass, then the policy goes on."""
    world = running.world
    world.until(lambda: False, _STALL_S)
    running.nodes.send_signal(_POLICY, signal.SIGCONT)


def _estop_in_hold(running: Session) -> None:
    running.nodes.send_signal(_POLICY, signal.SIGSTOP)
    _after_state(running.world, messages.SafetyStatus.HOLD)
    running.world.call("estop")


def _estop_in_ease_in(running: Session) -> None:
    world = running.world
    world.deadman = False
    _after_state(world, messages.SafetyStatus.HOLD)
    world.deadman = True
    _after_state(world, messages.SafetyStatus.ACTIVE)
    world.call("estop")


def _estop_when_inactive(running: Session) -> None:
    world = running.world
    world.change_controller(Transition.TRANSITION_DEACTIVATE)
    world.call("estop")
    world.change_controller(Transition.TRANSITION_ACTIVATE)


def _estop_on_the_way(running: Session) -> None:
    running.world.call("go_to_start")
    running.world.until(lambda: False, 0.2)
    running.world.call("estop")


def _back_from_the_way(running: Session) -> None:
    world = running.world
    world.call("reset_estop")
    # Released when the start pose is reached; refused until then.
    world.until(lambda: world.call("follow_policy"), _STATE_TIMEOUT_S)


def _reset_and(*acts: Act) -> Act:
    def act(running: Session) -> None:
        for one in acts:
            one(running)
        running.world.call("reset_estop")

    return act


def _step_clock(seconds: float) -> Act:
    def act(running: Session) -> None:
        running.world.clock_offset_ns += round(seconds * 1e9)

    return act


def _fault(name: str, done: str, begin: Act, end: Act, outcome: str, **more: object) -> Fault:
    return Fault(name=name, done=done, begin=begin, end=end, outcome=outcome, **more)


CAMERA_FAULTS = (
    _fault(
        *("camera dead", "cam_high stops", _set(silent={CAMERA}), _heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("all cameras dead", "all three stop"),
        *(_set(silent={"cam_high", "cam_left_wrist", "cam_right_wrist"}), _heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("camera frozen", "cam_high repeats its last image under fresh stamps"),
        *(_set(frozen={CAMERA}), _heal, "hold"),
        reason="no action",
        limit_s=QUERY_S + _FREEZE_S + QUERY_S + CHUNK_S,
    ),
    _fault(
        *("camera black", "cam_high sends zeros", _set(black={CAMERA}), _heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("images late", "images arrive 500 ms after their stamp"),
        *(_set(image_delay_ns=_S // 2), _heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("images from the future", "camera clock 1 s ahead"),
        *(_set(image_delay_ns=-_S), _heal, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("images reordered", "every other image is older than the one before"),
        *(_set(reordered=True), _heal, "goes on"),
    ),
)

JOINT_FAULTS = (
    _fault(
        *("joint states dead", "both drivers stop", _set(silent={"left", "right"}), _heal, "hold"),
        reason="joint states are",
        limit_s=JOINT_AGE_S,
    ),
    _fault(
        *("one arm silent", "the left driver stops", _set(silent={"left"}), _heal, "hold"),
        reason="joint states are",
        limit_s=JOINT_AGE_S,
    ),
    _fault(
        *("joint names shuffled", "names and values in reverse order"),
        *(_set(edit_joints=_shuffle), _heal, "goes on"),
    ),
    _fault(
        *("joint missing", "messages without the elbow"),
        *(_set(edit_joints=_without_elbow), _heal, "hold"),
        reason="joint states are",
        limit_s=JOINT_AGE_S,
    ),
    _fault(
        *("joint NaN", "the elbow is NaN", _set(edit_joints=_with(float("nan"))), _heal, "hold"),
        reason="joint states are",
        limit_s=JOINT_AGE_S,
    ),
    _fault(
        *("joint impossible", "the elbow is at 50 rad"),
        *(_set(edit_joints=_with(50.0)), _heal, "hold"),
        reason="cannot be at",
    ),
    _fault(
        *("arms stuck", "the robot ignores its targets"),
        *(_set(stuck=True), _reset_and(_heal), "stop"),
        reason="from its target",
        limit_s=_TRACKING_S,
    ),
)

POLICY_FAULTS = (
    _fault(
        *("policy killed", "SIGKILL; started again afterwards"),
        *(_kill(_POLICY), _start(_POLICY), "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("policy stalled", "SIGSTOP for 5 s", _signal(_POLICY, signal.SIGSTOP), _stall, "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
    _fault(
        *("chunk with NaN", "one number of a chunk", _chunk(_nan), _nothing, "refused"),
        reason="finite",
        part=_QUEUE,
    ),
    _fault(
        *("chunk too short", "a number is missing", _chunk(_short), _nothing, "refused"),
        reason="positions, at least one row",
        part=_QUEUE,
    ),
    _fault(
        *("chunk from the past", "observed 10 s ago"),
        *(_chunk(_as_it_is, shift_ns=-10 * _S), _nothing, "refused"),
        reason="expected an observation",
        part=_QUEUE,
    ),
    _fault(
        *("chunk from the future", "observed in 5 s"),
        *(_chunk(_as_it_is, shift_ns=5 * _S), _nothing, "refused"),
        reason="future",
        part=_QUEUE,
    ),
    _fault(
        *("chunk for another robot", "other joint names"),
        *(_chunk(_renamed), _nothing, "refused"),
        reason="Is the policy for another robot?",
        part=_QUEUE,
    ),
    _fault(
        *("chunk at another rate", "50 Hz", _chunk(_as_it_is, dt_ns=DT_NS // 2), _nothing),
        outcome="refused",
        reason="expected one action per",
        part=_QUEUE,
    ),
    _fault(
        *("targets far away", "a chunk one radian off, then silence"),
        *(_far_for_a_while, _signal(_POLICY, signal.SIGCONT), "hold"),
        reason="no action",
        limit_s=CHUNK_S,
    ),
)

CONTROLLER_FAULTS = (
    _fault(
        *("controller killed", "SIGKILL; started again afterwards"),
        *(_kill(_CONTROLLER), _start(_CONTROLLER), "silent"),
    ),
    _fault(
        *("controller deactivated", "lifecycle transition; activated afterwards"),
        lambda running: running.world.change_controller(Transition.TRANSITION_DEACTIVATE),
        lambda running: running.world.change_controller(Transition.TRANSITION_ACTIVATE),
        "silent",
    ),
    _fault(
        *("deadman released", "the heartbeat stops", _set(deadman=False), _heal, "hold"),
        reason="deadman",
        limit_s=DEADMAN_S,
    ),
    _fault(
        *("e-stop when active", "service call", _call("estop"), _call("reset_estop"), "stop"),
        reason="asked for by service",
    ),
    _fault(
        *("e-stop in a hold", "after the policy was stopped", _estop_in_hold),
        _reset_and(_signal(_POLICY, signal.SIGCONT)),
        "stop",
        reason="asked for by service",
    ),
    _fault(
        *("e-stop after a hold", "as soon as the motion goes on", _estop_in_ease_in),
        *(_reset_and(_heal), "stop"),
        reason="asked for by service",
    ),
    _fault(
        *("e-stop when inactive", "called before activation", _estop_when_inactive),
        *(_call("reset_estop"), "stop"),
        reason="asked for by service",
    ),
    _fault(
        *("e-stop on the way to a pose", "during go_to_start", _estop_on_the_way),
        *(_back_from_the_way, "stop"),
        reason="asked for by service",
    ),
)

CLOCK_FAULTS = (
    _fault(
        *("clock steps forward", "the ROS clock jumps 10 s ahead"),
        *(_step_clock(10.0), _nothing, "brief hold"),
        limit_s=DT_NS * 1e-9,
        simulated=True,
    ),
    _fault(
        *("clock steps back", "the ROS clock jumps 10 s back"),
        *(_step_clock(-10.0), _nothing, "brief hold"),
        limit_s=DT_NS * 1e-9,
        simulated=True,
    ),
)

FAULTS = CAMERA_FAULTS + JOINT_FAULTS + POLICY_FAULTS + CONTROLLER_FAULTS + CLOCK_FAULTS
