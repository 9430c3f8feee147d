"""Laws of the configuration: every YAML file is its dataclass, and nothing wrong gets through."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vla_oft_ros import config
from vla_oft_ros.aloha import load_profile
from vla_oft_ros.config import (
    ConfigError,
    ControllerConfig,
    PolicyNodeConfig,
    RecorderConfig,
    SafetyConfig,
    SimConfig,
    SyncConfig,
    TeleopConfig,
    TokenViewerConfig,
    check_fields,
    config_dir,
    default_of,
    doc,
    flat_fields,
    flatten,
    from_mapping,
    load_node_config,
    load_yaml,
    nest,
    node_section,
)

NODES = {
    "policy.yaml": ("policy_node", PolicyNodeConfig),
    "controller.yaml": ("controller_node", ControllerConfig),
    "sim.yaml": ("sim_node", SimConfig),
    "recorder.yaml": ("recorder_node", RecorderConfig),
    "teleop.yaml": ("teleop_node", TeleopConfig),
    "token_viewer.yaml": ("token_viewer_node", TokenViewerConfig),
}
"""Parameter file → its node and its class."""
PROFILES = "aloha.yaml"
TRAININGS = ("finetune.yaml", "finetune_small.yaml")
"""Read by no node; test/train holds them to their class."""
DEPLOYED = {"policy.yaml": {"policy.pruning.method": "specprune"}}
"""What the shipped files set on purpose: the class alone runs the dense network."""


@dataclass(frozen=True, kw_only=True)
class Inner:
    ratio: float = field(default=0.5, metadata=doc("A ratio.", ge=0.0, le=1.0))
    weight: float = field(default=1.0, metadata=doc("A weight.", ge=0.0))
    depth: float = field(default=-1.0, metadata=doc("A depth.", le=0.0))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = field(metadata=doc("A name that must be given."))
    kind: str = field(default="one", metadata=doc("A choice.", choices=["one", "two"]))
    count: int = field(default=1, metadata=doc("A count.", ge=1))
    on: bool = field(default=False, metadata=doc("A switch."))
    points: tuple[float, ...] = field(default=(), metadata=doc("Numbers.", ge=-1.0, le=1.0))
    words: tuple[str, ...] = field(default=(), metadata=doc("Words."))
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check_fields(self)


def test_every_parameter_file_has_a_class_and_every_class_a_file() -> None:
    assert {path.name for path in config_dir().glob("*.yaml")} == {*NODES, PROFILES, *TRAININGS}


@pytest.mark.parametrize("name", NODES)
def test_a_parameter_file_has_every_key_of_its_class_and_no_other(name: str) -> None:
    node, cls = NODES[name]
    content = load_yaml(config_dir() / name)
    assert list(content) == [f"/**/{node}"]
    assert list(content[f"/**/{node}"]) == ["ros__parameters"]
    section = node_section(config_dir() / name, node, in_namespace=True)
    assert set(flatten(section)) == {key for key, *_ in flat_fields(cls)}


@pytest.mark.parametrize("name", NODES)
def test_a_shipped_parameter_file_holds_the_defaults_of_its_class(name: str) -> None:
    node, cls = NODES[name]
    expected = from_mapping(cls, nest(DEPLOYED.get(name, {})), "defaults")
    assert load_node_config(cls, config_dir() / name, node) == expected


@pytest.mark.parametrize("cls", [cls for _, cls in NODES.values()])
def test_every_field_says_what_it_is_and_in_which_unit(cls: type) -> None:
    suffixes = {"_s": "s", "_hz": "Hz", "_rad": "rad", "_m": "m", "_px": "px", "_rad_s": "rad/s"}
    for name, item, _ in flat_fields(cls):
        assert item.metadata["description"].endswith("."), name
        ending = next(
            (s for s in sorted(suffixes, key=len, reverse=True) if name.endswith(s)), None
        )
        if ending is not None:
            assert item.metadata["unit"] == suffixes[ending], name


@pytest.mark.parametrize("cls", [cls for _, cls in NODES.values()])
def test_the_defaults_of_every_field_pass_its_own_checks_and_have_a_range(cls: type) -> None:
    cls()
    for name, item, kind in flat_fields(cls):
        if kind is int or kind is float:
            assert item.metadata["ge"] is not None, f"{name} has no smallest value"


@pytest.mark.parametrize("name", [key for key in load_yaml(config_dir() / PROFILES)])
def test_every_shipped_robot_profile_is_legal(name: str) -> None:
    assert load_profile(name).name == name


@pytest.mark.parametrize("name", NODES)
def test_a_misspelt_key_is_refused_with_file_key_and_the_nearest_known_one(
    name: str, tmp_path: Path
) -> None:
    node, cls = NODES[name]
    text = (config_dir() / name).read_text(encoding="utf-8")
    path = tmp_path / name
    path.write_text(text.replace("profile:", "profil:"), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_node_config(cls, path, node)
    told = str(refused.value)
    assert str(path) in told and node in told
    assert "unknown key 'profil'" in told
    assert "did you mean 'profile'?" in told


def test_a_misspelt_key_in_a_nested_section_is_named_with_its_section() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml\.inner: unknown key 'ration'.*'ratio'"):
        from_mapping(Outer, {"name": "a", "inner": {"ration": 0.1}}, "f.yaml")


def test_a_key_that_resembles_none_is_answered_with_all_known_ones() -> None:
    with pytest.raises(ConfigError, match="known keys: count, inner, kind, name, on, points"):
        from_mapping(Outer, {"name": "a", "zzz": 1}, "f.yaml")


def test_a_missing_required_key_is_named_with_its_description() -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml: missing key 'name' \(A name that must be"):
        from_mapping(Outer, {}, "f.yaml")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"count": 1.5}, "Outer.count: expected int; got 1.5 (float)"),
        ({"count": True}, "Outer.count: expected int; got True (bool)"),
        ({"count": 0}, "Outer.count: expected at least 1; got 0"),
        ({"count": None}, "Outer.count: expected int; got None (NoneType)"),
        ({"on": 1}, "Outer.on: expected bool; got 1 (int)"),
        ({"name": 3}, "Outer.name: expected str; got 3 (int)"),
        ({"kind": "three"}, "Outer.kind: expected one of one, two; got 'three'"),
        ({"points": 0.5}, "Outer.points: expected a list of float; got 0.5"),
        ({"points": [0.5, "a"]}, "Outer.points: expected float; got 'a' (str)"),
        ({"points": [0.5, 2]}, "Outer.points: expected a value from -1 to 1; got 2.0"),
        ({"points": [math.nan]}, "Outer.points: expected a value from -1 to 1; got nan"),
        ({"inner": 3}, "expected a mapping of Inner fields; got 3"),
        ({"inner": {"ratio": math.nan}}, "Inner.ratio: expected a value from 0 to 1; got nan"),
        ({"inner": {"weight": math.nan}}, "Inner.weight: expected at least 0; got nan"),
        ({"inner": {"depth": math.nan}}, "Inner.depth: expected at most 0; got nan"),
        ({"inner": {"ratio": "a"}}, "Inner.ratio: expected float; got 'a' (str)"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected_what_came_and_where(
    values: dict, expected: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        from_mapping(Outer, {"name": "a", **values}, "f.yaml, node")
    assert expected in str(refused.value)
    assert str(refused.value).startswith("f.yaml, node")


def test_whole_numbers_are_taken_where_floats_are_meant() -> None:
    outer = from_mapping(Outer, {"name": "a", "points": [1, 0.5], "inner": {"ratio": 1}}, "f")
    assert outer.points == (1.0, 0.5) and type(outer.points[0]) is float
    assert outer.inner.ratio == 1.0 and type(outer.inner.ratio) is float


def test_the_empty_list_of_a_ros_parameter_file_is_empty() -> None:
    assert from_mapping(Outer, {"name": "a", "words": [""]}, "f").words == ()
    assert from_mapping(Outer, {"name": "a", "words": ["", "b"]}, "f").words == ("", "b")


def test_absent_keys_keep_their_defaults() -> None:
    assert from_mapping(Outer, {"name": "a"}, "f") == Outer(name="a")
    assert from_mapping(Outer, {"name": "a", "inner": {}}, "f") == Outer(name="a")


def test_flat_fields_and_nest_describe_the_same_class() -> None:
    values = {name: default_of(item) for name, item, _ in flat_fields(Outer)} | {"name": "a"}
    assert from_mapping(Outer, nest(values), "f") == Outer(name="a")
    assert [name for name, *_ in flat_fields(Outer)][-3:] == [
        "inner.ratio",
        "inner.weight",
        "inner.depth",
    ]


names = st.sampled_from("abc")


@given(st.dictionaries(names, st.integers() | st.dictionaries(names, st.integers(), min_size=1)))
def test_nesting_undoes_flattening(values: dict) -> None:
    assert nest(flatten(values)) == values


@given(st.floats())
def test_a_range_lets_through_exactly_what_lies_in_it(value: float) -> None:
    if 0.0 <= value <= 1.0:
        assert Inner(ratio=value).ratio == value
    else:
        with pytest.raises(ConfigError, match="expected a value from 0 to 1"):
            Inner(ratio=value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nowhere\.yaml: expected a readable YAML file; No such"
    ):
        load_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [1", "expected YAML"),
        (b"\xff\xfe\x00", "expected YAML"),
        (b"- 1\n", "expected a mapping at the top level; got list"),
        (b"", "expected a mapping at the top level; got NoneType"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as refused:
        load_yaml(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("content", [{}, {"sim_nod": {}}, {"sim_node": {"seed": 1}}])
def test_a_file_without_the_node_s_section_says_which_one_was_expected(
    content: dict, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected a section '/.*/sim_node: ros__par.*:'; got"):
        load_node_config(SimConfig, path, "sim_node")


@pytest.mark.parametrize("name", ["/**/sim_node", "/**", "sim_node", "/sim_node"])
def test_a_section_is_found_by_every_name_that_ros_reads(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({name: {"ros__parameters": {"seed": 7}}}), encoding="utf-8")
    assert node_section(path, "sim_node") == {"seed": 7}
    if name.startswith("/**"):
        assert node_section(path, "sim_node", in_namespace=True) == {"seed": 7}
    else:
        with pytest.raises(ConfigError, match="which ROS 2 reads in a namespace too; got"):
            node_section(path, "sim_node", in_namespace=True)


def test_overrides_win_over_the_file_and_are_checked_like_it() -> None:
    path = config_dir() / "policy.yaml"
    overrides = {"policy.device": "cpu", "sync.max_skew_s": 1}
    loaded = load_node_config(PolicyNodeConfig, path, "policy_node", overrides)
    assert (loaded.policy.device, loaded.sync.max_skew_s) == ("cpu", 1.0)
    assert loaded.sync.max_image_age_s == SyncConfig().max_image_age_s
    with pytest.raises(ConfigError, match="unknown key 'devise'; did you mean 'device'"):
        load_node_config(PolicyNodeConfig, path, "policy_node", {"policy.devise": "cpu"})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"workspace_lower_m": (0.0, 0.0)}, "expected 3 numbers; got (0.0, 0.0)"),
        ({"left_base_pose": (0.0, 0.0, math.inf, 0.0)}, "expected finite numbers"),
        ({"workspace_lower_m": (1.0, 0.0, 0.0)}, "expected more than workspace_lower_m"),
        ({"ease_in_velocity_rad_s": 2.0, "max_velocity_rad_s": 1.0}, "expected at most"),
    ],
)
def test_safety_limits_that_contradict_each_other_are_refused(values: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        SafetyConfig(**values)
    assert expected in str(refused.value)


def test_an_installation_without_its_yaml_files_is_told_to_install_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "lib" / "vla_oft_ros" / "config" / "fields.py"
    monkeypatch.setattr(config.fields, "__file__", str(module))
    with pytest.raises(ConfigError, match="Install the package again"):
        config_dir()
    share = tmp_path / "share" / "vla_oft_ros" / "config"
    share.mkdir(parents=True)
    (share / PROFILES).touch()
    assert config_dir() == share


def test_configurations_cannot_be_changed_after_they_were_checked() -> None:
    for cls in (PolicyNodeConfig, ControllerConfig, SimConfig):
        with pytest.raises(AttributeError):
            setattr(cls(), fields(cls)[0].name, None)


def test_the_viewer_draws_the_arms_where_the_safety_gate_has_them() -> None:
    viewer = load_node_config(
        TokenViewerConfig, config_dir() / "token_viewer.yaml", "token_viewer_node"
    )
    controller = load_node_config(
        ControllerConfig, config_dir() / "controller.yaml", "controller_node"
    )
    assert viewer.left_base_pose == controller.safety.left_base_pose
    assert viewer.right_base_pose == controller.safety.right_base_pose
