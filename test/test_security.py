"""Policies, permissions and keystores: least privilege that DDS understands, keys that nobody else
can read.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vla_oft_ros import cli
from vla_oft_ros.aloha import load_profile
from vla_oft_ros.config import config_dir, load_yaml
from vla_oft_ros.security.environment import secured
from vla_oft_ros.security.keystore import make_keystore
from vla_oft_ros.security.policy import (
    DISCOVERY,
    Access,
    PolicyError,
    governance,
    permissions,
    read_policy,
    shipped_policies,
)

NOW = datetime(2030, 5, 17, 12, tzinfo=timezone.utc)
NODES = {"policy_node", "controller_node", "recorder_node", "token_viewer_node"}
PROFILES = sorted(load_yaml(config_dir() / "aloha.yaml"))
needs_keys = pytest.mark.skipif(
    find_spec("cryptography") is None, reason="needs cryptography, of the extra security"
)

POLICY = """<?xml version="1.0" encoding="UTF-8"?>
<policy version="0.2.0"><enclaves><enclave path="/a/talker"><profiles>
  <profile ns="/left" node="talker">
    <topics publish="ALLOW"><topic>chatter</topic><topic>~/own</topic></topics>
    <topics subscribe="ALLOW" publish="ALLOW"><topic>/clock</topic></topics>
    <services reply="ALLOW"><service>~/reset</service></services>
    <services request="ALLOW"><service>/other/reset</service></services>
  </profile>
