"""Opens rosbag2 folders and files, MCAP and sqlite3, finished or not: what topics, what messages.

Messages are listed first and read when they are needed. Knows no message type.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import yaml

from vla_oft_ros.data.bag_writer import EPISODE_METADATA, INFORMATION, METADATA_FILE
from vla_oft_ros.data.mcap_reader import McapReader, MessagePlace

_NOT_SO = (TypeError, AttributeError, RecursionError)
"""What a file of another structure, or one nested without end, comes to."""


class BagError(ValueError):
    """A bag that cannot be used; says which, what was expected and what came."""


@dataclass(frozen=True)
class BagEntry:
    """One message in a bag.

    Attributes:
        log_ns: When it was recorded, nanoseconds.
        topic: Its topic.
        file: Number of the file it is in.
        place: Where, as the file's reader knows it.
    """

    log_ns: int
    topic: str
    file: int
    place: Any


class _File(Protocol):
    damage: str | None
    types: dict[str, str]
    custom_data: dict[str, str]

    def entries(self, number: int) -> Iterable[BagEntry]: ...
    def read(self, place: Any, size: int | None) -> bytes: ...
    def close(self) -> object: ...


class _McapFile:
    def __init__(self, path: Path, check: bool) -> None:
        self._reader = McapReader(path, check)
        content = self._reader.content
        self.damage = content.damage
        self.types = {
            channel.topic: content.schemas[channel.schema_id].name
            for channel in content.channels.values()
            if channel.schema_id in content.schemas
        }
        self.custom_data = dict(content.metadata.get(EPISODE_METADATA, {}))

    def entries(self, number: int) -> Iterable[BagEntry]:
        channels = self._reader.content.channels
        for place in self._reader.content.messages:
            if place.channel in channels:
                yield BagEntry(place.log_ns, channels[place.channel].topic, number, place)

    def read(self, place: MessagePlace, size: int | None) -> bytes:
        return self._reader.read(place, size)

    def close(self) -> None:
        self._reader.close()


class _SqliteFile:
    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(path)
        self._path = path
        self._database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        self.close = weakref.finalize(self, self._database.close)
        self.damage: str | None = None
        self.custom_data: dict[str, str] = {}
        try:
            self._refuse_programs()
            topics = self._database.execute("SELECT id, name, type FROM topics").fetchall()
        except (sqlite3.Error, OverflowError) as error:
            raise BagError(f"{path}: expected a rosbag2 database; {error}") from None
        for row in topics:
            if [type(value) for value in row] != [int, str, str]:
                raise BagError(f"{path}: expected topics with number, name and type; got {row}")
        self.types = {name: kind for _, name, kind in topics}
        self._names = {number: name for number, name, _ in topics}

    def _refuse_programs(self) -> None:
        """A database may hold queries that run, without end, where a table is expected."""
        self._database.execute("PRAGMA trusted_schema = OFF")
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%virtual%'"
        found = {name for (name,) in self._database.execute(query)}
        if missing := {"topics", "messages"} - found:
            raise BagError(
                f"{self._path}: expected a rosbag2 database with the tables topics and messages; "
                f"there is no table {', '.join(sorted(missing))}"
            )

    def entries(self, number: int) -> Iterable[BagEntry]:
        query = "SELECT id, topic_id, timestamp FROM messages ORDER BY id"
        try:
            for identity, topic, time_ns in self._database.execute(query):
                if not isinstance(time_ns, int) or topic not in self._names:
                    self.damage = f"message {identity} has no time or no topic"
                    return
                yield BagEntry(time_ns, self._names[topic], number, identity)
        except (sqlite3.Error, OverflowError) as error:
            self.damage = f"the database is damaged: {error}"

    def read(self, place: int, size: int | None) -> bytes:
        part = "data" if size is None else f"substr(data, 1, {size:d})"
        query = f"SELECT {part} FROM messages WHERE id = ?"
        try:
            (data,) = self._database.execute(query, (place,)).fetchone()
        except (sqlite3.Error, TypeError) as error:
            raise BagError(f"{self._path}: message {place} cannot be read; {error}") from None
        if not isinstance(data, bytes):  # of a number, bytes() would make so many zeros
            raise BagError(f"{self._path}: expected message {place} as bytes; got {type(data)}")
        return data


@dataclass
class Bag:
    """An open bag; closes with `with`.

    Attributes:
        path: The folder or file.
        types: Topic → message type.
        entries: Every message, by log time.
        custom_data: What the bag says about its episode.
        damage: What is wrong with it, one sentence each; empty if nothing.
    """

    path: Path
    types: dict[str, str]
    entries: list[BagEntry]
    custom_data: dict[str, str]
    damage: list[str]
    _files: list[_File] = field(default_factory=list)

    def read(self, entry: BagEntry, size: int | None = None) -> bytes:
        """The serialised data of a message, or only its first bytes."""
        return self._files[entry.file].read(entry.place, size)

    def counts(self) -> dict[str, int]:
        """Topic → messages that can be read."""
        counts = dict.fromkeys(self.types, 0)
        for entry in self.entries:
            counts[entry.topic] += 1
        return counts

    def close(self) -> None:
        """Closes its files."""
        for file in self._files:
            file.close()
        self._files = []

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_bag(path: Path, check: bool = False) -> Bag:
    """Opens a bag without changing it.

    Args:
        path: Bag folder, or an .mcap or .db3 file.
        check: Compare the checksums of all data.

    Raises:
        BagError: if there is no bag, or it is stored in a way that is not read here.
    """
    files, told, damage = _find_files(path)
    bag = Bag(path, {}, [], dict(told), damage)
    try:
        for number, file in enumerate(files):
            opened = _open_file(file, check)
            bag._files.append(opened)
            for topic, kind in opened.types.items():
                if bag.types.setdefault(topic, kind) != kind:
                    raise BagError(f"{path}: {topic} has the types {kind}, {bag.types[topic]}")
            bag.entries += opened.entries(number)
            bag.custom_data = {**opened.custom_data, **bag.custom_data}
            if opened.damage:
                bag.damage.append(f"{file.name}: {opened.damage}")
    except BaseException:
        bag.close()
        raise
    bag.entries.sort(key=lambda entry: entry.log_ns)
    return bag


def _open_file(file: Path, check: bool) -> _File:
    try:
        return _McapFile(file, check) if file.suffix == ".mcap" else _SqliteFile(file)
    except FileNotFoundError:
        raise BagError(f"{file}: expected this file of the bag; it is missing") from None
    except BagError:
        raise
    except (OSError, ValueError, sqlite3.Error) as error:
        raise BagError(f"{file}: expected a readable bag file; {error}") from None


def _find_files(path: Path) -> tuple[list[Path], Mapping[str, str], list[str]]:
    """The files of a bag, its custom data, and what is wrong with the folder."""
    if path.is_file() and path.suffix in (".mcap", ".db3"):
        return [path], {}, []
    metadata = path / METADATA_FILE
    if not metadata.is_file():
        files = sorted([*path.glob("*.mcap"), *path.glob("*.db3")]) if path.is_dir() else []
        if not files:
            raise BagError(
                f"{path}: expected a rosbag2 folder, or an .mcap or .db3 file; found neither "
                f"{METADATA_FILE} nor such files"
            )
        return files, {}, [f"{METADATA_FILE} is missing: recording was interrupted"]
    try:
        information = yaml.safe_load(metadata.read_text(encoding="utf-8"))[INFORMATION]
        names = [Path(name).name for name in information["relative_file_paths"]]
        compression = str(information.get("compression_mode") or "").lower()
        told = dict(information.get("custom_data") or {})
    except (OSError, ValueError, yaml.YAMLError, LookupError, *_NOT_SO) as error:
        raise BagError(f"{metadata}: expected rosbag2 metadata; {error!r}") from None
    if compression not in ("", "none"):
        raise BagError(
            f"{path}: expected a bag without {compression} compression; turn it into one with "
            "`ros2 bag convert` (compression inside MCAP chunks can stay)"
        )
    return [path / name for name in names], {str(k): str(v) for k, v in told.items()}, []
