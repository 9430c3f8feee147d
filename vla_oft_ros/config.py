"""Configuration as frozen dataclasses, one per node or tool, and the one way to fill them.

Every field carries its description, unit and range in `metadata` (made by `doc`). The YAML files
in `config/`, the ROS parameters and the command line are all checked against these classes, so a
misspelt key or a value out of range is refused with what was expected, what came and where to
change it. Knows nothing of ROS; `ros/params.py` declares the same fields as parameters.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
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


def load_node_config(
    cls: type[T], path: Path, node_name: str, overrides: Mapping[str, Any] | None = None
) -> T:
    """Reads one node's section of a ROS parameter file into its dataclass.

    Args:
        cls: Configuration class of the node.
        path: YAML file of the form `<node_name>: {ros__parameters: {…}}`.
        node_name: Section to read.
        overrides: Dotted name → value, applied on top.

    Raises:
        ConfigError: if file, section or a value is wrong.
    """
    content = load_yaml(path)
    section = content.get(node_name)
    if not isinstance(section, dict) or not isinstance(section.get("ros__parameters"), dict):
        raise ConfigError(
            f"{path}: expected a section '{node_name}: ros__parameters:'; got sections "
            f"{sorted(content)}"
        )
    values = _merge(section["ros__parameters"], nest(overrides or {}))
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
    package = Path(__file__).resolve().parent
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


# The classes.


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig:
    """How camera images become network input; the defaults are those of official OFT+ ALOHA."""

    resize_to_256: bool = field(
        default=True,
        metadata=doc(
            "First squash to 256x256 (bicubic), as the ALOHA training data were prepared."
        ),
    )
    jpeg_roundtrip: bool = field(
        default=True,
        metadata=doc(
            "JPEG encode and decode (quality 95) before the last resize, as in training."
        ),
    )
    center_crop: bool = field(
        default=True,
        metadata=doc("Crop the central 90 % of the area; needed when training used random crops."),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """Which visual tokens are dropped on the way through the LLM (SpecPrune-VLA, arXiv
    2509.05614).

    Counts are per camera of 256 patches and layers are those of a 32-layer LLM, counted from 1, as
    in the paper; both scale with the model.
    """

    method: str = field(
        default="none",
        metadata=doc(
            "none keeps every token; specprune is the paper's method; random, fastv and divprune "
            "are rivals at the same number of tokens.",
            choices=["none", "specprune", "random", "fastv", "divprune"],
        ),
    )
    preset: str = field(
        default="static_shape",
        metadata=doc(
            "paper keeps exactly the paper's sets, whose union has no fixed size; static_shape "
            "fills a fixed number of places with the next best patches.",
            choices=["paper", "static_shape"],
        ),
    )
    alpha: float = field(
        default=0.8, metadata=doc("Factor of the five set sizes below.", ge=0.0, le=8.0)
    )
    global_count: int = field(
        default=30,
        metadata=doc("Best patches of the previous inference.", unit="patches", ge=0, le=256),
    )
    local_count_coarse: int = field(
        default=24,
        metadata=doc(
            "Best patches of each local layer while the robot moves coarsely.",
            unit="patches",
            ge=0,
            le=256,
        ),
    )
    local_count_fine: int = field(
        default=40,
        metadata=doc("The same in fine motion.", unit="patches", ge=0, le=256),
    )
    dynamic_count_coarse: int = field(
        default=20,
        metadata=doc(
            "At most so many changed patches in coarse motion.", unit="patches", ge=0, le=256
        ),
    )
    dynamic_count_fine: int = field(
        default=10,
        metadata=doc("The same in fine motion.", unit="patches", ge=0, le=256),
    )
    budget_coarse: int = field(
        default=0,
        metadata=doc(
            "Visual tokens of all cameras that stay in coarse motion (static_shape and rivals); 0 "
            "is the largest possible union.",
            unit="tokens",
            ge=0,
            le=65536,
        ),
    )
    budget_fine: int = field(
        default=0,
        metadata=doc("The same in fine motion.", unit="tokens", ge=0, le=65536),
    )
    tau: float = field(
        default=0.95,
        metadata=doc(
            "Patches less alike than this have changed; 0.95 in simulation, 0.8 on a camera.",
            ge=0.0,
            le=1.0,
        ),
    )
    gamma: float = field(
        default=0.9,
        metadata=doc(
            "Share of the visual tokens that each dynamic stage keeps; 1 is no dynamic pruning.",
            ge=0.01,
            le=1.0,
        ),
    )
    beta: float = field(
        default=0.2, metadata=doc("Weight of a new layer in the importance.", ge=0.0, le=1.0)
    )
    rank_slope: float = field(
        default=0.05,
        metadata=doc(
            "k of the rank weight, of which the paper says nothing; benchmark/pruning_recall.py "
            "shows what it changes.",
            ge=0.0,
            le=1.0,
        ),
    )
    entropy_epsilon: float = field(
        default=1e-6, metadata=doc("Epsilon of the entropy confidence.", unit="nats", ge=1e-12)
    )
    static_layer: int = field(
        default=2, metadata=doc("Static pruning follows this layer.", ge=1, le=31)
    )
    local_layers: tuple[int, ...] = field(
        default=(1, 2),
        metadata=doc("Layers that give local scores, up to static_layer.", ge=1, le=31),
    )
    global_layers: tuple[int, ...] = field(
        default=(15, 32),
        metadata=doc("Layers whose scores serve the next inference.", ge=1, le=32),
    )
    dynamic_layers: tuple[int, ...] = field(
        default=(10, 15, 20, 25),
        metadata=doc("Dynamic pruning follows these layers, ascending.", ge=2, le=31),
    )
    text_span: str = field(
        default="instruction",
        metadata=doc(
            "Tokens that count as text: the operator's words or the whole prompt around them.",
            choices=["instruction", "prompt"],
        ),
    )
    seed: int = field(default=0, metadata=doc("Seed of the random rival.", ge=0))

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.local_layers or max(self.local_layers) > self.static_layer:
            raise ConfigError(
                f"PruningConfig.local_layers: expected layers from 1 to static_layer "
                f"{self.static_layer}; got {list(self.local_layers)}"
            )
        if not self.global_layers:
            raise ConfigError("PruningConfig.global_layers: expected at least one layer; got none")
        if any(
            later <= earlier
            for earlier, later in zip(
                (self.static_layer, *self.dynamic_layers), self.dynamic_layers, strict=False
            )
        ):
            raise ConfigError(
                f"PruningConfig.dynamic_layers: expected ascending layers after static_layer "
                f"{self.static_layer}; got {list(self.dynamic_layers)}"
            )


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Which policy to load and how to run it."""

    checkpoint_dir: str = field(
        default="",
        metadata=doc(
            "Directory of the fine-tuned checkpoint, official OFT layout; must be given."
        ),
    )
    device: str = field(
        default="auto", metadata=doc("Torch device: auto, cpu, cuda or cuda:<index>.")
    )
    precision: str = field(
        default="auto",
        metadata=doc(
            "Number format of the network; auto is bf16 on a GPU, fp32 on a CPU.",
            choices=["auto", "bf16", "fp32"],
        ),
    )
    unnorm_key: str = field(
        default="",
        metadata=doc("Data set in dataset_statistics.json; empty if it holds only one."),
    )
    decoding: str = field(
        default="auto",
        metadata=doc(
            "How actions are decoded; auto is what the checkpoint's files say.",
            choices=["auto", "l1", "discrete", "diffusion", "autoregressive"],
        ),
    )
    diffusion_steps: int = field(
        default=50, metadata=doc("DDIM steps of a diffusion checkpoint.", ge=1, le=50)
    )
    chunk_len: int = field(
        default=0,
        metadata=doc(
            "Actions per chunk (K) of a checkpoint that does not record it; 0 is what it says.",
            ge=0,
            le=1000,
        ),
    )
    cameras: tuple[str, ...] = field(
        default=(),
        metadata=doc("Cameras in the order of training; empty is what the checkpoint says."),
    )
    threads: int = field(
        default=0, metadata=doc("CPU threads of the network; 0 leaves it to torch.", ge=0, le=256)
    )
    skip_self_tests: tuple[str, ...] = field(
        default=(), metadata=doc("Names of self-tests at load to leave out.")
    )
    override_preprocessing: bool = field(
        default=False,
        metadata=doc("Prepare images as set below, not as the checkpoint was trained."),
    )
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """When the newest messages of all streams may be put together into one observation."""

    max_image_age_s: float = field(
        default=0.15, metadata=doc("Oldest image accepted.", unit="s", ge=0.001, le=10.0)
    )
    max_joint_age_s: float = field(
        default=0.05, metadata=doc("Oldest joint state accepted.", unit="s", ge=0.001, le=10.0)
    )
    max_skew_s: float = field(
        default=0.05,
        metadata=doc(
            "Largest difference between the stamps of two cameras.", unit="s", ge=0.0, le=10.0
        ),
    )
    max_frozen_s: float = field(
        default=0.5,
        metadata=doc(
            "A camera that shows the very same pixels for longer is refused; 0 is no check.",
            unit="s",
            ge=0.0,
            le=60.0,
        ),
    )
    frozen_motion_rad: float = field(
        default=0.02,
        metadata=doc(
            "Same pixels count only while a joint moves by this much; 0 counts them always, for "
            "cameras, whose noise never lets two images be the same.",
            unit="rad",
            ge=0.0,
            le=10.0,
        ),
    )
    min_brightness: float = field(
        default=2.0,
        metadata=doc(
            "Images darker than this on average, of 255, are refused; 0 is no check.",
            ge=0.0,
            le=255.0,
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PolicyNodeConfig:
    """Parameters of `policy_node`: cameras, joints and an instruction in, action chunks out."""

    autostart: bool = field(
        default=True, metadata=doc("Configure and activate without being asked to.")
    )
    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    instruction: str = field(
        default="",
        metadata=doc("What the robot shall do; empty waits for the instruction topic.", live=True),
    )
    control_rate_hz: float = field(
        default=25.0,
        metadata=doc(
            "Rate for which the policy was trained: time between two actions of a chunk.",
            unit="Hz",
            ge=1.0,
            le=100.0,
        ),
    )
    execute_steps: int = field(
        default=15,
        metadata=doc(
            "Control steps from one observation to the next one that the policy is asked about.",
            ge=1,
            le=1000,
        ),
    )
    instruction_topic: str = field(
        default="instruction", metadata=doc("Instructions while running (std_msgs/String).")
    )
    chunk_topic: str = field(
        default="action_chunk", metadata=doc("Action chunks out (vla_oft_ros/ActionChunk).")
    )
    retained_tokens_topic: str = field(
        default="retained_tokens", metadata=doc("Kept patches out (vla_oft_ros/RetainedTokens).")
    )
    pruning_status_topic: str = field(
        default="pruning_status",
        metadata=doc("Mode, speeds and share of patches kept, out (vla_oft_ros/PruningStatus)."),
    )
    target_topic: str = field(
        default="joint_targets",
        metadata=doc("Joint targets in: how the robot really moves (sensor_msgs/JointState)."),
    )
    image_decoder: str = field(
        default="auto",
        metadata=doc(
            "Image conversion: cv_bridge where installed (auto prefers numpy).",
            choices=["auto", "numpy", "cv_bridge"],
        ),
    )
    image_transport: str = field(
        default="auto",
        metadata=doc(
            "raw, compressed, or auto: listen to both and take whichever comes.",
            choices=["auto", "raw", "compressed"],
        ),
    )
    sync: SyncConfig = field(default_factory=SyncConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ChunkQueueConfig:
    """How action chunks are joined into one stream of actions."""

    join: str = field(
        default="latency_matched_blend",
        metadata=doc(
            "How a new chunk follows the one that runs.",
            choices=["latency_matched_blend", "sync", "append", "replace", "temporal_ensemble"],
        ),
    )
    blend_steps: int = field(
        default=8,
        metadata=doc(
            "Control steps in which the difference at a join fades (latency_matched_blend).",
            ge=0,
            le=100,
        ),
    )
    gripper_hysteresis: float = field(
        default=0.1,
        metadata=doc(
            "While a join fades, a gripper keeps its opening unless the new one is this near to "
            "it, or this far from half open.",
            ge=0.0,
            le=0.5,
        ),
    )
    ensemble_decay: float = field(
        default=0.01,
        metadata=doc(
            "m of the weights exp(-m i), i = 0 the oldest chunk (temporal_ensemble; ACT uses "
            "0.01).",
            ge=-10.0,
            le=10.0,
        ),
    )
    play_steps: int = field(
        default=0,
        metadata=doc("Rows of a chunk that sync and append play; 0 is all.", ge=0, le=1000),
    )
    max_waiting_chunks: int = field(
        default=4, metadata=doc("Chunks that may wait to be played (append).", ge=1, le=100)
    )
    max_chunk_age_s: float = field(
        default=2.0,
        metadata=doc("Oldest observation a chunk may come from.", unit="s", ge=0.01, le=60.0),
    )
    max_future_s: float = field(
        default=0.02,
        metadata=doc(
            "How far the clock of the policy's machine may be ahead.", unit="s", ge=0.0, le=1.0
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Limits of the safety gate, the last word before the robot."""

    max_joint_age_s: float = field(
        default=0.05,
        metadata=doc("Older joint states stop the motion.", unit="s", ge=0.001, le=10.0),
    )
    position_margin_rad: float = field(
        default=0.02,
        metadata=doc("Distance kept from the joint limits.", unit="rad", ge=0.0, le=0.5),
    )
    max_velocity_rad_s: float = field(
        default=2.0,
        metadata=doc("Fastest target of an arm joint.", unit="rad/s", ge=0.01, le=3.14159),
    )
    max_acceleration_rad_s2: float = field(
        default=20.0,
        metadata=doc(
            "Largest change of a target's velocity; the default stops any motion in 0.1 s.",
            unit="rad/s^2",
            ge=0.1,
            le=200.0,
        ),
    )
    max_gripper_speed: float = field(
        default=4.0,
        metadata=doc("Fastest change of a gripper's opening.", unit="1/s", ge=0.1, le=50.0),
    )
    ease_in_velocity_rad_s: float = field(
        default=0.3,
        metadata=doc(
            "Fastest target right after a start or a hold.", unit="rad/s", ge=0.01, le=3.14159
        ),
    )
    ease_in_s: float = field(
        default=2.0,
        metadata=doc(
            "Time in which that speed grows to the normal one.", unit="s", ge=0.0, le=60.0
        ),
    )
    ease_in_tolerance_rad: float = field(
        default=0.05,
        metadata=doc(
            "Targets this near to what is wanted need no easing in.", unit="rad", ge=0.0, le=1.0
        ),
    )
    max_tracking_error_rad: float = field(
        default=0.5,
        metadata=doc(
            "Largest distance between an arm joint and its target.", unit="rad", ge=0.01, le=10.0
        ),
    )
    max_tracking_error_s: float = field(
        default=0.2,
        metadata=doc("How long it may last before everything stops.", unit="s", ge=0.0, le=10.0),
    )
    workspace_lower_m: tuple[float, ...] = field(
        default=(-0.3, -0.8, -0.05),
        metadata=doc("Lowest x, y, z of a gripper, in the frame of its arm's base.", unit="m"),
    )
    workspace_upper_m: tuple[float, ...] = field(
        default=(0.85, 0.8, 0.95),
        metadata=doc("Highest x, y, z of a gripper, in the frame of its arm's base.", unit="m"),
    )
    left_base_pose: tuple[float, ...] = field(
        default=(-0.469, 0.5, 0.0, 0.0),
        metadata=doc("x, y, z and heading of the left arm's base on the table.", unit="m, rad"),
    )
    right_base_pose: tuple[float, ...] = field(
        default=(0.469, 0.5, 0.0, 3.141592653589793),
        metadata=doc("x, y, z and heading of the right arm's base on the table.", unit="m, rad"),
    )
    min_arm_distance_m: float = field(
        default=0.08,
        metadata=doc(
            "Least distance of the axes of two links, one per arm; 0 is no check.",
            unit="m",
            ge=0.0,
            le=1.0,
        ),
    )
    min_gripper_distance_m: float = field(
        default=0.0,
        metadata=doc(
            "The same from gripper to gripper; 0, no check, lets them hand over objects.",
            unit="m",
            ge=0.0,
            le=1.0,
        ),
    )
    parking_velocity_rad_s: float = field(
        default=0.6,
        metadata=doc(
            "Fastest joint on the way to the start or sleep pose.", unit="rad/s", ge=0.01, le=1.5
        ),
    )
    parking_acceleration_rad_s2: float = field(
        default=1.5,
        metadata=doc("Largest joint acceleration on that way.", unit="rad/s^2", ge=0.01, le=15.0),
    )
    deadman_timeout_s: float = field(
        default=0.0,
        metadata=doc(
            "Arms hold when the deadman switch was silent for this long; 0 is no switch.",
            unit="s",
            ge=0.0,
            le=10.0,
        ),
    )
    open_grippers_on_stop: bool = field(
        default=True,
        metadata=doc("Open the grippers on an emergency stop and when the controller ends."),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name, count in (
            ("workspace_lower_m", 3),
            ("workspace_upper_m", 3),
            ("left_base_pose", 4),
            ("right_base_pose", 4),
        ):
            if len(getattr(self, name)) != count:
                raise ConfigError(
                    f"SafetyConfig.{name}: expected {count} numbers; got {getattr(self, name)}"
                )
            if not all(math.isfinite(number) for number in getattr(self, name)):
                raise ConfigError(
                    f"SafetyConfig.{name}: expected finite numbers; got {getattr(self, name)}"
                )
        if not all(
            low < high
            for low, high in zip(self.workspace_lower_m, self.workspace_upper_m, strict=True)
        ):
            raise ConfigError(
                "SafetyConfig.workspace_upper_m: expected more than workspace_lower_m in x, y and "
                f"z; got {self.workspace_upper_m} and {self.workspace_lower_m}"
            )
        if self.ease_in_velocity_rad_s > self.max_velocity_rad_s:
            raise ConfigError(
                "SafetyConfig.ease_in_velocity_rad_s: expected at most max_velocity_rad_s "
                f"{self.max_velocity_rad_s:g}; got {self.ease_in_velocity_rad_s:g}"
            )


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """Parameters of `controller_node`: action chunks in, one joint target per tick out."""

    autostart: bool = field(
        default=True, metadata=doc("Configure and activate without being asked to.")
    )
    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    chunk_topic: str = field(
        default="action_chunk", metadata=doc("Action chunks in (vla_oft_ros/ActionChunk).")
    )
    target_topic: str = field(
        default="joint_targets",
        metadata=doc("Joint targets out (sensor_msgs/JointState, 14 names, left arm first)."),
    )
    safety_topic: str = field(
        default="safety_status", metadata=doc("What the safety gate does (SafetyStatus).")
    )
    control_rate_hz: float = field(
        default=25.0, metadata=doc("Rate of joint targets.", unit="Hz", ge=1.0, le=100.0)
    )
    robot_interface: str = field(
        default="joint_state",
        metadata=doc(
            "How the robot is told: joint_state is target_topic alone, interbotix also the xs_sdk "
            "topics of each arm.",
            choices=["joint_state", "interbotix"],
        ),
    )
    realtime_priority: int = field(
        default=50,
        metadata=doc(
            "Priority of the process in the real-time class SCHED_FIFO, where permitted; 0 is the "
            "normal class.",
            ge=0,
            le=98,
        ),
    )
    deadman_topic: str = field(
        default="~/deadman",
        metadata=doc(
            "Heartbeat of the deadman switch while it is pressed (std_msgs/Empty); see "
            "safety.deadman_timeout_s."
        ),
    )
    shadow: bool = field(
        default=False,
        metadata=doc(
            "Move nothing: targets go to ~/shadow and are compared with what the teleoperator "
            "does."
        ),
    )
    teleop_topic: str = field(
        default="",
        metadata=doc(
            "What the teleoperator does, in shadow mode: joint targets like ours; empty takes the "
            "leaders' joint states."
        ),
    )
    queue: ChunkQueueConfig = field(default_factory=ChunkQueueConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SimConfig:
    """Parameters of `sim_node`: a physically simulated ALOHA that speaks as the real one does."""

    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    target_topic: str = field(
        default="joint_targets",
        metadata=doc("Joint targets in (sensor_msgs/JointState, 14 names, left arm first)."),
    )
    reward_topic: str = field(
        default="task_reward", metadata=doc("Task reward out (std_msgs/Float32).")
    )
    object_topic: str = field(
        default="object_poses",
        metadata=doc(
            "True poses of the objects out, for scripted teleoperation and for plots: "
            "<object_topic>/<name> (geometry_msgs/PoseStamped, frame world)."
        ),
    )
    task: str = field(
        default="transfer_cube", metadata=doc("Scene and reward.", choices=["transfer_cube"])
    )
    seed: int = field(
        default=0, metadata=doc("Seed of the object poses; each reset draws the next pose.", ge=0)
    )
    control_rate_hz: float = field(
        default=25.0, metadata=doc("Rate of physics control steps.", unit="Hz", ge=1.0, le=100.0)
    )
    joint_state_rate_hz: float = field(
        default=50.0,
        metadata=doc(
            "Rate of joint states; a multiple of the control rate.", unit="Hz", ge=1.0, le=500.0
        ),
    )
    image_width_px: int = field(
        default=640, metadata=doc("Width of camera images.", unit="px", ge=16, le=4096)
    )
    image_height_px: int = field(
        default=480, metadata=doc("Height of camera images.", unit="px", ge=16, le=4096)
    )
    publish_compressed: bool = field(
        default=False, metadata=doc("Also publish JPEG images on <topic>/compressed.")
    )
    real_time_factor: float = field(
        default=1.0,
        metadata=doc(
            "Fastest simulated time allowed per real time; 0 is as fast as it goes.",
            ge=0.0,
            le=1000.0,
        ),
    )
    lockstep_timeout_s: float = field(
        default=1.0,
        metadata=doc(
            "Real time that a step waits for the joint target of the tick before, once targets "
            "flow; 0 never waits.",
            unit="s",
            ge=0.0,
            le=60.0,
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """When a demonstration is fit for training; judged while it is recorded."""

    min_rate_share: float = field(
        default=0.9,
        metadata=doc("Share of camera_rate_hz that each camera must deliver.", ge=0.0, le=1.0),
    )
    min_joint_rate_hz: float = field(
        default=40.0,
        metadata=doc(
            "Lowest rate of followers and leaders; real ones speak at 100 Hz.",
            unit="Hz",
            ge=0.0,
            le=1000.0,
        ),
    )
    max_image_gap_s: float = field(
        default=0.15,
        metadata=doc(
            "Longest time between two images; policy and converter refuse older ones.",
            unit="s",
            ge=0.0,
            le=10.0,
        ),
    )
    max_joint_gap_s: float = field(
        default=0.05,
        metadata=doc("Longest time between two joint states.", unit="s", ge=0.0, le=10.0),
    )
    max_skew_s: float = field(
        default=0.05,
        metadata=doc(
            "Largest time from an image to the nearest one of another camera.",
            unit="s",
            ge=0.0,
            le=10.0,
        ),
    )
    max_frozen_s: float = field(
        default=0.5,
        metadata=doc(
            "Longest time for which a camera may show the same picture while an arm moves.",
            unit="s",
            ge=0.0,
            le=60.0,
        ),
    )
    frozen_motion_rad: float = field(
        default=0.02,
        metadata=doc("A joint that has moved by this much moves.", unit="rad", ge=0.0, le=10.0),
    )
    min_brightness: float = field(
        default=10.0,
        metadata=doc("Darkest picture on average, of 255; 0 is no check.", ge=0.0, le=255.0),
    )
    max_idle_s: float = field(
        default=2.0,
        metadata=doc(
            "Longest time without motion at the beginning and at the end.",
            unit="s",
            ge=0.0,
            le=600.0,
        ),
    )
    idle_motion_rad: float = field(
        default=0.02,
        metadata=doc(
            "Less than this is no motion; for grippers, a share of the opening.",
            unit="rad",
            ge=0.0,
            le=10.0,
        ),
    )
    max_distance_rad: float = field(
        default=0.3,
        metadata=doc(
            "Largest mean distance between where a follower is and what it is told.",
            unit="rad",
            ge=0.0,
            le=10.0,
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RecorderConfig:
    """Parameters of `recorder_node`: everything on the wire in, one rosbag2 per episode out."""

    autostart: bool = field(
        default=True, metadata=doc("Configure and activate without being asked to.")
    )
    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    output_dir: str = field(
        default="recordings",
        metadata=doc("Folder of the data set; one folder per episode is made in it."),
    )
    instruction: str = field(
        default="", metadata=doc("What the operator does, until the topic says something else.")
    )
    camera_rate_hz: float = field(
        default=30.0,
        metadata=doc(
            "Rate at which the cameras are set to deliver; one data set has one rate.",
            unit="Hz",
            ge=1.0,
            le=240.0,
        ),
    )
    image_transport: str = field(
        default="auto",
        metadata=doc(
            "Which images are recorded; auto takes raw ones where they are published, else "
            "<topic>/compressed.",
            choices=["auto", "raw", "compressed"],
        ),
    )
    instruction_topic: str = field(
        default="instruction", metadata=doc("What the operator does (std_msgs/String).")
    )
    target_topic: str = field(
        default="joint_targets", metadata=doc("Joint targets, from controller or teleoperation.")
    )
    chunk_topic: str = field(default="action_chunk", metadata=doc("Action chunks of a policy."))
    retained_tokens_topic: str = field(
        default="retained_tokens", metadata=doc("What a policy kept of its images.")
    )
    pruning_status_topic: str = field(
        default="pruning_status", metadata=doc("How a policy judged the motion and pruned.")
    )
    safety_topic: str = field(
        default="safety_status", metadata=doc("What the controller's safety gate does.")
    )
    extra_topics: tuple[str, ...] = field(
        default=("/diagnostics",),
        metadata=doc("More topics to record, of any type; nobody need publish them."),
    )
    status_topic: str = field(
        default="episode_status", metadata=doc("What the recorder does (EpisodeStatus).")
    )
    gripper_trigger: str = field(
        default="off",
        metadata=doc(
            "What closing both leader grippers does: start an episode, or start and end it.",
            choices=["off", "start", "start_and_stop"],
        ),
    )
    gripper_closed: float = field(
        default=0.1,
        metadata=doc(
            "A leader gripper open by less than this share counts as closed; twice this is open "
            "again.",
            ge=0.0,
            le=0.5,
        ),
    )
    gripper_hold_s: float = field(
        default=1.0,
        metadata=doc(
            "How long both must stay closed; longer than they do in the task itself.",
            unit="s",
            ge=0.0,
            le=10.0,
        ),
    )
    max_episode_s: float = field(
        default=0.0,
        metadata=doc("An episode ends by itself after this; 0 is never.", unit="s", ge=0.0),
    )
    max_silence_s: float = field(
        default=1.0,
        metadata=doc(
            "An episode starts only if cameras, followers, and leaders or targets were heard so "
            "recently; 0 starts always.",
            unit="s",
            ge=0.0,
            le=60.0,
        ),
    )
    buffer_mb: int = field(
        default=512,
        metadata=doc(
            "Memory for messages that the disk has not taken yet; 512 is six seconds of three raw "
            "cameras.",
            unit="MB",
            ge=1,
            le=65536,
        ),
    )
    min_free_disk_gb: float = field(
        default=2.0,
        metadata=doc(
            "With less space an episode is not started, and a running one is ended.",
            unit="GB",
            ge=0.0,
        ),
    )
    status_rate_hz: float = field(
        default=2.0, metadata=doc("Rate of the status.", unit="Hz", ge=0.5, le=20.0)
    )
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class TeleopConfig:
    """Parameters of `teleop_node`: a scripted operator at simulated leader arms."""

    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    target_topic: str = field(
        default="joint_targets",
        metadata=doc("Joint targets for the followers out (sensor_msgs/JointState, 14 names)."),
    )
    object_topic: str = field(
        default="object_poses", metadata=doc("Where the simulation says where the objects are.")
    )
    rate_hz: float = field(
        default=50.0,
        metadata=doc("Rate of leaders and targets (50 on ALOHA).", unit="Hz", ge=5.0, le=200.0),
    )
    rest_s: float = field(
        default=0.4,
        metadata=doc(
            "How long the operator waits before and after the motion.", unit="s", ge=0.0, le=60.0
        ),
    )
    miss_share: float = field(
        default=0.0,
        metadata=doc(
            "Share of the demonstrations that miss the object on purpose, to have failures too.",
            ge=0.0,
            le=1.0,
        ),
    )
    miss_by_m: float = field(
        default=0.06, metadata=doc("How far they miss it.", unit="m", ge=0.0, le=0.5)
    )
    seed: int = field(default=0, metadata=doc("Seed of the misses.", ge=0))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class TrainingDataConfig:
    """Which demonstrations are learned from, and how frames become training samples."""

    paths: tuple[str, ...] = field(
        default=(),
        metadata=doc("HDF5 files, folders of them, or folders of LeRobot v3 sets; must be given."),
    )
    name: str = field(
        default="aloha",
        metadata=doc("Name of the set in dataset_statistics.json, the later unnorm_key."),
    )
    instruction: str = field(
        default="", metadata=doc("Instruction of episodes that carry none of their own.")
    )
    cameras: tuple[str, ...] = field(
        default=("cam_high", "cam_left_wrist", "cam_right_wrist"),
        metadata=doc("Cameras in the order in which the network shall see them."),
    )
    bounds: str = field(
        default="bounds",
        metadata=doc(
            "What is mapped to -1 and 1: bounds is minimum and maximum, bounds_q99 the 1st and "
            "99th percentile.",
            choices=["bounds", "bounds_q99"],
        ),
    )
    validation_share: float = field(
        default=0.05,
        metadata=doc(
            "Share of the episodes kept for validation, at least one; 0 is none.", ge=0.0, le=0.9
        ),
    )
    keep_failures: bool = field(
        default=False, metadata=doc("Also learn from episodes that are labelled as failures.")
    )
    augment: bool = field(
        default=True,
        metadata=doc(
            "Random crops and colours in training; the policy then crops centrally when it runs."
        ),
    )
    workers: int = field(
        default=2,
        metadata=doc("Processes that prepare samples; 0 is the training process.", ge=0, le=64),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SmallModelConfig:
    """Sizes of a small network that is trained from scratch, where there is no base_dir."""

    width: int = field(default=128, metadata=doc("LLM width D.", ge=16, le=4096))
    layers: int = field(default=4, metadata=doc("LLM layers, at least 3 to learn.", ge=2, le=64))
    heads: int = field(default=4, metadata=doc("Attention heads everywhere.", ge=1, le=64))
    dino_width: int = field(default=96, metadata=doc("First vision tower.", ge=16, le=4096))
    siglip_width: int = field(default=96, metadata=doc("Second vision tower.", ge=16, le=4096))
    depth: int = field(
        default=4, metadata=doc("Blocks of the first tower; the second has one more.", ge=2, le=64)
    )
    image_px: int = field(
        default=112, metadata=doc("Side of the input image.", unit="px", ge=14, le=1024)
    )
    patch_px: int = field(
        default=14, metadata=doc("Side of a patch; must divide image_px.", unit="px", ge=2, le=64)
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class OfficialTrainingConfig:
    """Where the official code does something else than one would; true does as it does."""

    diagonal_crops: bool = field(
        default=False,
        metadata=doc("Random crops with one random number for both offsets, not two."),
    )
    drop_episode_ends: bool = field(
        default=False,
        metadata=doc("Never learn from the last K-1 frames of an episode, nor from shorter ones."),
    )
    pads_in_film_average: bool = field(
        default=False,
        metadata=doc("Average padding tokens into the language embedding that drives FiLM."),
    )
    resume_restarts: bool = field(
        default=False,
        metadata=doc("Start optimizer and learning-rate schedule anew when training resumes."),
    )
    warmup_cancels_decay: bool = field(
        default=False, metadata=doc("With a warm-up, never lower the learning rate afterwards.")
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of `vla_oft train`; the defaults are the recipe of OpenVLA-OFT+ for ALOHA."""

    base_dir: str = field(
        default="",
        metadata=doc(
            "Checkpoint to start from: OpenVLA, or any OFT checkpoint; empty makes a small random "
            "one of the sizes under 'small'."
        ),
    )
    run_dir: str = field(
        default="", metadata=doc("Folder of checkpoints and logs of this training; must be given.")
    )
    resume: bool = field(
        default=True, metadata=doc("Go on from the newest checkpoint in run_dir, if there is one.")
    )
    decoding: str = field(
        default="l1",
        metadata=doc("What is learned.", choices=["l1", "discrete", "diffusion"]),
    )
    film: bool = field(
        default=True, metadata=doc("Let the instruction modulate the vision towers (OFT+).")
    )
    chunk_len: int = field(default=25, metadata=doc("Actions per chunk, K.", ge=1, le=1000))
    lora_rank: int = field(
        default=32,
        metadata=doc("Rank of LoRA on all linear layers; 0 trains all weights.", ge=0, le=512),
    )
    lora_dropout: float = field(default=0.0, metadata=doc("Dropout before LoRA.", ge=0.0, le=0.9))
    learning_rate: float = field(default=5e-4, metadata=doc("Highest rate.", ge=0.0, le=1.0))
    decay_steps: tuple[int, ...] = field(
        default=(50000,),
        metadata=doc("Steps at which the learning rate is multiplied by decay_factor.", ge=1),
    )
    decay_factor: float = field(default=0.1, metadata=doc("See decay_steps.", ge=0.0, le=1.0))
    warmup_steps: int = field(
        default=0,
        metadata=doc("Steps over which the learning rate rises from a tenth to full.", ge=0),
    )
    weight_decay: float = field(default=0.01, metadata=doc("Of AdamW.", ge=0.0, le=1.0))
    max_gradient_norm: float = field(
        default=0.0, metadata=doc("Longer gradients are shortened to this; 0 is no limit.", ge=0.0)
    )
    max_steps: int = field(default=100000, metadata=doc("Optimizer steps in all.", ge=1))
    batch_size: int = field(
        default=4, metadata=doc("Samples per process in one forward pass.", ge=1, le=4096)
    )
    accumulate: int = field(
        default=1, metadata=doc("Forward passes whose gradients make one step.", ge=1, le=4096)
    )
    device: str = field(
        default="auto", metadata=doc("Torch device: auto, cpu, cuda or cuda:<index>.")
    )
    precision: str = field(
        default="auto",
        metadata=doc(
            "Format of frozen weights and of the computation; what is trained stays fp32. auto is "
            "bf16 on a GPU, fp32 on a CPU.",
            choices=["auto", "bf16", "fp32"],
        ),
    )
    gradient_checkpointing: bool = field(
        default=False, metadata=doc("Compute layers twice instead of keeping their activations.")
    )
    sharding: str = field(
        default="ddp",
        metadata=doc(
            "Several processes: ddp holds the whole network in each, fsdp splits it among them.",
            choices=["ddp", "fsdp"],
        ),
    )
    threads: int = field(
        default=0, metadata=doc("CPU threads of the network; 0 leaves it to torch.", ge=0, le=256)
    )
    seed: int = field(default=7, metadata=doc("Of everything random.", ge=0))
    log_every: int = field(default=10, metadata=doc("Steps between two log lines.", ge=1))
    validate_every: int = field(default=1000, metadata=doc("Steps between two validations.", ge=1))
    validation_frames: int = field(
        default=512, metadata=doc("Frames per validation, evenly spread; 0 is all.", ge=0)
    )
    save_every: int = field(default=10000, metadata=doc("Steps between two checkpoints.", ge=1))
    keep_checkpoints: int = field(
        default=0, metadata=doc("Newest checkpoints to keep; 0 keeps all.", ge=0)
    )
    save_precision: str = field(
        default="bf16",
        metadata=doc("Format of saved weights.", choices=["bf16", "fp32"]),
    )
    tensorboard: bool = field(
        default=False, metadata=doc("Also write TensorBoard logs; needs the tensorboard package.")
    )
    data: TrainingDataConfig = field(default_factory=TrainingDataConfig)
    small: SmallModelConfig = field(default_factory=SmallModelConfig)
    official: OfficialTrainingConfig = field(default_factory=OfficialTrainingConfig)

    def __post_init__(self) -> None:
        check_fields(self)
