"""What the nodes really publish, hear, offer and call: they are started, and asked.

All nodes live in one process and one ROS context, so that nothing has to be discovered; a small
random policy is made for them. Nothing of a robot is needed. Only what a name means is written
here, in MEANINGS; a name without an entry and an entry without a name are errors.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import MagicMock

from make_docs import MADE_BY, node_configs, prose, table

from vla_oft_ros.aloha import ARMS, CAMERAS, load_profile
from vla_oft_ros.config import config_dir, load_yaml

PROFILE = "sim"
ROS_OWN = ("rcl_interfaces/", "lifecycle_msgs/", "type_description_interfaces/", "tf2_msgs/")
"""Types of what every node, or every lifecycle node, has; and of what is there only where tf2 is
installed."""

VARIANTS: dict[str, dict[str, dict[str, object]]] = {
    "": {},
    "`shadow: true`": {"controller_node": {"shadow": True}},
    "`safety.deadman_timeout_s` above 0": {"controller_node": {"safety.deadman_timeout_s": 0.3}},
    "`publish_compressed: true`": {"sim_node": {"publish_compressed": True}},
    "`use_sim_time: true`": {
        name: {"use_sim_time": True} for name in node_configs() if name != "sim_node"
    },
}
"""What is documented beside the defaults: when it is so → node → parameters."""

MEANINGS = {
    "/action_chunk": "what the policy wants next, K rows of 14 targets; rad, grippers 0 … 1",
    "/retained_tokens": "image patches kept, one message per camera and pruning stage; indices",
    "/pruning_status": "mode, speeds of both grippers, share of patches kept; ratios",
    "/joint_targets": "where the arms shall be now, 14 names, left arm first; rad, grippers 0 … 1",
    "/safety_status": "state of the safety gate, and what it changed; rad, grippers 0 … 1",
    "/instruction": "what the robot shall do; text",
    "/episode_status": "what the recorder does, and how good the episode is; s, bytes",
    "/task_reward": "reward of the simulated task, 0 … 4; points",
    "/cam_*/camera/color/image_rect_raw": "images of one camera, any colour encoding; px",
    "/cam_*/image_rect_raw/compressed": "the same as JPEG or PNG; px",
    "/cam_*/camera_info": "calibration of the camera; px",
    "/follower_*/joint_states": "measured joints of one follower: rad; fingers m",
    "/leader_*/joint_states": "measured joints of one leader: rad; fingers m",
    "/task_instruction": "what the episode of the simulation asks for, latched; text",
    "/chunk_trace": "when each span from camera to target began and ended; ns",
    "/viewer/overlay/*": "what the policy saw and kept of one camera; px",
    "/viewer/markers": "status, planned paths and arms, for RViz and Foxglove; m",
    "/viewer/joint_states": "measured joints, by the names of the robot description; rad, m",
    "/viewer/joint_targets": "joint targets, by the names of the robot description; rad, m",
    "/robot_description": "URDF of both arms, latched; XML",
    "/clock": "simulated time; s and ns",
    "/diagnostics": "health of every node, by part; the unit is in each key",
    "/object_poses/*": "true pose of an object in the frame world; m",
    "/controller_node/deadman": "heartbeat of the pressed deadman switch; empty",
    "/controller_node/shadow": "targets that would have been sent; rad, grippers 0 … 1",
    "/teleop_node/phase": "what the scripted operator is doing, latched; text",
    "/*/commands/joint_group": "six joint targets of one arm for xs_sdk; rad",
    "/*/commands/joint_single": "servo angle of one gripper for xs_sdk; rad",
    "/policy_node/reset": "begin a new episode: forget frames and what was kept",
    "/controller_node/estop": "latch the emergency stop",
    "/controller_node/reset_estop": "release it",
    "/controller_node/go_to_start": "take the arms from the policy, to the start pose",
    "/controller_node/go_to_sleep": "the same to the sleep pose, by way of the start pose",
    "/controller_node/follow_policy": "give the arms back to the policy",
    "/controller_node/prepare_arms": "reboot grippers, set modes and current limit, torque on",
    "/controller_node/torque_on": "torque of both arms on",
    "/controller_node/torque_off": "torque of both arms off: they fall",
    "/controller_node/reboot_grippers": "reboot both gripper motors",
    "/*/torque_enable": "service of xs_sdk",
    "/*/reboot_motors": "service of xs_sdk",
    "/*/set_operating_modes": "service of xs_sdk",
    "/*/set_motor_registers": "service of xs_sdk",
    "/*/get_robot_info": "service of xs_sdk",
    "/recorder_node/start": "start an episode",
    "/recorder_node/stop": "end it and save it",
    "/recorder_node/discard": "delete the present or last episode",
    "/recorder_node/rerecord": "delete it and start anew",
    "/recorder_node/label": "true is success, false is failure",
    "/sim_node/reset": "arms and objects back, objects at the next pose of the seed",
    "/teleop_node/demonstrate": "begin a demonstration",
    "/teleop_node/rest": "leaders back into the start pose",
}
"""Name, with * for anything, → what it means; its unit."""


@dataclass(frozen=True, order=True)
class End:
    """One end of a topic or service.

    Attributes:
        name: Absolute name.
        type: As ROS writes it, package/Name.
        role: publishes, hears, offers or calls.
        node: Name of the node.
        qos: Quality of service, in words; of topics.
        when: Parameter that it takes; empty with the defaults.
    """

    name: str
    type: str
    role: str
    node: str
    qos: str
    when: str = ""


def type_name(kind: Any) -> str:
    """package/Name of a message, service or action class."""
    return f"{kind.__module__.split('.')[0]}/{kind.__name__}"


def qos_text(qos: Any) -> str:
    """Quality of service in words."""
    words = ["best effort" if qos.reliability.name == "BEST_EFFORT" else "reliable"]
    words += ["latched"] if qos.durability.name == "TRANSIENT_LOCAL" else []
    return f"{', '.join(words)}, last {qos.depth}"


def ends_of(node: Any) -> Iterator[End]:
    """Everything that one rclpy node has, but what ROS gives to every node."""
    name = node.get_name()
    topics = [("publishes", end) for end in node.publishers]
    topics += [("hears", end) for end in node.subscriptions]
    for role, end in topics:
        kind = end.msg_type
        yield End(end.topic_name, type_name(kind), role, name, qos_text(end.qos_profile))
    for role, group in (("offers", node.services), ("calls", node.clients)):
        for end in group:
            full = node.resolve_service_name(end.srv_name)
            yield End(full, type_name(end.srv_type), role, name, "")
    for waitable in node.waitables:
        kind = getattr(waitable, "_action_type", None)
        action = getattr(waitable, "_action_name", None)
        if kind is not None and action is not None:
            full = node.resolve_service_name(action)
            role = "offers" if "Server" in type(waitable).__name__ else "calls"
            yield End(full, type_name(kind), role, name, "action")


@contextmanager
def running_nodes(overrides: Mapping[str, Mapping[str, object]]) -> Iterator[list[Any]]:
    """The nodes named, configured and active, from the shipped YAML files and these values."""
    import rclpy

    arguments = ["--ros-args", "--log-level", "warn"]
    for path in sorted(config_dir().glob("*.yaml")):
        sections = load_yaml(path).values()
        if any(isinstance(section, dict) and "ros__parameters" in section for section in sections):
            arguments += ["--params-file", str(path)]
    for node, parameters in overrides.items():
        for key, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else value
            arguments += ["-p", f"{node}:{key}:={text}"]
    rclpy.init(args=arguments)
    nodes: list[Any] = []
    try:
        # The recorder last: it hears what is there when it starts.
        for name in sorted(overrides, key=lambda name: (name == "recorder_node", name)):
            module = importlib.import_module(f"vla_oft_ros.ros.{name}")
            made: list[Any] = [
                kind
                for _, kind in inspect.getmembers(module, inspect.isclass)
                if kind.__module__ == module.__name__ and issubclass(kind, rclpy.node.Node)
            ]
            (kind,) = made
            nodes.append(kind())
            if hasattr(nodes[-1], "autostart") and not nodes[-1].autostart():
                raise RuntimeError(f"{name} could not be started")
            if hasattr(nodes[-1], "hear_everything"):  # hears otherwise only what somebody needs
                nodes[-1].hear_everything()
        yield nodes
    finally:
        for node in reversed(nodes):
            if hasattr(node, "trigger_shutdown"):
                node.trigger_shutdown()
            node.destroy_node()
        rclpy.shutdown()


def interbotix_ends(profile: str = "interbotix_main") -> list[End]:
    """What the controller says to xs_sdk; its messages need not be installed for this page."""
    from vla_oft_ros.ros import interbotix

    ends: list[End] = []

    class Messages:
        def __getattr__(self, name: str) -> type:
            return type(name, (), {"__module__": f"{interbotix.PACKAGE}.msg"})

    def publisher(kind: type, topic: str, depth: int) -> None:
        name = "controller_node"
        ends.append(End(topic, type_name(kind), "publishes", name, f"reliable, last {depth}"))

    def client(kind: type, name: str, **_: object) -> None:
        ends.append(End(name, type_name(kind), "calls", "controller_node", ""))

    def service(kind: type, name: str, *_: object, **__: object) -> None:
        full = name.replace("~", "/controller_node")
        ends.append(End(full, type_name(kind), "offers", "controller_node", ""))

    node: Any = MagicMock()
    node.create_lifecycle_publisher, node.create_client = publisher, client
    node.create_service = service
    module: Any = interbotix
    real, module.import_messages = module.import_messages, lambda _: Messages()
    try:
        module.InterbotixRobot(node, load_profile(profile), lambda: True, "services")
    finally:
        module.import_messages = real
    return ends


def all_ends() -> list[End]:
    """The ends of every node, with the defaults and with each of VARIANTS."""
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    found: dict[End, str] = {}
    with TemporaryDirectory() as made:
        checkpoint = Path(made) / "checkpoint"
        make_random_checkpoint(checkpoint, seed=0)
        given: dict[str, dict[str, object]] = {
            "policy_node": {"policy.checkpoint_dir": checkpoint},
            "recorder_node": {"output_dir": Path(made) / "recordings"},
        }
        for when, more in VARIANTS.items():
            names = more or node_configs()
            merged = {name: {**given.get(name, {}), **more.get(name, {})} for name in names}
            with running_nodes(merged) as nodes:
                for node in nodes:
                    for end in ends_of(node):
                        found.setdefault(end, when)
    for end in interbotix_ends():
        found.setdefault(end, "`robot_interface: interbotix`")
    return sorted(
        End(end.name, end.type, end.role, end.node, end.qos, when)
        for end, when in found.items()
        if not end.type.startswith(ROS_OWN)
    )


def meaning(name: str) -> str:
    """What a topic or service is.

    Raises:
        ValueError: if nobody says it.
    """
    for pattern, text in MEANINGS.items():
        if fnmatch(name, pattern):
            return text
    raise ValueError(f"{name}: expected a description in MEANINGS of tools/reference_graph.py")


def side(ends: list[End], role: str) -> str:
    """Who is at one side of a topic or service."""
    texts = []
    for end in ends:
        if end.role == role:
            facts = [fact for fact in (end.qos, f"with {end.when}" if end.when else "") if fact]
            texts.append(f"`{end.node}`" + (f" ({'; '.join(facts)})" if facts else ""))
    return "<br>".join(dict.fromkeys(texts))


def rows_of(ends: list[End], roles: tuple[str, str]) -> list[tuple[object, ...]]:
    """One row per name."""
    rows: list[tuple[object, ...]] = []
    for name in sorted({end.name for end in ends if end.role in roles}):
        here = [end for end in ends if end.name == name and end.role in roles]
        kinds = ", ".join(f"`{kind}`" for kind in dict.fromkeys(end.type for end in here))
        sides = [side(here, role) for role in roles]
        rows.append((f"`{name}`", kinds, *sides, meaning(name)))
    return rows


def profile_rows() -> list[tuple[object, ...]]:
    """The robot's own topics in every profile."""
    rows: list[tuple[object, ...]] = []
    for name in load_yaml(config_dir() / "aloha.yaml"):
        profile = load_profile(name)
        topics = [*profile.camera_topics, *profile.follower_joint_state_topics]
        topics += profile.leader_joint_state_topics
        rows.append((f"`{name}`", *(f"`{topic}`" for topic in topics)))
    return rows


