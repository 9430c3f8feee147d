"""What is done to running processes and to the world around them; `fault_list.py` says what must
come of it.
"""

from __future__ import annotations

import signal

import numpy as np
from lifecycle_msgs.msg import Transition

from vla_oft_ros import msg as messages
from vla_oft_ros.ros.fault_world import DT_NS, FaultWorld
from vla_oft_ros.ros.faults import Act, Session

CONTROLLER, POLICY = "controller_node", "fault_policy"
STALL_S = 5.0
_STATE_TIMEOUT_S = 20.0


def change(**attributes: object) -> Act:
    """Sets attributes of the world."""

    def act(running: Session) -> None:
        for name, value in attributes.items():
            setattr(running.world, name, value)

    return act


def heal(running: Session) -> None:
    """Every stream of the world is as it should be again."""
    running.world.heal()


def nothing(running: Session) -> None:
    """The fault is over by itself."""


def chunk(change: object, *, shift_ns: int = 0, dt_ns: int = DT_NS) -> Act:
    """Publishes a chunk of the usual motion, changed and shifted in time."""

    def act(running: Session) -> None:
        running.world.send_chunk(change, shift_ns=shift_ns, dt_ns=dt_ns)

    return act


def send(name: str, number: int) -> Act:
    """Sends a signal to a process."""
    return lambda running: running.nodes.send_signal(name, number)


def kill(name: str) -> Act:
    """Ends a process as a crash does."""
    return lambda running: running.kill(name)


def start(name: str) -> Act:
    """Starts a process."""
    return lambda running: running.start(name)


def call(*names: str) -> Act:
    """Calls services of the controller, one after the other."""

    def act(running: Session) -> None:
        for name in names:
            running.world.call(name)

    return act


def after_state(world: FaultWorld, state: int) -> None:
    """Waits until the gate is in a state."""
    world.until(lambda: world.status is not None and world.status.state == state, _STATE_TIMEOUT_S)


def shuffled(arm: str, names: list[str], values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names and values in reverse order."""
    return names[::-1], values[::-1]


def without_elbow(arm: str, names: list[str], values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """A message without the elbow."""
    kept = [index for index, name in enumerate(names) if name != "elbow"]
    return [names[index] for index in kept], values[kept]


def elbow_at(value: float) -> object:
    """A message whose elbow is somewhere else."""

    def edit(arm: str, names: list[str], values: np.ndarray) -> tuple[list[str], np.ndarray]:
        changed = values.copy()
        changed[2] = value
        return names, changed

    return edit


def with_nan(message: messages.ActionChunk) -> None:
    """One number of a chunk is none."""
    message.positions[3] = float("nan")


def too_short(message: messages.ActionChunk) -> None:
    """A number of a chunk is missing."""
    message.positions = message.positions[:-1]


def renamed(message: messages.ActionChunk) -> None:
    """A chunk for another robot."""
    message.joint_names = [name.replace("waist", "panda_joint1") for name in message.joint_names]


def far(message: messages.ActionChunk) -> None:
    """A chunk one radian away."""
    message.positions = [value + 1.0 for value in message.positions]


def as_it_is(message: messages.ActionChunk) -> None:
    """A chunk is not changed."""


def far_for_a_while(running: Session) -> None:
    """The policy is replaced by one that wants the arms a radian away."""
    running.nodes.send_signal(POLICY, signal.SIGSTOP)
    running.world.send_chunk(far)


def stall(running: Session) -> None:
    """Lets what is left of the stall pass, then the policy goes on."""
    world = running.world
    world.until(lambda: False, STALL_S)
    running.nodes.send_signal(POLICY, signal.SIGCONT)


def estop_in_hold(running: Session) -> None:
    """Stops the policy, waits for the hold, then calls the emergency stop."""
    running.nodes.send_signal(POLICY, signal.SIGSTOP)
    after_state(running.world, messages.SafetyStatus.HOLD)
    running.world.call("estop")


def estop_in_ease_in(running: Session) -> None:
    """Calls the emergency stop as soon as a hold is over."""
    world = running.world
    world.deadman = False
    after_state(world, messages.SafetyStatus.HOLD)
    world.deadman = True
    after_state(world, messages.SafetyStatus.ACTIVE)
    world.call("estop")


def estop_when_inactive(running: Session) -> None:
    """Deactivates, calls the emergency stop, activates."""
    world = running.world
    world.change_controller(Transition.TRANSITION_DEACTIVATE)
    world.call("estop")
    world.change_controller(Transition.TRANSITION_ACTIVATE)


def estop_on_the_way(running: Session) -> None:
    """Calls the emergency stop while the arms go to the start pose."""
    running.world.call("go_to_start")
    running.world.until(lambda: False, 0.2)
    running.world.call("estop")


def back_from_the_way(running: Session) -> None:
    """Resets the emergency stop and gives the arms back to the policy."""
    world = running.world
    world.call("reset_estop")
    # Released when the start pose is reached; refused until then.
    world.until(lambda: world.call("follow_policy"), _STATE_TIMEOUT_S)


def reset_and(*acts: Act) -> Act:
    """Does some acts, then resets the emergency stop."""

    def act(running: Session) -> None:
        for one in acts:
            one(running)
        running.world.call("reset_estop")

    return act


def step_clock(seconds: float) -> Act:
    """The clock of the world alone; in simulated time it is that of the nodes as well.

    The next images come with stamps of before: they were on their way meanwhile.
    """

    def act(running: Session) -> None:
        step_ns = round(seconds * 1e9)
        running.world.clock_offset_ns += step_ns
        running.world.image_offsets_ns.extend((-step_ns, -step_ns))

    return act


def step_machine(seconds: float) -> Act:
    """The wall clock of the machine on which everything runs."""

    def act(running: Session) -> None:
        step_clock(seconds)(running)
        for clock in running.clocks.values():
            clock.step(seconds)

    return act


def step_policy(seconds: float) -> Act:
    """The wall clock of the policy's machine; the robot's goes on as it was."""
    return lambda running: running.clocks[POLICY].step(seconds)
