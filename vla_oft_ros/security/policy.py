"""Policies of SROS 2 → permissions and governance as DDS security knows them.

A policy says which names of ROS each enclave may use; DDS knows topics only, so a service becomes
two of them. The shipped policies are in `config/security`, written from the running nodes.
Sources: sros2 (policy.xsd 0.2.0, permissions.xsl, governance.xml); OMG DDS-Security 1.1, §9.4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from vla_oft_ros.config import config_dir

VERSION = "0.2.0"
"""Of the policy format (sros2, policy.xsd)."""
SUFFIX = ".policy.xml"
ALLOW = "ALLOW"
RIGHTS = {
    "publish": (("publish", "rt{}"),),
    "subscribe": (("subscribe", "rt{}"),),
    "reply": (("subscribe", "rq{}Request"), ("publish", "rr{}Reply")),
    "request": (("publish", "rq{}Request"), ("subscribe", "rr{}Reply")),
}
"""Right of a policy → what it is in DDS: kind of rule, and name of the topic (ROS 2 design, Topic
and Service name mapping to DDS)."""
DISCOVERY = "ros_discovery_info"
"""Topic with which every participant tells of its nodes (rmw_dds_common)."""
_NAMESPACE = "http://www.w3.org/2001/XMLSchema-instance"
_SCHEMAS = "http://www.omg.org/spec/DDS-SECURITY/20170901/omg_shared_ca_"
_PARTICIPANT_RULES = {
    "allow_unauthenticated_participants": "false",
    "enable_join_access_control": "true",
    "discovery_protection_kind": "ENCRYPT",
    "liveliness_protection_kind": "ENCRYPT",
    "rtps_protection_kind": "SIGN",
}
_TOPIC_RULES = {
    "topic_expression": "*",
    "enable_discovery_protection": "true",
    "enable_liveliness_protection": "true",
    "enable_read_access_control": "true",
    "enable_write_access_control": "true",
    "metadata_protection_kind": "ENCRYPT",
    "data_protection_kind": "ENCRYPT",
}
MAX_DOMAIN_ID = 232
"""Of UDP ports as RTPS counts them (OMG DDSI-RTPS 2.5, §9.6.2.3)."""


class PolicyError(ValueError):
    """A policy that cannot be used; says which, what was expected and what came."""


@dataclass(frozen=True)
class Access:
    """Topics of DDS that one enclave may use; * stands for anything.

    Attributes:
        publish: Names, sorted.
        subscribe: Names, sorted.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def shipped_policies() -> dict[str, Path]:
    """Robot profile → policy file that comes with the package."""
    files = sorted((config_dir() / "security").glob(f"*{SUFFIX}"))
    return {path.name.removesuffix(SUFFIX): path for path in files}


def read_policy(path: Path) -> dict[str, Access]:
    """Reads a policy of SROS 2.

    Args:
        path: Policy file, version 0.2.0; what is in it is allowed, all else is not.

    Returns:
        Path of the enclave, e.g. /vla_oft/policy_node → its access.

    Raises:
        PolicyError: if it is none, or uses DENY or actions, which no policy of this package needs.
        OSError: if the file cannot be read.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise PolicyError(f"{path}: expected an SROS 2 policy in XML; {error}") from None
    if root.tag != "policy" or root.get("version") != VERSION:
        raise PolicyError(
            f"{path}: expected <policy version={VERSION!r}>; got <{root.tag} "
            f"version={root.get('version')!r}>"
        )
    enclaves: dict[str, Access] = {}
    for enclave in root.iterfind("enclaves/enclave"):
        name = enclave.get("path", "")
        parts = name.split("/")
        if parts[0] or not all(part.isidentifier() for part in parts[1:]):
            raise PolicyError(f"{path}: expected enclaves like /vla_oft/policy_node; got {name!r}")
        if name in enclaves:
            raise PolicyError(f"{path}: expected enclave {name} once; got it twice")
        rules = {kind: {DISCOVERY} for kind in ("publish", "subscribe")}
        for profile in enclave.iterfind("profiles/profile"):
            _add_rules(path, profile, rules)
        enclaves[name] = Access(*(tuple(sorted(topics)) for topics in rules.values()))
    if not enclaves:
        raise PolicyError(f"{path}: expected at least one enclave; got none")
    return enclaves


def _add_rules(path: Path, profile: Element, rules: Mapping[str, set[str]]) -> None:
    """Adds what one node may do."""
    for group in profile:
        if group.tag not in ("topics", "services"):
            raise PolicyError(f"{path}: expected topics or services; got <{group.tag}>")
        for right, qualifier in group.attrib.items():
            if right not in RIGHTS or qualifier != ALLOW:
                raise PolicyError(
                    f'{path}: expected {", ".join(RIGHTS)}="{ALLOW}"; got {right}="{qualifier}"'
                )
            for entry in group:
                name = _absolute(profile, (entry.text or "").strip())
                for kind, pattern in RIGHTS[right]:
                    rules[kind].add(pattern.format(name))


def _absolute(profile: Element, name: str) -> str:
    """Name of a topic or service as it is on the network, from one as a node writes it."""
    if name.startswith("/"):
        return name
    space = profile.get("ns", "/").rstrip("/")
    return f"{space}/{profile.get('node')}{name[1:]}" if name[:1] == "~" else f"{space}/{name}"


def permissions(
    enclave: str, access: Access, domain_id: int, not_before: datetime, not_after: datetime
) -> bytes:
    """The permissions document of one enclave, not signed yet.

    Args:
        enclave: Its path, which is the common name of its certificate too.
        access: What it may do.
        domain_id: ROS_DOMAIN_ID in which it may do so.
        not_before: UTC.
        not_after: UTC.
    """
    root = _document("permissions")
    grant = SubElement(SubElement(root, "permissions"), "grant", name=enclave)
    SubElement(grant, "subject_name").text = f"CN={enclave}"
    validity = SubElement(grant, "validity")
    for name, moment in (("not_before", not_before), ("not_after", not_after)):
        SubElement(validity, name).text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    rule = SubElement(grant, "allow_rule")
    SubElement(SubElement(rule, "domains"), "id").text = str(domain_id)
    for kind, names in (("publish", access.publish), ("subscribe", access.subscribe)):
        topics = SubElement(SubElement(rule, kind), "topics")
        for name in names:
            SubElement(topics, "topic").text = name
    SubElement(grant, "default").text = "DENY"
    return _as_bytes(root)


def governance(domain_id: int) -> bytes:
    """What holds in the whole domain, not signed yet: nobody joins without a certificate, nothing
    is allowed that no permission names, everything is encrypted. The same as `ros2 security` has.
    """
    root = _document("governance")
    rule = SubElement(SubElement(root, "domain_access_rules"), "domain_rule")
    SubElement(SubElement(rule, "domains"), "id").text = str(domain_id)
    for name, text in _PARTICIPANT_RULES.items():
        SubElement(rule, name).text = text
    topic = SubElement(SubElement(rule, "topic_access_rules"), "topic_rule")
    for name, text in _TOPIC_RULES.items():
        SubElement(topic, name).text = text
    return _as_bytes(root)


def _document(kind: str) -> Element:
    ElementTree.register_namespace("xsi", _NAMESPACE)
    schema = f"{{{_NAMESPACE}}}noNamespaceSchemaLocation"
    return Element("dds", {schema: f"{_SCHEMAS}{kind}.xsd"})


def _as_bytes(root: Element) -> bytes:
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()