def topics_page(ends: list[End]) -> str:
    """Every topic, service and action of every node."""
    services = ("offers", "calls")
    titles = tuple(f"{kind} {arm}" for kind in ("follower", "leader") for arm in ARMS)
    parts = [
        "# Topics, services and actions",
        MADE_BY,
        prose(
            "Every node was started from the shipped files and asked what it has. Names are those "
            f"of the profile `{PROFILE}` and of the default parameters; they can be remapped as "
            "any others. “Last 10” is the depth of the queue. What every node has is left out "
            "(`/rosout`, `/parameter_events`, the services of parameters), and of lifecycle nodes "
            "their services and `~/transition_event`; `/tf` of `token_viewer_node` is, too. "
            "`recorder_node` hears with the quality of "
            "service that is offered to it. Fields and units of our own types: "
            "[messages.md](messages.md)."
        ),
        "## Topics",
        table(
            ("topic", "type", "published by", "heard by", "meaning and unit"),
            rows_of(ends, ("publishes", "hears")),
        ),
        "## Services and actions",
        table(
            ("name", "type", "offered by", "called by", "what it does"), rows_of(ends, services)
        ),
        "## The robot's topics, by profile",
        table(("profile", *CAMERAS, *titles), profile_rows()),
    ]
    return "\n\n".join(parts) + "\n"


def unused_meanings(ends: list[End]) -> list[str]:
    """Patterns of MEANINGS that no topic or service answers to any more."""
    names = {end.name for end in ends}
    return [pattern for pattern in MEANINGS if not any(fnmatch(name, pattern) for name in names)]
