"""The nodes of one test, and how a test waits for them without sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

TIMEOUT_S = 60.0
"""Long enough for a loaded machine; a test that waits this long has failed."""
ASK_AGAIN_S = 2.0
SILENCE_S = 0.3
"""How long a test listens for what must not come: several ticks of every node."""


class Graph:
    """The nodes of one test in one executor of one thread."""

    def __init__(self) -> None:
        self.executor = SingleThreadedExecutor()
        self._nodes: list[Node] = []
        self._ear: Node | None = None

    def add(self, node: Node) -> Any:
        self._nodes.append(node)
        self.executor.add_node(node)
        return node

    @property
    def ear(self) -> Node:
        """A bare node for the test's own publishers, subscriptions and clients."""
        if self._ear is None:
            self._ear = self.add(rclpy.create_node("ear"))
        return self._ear

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Spins until something is so, and returns what the condition returned."""
        deadline_s = time.monotonic() + timeout_s
        while not (result := condition()):
            assert time.monotonic() < deadline_s, f"{what} did not happen in {timeout_s:g} s"
            self.executor.spin_once(timeout_sec=0.02)
        return result

    def listen_in_silence(self, duration_s: float = SILENCE_S) -> None:
        """Spins for a while in which something must not happen."""
        deadline_s = time.monotonic() + duration_s
        while time.monotonic() < deadline_s:
            self.executor.spin_once(timeout_sec=0.02)

    def hear(self, kind: type, topic: str, qos: Any = 100) -> list[Any]:
        """A list that fills with the messages of a topic."""
        heard: list[Any] = []
        self.ear.create_subscription(kind, topic, heard.append, qos)
        return heard

    def call(self, kind: type, service: str, request: Any) -> Any:
        """Calls a service and returns its answer.

        Asks again now and then: on a loaded machine a server may answer before it has discovered
        the way back, and that answer is lost.
        """
        client = self.ear.create_client(kind, service)
        self.until(client.service_is_ready, f"service {service}")
        futures: list[Any] = []

        def answered() -> Any:
            if time.monotonic() >= asked_s + len(futures) * ASK_AGAIN_S:
                futures.append(client.call_async(request))
            return next((future for future in futures if future.done()), None)

        asked_s = time.monotonic()
        return self.until(answered, f"answer of {service}").result()

    def close(self) -> None:
        for node in self._nodes:
            self.executor.remove_node(node)
            node.destroy_node()
        self.executor.shutdown()


def parameters(**values: object) -> list[str]:
    """ROS arguments that set parameters; `__` in a name stands for a dot."""
    arguments = []
    for name, value in values.items():
        arguments += ["-p", f"{name.replace('__', '.')}:={value}"]
    return arguments
