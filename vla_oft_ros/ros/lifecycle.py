"""What every managed node of the package shares: configuration, stop order, logging, and how its
process ends.

A node fills four hooks. `_setup` raises to fail configuration and may leave things half built;
`_teardown` tolerates that, and serves cleanup, shutdown and error alike. `_start` and `_stop`
switch the work on and off.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FrameType

import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.timer import Timer

from vla_oft_ros.ros.params import declare_config

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 0.1
_INACTIVE, _ACTIVE = 2, 3  # lifecycle_msgs/State PRIMARY_STATE_*


class ForwardToRos(logging.Handler):
    """Sends the package's own log records to a node's logger, so that they reach /rosout and the
    launch output.
    """

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """Forwards one record at the level it came with."""
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._logger.info(text)
        else:
            self._logger.debug(text)


def declare_node_config(node: Node, config_class: type) -> object:
    """Declares the parameters of a node, ties its process to its parent if asked to, and forwards
    the core's log.
    """
    config = declare_config(node, config_class)
    if getattr(config, "exit_with_parent", False):
        exit_with_parent()
    core = logging.getLogger("vla_oft_ros")
    core.setLevel(logging.INFO)
    core.handlers[:] = [ForwardToRos(node)]
    return config


def exit_with_parent() -> None:
    """Asks Linux for SIGTERM when the starting process ends: a launch that is killed leaves no
    robot node behind.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1 and not _belongs_to_init():
        os.kill(os.getpid(), signal.SIGTERM)


def _belongs_to_init() -> bool:
    """True if process 1 has started this one, as `ros2 launch` in a container does; an orphan
    that process 1 has inherited is of another session.
    """
    try:
        return os.getsid(0) == os.getsid(1)
    except OSError:
        return False


