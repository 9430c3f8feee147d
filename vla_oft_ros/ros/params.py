"""Configuration dataclasses as ROS parameters: declared with description and range, read once,
checked by the class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field
from typing import Any, TypeVar, get_args, get_origin

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_oft_ros.config import ConfigError, default_of, flat_fields, from_mapping, nest

T = TypeVar("T")

_ROS_OWN = ("use_sim_time", "start_type_description_service", "qos_overrides")
_TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
}
_ARRAY_TYPES = {
    int: ParameterType.PARAMETER_INTEGER_ARRAY,
    float: ParameterType.PARAMETER_DOUBLE_ARRAY,
    str: ParameterType.PARAMETER_STRING_ARRAY,
}
_BOUND = 1e18


def declare_config(node: Node, cls: type[T]) -> T:
    """Declares every field of a configuration class as a parameter and returns the class, filled
    and checked.

    The node must have been made with `automatically_declare_parameters_from_overrides=True`, so
    that keys of a YAML file which no field answers to are seen and refused here instead of being
    ignored.

    Args:
        node: Node to declare on.
        cls: Frozen dataclass; nested ones become dotted names.

    Raises:
        ConfigError: for an unknown parameter or a bad value; names the YAML key.
    """
    given = {
        name: parameter.value
        for name, parameter in node.get_parameters_by_prefix("").items()
        if name.split(".")[0] not in _ROS_OWN
    }
    where = f"parameters of {node.get_fully_qualified_name()} (see config/*.yaml)"
    config = from_mapping(cls, nest({name: _plain(value) for name, value in given.items()}), where)
    for name, item, kind in flat_fields(cls):
        if node.has_parameter(name):
            node.undeclare_parameter(name)
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        # What was given is already in `config`, in the type of its field: 25 has become 25.0.
        node.declare_parameter(
            name,
            _ros_value(value, default_of(item)),
            _descriptor(item, kind),
            ignore_override=True,
        )
    return config


def on_live_change(node: Node, cls: type[T], apply: Callable[[str, Any], None]) -> None:
    """Lets the `live` fields of a class be changed while the node runs; everything else is
    read-only.

    Args:
        node: Node whose parameters were declared by `declare_config`.
        cls: The same class.
        apply: Called with dotted name and new value, after the change was accepted by the checks
            of ROS.
    """
    live = {name for name, item, _ in flat_fields(cls) if item.metadata.get("live")}

    def changed(parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name in live:
                apply(parameter.name, parameter.value)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(changed)


def _plain(value: Any) -> Any:
    """Arrays, of whatever type rclpy makes them, as lists."""
    if isinstance(value, str | bool | int | float | bytes) or value is None:
        return value
    return list(value)


def _ros_value(value: Any, default: Any) -> Any:
    if isinstance(value, tuple):
        return list(value) or ([""] if isinstance(default, tuple) else [])
    return value


def _descriptor(item: Field[Any], kind: Any) -> ParameterDescriptor:
    meta = item.metadata
    unit = f" [{meta['unit']}]" if meta.get("unit") else ""
    choices = f" One of: {', '.join(meta['choices'])}." if meta.get("choices") else ""
    descriptor = ParameterDescriptor(
        description=f"{meta.get('description', '')}{unit}{choices}",
        read_only=not meta.get("live", False),
        type=_ARRAY_TYPES[get_args(kind)[0]] if get_origin(kind) is tuple else _TYPES[kind],
    )
    low, high = meta.get("ge"), meta.get("le")
    if kind is float and (low is not None or high is not None):
        descriptor.floating_point_range = [
            FloatingPointRange(
                from_value=float(-_BOUND if low is None else low),
                to_value=float(_BOUND if high is None else high),
            )
        ]
    elif kind is int and (low is not None or high is not None):
        descriptor.integer_range = [
            IntegerRange(
                from_value=int(-_BOUND if low is None else low),
                to_value=int(_BOUND if high is None else high),
            )
        ]
    return descriptor


__all__ = ["ConfigError", "declare_config", "on_live_change"]
