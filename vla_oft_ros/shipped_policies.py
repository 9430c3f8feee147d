"""The small policies that come with the package, and how a setting names them.

They lie in `policies/` as compressed archives, since a small network carries Llama's whole
vocabulary, almost all of it zeros. `checkpoint_dir: shipped:<name>` unpacks one into the user's
cache, once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

PREFIX = "shipped:"
SUFFIX = ".tar.xz"
DEMO_POLICY = f"{PREFIX}aloha_sim_transfer_cube"
"""Hands over the cube of the simulated ALOHA; how it came about: docs/training.md."""
_FOLDER = Path(__file__).parent / "policies"
_LARGEST_BYTES = 256 * 2**20
"""Of an archive unpacked: more is not what this package ships."""


def shipped_policies() -> list[str]:
    """Their names, as `checkpoint_dir` takes them, sorted."""
    return [f"{PREFIX}{path.name.removesuffix(SUFFIX)}" for path in _archives(_FOLDER)]


def checkpoint_path(text: str, *, folder: Path | None = None, cache: Path | None = None) -> Path:
    """The directory that a setting `checkpoint_dir` means.

    Args:
        text: A directory, in which ~ is the user's home, or `shipped:<name>`.
        folder: Where the archives are; None is the package's.
        cache: Where to unpack; None is vla_oft_ros in the user's cache (XDG_CACHE_HOME).

    Returns:
        The directory; for a shipped policy it exists and is whole.

    Raises:
        ValueError: if there is no shipped policy of that name.
        OSError: if the cache cannot be written.
    """
    if not text.startswith(PREFIX):
        return Path(text).expanduser()
    folder = folder or _FOLDER
    archive = folder / f"{text.removeprefix(PREFIX)}{SUFFIX}"
    if archive not in _archives(folder):
        names = ", ".join(path.name.removesuffix(SUFFIX) for path in _archives(folder)) or "none"
        raise ValueError(
            f"checkpoint_dir: expected {PREFIX}<name> with a policy that comes with the package "
            f"({names}), or a directory; got {text!r}"
        )
    content = hashlib.sha256(archive.read_bytes()).hexdigest()
    directory = (cache or _cache()) / f"{archive.name.removesuffix(SUFFIX)}-{content[:12]}"
    if not directory.is_dir():
        _unpack(archive, directory)
    return directory


def pack_policy(checkpoint_dir: Path, archive: Path) -> None:
    """Writes the archive of a checkpoint: the same bytes for the same files.

    Args:
        checkpoint_dir: Flat checkpoint directory; training state and folders are left out.
        archive: File to write.

    Raises:
        OSError: if a file cannot be read or written.
    """
    with tarfile.open(archive, "w:xz", preset=9, format=tarfile.PAX_FORMAT) as packed:
        for path in sorted(checkpoint_dir.iterdir()):
            if not path.is_file() or path.name.startswith(("training_state", ".")):
                continue
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            entry.mode = 0o644
            with path.open("rb") as content:
                packed.addfile(entry, content)


def _archives(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vla_oft_ros"


def _unpack(archive: Path, directory: Path) -> None:
    """Under its name only when it is whole; whoever comes second takes what the first made."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with tarfile.open(archive, "r:xz") as packed:
            entries = packed.getmembers()
            if sum(entry.size for entry in entries) > _LARGEST_BYTES or not all(
                entry.isfile() and Path(entry.name).name == entry.name for entry in entries
            ):
                raise ValueError(
                    f"{archive}: expected plain files of {_LARGEST_BYTES // 2**20} MiB at most; "
                    "reinstall the package"
                )
            for entry in entries:
                source = packed.extractfile(entry)
                assert source is not None
                with (partial / entry.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        try:
            partial.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
