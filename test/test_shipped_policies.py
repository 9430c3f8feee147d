"""What comes with the package can be unpacked anywhere, once, whole or not at all."""

from __future__ import annotations

import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vla_oft_ros.shipped_policies import checkpoint_path, pack_policy

NAME = "small"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "lora_adapter").mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(bytes(1000) + b"end")
    (checkpoint / "training_state.pt").write_bytes(b"not for users")
    (tmp_path / "policies").mkdir()
    pack_policy(checkpoint, tmp_path / "policies" / f"{NAME}.tar.xz")
    return tmp_path / "policies"


def test_packing_and_unpacking_gives_the_same_files_without_training_state(
    folder: Path, tmp_path: Path
) -> None:
    directory = checkpoint_path(f"shipped:{NAME}", folder=folder, cache=tmp_path / "cache")
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    for path in directory.iterdir():
        assert path.read_bytes() == (tmp_path / "checkpoint" / path.name).read_bytes()


def test_the_same_files_give_the_same_archive(folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "checkpoint").iterdir():
        path.touch()
    pack_policy(tmp_path / "checkpoint", tmp_path / "again.tar.xz")
    assert (tmp_path / "again.tar.xz").read_bytes() == (folder / f"{NAME}.tar.xz").read_bytes()


def test_it_is_unpacked_once_even_by_many_at_a_time(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(
                lambda _: checkpoint_path(f"shipped:{NAME}", folder=folder, cache=cache), range(8)
            )
        )
    assert len(set(found)) == 1
    assert list(cache.iterdir()) == [found[0]]
    assert (found[0] / "model.safetensors").read_bytes().endswith(b"end")


def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path: Path) -> None:
    evil = tmp_path / "evil.tar.xz"
    with tarfile.open(evil, "w:xz") as packed:
        packed.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(ValueError, match="expected plain files"):
        checkpoint_path("shipped:evil", folder=tmp_path, cache=tmp_path / "cache" / "deep")
    assert not list((tmp_path / "cache").rglob("*outside*"))
    assert not list((tmp_path / "cache" / "deep").iterdir())


@pytest.mark.parametrize("text", ["shipped:nothing", "shipped:", "shipped:../policies/small"])
def test_an_unknown_name_is_refused_with_those_that_exist(text: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"\({NAME}\)"):
        checkpoint_path(text, folder=folder)


def test_a_directory_stays_what_it_is() -> None:
    assert checkpoint_path("some/where") == Path("some/where")
    assert checkpoint_path("~/x") == Path.home() / "x"