</profiles></enclave></enclaves></policy>"""


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "talker.policy.xml"
    path.write_text(POLICY, encoding="utf-8")
    return path


def may(access: Access, kind: str, topic: str) -> bool:
    return any(fnmatchcase(topic, pattern) for pattern in getattr(access, kind))


def test_names_of_ros_become_topics_of_dds(policy_file: Path) -> None:
    assert read_policy(policy_file) == {
        "/a/talker": Access(
            publish=tuple(
                sorted(
                    (
                        *(DISCOVERY, "rt/left/chatter", "rt/left/talker/own", "rt/clock"),
                        *("rr/left/talker/resetReply", "rq/other/resetRequest"),
                    )
                )
            ),
            subscribe=tuple(
                sorted(
                    (
                        *(DISCOVERY, "rt/clock", "rq/left/talker/resetRequest"),
                        "rr/other/resetReply",
                    )
                )
            ),
        )
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (POLICY, "not XML", "expected an SROS 2 policy in XML"),
        ('version="0.2.0"', 'version="0.1.0"', "expected <policy version='0.2.0'>"),
        ('publish="ALLOW"', 'publish="DENY"', 'got publish="DENY"'),
        ('reply="ALLOW"', 'dance="ALLOW"', 'got dance="ALLOW"'),
        ("services", "actions", "expected topics or services; got <actions>"),
        ("/a/talker", "../../etc", "expected enclaves like /vla_oft/policy_node"),
        ("/a/talker", "/a/..", "expected enclaves like /vla_oft/policy_node"),
        ("/a/talker", "/", "expected enclaves like /vla_oft/policy_node"),
    ],
)
def test_a_policy_that_is_not_understood_is_refused(
    old: str, new: str, said: str, policy_file: Path
) -> None:
    policy_file.write_text(POLICY.replace(old, new), encoding="utf-8")
    with pytest.raises(PolicyError, match=str(policy_file)) as refused:
        read_policy(policy_file)
    assert said in str(refused.value)


def test_there_is_a_policy_for_every_robot_and_every_node_on_it() -> None:
    assert sorted(shipped_policies()) == PROFILES
    for profile, path in shipped_policies().items():
        names = {name.rpartition("/")[2] for name in read_policy(path)}
        others = {"sim_node", "teleop_node"} if profile == "sim" else {"robot"}
        assert names == NODES | others | {"operator", "replay"}, profile


@pytest.mark.parametrize("profile", PROFILES)
def test_only_the_policy_and_a_replay_may_publish_chunks_and_only_who_moves_arms_targets(
    profile: str,
) -> None:
    enclaves = read_policy(shipped_policies()[profile])

    def speakers(topic: str) -> set[str]:
        return {
            name.rpartition("/")[2]
            for name, access in enclaves.items()
            if may(access, "publish", topic)
        }

    assert speakers("rt/action_chunk") == {"policy_node", "replay"}
    # Of arms whose kinematics are not known the controller only watches.
    movers = {"controller_node"} if load_profile(profile).arm_model == "vx300s" else set()
    movers |= {"teleop_node"} if profile == "sim" else set()
    assert speakers("rt/joint_targets") == movers
    assert speakers("rt/safety_status") == {"controller_node"}
    assert speakers("rq/controller_node/estopRequest") == {"operator"}
    assert speakers("rq/controller_node/set_parametersRequest") == {"operator"}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("node", ["policy_node", "recorder_node", "token_viewer_node"])
def test_who_looks_at_the_robot_may_hear_each_of_its_cameras_and_followers(
    node: str, profile: str
) -> None:
    robot = load_profile(profile)
    access = read_policy(shipped_policies()[profile])[f"/vla_oft/{node}"]
    images = [name for topic in robot.camera_topics for name in (topic, f"{topic}/compressed")]
    wanted = ["/" + topic.lstrip("/") for topic in (*images, *robot.follower_joint_state_topics)]
    assert [topic for topic in wanted if not may(access, "subscribe", f"rt{topic}")] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_no_node_of_ours_has_a_right_with_a_wildcard(profile: str) -> None:
    for name, access in read_policy(shipped_policies()[profile]).items():
        if name.rpartition("/")[2] in NODES | {"sim_node", "teleop_node", "replay"}:
            assert not any("*" in topic for topic in (*access.publish, *access.subscribe)), name


def test_permissions_allow_what_the_policy_names_in_one_domain_and_deny_the_rest() -> None:
    access = Access(publish=("rt/a",), subscribe=("rt/b", "rt/c"))
    root = ElementTree.fromstring(
        permissions("/x/y", access, 7, NOW, NOW + timedelta(days=1)).decode()
    )
    (grant,) = root.findall("permissions/grant")
    assert grant.get("name") == "/x/y" and grant.findtext("subject_name") == "CN=/x/y"
    assert grant.findtext("validity/not_before") == "2030-05-17T12:00:00"
    assert grant.findtext("validity/not_after") == "2030-05-18T12:00:00"
    (rule,) = grant.findall("allow_rule")
    assert [entry.text for entry in rule.findall("domains/id")] == ["7"]
    assert [entry.text for entry in rule.findall("publish/topics/topic")] == ["rt/a"]
    assert [entry.text for entry in rule.findall("subscribe/topics/topic")] == ["rt/b", "rt/c"]
    assert grant.findtext("default") == "DENY"


def test_nobody_joins_without_a_certificate_and_everything_is_encrypted() -> None:
    rule = ElementTree.fromstring(governance(3).decode()).find("domain_access_rules/domain_rule")
    assert rule is not None and rule.findtext("domains/id") == "3"
    assert rule.findtext("allow_unauthenticated_participants") == "false"
    assert rule.findtext("enable_join_access_control") == "true"
    (topic,) = rule.findall("topic_access_rules/topic_rule")
    assert topic.findtext("topic_expression") == "*"
    assert topic.findtext("enable_write_access_control") == "true"
    assert topic.findtext("data_protection_kind") == "ENCRYPT"


@pytest.fixture
def keystore(tmp_path: Path, policy_file: Path) -> Path:
    pytest.importorskip("cryptography")
    enclaves = read_policy(policy_file)
    make_keystore(tmp_path / "keys", enclaves, domain_id=7, valid_days=30, now=NOW)
    return tmp_path / "keys"


def test_a_keystore_is_laid_out_as_sros2_does(keystore: Path) -> None:
    found = {str(path.relative_to(keystore)) for path in keystore.rglob("*") if path.is_file()}
    roles = ("identity_ca", "permissions_ca")
    own = "cert.pem key.pem governance.p7s permissions.p7s permissions.xml".split()
    own += [f"{role}.cert.pem" for role in roles]
    assert found == {
        *("public/ca.cert.pem", "private/ca.key.pem"),
        *(f"public/{role}.cert.pem" for role in roles),
        *(f"private/{role}.key.pem" for role in roles),
        *("enclaves/governance.xml", "enclaves/governance.p7s"),
        *(f"enclaves/a/talker/{name}" for name in own),
    }
    moved = keystore.rename(keystore.with_name("moved"))
    assert (moved / "enclaves/a/talker/governance.p7s").read_bytes()  # links are relative


def test_keys_can_be_read_by_their_owner_only_and_are_new_each_time(
    keystore: Path, policy_file: Path
) -> None:
    secrets = [path for path in keystore.rglob("*key.pem") if not path.is_symlink()]
    assert len(secrets) == 2
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((keystore / "private").stat().st_mode) == 0o700
    other = keystore.with_name("other")
    make_keystore(other, read_policy(policy_file), domain_id=7, valid_days=30, now=NOW)
    for path in secrets:
        assert path.read_bytes() != (other / path.relative_to(keystore)).read_bytes()


def test_every_certificate_is_of_its_enclave_signed_by_the_authority_and_ends(
    keystore: Path,
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    authority, own = (
        x509.load_pem_x509_certificate((keystore / path).read_bytes())
        for path in ("public/ca.cert.pem", "enclaves/a/talker/cert.pem")
    )
    own.verify_directly_issued_by(authority)
    assert own.subject.rfc4514_string() == "CN=/a/talker"
    assert isinstance(key := own.public_key(), ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    limits = [
        one.extensions.get_extension_for_class(x509.BasicConstraints).value
        for one in (authority, own)
    ]
    assert [limit.ca for limit in limits] == [True, False]
    for one in (authority, own):
        assert one.not_valid_before_utc == NOW - timedelta(days=1)
        assert one.not_valid_after_utc == NOW + timedelta(days=30)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("stem", ["enclaves/governance", "enclaves/a/talker/permissions"])
def test_documents_carry_the_signature_of_the_authority_and_no_other_text(
    stem: str, keystore: Path
) -> None:
    signed, plain = (keystore / f"{stem}.{ending}" for ending in ("p7s", "xml"))
    command = ["openssl", "smime", "-verify", "-text", "-in", str(signed)]
    command += [
        "-CAfile",
        str(keystore / "public/ca.cert.pem"),
        "-attime",
        f"{NOW.timestamp():.0f}",
    ]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(b"\r\n", b"\n") == plain.read_bytes()
    forged = signed.read_bytes().replace(b"<id>7</id>", b"<id>0</id>")
    assert forged != signed.read_bytes()
    signed.write_bytes(forged)
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_keys_are_never_overwritten(keystore: Path, policy_file: Path) -> None:
    before = {path: path.read_bytes() for path in keystore.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="never overwritten"):
        make_keystore(keystore, read_policy(policy_file), domain_id=7, valid_days=30, now=NOW)
    assert before == {path: path.read_bytes() for path in keystore.rglob("*") if path.is_file()}


@needs_keys
def test_a_keystore_is_whole_or_not_there(
    tmp_path: Path, policy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os.path, "relpath", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        make_keystore(
            tmp_path / "keys", read_policy(policy_file), domain_id=0, valid_days=1, now=NOW
        )
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "r2d2"], "--profile: expected one of agilex, aloha1"),
        (["--profile", "sim", "--days", "0"], "days: expected 1 … 3650; got 0"),
        (["--profile", "sim", "--domain-id", "233"], "domain id: expected 0 … 232; got 233"),
        (["--policy", "/nowhere/x.xml"], "No such file"),
    ],
)
def test_a_wrong_wish_ends_with_2_and_makes_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["make-keystore", str(tmp_path / "keys"), *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@needs_keys
def test_the_command_makes_keys_for_the_domain_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert cli.main(["make-keystore", str(tmp_path / "keys"), "--profile", "aloha1"]) == 0
    assert "for domain 42, good until" in capsys.readouterr().out
    assert b"<id>42</id>" in (tmp_path / "keys/enclaves/governance.p7s").read_bytes()
    monkeypatch.setenv("ROS_DOMAIN_ID", "home")
    assert cli.main(["make-keystore", str(tmp_path / "other"), "--profile", "aloha1"]) == 2


def test_without_cryptography_the_command_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vla_oft_ros.security import keystore

    def missing(name: str) -> object:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(keystore, "import_module", missing)
    assert cli.main(["make-keystore", str(tmp_path / "keys"), "--profile", "sim"]) == 2
    assert "pip install 'vla_oft_ros[security]'" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_sros2_makes_the_same_permissions_of_the_same_policy(tmp_path: Path) -> None:
    """Where sros2 is installed: its own transformation, and its schemas."""
    etree = pytest.importorskip("lxml.etree", reason="needs lxml")
    sros2 = pytest.importorskip("sros2.policy", reason="needs sros2 of a ROS installation")
    transform = etree.XSLT(
        etree.parse(str(sros2.get_transport_template("dds", "permissions.xsl")))
    )
    schemas = {
        kind: etree.XMLSchema(etree.parse(str(sros2.get_transport_schema("dds", f"{kind}.xsd"))))
        for kind in ("governance", "permissions")
    }
    for path in shipped_policies().values():
        theirs = transform(
            etree.parse(str(path)), allow_ros_discovery_topic=etree.XSLT.strparam("1")
        )
        for name, access in read_policy(path).items():
            ours = permissions(name, access, 0, NOW, NOW + timedelta(days=1))
            schemas["permissions"].assertValid(etree.parse(io.BytesIO(ours)))
            (grant,) = theirs.xpath(f"permissions/grant[@name='{name}']")
            for kind in ("publish", "subscribe"):
                topics = {
                    entry.text for entry in grant.iterfind(f"allow_rule/{kind}/topics/topic")
                }
                assert topics == set(getattr(access, kind)), (path.name, name, kind)
    schemas["governance"].assertValid(etree.parse(io.BytesIO(governance(0))))


def test_a_process_gets_its_enclave_from_a_keystore_that_has_it(tmp_path: Path) -> None:
    assert secured("", "policy_node") == {}
    with pytest.raises(ValueError, match="expected a keystore with the enclave /vla_oft/replay"):
        secured(str(tmp_path), "replay")
    own = tmp_path / "enclaves/vla_oft/policy_node"
    own.mkdir(parents=True)
    (own / "permissions.p7s").touch()
    assert secured(str(tmp_path), "policy_node") == {
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(tmp_path),
        "ROS_SECURITY_ENCLAVE_OVERRIDE": "/vla_oft/policy_node",
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_the_recorder_may_hear_every_camera_and_joint_of_its_robot(profile: str) -> None:
    access = read_policy(shipped_policies()[profile])["/vla_oft/recorder_node"]
    robot = load_profile(profile)
    topics = [*robot.camera_topics, *(f"{topic}/compressed" for topic in robot.camera_topics)]
    topics += [*robot.follower_joint_state_topics, *robot.leader_joint_state_topics]
    for topic in (*topics, "/joint_targets", "/action_chunk", "/instruction"):
        assert may(access, "subscribe", f"rt{topic}"), topic
