"""Definitions and hashes of message types, as a bag must carry them to be understood elsewhere.

Those of ROS 2 Jazzy are known; others are read from `share/<package>/msg/*.msg` of an
installation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_oft_ros.data.optional import require

_TYPE_WORD = re.compile(r"^\s*([A-Za-z]\w*)(?:/(?:msg/)?([A-Za-z]\w*))?")


@dataclass(frozen=True)
class MessageType:
    """What a bag says about a type.

    Attributes:
        name: E.g. sensor_msgs/msg/Image.
        definition: Its definition and those of every type in it (rosbag2's ros2msg text).
        type_hash: RIHS01 hash; readers use it to tell versions of a type apart.
    """

    name: str
    definition: str
    type_hash: str


class MessageTypes:
    """Looks types up.

    Args:
        share_dirs: Folders that hold `<package>/msg/<Name>.msg`, asked in this order; of an
            installation, every `share` on AMENT_PREFIX_PATH.
    """

    def __init__(self, share_dirs: Sequence[Path] = ()) -> None:
        self._share_dirs = tuple(share_dirs)
        self._typesys = require("rosbags.typesys")
        self._store = self._typesys.get_typestore(self._typesys.Stores.ROS2_JAZZY)

    def find(self, name: str) -> MessageType:
        """A type by its full name.

        Raises:
            ValueError: if no definition of it or of a type in it is found; says where was looked.
        """
        self._learn(name)
        definition, _ = self._store.generate_msgdef(name, ros_version=2)
        return MessageType(name, definition, self._store.hash_rihs01(name))

    def add(self, name: str, text: str) -> None:
        """Tells the definition of a type; nested types that are unknown are looked up."""
        package = name.split("/")[0]
        for nested in _nested_types(package, text):
            self._learn(nested)
        self._store.register(self._typesys.get_types_from_msg(text, name))

    def serialize(self, name: str, message: Any) -> bytes:
        """CDR bytes of a message made from `types`; for tests and tools without ROS."""
        return bytes(self._store.serialize_cdr(message, name))

    @property
    def types(self) -> dict[str, Any]:
        """Type name → class of its messages."""
        return dict(self._store.types)

    def _learn(self, name: str) -> None:
        if name in self._store.types:
            return
        package, kind, short = (*name.split("/"), "", "")[:3]
        for share in self._share_dirs:
            path = share / package / kind / f"{short}.msg"
            if path.is_file():
                self.add(name, path.read_text(encoding="utf-8"))
                return
        looked = ", ".join(str(share) for share in self._share_dirs) or "no folder"
        raise ValueError(
            f"message type {name}: expected {package}/{kind}/{short}.msg in one of {looked}; "
            "found in none, and it is no type of ROS 2 Jazzy. Source the workspace that has it"
        )


def _nested_types(package: str, text: str) -> set[str]:
    found = set()
    for line in text.splitlines():
        match = _TYPE_WORD.match(line.split("#")[0])
        if match and (match[2] or match[1][0].isupper()):
            found.add(f"{match[1]}/msg/{match[2]}" if match[2] else f"{package}/msg/{match[1]}")
    return {
        "std_msgs/msg/Header" if name == f"{package}/msg/Header" else name for name in found
    } - {f"{package}/msg/"}
