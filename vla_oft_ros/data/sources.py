"""Finds episodes in files and folders, whatever their format, and reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vla_oft_ros.data.bag import read_bag
from vla_oft_ros.data.bag_streams import BagOptions
from vla_oft_ros.data.bag_writer import METADATA_FILE
from vla_oft_ros.data.episode import Episode, EpisodeError
from vla_oft_ros.data.hdf5 import Hdf5Options, read_hdf5
from vla_oft_ros.data.lerobot import LerobotReader, episode_readers

BAG, HDF5, LEROBOT = "bag", "hdf5", "lerobot"
_BAG_SUFFIXES = (".mcap", ".db3")
_HDF5_SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True)
class Source:
    """Where one episode is.

    Attributes:
        path: Bag folder or file, HDF5 file, or root of a LeRobot set.
        kind: "bag", "hdf5" or "lerobot".
        index: Number within a LeRobot set.
    """

    path: Path
    kind: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.path} episode {self.index}" if self.kind == LEROBOT else str(self.path)

    @property
    def files(self) -> list[Path]:
        """The files that it is read from, for telling whether it has changed."""
        if self.path.is_file():
            return [self.path]
        pattern = "meta/**/*" if self.kind == LEROBOT else "*"
        return sorted(path for path in self.path.glob(pattern) if path.is_file())


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How episodes are read.

    Attributes:
        bag: For bags.
        hdf5: For HDF5 files.
        rate_hz: Resample everything else to this rate; 0 leaves it as it is. Bags are sampled at
            `bag.rate_hz`.
    """

    bag: BagOptions = field(default_factory=BagOptions)
    hdf5: Hdf5Options = field(default_factory=Hdf5Options)
    rate_hz: float = 0.0


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """All episodes in files and folders, folders searched to any depth, in order of their names.

    Raises:
        EpisodeError: if a path does not exist or has no episode.
    """
    sources: list[Source] = []
    for path in paths:
        if not path.exists():
            raise EpisodeError(f"{path}: expected a file or folder with episodes; it is missing")
        found = list(_in(path))
        if not found:
            raise EpisodeError(
                f"{path}: expected bags ({METADATA_FILE} or {', '.join(_BAG_SUFFIXES)}), HDF5 "
                "files or a LeRobot set; found none"
            )
        sources += found
    return list(dict.fromkeys(sources))


def _in(path: Path) -> Iterable[Source]:
    if path.is_file():
        if path.suffix in _BAG_SUFFIXES:
            yield Source(path, BAG)
        elif path.suffix in _HDF5_SUFFIXES:
            yield Source(path, HDF5)
        return
    if (path / "meta" / "info.json").is_file():
        yield from (Source(path, LEROBOT, reader.index) for reader in episode_readers(path))
        return
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    is_bag = any(entry.suffix in _BAG_SUFFIXES or entry.name == METADATA_FILE for entry in entries)
    if is_bag:
        yield Source(path, BAG)
        return
    for entry in sorted(entries, key=_natural):
        yield from _in(entry)


def _natural(path: Path) -> tuple[list[int | str], str]:
    """episode_2 before episode_10."""
    digits = "".join(char if char.isdigit() else " " for char in path.name).split()
    letters = "".join(char for char in path.name if not char.isdigit())
    return [letters, *(int(number) for number in digits)], path.name


def read_source(source: Source, options: ReadOptions) -> Episode:
    """Reads one episode.

    Raises:
        ValueError: if it cannot be used; names it and says what to do.
    """
    if source.kind == BAG:
        return read_bag(source.path, options.bag)
    if source.kind == HDF5:
        episode = read_hdf5(source.path, options.hdf5)
    else:
        episode = LerobotReader(source.path, source.index)()
    return episode.resampled(options.rate_hz) if options.rate_hz else episode
