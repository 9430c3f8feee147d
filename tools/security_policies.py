"""Writes config/security/: for every robot profile a policy of SROS 2 with the least that each
node needs.

The nodes are started, as for docs/reference/topics.md, and asked what they publish, hear, offer
and call; the policy allows that and no more. Only what is not ours is written here: drivers,
cameras and the operator's tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree.ElementTree import Comment, Element, SubElement, indent, tostring

from make_docs import node_configs
from rclpy.lifecycle import LifecycleNode
from reference_graph import ends_of, interbotix_ends, running_nodes

from vla_oft_ros.aloha import RobotProfile, load_profile
from vla_oft_ros.config import config_dir, load_yaml
from vla_oft_ros.ros.recorder_node import RecorderNode
from vla_oft_ros.security.environment import SPACE
from vla_oft_ros.security.policy import ALLOW, RIGHTS, SUFFIX, VERSION

FOLDER = config_dir() / "security"
RIGHT_OF = {
    "publishes": "publish", "hears": "subscribe", "offers": "reply", "calls": "request",
}  # fmt: skip
"""Role of a topic's or service's end → right of a policy."""
SIMULATED = ("sim_node", "teleop_node")
"""Nodes that the profile `sim` has in place of a robot."""
MADE_BY = " Written by `make docs` from the running nodes. Change a copy, not this file. "
Rights = dict[str, set[str]]
"""Right → names."""

VARIANTS: tuple[dict[str, dict[str, object]], ...] = (
    {},
    {"controller_node": {"shadow": True}},
    {"controller_node": {"safety.deadman_timeout_s": 0.3}},
    {"recorder_node": {"image_transport": "raw"}},
    {"recorder_node": {"image_transport": "compressed"}},
)
"""Parameters beside the defaults under which nodes have other topics."""
SIMULATED_VARIANTS: tuple[dict[str, dict[str, object]], ...] = (
    {"sim_node": {"publish_compressed": True}},
    {"sim_node": {"instruction_topic": "instruction"}},
    {"sim_node": {"task": "pick_cube"}, "teleop_node": {"task": "pick_cube"}},
    {name: {"use_sim_time": True} for name in node_configs() if name != "sim_node"},
)
WHERE_INSTALLED: dict[str, Rights] = {"token_viewer_node": {"publish": {"/tf", "/tf_static"}}}
"""What is there only with packages that not every machine has (tf2_msgs)."""
TOOLS = (
    *("_ros2cli_*", "rosbag2_*", "rviz*", "transform_listener_impl_*", "foxglove_bridge"),
    *("record_keyboard", "record_demo", "demo_monitor"),
)
"""Nodes of the operator: each has services of its own."""


def rights_of(node: Any) -> Rights:
    """Everything that one running node has, what ROS gives to every node included."""
    rights: Rights = {right: set() for right in RIGHTS}
    for end in ends_of(node):
        rights[RIGHT_OF[end.role]].add(end.name)
    if isinstance(node, RecorderNode):  # hears what is there, and may hear all that it looks for
        wanted = {name for names in node._wanted() for name in names}
        rights["subscribe"] |= {node.resolve_topic_name(name) for name in wanted}
    # What C has made, of which the Python objects do not know.
    rights["publish"].add("/rosout")
    if isinstance(node, LifecycleNode):
        rights["publish"].add(f"/{node.get_name()}/transition_event")
    return rights


def merged(*many: Mapping[str, Iterable[str]]) -> Rights:
    """All rights together."""
    return {right: {name for one in many for name in one.get(right, ())} for right in RIGHTS}


def node_rights(profile: str) -> dict[str, Rights]:
    """Node → what it needs on one robot, whatever of VARIANTS is chosen."""
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    robot = load_profile(profile)
    variants = VARIANTS + (SIMULATED_VARIANTS if profile == "sim" else ())
    names = [name for name in node_configs() if profile == "sim" or name not in SIMULATED]
    found: dict[str, Rights] = {name: merged(WHERE_INSTALLED.get(name, {})) for name in names}
    with TemporaryDirectory() as made:
        checkpoint = Path(made) / "checkpoint"
        make_random_checkpoint(checkpoint, seed=0)
        given: dict[str, dict[str, object]] = {
            "policy_node": {
                "policy.checkpoint_dir": checkpoint,
                # The random policy knows the simulated robot only; its topics are those of any.
                "policy.skip_self_tests": "[statistics_fit_robot]",
            },
            "recorder_node": {"output_dir": Path(made) / "recordings"},
        }
        if robot.arm_model != "vx300s":  # the controller drives no other arm
            given["controller_node"] = {"shadow": True}
        for variant in variants:
            chosen = {
                name: {"profile": profile, **given.get(name, {}), **variant.get(name, {})}
                for name in variant or names
            }
            with running_nodes(chosen) as nodes:
                for node in nodes:
                    name = node.get_name()
                    found[name] = merged(found[name], rights_of(node))
    if profile != "sim" and robot.xs_namespaces:
        for end in interbotix_ends(profile):
            found["controller_node"][RIGHT_OF[end.role]].add(end.name)
    return found


def driver_rights(profile: RobotProfile, controller: Rights) -> Rights:
    """Drivers and cameras, which are other people's nodes: all below their own namespaces, and
    what the controller says.
    """
    topics = (
        *profile.camera_topics,
        *profile.follower_joint_state_topics,
        *profile.leader_joint_state_topics,
    )
    spaces = {"/" + topic.strip("/").split("/")[0] + "/*" for topic in topics}
    shared = {"/tf", "/tf_static", "/diagnostics", "/rosout", "/parameter_events"}
    targets = {name for name in controller["publish"] if name.endswith("/joint_targets")}
    return {
        "publish": spaces | shared,
        "subscribe": spaces | shared | targets,
        "reply": spaces,
        "request": spaces,
    }


def people_rights(nodes: Mapping[str, Rights]) -> dict[str, Rights]:
    """The operator hears all, calls all and says what operators say; a replayed episode, too, is
    chunks for the controller, and who sends it must hold the keys for that.
    """
    controller = nodes["controller_node"]
    said = {name for name in controller["subscribe"] if name.endswith("/deadman")}
    said |= {name for name in nodes["policy_node"]["subscribe"] if name.endswith("/instruction")}
    ears = {"/rosout", "/parameter_events"}
    chunks = {name for name in controller["subscribe"] if name.endswith("/action_chunk")}
    status = {"/joint_targets", "/safety_status"} & controller["publish"]
    viewer = nodes["token_viewer_node"]["reply"]  # what every node offers, and no more
    return {
        "operator": {
            "publish": ears | said,
            "subscribe": {"/*"},
            "reply": {f"/{tool}/*" for tool in TOOLS},
            "request": {"/*"},
        },
        "replay": {
            "publish": ears | chunks,
            "subscribe": status,
            "reply": {name.replace("/token_viewer_node/", "/replay/") for name in viewer},
            "request": {"/controller_node/get_parameters"},
        },
    }


def policy_text(rights: Mapping[str, Rights]) -> str:
    """Enclaves and their rights as a policy of SROS 2."""
    root = Element("policy", version=VERSION)
    root.append(Comment(MADE_BY))
    enclaves = SubElement(root, "enclaves")
    for name, allowed in rights.items():
        enclave = SubElement(enclaves, "enclave", path=f"{SPACE}/{name}")
        profile = SubElement(SubElement(enclave, "profiles"), "profile", ns="/", node=name)
        for right in RIGHTS:
            kind = "topic" if right in ("publish", "subscribe") else "service"
            if allowed.get(right):
                group = SubElement(profile, f"{kind}s", {right: ALLOW})
                for entry in sorted(allowed[right]):
                    SubElement(group, kind).text = entry
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def policy(profile: str) -> str:
    """The policy of one robot."""
    nodes = node_rights(profile)
    robot: dict[str, Rights] = {}
    if profile != "sim":
        robot["robot"] = driver_rights(load_profile(profile), nodes["controller_node"])
    return policy_text({**dict(sorted(nodes.items())), **robot, **people_rights(nodes)})


def policies() -> Iterator[tuple[Path, str]]:
    """File → content, one per robot profile."""
    for profile in load_yaml(config_dir() / "aloha.yaml"):
        yield FOLDER / f"{profile}{SUFFIX}", policy(profile)
