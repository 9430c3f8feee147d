"""How a configuration class is described, checked and filled; the classes are beside this file.

Every field carries its description, unit and range in `metadata` (made by `doc`). The YAML files
in `config/`, the ROS parameters and the command line are all checked against these classes, so a
misspelt key or a value out of range is refused with what was expected, what came and where to
change it. Knows nothing of ROS; `ros/params.py` declares the same fields as parameters.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting that the user can mend: says what was expected, what came and where to change
    it.
    """


def doc(
    description: str,
    *,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    choices: Sequence[str] = (),
    live: bool = False,
) -> dict[str, Any]:
    """Metadata of one field.

    Args:
        description: One sentence, shown by `ros2 param describe` and in the parameter table.
        unit: Unit of the value, for the table.
        ge: Smallest value allowed.
        le: Largest value allowed.
        choices: The only strings allowed; empty means any.
        live: True if the value may be changed while the node runs.
    """
    return dict(
        description=description, unit=unit, ge=ge, le=le, choices=tuple(choices), live=live
    )


def field_types(cls: type) -> dict[str, Any]:
    """Field name → resolved type of a configuration class."""
    return get_type_hints(cls)


def check_fields(config: Any, where: str = "") -> None:
    """Refuses values of the wrong type or out of range; called by each class's `__post_init__`.

    Raises:
        ConfigError: naming the field, what was expected and what came.
    """
    types = field_types(type(config))
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(types[item.name]):
            continue
        name = f"{where or type(config).__name__}.{item.name}"
        _check_type(name, types[item.name], value)
        meta = item.metadata
        if meta.get("choices") and value not in meta["choices"]:
            raise ConfigError(
                f"{name}: expected one of {', '.join(meta['choices'])}; got {value!r}"
            )
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str) or isinstance(number, bool):
                continue
            low, high = meta.get("ge"), meta.get("le")
            # Written so that NaN, which compares false with everything, is refused too.
            if (low is not None and not number >= low) or (
                high is not None and not number <= high
            ):
                raise ConfigError(f"{name}: expected {_range_text(low, high)}; got {number!r}")


