"""config/aloha_policy.rviz and a running graph: displays are standard, their topics are there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from ros.graph import Graph

from vla_oft_ros.config import config_dir
from vla_oft_ros.robot_model import WORLD
from vla_oft_ros.ros.processes import NodeProcesses

TYPES = {
    "rviz_default_plugins/Grid": None,
    "rviz_default_plugins/TF": None,
    "rviz_default_plugins/Image": "sensor_msgs/msg/Image",
    "rviz_default_plugins/MarkerArray": "visualization_msgs/msg/MarkerArray",
    "rviz_default_plugins/RobotModel": "std_msgs/msg/String",
}
"""Displays that every RViz 2 has and we use, each with the message type of its topic."""
STANDARD_PANELS = {f"rviz_common/{name}" for name in ("Displays", "Time", "Views")}
STANDARD_TOOLS = {
    f"rviz_default_plugins/{name}"
    for name in ("Interact", "MoveCamera", "Select", "FocusCamera", "Measure")
}
START_S = 90.0
"""A checkpoint and the first picture, on a loaded machine."""

CONTENT = yaml.safe_load((config_dir() / "aloha_policy.rviz").read_text(encoding="utf-8"))
MANAGER = CONTENT["Visualization Manager"]


def topics(entry: object) -> Iterator[dict]:
    """Every topic of a display, however deep."""
    if isinstance(entry, dict):
        if "Reliability Policy" in entry:
            yield entry
        for value in entry.values():
            yield from topics(value)


WANTED = [
    (display["Class"], topic["Value"], topic)
    for display in MANAGER["Displays"]
    for topic in topics(display)
]


def test_every_display_panel_and_tool_comes_with_every_rviz() -> None:
    assert {display["Class"] for display in MANAGER["Displays"]} <= set(TYPES)
    assert {panel["Class"] for panel in CONTENT["Panels"]} <= STANDARD_PANELS
    assert {tool["Class"] for tool in MANAGER["Tools"]} <= STANDARD_TOOLS
    assert MANAGER["Views"]["Current"]["Class"] == "rviz_default_plugins/Orbit"


def test_every_display_has_a_name_of_its_own_and_the_topic_that_its_class_needs() -> None:
    displays = MANAGER["Displays"]
    assert len({display["Name"] for display in displays}) == len(displays)
    for display in displays:
        assert len(list(topics(display))) == (TYPES[display["Class"]] is not None)
    assert MANAGER["Global Options"]["Fixed Frame"] == WORLD


@pytest.mark.sim
def test_every_topic_of_the_rviz_file_is_published_as_its_display_wants_it(
    make_graph: type, tmp_path: Path
) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("torch")
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    make_random_checkpoint(tmp_path / "small", seed=0)
    graph: Graph = make_graph()
    with NodeProcesses(config_dir(), tmp_path, os.environ) as nodes:
        time = {"use_sim_time": True}
        checkpoint = {"policy.checkpoint_dir": str(tmp_path / "small"), "policy.device": "cpu"}
        nodes.start("sim_node", "sim.yaml", {})
        nodes.start(
            "policy_node", "policy.yaml", time | checkpoint | {"instruction": "lift the cube"}
        )
        nodes.start("controller_node", "controller.yaml", time)
        nodes.start("token_viewer_node", "token_viewer.yaml", time)
        for display, name, wanted in WANTED:
            found = graph.until(
                lambda name=name: graph.ear.get_publishers_info_by_topic(name), name, START_S
            )
            for publisher in found:
                assert publisher.topic_type == TYPES[display], name
                qos = publisher.qos_profile
                if wanted["Reliability Policy"] == "Reliable":
                    assert qos.reliability == ReliabilityPolicy.RELIABLE, name
                if wanted["Durability Policy"] == "Transient Local":
                    assert qos.durability == DurabilityPolicy.TRANSIENT_LOCAL, name
        assert _one_of_each(graph) == {name for _, name, _ in WANTED}
        assert nodes.ended() == {}


def _one_of_each(graph: Graph) -> set[str]:
    """Waits for a message on every topic, as RViz would subscribe; returns the topics."""
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image
    from std_msgs.msg import String
    from visualization_msgs.msg import MarkerArray

    kinds = {"Image": Image, "String": String, "MarkerArray": MarkerArray}
    heard: dict[str, list] = {}
    for display, name, wanted in WANTED:
        latched = wanted["Durability Policy"] == "Transient Local"
        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        kind = kinds[str(TYPES[display]).rpartition("/")[2]]
        qos = QoSProfile(depth=wanted["Depth"], durability=durability)
        heard.setdefault(name, graph.hear(kind, name, qos))
    graph.until(lambda: all(heard.values()), "a message on every topic", START_S)
    return {name for name, messages in heard.items() if messages}