class ManagedNode(LifecycleNode):
    """Lifecycle node over one configuration class.

    Args:
        name: Node name; also its section in the YAML file.
        config_class: Frozen dataclass of its parameters.
    """

    def __init__(self, name: str, config_class: type) -> None:
        super().__init__(name, automatically_declare_parameters_from_overrides=True)
        self.config = declare_node_config(self, config_class)
        for service in self.services:
            if service.srv_type is ChangeState:
                service.callback = partial(self._change_state, service.callback)

    def _change_state(
        self,
        change: Callable[[ChangeState.Request, ChangeState.Response], ChangeState.Response],
        request: ChangeState.Request,
        response: ChangeState.Response,
    ) -> ChangeState.Response:
        """Refuses a transition that does not fit the present state; rclpy alone would let the
        process die of it.
        """
        offered = [number for number, *_ in self._state_machine.available_transitions]
        if request.transition.label or request.transition.id in offered:
            return change(request, response)
        self.get_logger().warning(
            f"transition {request.transition.id}: not possible in state "
            f"{self._state_machine.current_state[1]}"
        )
        response.success = False
        return response

    def _setup(self) -> None:
        """Builds everything; raises to refuse."""

    def _start(self) -> None:
        """Begins to work."""

    def _stop(self) -> None:
        """Stops to work; nothing may be published afterwards."""

    def _teardown(self) -> None:
        """Destroys whatever `_setup` built, however far it came."""

    @property
    def state_id(self) -> int:
        """Present primary state (lifecycle_msgs/State)."""
        return int(self._state_machine.current_state[0])

    def now_ns(self) -> int:
        """Present ROS time (simulated where use_sim_time is set), nanoseconds."""
        return int(self.get_clock().now().nanoseconds)

    @property
    def simulated(self) -> bool:
        """True if this node lives by /clock."""
        return bool(self.get_parameter("use_sim_time").value)

    def create_beat(self, period_s: float, callback: Callable[[], None]) -> Timer:
        """A timer on a clock that nobody can step, or on /clock where that is used.

        A timer of the system clock stands still for as long as that clock is set back.
        """
        clock = None if self.simulated else Clock(clock_type=ClockType.STEADY_TIME)
        return self.create_timer(period_s, callback, clock=clock)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Builds; refuses with the reason and leaves nothing behind."""
        done = self._guard("configure", self._setup)
        if done is not TransitionCallbackReturn.SUCCESS:
            self._guard("clean up", self._teardown)
        return done

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Activates publishers, then starts."""
        super().on_activate(state)
        done = self._guard("activate", self._start)
        if done is not TransitionCallbackReturn.SUCCESS:
            self._guard("stop", self._stop)
            super().on_deactivate(state)
        return done

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops first, deactivates publishers last: the last message is the node's own farewell.
        A stop that fails is an error, since a refusal would leave the node in state active.
        """
        done = self._guard("deactivate", self._stop)
        super().on_deactivate(state)
        succeeded = done is TransitionCallbackReturn.SUCCESS
        return done if succeeded else TransitionCallbackReturn.ERROR

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to nothing."""
        return self._guard("clean up", self._teardown)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops if need be, then tears down."""
        if state.state_id == _ACTIVE:
            self.on_deactivate(state)
        return self._guard("shut down", self._teardown)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """The safe state: stopped and torn down."""
        self._guard("stop after an error", self._stop)
        return self._guard("clean up after an error", self._teardown)

    def _guard(self, what: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        """Runs a hook; the user's mistakes are told in one line, everything else with its
        traceback.
        """
        try:
            action()
        except ValueError as error:
            self.get_logger().error(f"cannot {what}: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().error(f"cannot {what}:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def autostart(self, configuring: AbstractContextManager[None] | None = None) -> bool:
        """Configures and activates; False if either is refused.

        Args:
            configuring: What holds while the node is being configured.
        """
        success = TransitionCallbackReturn.SUCCESS
        with configuring or nullcontext():
            configured = self.trigger_configure() == success
        return configured and self.trigger_activate() == success

    def give_up_configuring(self) -> None:
        """Leaves nothing of a configuration that was interrupted halfway."""
        self._guard("clean up", self._teardown)


def run(make_node: Callable[[], Node], args: list[str] | None = None) -> int:
    """Runs one node until SIGINT, SIGTERM or its refusal; the main function of every executable.

    The signals are ours, not rclpy's: the node is deactivated and torn down while it can still
    speak.

    Args:
        make_node: Makes the node, after rclpy was initialised.
        args: Command line; None is the process's own.

    Returns:
        Exit code: 0 after a signal, 1 if autostart was refused, the node gave up or a callback of
        it failed, 2 for a wrong configuration.
    """
    stop = _Stop()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # RCLError: a parameter file or argument that rcl cannot read
        get_logger("vla_oft_ros").fatal(f"ROS arguments: {error}")
        return 2
    try:
        try:
            node = make_node()
        except ValueError as error:  # ConfigError, or rclpy's own refusal of a parameter file
            get_logger("vla_oft_ros").fatal(str(error))
            return 2
        try:
            return _spin(node, stop)
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
        # Ctrl-C in a terminal reaches a node twice, by the terminal and by launch. Python gives
        # up our handlers before it takes its modules apart, and the second signal would kill it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


class _Stop:
    """Handler of the signals that end a node: once it works, after the callback that runs."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Takes a signal."""
        self.asked = True
        if self._at_once:
            self._at_once = False  # launch and terminal may both send it
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Meanwhile a signal interrupts: a network is not loaded for minutes to be thrown away."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


def _spin(node: Node, stop: _Stop) -> int:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    managed = node if isinstance(node, ManagedNode) else None
    try:
        if managed and managed.config.autostart and not managed.autostart(stop.at_once()):
            return 1
        while not stop.asked:
            executor.spin_once(timeout_sec=_POLL_S)
            if getattr(node, "failed", False):
                return 1
        return 0
    except KeyboardInterrupt:  # halfway through configuring
        managed.give_up_configuring()
        return 0
    except Exception:
        node.get_logger().fatal(f"a callback failed; the node ends:\n{traceback.format_exc()}")
        return 1
    finally:
        if managed and managed.state_id in (_INACTIVE, _ACTIVE):
            managed.trigger_shutdown()
        executor.remove_node(node)
        executor.shutdown()


def main_of(make_node: Callable[[], Node]) -> Callable[[], None]:
    """The `main` of a node module, for console scripts and `ros2 run`."""

    def main() -> None:
        sys.exit(run(make_node))

    return main
