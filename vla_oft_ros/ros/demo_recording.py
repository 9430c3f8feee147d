"""Keeps a bag of a demo's own run, so that it can be looked at again with `vla_oft review`.

The recorder is another process, as on a robot; here it is only asked to begin, as soon as it hears
what an episode needs. It ends and saves when it is told to end.
"""

from __future__ import annotations

import time
from pathlib import Path

from rclpy.node import Node
from std_srvs.srv import Trigger

from vla_oft_ros.config import ConfigError, SimConfig, load_node_config
from vla_oft_ros.ros.processes import NodeProcesses

_ASK_EVERY_S = 0.5
_EXTRA_TOPICS = ("/diagnostics", "episode_status", "task_reward")


class DemoRecording:
    """The recorder of one demo.

    Args:
        node: That asks.
        directory: Folder of recordings; what is there is kept.
    """

    def __init__(self, node: Node, directory: Path) -> None:
        self._node, self.directory = node, directory
        self._client = node.create_client(Trigger, "recorder_node/start")
        self._asked_s = 0.0
        self._answer = None
        self.problem = "the recorder did not answer"
        """Why nothing is recorded yet; empty once something is."""

    def start(self, nodes: NodeProcesses, instruction: str, config_dir: Path) -> None:
        """Starts the recorder's process.

        Args:
            nodes: Where.
            instruction: What the robot is asked to do.
            config_dir: Folder of sim.yaml.
        """
        sim = load_node_config(SimConfig, config_dir / "sim.yaml", "sim_node")
        overrides = {
            "use_sim_time": True,
            "exit_with_parent": True,
            "output_dir": str(self.directory),
            "instruction": instruction,
            "camera_rate_hz": sim.control_rate_hz,
            "image_transport": "compressed",
            "extra_topics": list(_EXTRA_TOPICS),
        }
        nodes.start("recorder_node", "recorder.yaml", overrides)

    def poll(self) -> None:
        """Asks the recorder to begin, until it does."""
        if self._answer is not None and self._answer.done():
            answer, self._answer = self._answer.result(), None
            self.problem = "" if answer.success else answer.message
        now_s = time.monotonic()
        ready = self.problem and self._answer is None and self._client.service_is_ready()
        if ready and now_s - self._asked_s >= _ASK_EVERY_S:
            self._asked_s = now_s
            self._answer = self._client.call_async(Trigger.Request())


def recording_dir(directory: Path) -> Path:
    """The folder of recordings as an absolute path.

    Raises:
        ConfigError: if there is a file of that name.
    """
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--record: expected a folder; {directory} is a file")
    return directory.resolve()