def _range_text(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"a value from {low:g} to {high:g}"


def _check_type(name: str, expected: Any, value: Any) -> None:
    if get_origin(expected) is tuple:
        inner = get_args(expected)[0]
        if not isinstance(value, tuple):
            raise ConfigError(f"{name}: expected a list of {inner.__name__}; got {value!r}")
        for element in value:
            _check_type(name, inner, element)
        return
    accepted = (int, float) if expected is float else (expected,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(
            f"{name}: expected {expected.__name__}; got {value!r} ({type(value).__name__})"
        )


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds a configuration from nested mappings, as YAML gives them.

    Args:
        cls: The dataclass to build.
        values: Field name → value; absent fields keep their defaults, nested dataclasses are
            nested mappings.
        where: What to name in errors: file and section.

    Raises:
        ConfigError: for an unknown key (with the nearest known one), a missing required one, or a
            bad value.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a mapping of {cls.__name__} fields; got {values!r}")
    types = field_types(cls)
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            )
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    built: dict[str, Any] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        expected = types[item.name]
        if item.name not in values:
            if item.default is MISSING and item.default_factory is MISSING:
                raise ConfigError(
                    f"{where}: missing key {item.name!r} ({item.metadata.get('description', '')})"
                )
            continue
        value = values[item.name]
        if is_dataclass(expected):
            value = from_mapping(expected, value, f"{where}.{item.name}")  # type: ignore[arg-type]
        elif isinstance(value, list):
            inner = get_args(expected)[0] if get_origin(expected) is tuple else None
            # [''] is the only way to write an empty list in a ROS parameter file.
            entries = [] if value == [""] else value
            value = tuple(_as_float(entry) if inner is float else entry for entry in entries)
        elif expected is float:
            value = _as_float(value)
        built[item.name] = value
    try:
        return cls(**built)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _as_float(value: Any) -> Any:
    """YAML writes 1 where 1.0 is meant; everything that is no whole number is left as it is."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def flat_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Yields (dotted name, dataclass field, type) of every leaf field, nested classes unfolded."""
    for item in fields(cls):
        expected = field_types(cls)[item.name]
        if is_dataclass(expected):
            yield from flat_fields(expected, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{item.name}", item, expected


def default_of(item: Field[Any]) -> Any:
    """The default value of a field, or None if it has none."""
    if item.default is not MISSING:
        return item.default
    return None if item.default_factory is MISSING else item.default_factory()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested mappings into dotted names: {'a': {'b': 1}} → {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turns dotted names into nested mappings: {'a.b': 1} → {'a': {'b': 1}}."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[leaf] = value
    return nested


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads one YAML file whose top level is a mapping.

    Raises:
        ConfigError: if it is missing, is no YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable YAML file; {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML; {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected a mapping at the top level; got {type(content).__name__}"
        )
    return content


def node_section(path: Path, node_name: str, *, in_namespace: bool = False) -> dict[str, Any]:
    """What a ROS parameter file gives to one node.

    Args:
        path: YAML file of the form `/**/<node_name>: {ros__parameters: {…}}`.
        node_name: Whose section.
        in_namespace: True if the node runs in a namespace. ROS 2 then overlooks a section that is
            called by the bare name, and the node would run with its defaults.

    Raises:
        ConfigError: if the file cannot be read or has no section that the node would read.
    """
    content = load_yaml(path)
    heard = [f"/**/{node_name}", "/**", *([] if in_namespace else [node_name, f"/{node_name}"])]
    for name in heard:
        section = content.get(name)
        if isinstance(section, dict) and isinstance(section.get("ros__parameters"), dict):
            return dict(section["ros__parameters"])
    why = ", which ROS 2 reads in a namespace too" if in_namespace else ""
    raise ConfigError(
        f"{path}: expected a section '/**/{node_name}: ros__parameters:'{why}; got sections "
        f"{sorted(content)}"
    )


def load_node_config(
    cls: type[T], path: Path, node_name: str, overrides: Mapping[str, Any] | None = None
) -> T:
    """Reads one node's section of a ROS parameter file into its dataclass.

    Args:
        cls: Configuration class of the node.
        path: YAML file of the form `/**/<node_name>: {ros__parameters: {…}}`.
        node_name: Section to read.
        overrides: Dotted name → value, applied on top.

    Raises:
        ConfigError: if file, section or a value is wrong.
    """
    values = _merge(node_section(path, node_name), nest(overrides or {}))
    return from_mapping(cls, values, f"{path}, {node_name}")


_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def load_tool_config(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Reads the settings of a command-line tool: the fields of one class at the top level.

    Args:
        cls: Configuration class of the tool.
        path: YAML file; fields that it leaves out keep their defaults.
        overrides: Each "name=value", dotted name and value in YAML, applied on top.

    Raises:
        ConfigError: if file, an override or a value is wrong.
    """
    flat = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set: expected name=value; got {override!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {name}: expected a value in YAML; {error}") from None
        # YAML 1.1 takes 1e-3 for a word; only 1.0e-3 is a number to it.
        flat[name.strip()] = float(text) if _EXPONENT.fullmatch(text.strip()) else value
    return from_mapping(cls, _merge(load_yaml(path), nest(flat)), str(path))


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def config_dir() -> Path:
    """Folder of the shipped YAML files: beside the package in a source tree, else in the installed
    share.

    Raises:
        ConfigError: if neither exists; the installation is incomplete then.
    """
    package = Path(__file__).resolve().parent.parent
    # Source tree; pip's data_files (<prefix>/share); ament's install tree
    # (<prefix>/lib/pythonX/site-packages/…).
    candidates = [package.parent / "config"]
    candidates += [parent / "share" / "vla_oft_ros" / "config" for parent in package.parents]
    for candidate in candidates:
        if (candidate / "aloha.yaml").is_file():
            return candidate
    raise ConfigError(
        f"config/aloha.yaml: expected beside the package ({candidates[0]}) or under a "
        f"share/vla_oft_ros above it; "
        "found in neither. Install the package again"
    )
