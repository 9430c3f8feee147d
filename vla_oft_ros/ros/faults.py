"""What goes wrong, done on purpose to running processes: a list of faults and their judge.

Controller and policy node are real processes with the shipped parameter files; only the network
is replaced by a known motion, and the robot by one that is where it was told to be. Each fault
must end in a hold, a stop or a refusal that says why, in time, and be over when the fault is over.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rclpy

from vla_oft_ros import msg as messages
from vla_oft_ros.config import SafetyConfig
from vla_oft_ros.ros.fault_world import DT_NS, FaultWorld
from vla_oft_ros.ros.processes import NodeProcesses
from vla_oft_ros.ros.stepped_clock import SteppedClock, has_compiler

ALLOWANCE_S = 0.1
"""How much later than its limit a hold may begin."""
MAX_STEP_RAD = SafetyConfig().max_velocity_rad_s * DT_NS * 1e-9 + 1e-6
"""What the velocity limit allows in a tick: no target may ever be further from the robot."""
_MOVING_TIMEOUT_S = 30.0
_REFUSAL_TIMEOUT_S = 4.0
_UNDISTURBED_S = 1.5
_BRAKING_S = 0.25
_STILL_S = 0.3
_STILL_RAD = 1e-6

JOINT_AGE_S = 0.15
"""Twice the shipped limit and more: the world is written in Python on a machine that may be busy.
"""
CHUNK_S = 0.4
"""Ten rows of the policy's chunks."""
QUERY_S = 0.2
DEADMAN_S = 0.3
CONTROLLER = {
    "safety.max_joint_age_s": JOINT_AGE_S,
    "safety.deadman_timeout_s": DEADMAN_S,
    "safety.max_tracking_error_rad": 0.1,
    "safety.ease_in_s": 0.5,
}
POLICY = {
    "instruction": "move",
    "execute_steps": 5,
    "sync.max_joint_age_s": JOINT_AGE_S,
    "sync.max_image_age_s": 0.2,
    "sync.max_skew_s": 0.2,
}


@dataclass
class Session:
    """The running processes and the world around them."""

    world: FaultWorld
    nodes: NodeProcesses
    simulated: bool
    clocks: dict[str, SteppedClock]
    """Wall clocks of the processes by name; empty where there is no C compiler."""

    def start(self, name: str) -> None:
        """Starts `controller_node` or `fault_policy`."""
        yaml, overrides = {
            "controller_node": ("controller.yaml", CONTROLLER),
            "fault_policy": ("policy.yaml", POLICY),
        }[name]
        common = {"exit_with_parent": True, "use_sim_time": self.simulated}
        clock = self.clocks.get(name)
        environment = clock.environment if clock else None
        self.nodes.start(name, yaml, {**overrides, **common}, environment)

    def kill(self, name: str) -> None:
        """Ends a process as a crash does."""
        self.nodes.send_signal(name, signal.SIGKILL)
        self.nodes.wait(name)


@contextmanager
def session(
    config_dir: Path, log_dir: Path, environment: dict[str, str], *, simulated: bool = False
) -> Iterator[Session]:
    """Starts everything and waits until the robot moves; rclpy must be initialised.

    Raises:
        RuntimeError: if it does not move.
    """
    world = FaultWorld(simulated=simulated)
    names = ("controller_node", "fault_policy")
    clocks = {name: SteppedClock(log_dir, name) for name in names if has_compiler()}
    try:
        with NodeProcesses(config_dir, log_dir, environment) as nodes:
            running = Session(world, nodes, simulated, clocks)
            for name in names:
                running.start(name)
            if not world.until(world.is_moving, _MOVING_TIMEOUT_S):
                told = "\n".join(nodes.log_tail(name) for name in names)
                raise RuntimeError(f"the robot did not move; the nodes said\n{told}")
            yield running
    finally:
        world.close()


