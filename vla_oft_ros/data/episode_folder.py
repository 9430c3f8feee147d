"""The folder of a data set that is being recorded: one folder per episode, numbered for ever.

A number is never given twice to what is kept, one recorder at a time works in a folder, and what
an interrupted recorder left behind is finished by the next one. Knows no ROS.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from vla_oft_ros.aloha import RobotProfile
from vla_oft_ros.config import ConfigError, flatten
from vla_oft_ros.data.bag_recovery import annotate_bag, recover_bag
from vla_oft_ros.data.bag_writer import METADATA_FILE, to_yaml

logger = logging.getLogger(__name__)

DATASET_FILE = "dataset.yaml"
_EPISODE = re.compile(r"^episode_(\d{6,})$")
_LOCK_FILE = ".recorder"
_DISCARDED = ".discarded_"


class EpisodeFolder:
    """A data set on disk, locked for one recorder.

    Args:
        path: Its folder; made if there is none.

    Raises:
        ConfigError: if another recorder uses it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"output_dir {path}: expected a folder that can be written; {error.strerror}"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(
                f"output_dir {path}: another recorder works there; end it, or choose another "
                "folder"
            ) from None

    def close(self) -> None:
        """Lets others work in the folder. Closing twice is harmless."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def recover(self) -> list[str]:
        """Finishes what an interrupted recorder left behind; says what, one sentence each."""
        told = []
        for entry in sorted(self.path.iterdir()):
            if entry.name.startswith(_DISCARDED):
                shutil.rmtree(entry, ignore_errors=True)
            elif _EPISODE.match(entry.name) and not (entry / METADATA_FILE).is_file():
                try:
                    recovery = recover_bag(entry, {"interrupted": "true"})
                except (ValueError, OSError) as error:
                    told.append(f"{entry.name} was interrupted and holds nothing: {error}")
                    continue
                told.append(
                    f"{entry.name} was interrupted; its {recovery.messages} messages were saved"
                )
        return told

    def episodes(self) -> list[int]:
        """Numbers of the complete episodes that are really there, ascending."""
        return sorted(
            number for number, path in self._numbered() if (path / METADATA_FILE).is_file()
        )

    def next_index(self) -> int:
        """The number after the highest one that is there, complete or not."""
        return max((number for number, _ in self._numbered()), default=-1) + 1

    def episode_path(self, index: int) -> Path:
        """Folder of an episode, which is its bag."""
        return self.path / f"episode_{index:06d}"

    def _numbered(self) -> list[tuple[int, Path]]:
        matches = [(_EPISODE.match(entry.name), entry) for entry in self.path.iterdir()]
        return [(int(match[1]), entry) for match, entry in matches if match]

    def discard(self, index: int) -> None:
        """Deletes an episode; half of it never counts as one."""
        path = self.episode_path(index)
        doomed = self.path / f"{_DISCARDED}{path.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)

    def label(self, index: int, outcome: str) -> None:
        """Writes the outcome of a complete episode."""
        annotate_bag(self.episode_path(index), {"outcome": outcome})

    def free_bytes(self) -> int:
        """Space left on its disk."""
        return shutil.disk_usage(self.path).free

    def require(self, facts: Mapping[str, Any]) -> None:
        """Makes sure that new episodes are like those that are there.

        Args:
            facts: What all episodes of a data set have in common: `dataset_facts`. Written down
                with the first episode, compared from then on.

        Raises:
            ConfigError: naming what differs.
        """
        file = self.path / DATASET_FILE
        facts = yaml.safe_load(to_yaml(dict(facts)))
        if not file.exists():
            part = file.with_name(f".{DATASET_FILE}.part")
            part.write_text(to_yaml(facts), encoding="utf-8")
            part.replace(file)
            return
        try:
            known = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{file}: expected what all episodes share; {error}") from None
        flat, had = flatten(facts), flatten(known if isinstance(known, dict) else {})
        different = [
            f"{key} {had.get(key)!r} (now {flat.get(key)!r})"
            for key in sorted({*flat, *had})
            if flat.get(key) != had.get(key)
        ]
        if different:
            raise ConfigError(
                f"{self.path}: expected episodes like those that are there, which have "
                f"{'; '.join(different)}. Choose another output_dir, or set the recorder as it "
                "was"
            )


def dataset_facts(
    profile: RobotProfile,
    camera_rate_hz: float,
    cameras: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What all episodes of a data set have in common.

    Args:
        profile: The robot.
        camera_rate_hz: Rate of its cameras.
        cameras: Camera → its topic, and width and height of its images, px.
    """
    robot = {name: value for name, value in asdict(profile).items() if name != "description"}
    return {
        "camera_rate_hz": camera_rate_hz,
        "cameras": {camera: dict(facts) for camera, facts in cameras.items()},
        "robot": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in robot.items()
        },
    }
