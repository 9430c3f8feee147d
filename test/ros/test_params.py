"""Parameters are the dataclass: declared with its words, refused like it, read once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import rclpy
from rcl_interfaces.msg import ParameterType
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros.graph import parameters

from vla_oft_ros.config import (
    ConfigError,
    ControllerConfig,
    PolicyNodeConfig,
    SimConfig,
    check_fields,
    config_dir,
    doc,
    flat_fields,
    load_node_config,
)
from vla_oft_ros.ros.params import declare_config, on_live_change


@dataclass(frozen=True, kw_only=True)
class Inner:
    gain: float = field(default=1.0, metadata=doc("How much.", unit="rad", ge=0.0, le=2.0))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Config:
    word: str = field(default="a", metadata=doc("A word.", choices=["a", "b"]))
    said: str = field(default="", metadata=doc("What was said.", live=True))
    volume: int = field(default=3, metadata=doc("How loud.", ge=1, le=9, live=True))
    on: bool = field(default=True, metadata=doc("A switch."))
    free: float = field(default=0.5, metadata=doc("Any number."))
    count: int = field(default=2, metadata=doc("A count.", ge=1))
    names: tuple[str, ...] = field(default=(), metadata=doc("Names."))
    point: tuple[float, ...] = field(default=(0.0, 1.0), metadata=doc("A point."))
    places: tuple[int, ...] = field(default=(1, 2), metadata=doc("Places."))
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.fixture
def make_node(make_graph: Callable) -> Callable[..., Node]:
    """A node named `it`, made with the given ROS arguments."""

    def make(*arguments: str) -> Node:
        graph = make_graph(*arguments)
        return graph.add(
            rclpy.create_node("it", automatically_declare_parameters_from_overrides=True)
        )

    return make


def values_of(node: Node, cls: type) -> dict:
    return {name: node.get_parameter(name).value for name, *_ in flat_fields(cls)}


def test_without_any_parameter_the_defaults_are_declared_and_returned(make_node: Callable) -> None:
    node = make_node()
    assert declare_config(node, Config) == Config()
    declared = values_of(node, Config)
    assert declared.pop("names") == [""]  # ROS has no empty list of strings
    assert list(declared.pop("point")) == [0.0, 1.0] and list(declared.pop("places")) == [1, 2]
    assert declared == {
        "word": "a",
        "said": "",
        "volume": 3,
        "on": True,
        "free": 0.5,
        "count": 2,
        "inner.gain": 1.0,
    }


def test_what_is_given_is_declared_and_returned_in_the_type_of_its_field(
    make_node: Callable,
) -> None:
    given = parameters(
        word="b", on="false", free=2, names="[p, q]", point="[3, 4]", inner__gain=2, count=7
    )
    node = make_node(*given)
    config = declare_config(node, Config)
    assert config == Config(
        word="b",
        on=False,
        free=2.0,
        count=7,
        names=("p", "q"),
        point=(3.0, 4.0),
        inner=Inner(gain=2.0),
    )
    assert type(node.get_parameter("free").value) is float
    assert type(node.get_parameter("inner.gain").value) is float
    assert list(node.get_parameter("point").value) == [3.0, 4.0]


def test_the_empty_list_of_a_parameter_file_is_empty(make_node: Callable) -> None:
    assert declare_config(make_node("-p", "names:=['']"), Config).names == ()


@pytest.mark.parametrize(
    ("name", "cls"),
    [("policy", PolicyNodeConfig), ("controller", ControllerConfig), ("sim", SimConfig)],
)
def test_a_shipped_file_gives_the_same_through_ros_as_without(
    name: str, cls: type, make_graph: Callable
) -> None:
    path = config_dir() / f"{name}.yaml"
    node = make_graph("--params-file", str(path)).add(
        rclpy.create_node(f"{name}_node", automatically_declare_parameters_from_overrides=True)
    )
    assert declare_config(node, cls) == load_node_config(cls, path, f"{name}_node")


def test_a_description_names_meaning_unit_choices_and_range(make_node: Callable) -> None:
    node = make_node()
    declare_config(node, Config)
    gain = node.describe_parameter("inner.gain")
    assert gain.description == "How much. [rad]" and gain.type == ParameterType.PARAMETER_DOUBLE
    (span,) = gain.floating_point_range
    assert (span.from_value, span.to_value) == (0.0, 2.0)
    assert node.describe_parameter("word").description == "A word. One of: a, b."
    (span,) = node.describe_parameter("count").integer_range
    assert (span.from_value, span.to_value) == (1, 10**18)
    assert not node.describe_parameter("free").floating_point_range
    for name, kind in {
        "names": ParameterType.PARAMETER_STRING_ARRAY,
        "point": ParameterType.PARAMETER_DOUBLE_ARRAY,
        "places": ParameterType.PARAMETER_INTEGER_ARRAY,
    }.items():
        assert node.describe_parameter(name).type == kind


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (parameters(wrd="b"), "unknown key 'wrd'; did you mean 'word'?"),
        (parameters(inner__gian=1.0), "inner: unknown key 'gian'; did you mean 'gain'?"),
        (parameters(word="c"), "Config.word: expected one of a, b; got 'c'"),
        (parameters(count=0), "Config.count: expected at least 1; got 0"),
        (parameters(count="many"), "Config.count: expected int; got 'many' (str)"),
        (parameters(inner__gain=2.5), "Inner.gain: expected a value from 0 to 2; got 2.5"),
        (parameters(inner="3"), "expected a mapping of Inner fields; got 3"),
        (parameters(point="[a]"), "Config.point: expected float; got 'a' (str)"),
    ],
)
def test_a_wrong_parameter_is_refused_with_expected_got_and_where(
    given: list[str], expected: str, make_node: Callable
) -> None:
    node = make_node(*given)
    with pytest.raises(ConfigError) as refused:
        declare_config(node, Config)
    told = str(refused.value)
    assert expected in told
    assert told.startswith("parameters of /it (see config/*.yaml)")


def test_parameters_that_ros_itself_declares_are_not_ours_to_refuse(make_node: Callable) -> None:
    node = make_node("-p", "use_sim_time:=true")
    assert declare_config(node, Config) == Config()
    assert node.get_parameter("use_sim_time").value is True


def test_only_live_parameters_can_be_changed_and_each_change_is_applied(
    make_node: Callable,
) -> None:
    node = make_node()
    declare_config(node, Config)
    applied: list[tuple[str, object]] = []
    on_live_change(node, Config, lambda name, value: applied.append((name, value)))

    def change(name: str, value: object) -> bool:
        return bool(node.set_parameters([Parameter(name, value=value)])[0].successful)

    assert change("said", "hello") and change("volume", 9)
    assert applied == [("said", "hello"), ("volume", 9)]
    assert not change("word", "b")
    assert not change("volume", 10)
    assert not change("volume", 1.5)
    assert change("use_sim_time", True)  # ROS's own, and none of ours
    assert applied == [("said", "hello"), ("volume", 9)]
    assert node.get_parameter("word").value == "a" and node.get_parameter("volume").value == 9


def test_a_file_for_another_node_changes_nothing(make_node: Callable, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("other_node:\n  ros__parameters:\n    word: b\n", encoding="utf-8")
    assert declare_config(make_node("--params-file", str(path)), Config) == Config()


@pytest.mark.parametrize("namespace", ["/", "/robot_1", "/lab/robot_1"])
def test_a_file_reaches_its_node_in_any_namespace(
    namespace: str, make_node: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "it.yaml"
    path.write_text("/**/it:\n  ros__parameters:\n    word: b\n", encoding="utf-8")
    node = make_node("--params-file", str(path), "-r", f"__ns:={namespace}")
    assert node.get_namespace() == namespace
    assert declare_config(node, Config).word == "b"