Act = Callable[[Session], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        name: Short name.
        done: What is done, one clause.
        begin: Does it; the clock runs from its end.
        end: Undoes it.
        outcome: "hold", "brief hold" (over by itself), "stop" (latched), "silent" (no targets),
            "refused" (and the motion goes on), or "goes on" (a fault that must not matter).
        reason: What the nodes must say about it.
        limit_s: When a hold, stop or silence must have begun, without the allowance.
        part: Diagnostics that say the reason of a refusal; those of the safety gate otherwise.
        simulated: True if it needs simulated time.
        wall_clock: True if it steps a wall clock, which needs a C compiler.
        recovers_s: When it must move again after the end of the fault.
    """

    name: str
    done: str
    begin: Act
    end: Act
    outcome: str
    reason: str = ""
    limit_s: float = 0.0
    part: str = ""
    simulated: bool = False
    wall_clock: bool = False
    recovers_s: float = _MOVING_TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a fault.

    Attributes:
        fault: The fault.
        problem: What was not as it must be; empty if all was well.
        told: What the nodes said.
        after_s: When the outcome was there; None where time does not matter.
        recovered_s: From the end of the fault to motion.
    """

    fault: Fault
    problem: str
    told: str
    after_s: float | None
    recovered_s: float | None


def inject(running: Session, fault: Fault) -> Verdict:
    """Does one fault to a running session and judges what comes of it."""
    world = running.world
    if not world.until(world.is_moving, _MOVING_TIMEOUT_S):
        return Verdict(
            fault=fault, problem="no motion before", told="", after_s=None, recovered_s=None
        )
    world.largest_step_rad = 0.0
    world.parts.clear()
    fault.begin(running)
    began_s = time.monotonic()
    judge = {
        "hold": _judge_hold,
        "brief hold": _judge_hold,
        "stop": _judge_hold,
        "silent": _judge_silence,
        "refused": _judge_refusal,
        "goes on": _judge_undisturbed,
    }[fault.outcome]
    problem, told, after_s = judge(world, fault, began_s)
    fault.end(running)
    ended_s = time.monotonic()
    moves = world.until(world.is_moving, _MOVING_TIMEOUT_S)
    recovered_s = time.monotonic() - ended_s
    if not problem and not moves:
        problem = f"no motion again: {world.status.reason if world.status else 'no status'}"
    if not problem and recovered_s > fault.recovers_s:
        problem = f"moves again after {recovered_s:.1f} s, expected {fault.recovers_s:g}"
    if not problem and world.largest_step_rad > MAX_STEP_RAD:
        problem = f"a target {world.largest_step_rad:.3f} rad away"
    return Verdict(
        fault=fault, problem=problem, told=told, after_s=after_s, recovered_s=recovered_s
    )


Judgement = tuple[str, str, "float | None"]


def _judge_hold(world: FaultWorld, fault: Fault, began_s: float) -> Judgement:
    status = messages.SafetyStatus
    state = status.ESTOP if fault.outcome == "stop" else status.HOLD

    def wanted(message: messages.SafetyStatus) -> bool:
        return bool(message.state == state and fault.reason in message.reason)

    limit_s = fault.limit_s + ALLOWANCE_S
    world.until(lambda: world.first_status(began_s, wanted) is not None, limit_s + 1.0)
    after_s = world.first_status(began_s, wanted)
    told = world.status.reason if world.status else ""
    if after_s is None:
        return f"expected {fault.reason!r}; the gate says {told!r}", told, None
    if after_s > limit_s:
        return f"{after_s * 1e3:.0f} ms, expected at most {limit_s * 1e3:.0f}", told, after_s
    if fault.outcome == "brief hold":
        return "", told, after_s
    time.sleep(_BRAKING_S + _STILL_S)
    moved_rad = world.arm_range_rad(time.monotonic() - _STILL_S)
    if moved_rad is not None and moved_rad > _STILL_RAD:
        return f"the targets still moved by {moved_rad:.4f} rad", told, after_s
    return "", told, after_s


def _judge_silence(world: FaultWorld, fault: Fault, began_s: float) -> Judgement:
    time.sleep(fault.limit_s + ALLOWANCE_S + _STILL_S)
    last_s = world.targets[-1][0]
    after_s = max(last_s - began_s, 0.0)
    late = after_s > fault.limit_s + ALLOWANCE_S
    return "targets kept coming" if late else "", "no targets", after_s


def _judge_refusal(world: FaultWorld, fault: Fault, began_s: float) -> Judgement:
    def told() -> str:
        message, values = world.parts.get(fault.part, ("", {}))
        return " ".join([message, *values.values()])

    if not world.until(lambda: fault.reason in told(), _REFUSAL_TIMEOUT_S):
        return f"expected {fault.reason!r}; diagnostics say {told()!r}", told(), None
    return _judge_undisturbed(world, fault, began_s)


def _judge_undisturbed(world: FaultWorld, fault: Fault, began_s: float) -> Judgement:
    rest_s = began_s + _UNDISTURBED_S - time.monotonic()
    time.sleep(max(rest_s, 0.0))
    held = [m.reason for at_s, m in tuple(world.statuses) if at_s >= began_s and m.reason]
    if held:
        return f"held: {held[0]}", held[0], None
    return ("", fault.reason or "moves on", None) if world.is_moving() else ("stood", "", None)


def run_faults(
    faults: Sequence[Fault],
    config_dir: Path,
    log_dir: Path,
    environment: dict[str, str],
    on_verdict: Callable[[Verdict], None] = lambda _: None,
) -> list[Verdict]:
    """Injects faults one after the other, those in simulated time in a session of their own.

    Args:
        faults: What to do.
        config_dir: Folder of the YAML files.
        log_dir: Folder for the logs of the nodes.
        environment: Environment of the processes; see `processes.keep_on_loopback`.
        on_verdict: Called after each.
    """
    verdicts = []
    rclpy.init()
    try:
        for simulated in (False, True):
            chosen = [fault for fault in faults if fault.simulated is simulated]
            if not chosen:
                continue
            with session(config_dir, log_dir, environment, simulated=simulated) as running:
                for fault in chosen:
                    verdicts.append(inject(running, fault))
                    on_verdict(verdicts[-1])
    finally:
        rclpy.try_shutdown()
    return verdicts
