"""What the tensors of a checkpoint do not tell: chunk length, cameras, normalisation, heads of the
vision towers.

Checkpoints saved from here carry a `CheckpointRecord` as the section "vla_oft_ros" of config.json.
Official ones do not; theirs is looked up in the table of official trainings, recognised by the
lengths of the action and proprio vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vla_oft_ros.config import PreprocessingConfig, from_mapping
from vla_oft_ros.model.action_head import HeadKind
from vla_oft_ros.normalization import Bounds

SECTION = "vla_oft_ros"


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What tensor shapes do not tell; None is "not said".

    Attributes:
        chunk_len: K.
        cameras: Camera names in the order of the network's images.
        bounds: Which statistics normalise actions and proprio.
        decoding: How actions are decoded.
        vision_heads: Attention heads of DINOv2 and SigLIP.
        profile: Robot profile that the training data came from.
        preprocessing: How images were prepared in training.
        parts: Parts saved beside the merged model; a file that is lost later is then noticed.

    Raises:
        ValueError: if a value makes no sense.
    """

    chunk_len: int | None = None
    cameras: tuple[str, ...] | None = None
    bounds: Bounds | None = None
    decoding: HeadKind | None = None
    vision_heads: tuple[int, int] | None = None
    profile: str | None = None
    preprocessing: PreprocessingConfig | None = None
    parts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _refuse_unless(
            self.chunk_len is None or _is_count(self.chunk_len),
            "chunk_len",
            "a positive whole number",
            self.chunk_len,
        )
        _refuse_unless(
            self.cameras is None or (_are_names(self.cameras) and len(self.cameras) > 0),
            "cameras",
            "different camera names",
            self.cameras,
        )
        heads = self.vision_heads
        _refuse_unless(
            heads is None or (len(heads) == 2 and all(_is_count(n) for n in heads)),
            "vision_heads",
            "two positive whole numbers",
            heads,
        )
        _refuse_unless(
            self.profile is None or isinstance(self.profile, str),
            "profile",
            "a name",
            self.profile,
        )
        _refuse_unless(
            self.parts is None or _are_names(self.parts), "parts", "part names", self.parts
        )

    def or_else(self, other: CheckpointRecord) -> CheckpointRecord:
        """This record, with the gaps filled from another one."""
        gaps = {
            f.name: getattr(other, f.name) for f in fields(self) if getattr(self, f.name) is None
        }
        return replace(self, **gaps)

    def to_json(self) -> dict[str, Any]:
        """The section for config.json."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {name: value for name, value in said.items() if value is not None}
        for name in ("bounds", "decoding"):
            if name in values:
                values[name] = values[name].value
        for name in ("cameras", "vision_heads", "parts"):
            if name in values:
                values[name] = list(values[name])
        if self.preprocessing is not None:
            values["preprocessing"] = {
                f.name: getattr(self.preprocessing, f.name) for f in fields(PreprocessingConfig)
            }
        return values

    @classmethod
    def from_json(cls, section: Any) -> CheckpointRecord:
        """Reads the section of config.json; inverse of `to_json`.

        Raises:
            ValueError: for unknown keys or values.
        """
        if not isinstance(section, Mapping):
            raise ValueError(f"expected a JSON object; got {section!r}")
        values = dict(section)
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown key(s) {', '.join(unknown)}")
        if "bounds" in values:
            values["bounds"] = Bounds(values["bounds"])
        if "decoding" in values:
            values["decoding"] = HeadKind(values["decoding"])
        for name in ("cameras", "vision_heads", "parts"):
            if name in values:
                _refuse_unless(isinstance(values[name], list), name, "a list", values[name])
                values[name] = tuple(values[name])
        if "preprocessing" in values:
            values["preprocessing"] = from_mapping(
                PreprocessingConfig, values["preprocessing"], "preprocessing"
            )
        return cls(**values)


def _refuse_unless(fits: bool, name: str, expected: str, got: Any) -> None:
    if not fits:
        raise ValueError(f"{name}: expected {expected}; got {got!r}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_names(values: tuple[Any, ...]) -> bool:
    strings = all(isinstance(value, str) and value for value in values)
    return strings and len(set(values)) == len(values)


OFFICIAL_TRAININGS = {
    (14, 14): CheckpointRecord(
        chunk_len=25,
        cameras=("cam_high", "cam_left_wrist", "cam_right_wrist"),
        bounds=Bounds.MIN_MAX,
    ),
    (7, 8): CheckpointRecord(
        chunk_len=8, cameras=("full_image", "wrist_image"), bounds=Bounds.QUANTILES
    ),
    (7, 7): CheckpointRecord(chunk_len=5, cameras=("full_image",), bounds=Bounds.QUANTILES),
}
"""(action, proprio) dimensions → ALOHA, LIBERO, BRIDGE (openvla-oft `prismatic/vla/constants.py`).
"""

OPENVLA_BASELINE = CheckpointRecord(chunk_len=1, cameras=("full_image",), bounds=Bounds.QUANTILES)
"""Original OpenVLA: one action from one image (openvla `modeling_prismatic.py`)."""
