"""The data commands: a good call does what it says, a bad call ends with 2 and one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bag_samples import Take
from episode_samples import make_episode

from vla_oft_ros.cli import main
from vla_oft_ros.data.hdf5 import read_hdf5, write_hdf5
from vla_oft_ros.normalization import read_statistics


@pytest.fixture
def bags(tmp_path: Path) -> Path:
    for number in range(3):
        Take(seconds=0.6, size=(24, 32), seed=number).write(tmp_path / "bags" / f"e{number}")
    return tmp_path / "bags"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())


def test_convert_writes_the_set_and_says_how_many(
    bags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = call(
        *(capsys, "convert", bags, "--to", "hdf5", "--output", tmp_path / "out", "--workers", 1)
    )
    assert code == 0 and "3 episodes found, 3 on disk (3 train)" in text
    assert len(list((tmp_path / "out").glob("*.hdf5"))) == 3
    assert read_hdf5(tmp_path / "out/episode_0.hdf5").instruction == "transfer the cube"


def test_convert_names_what_it_cannot_use(
    bags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Take(seconds=0.6, missing=("cam_high",)).write(bags / "e3")
    arguments = (capsys, "convert", bags, "--to", "rlds", "--output", tmp_path / "out")
    code, text = call(*arguments, "--workers", 1)
    assert code == 2 and "1 of 4 episodes cannot be used" in text and "cam_high" in text
    code, text = call(*arguments, "--workers", 1, "--on-bad", "skip")
    assert code == 0 and "left out:" in text and "4 episodes found, 3 on disk" in text
    assert "1 unusable left out, 3 done before" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--name", "put X"], "name: expected letters"),
        (["--rate", "-1"], "--rate: expected a positive rate"),
        (["--cameras", "cam_low"], "expected cameras among cam_high"),
        (["--profile", "tesla"], "expected one of the profiles"),
        (["--compress"], "set --to hdf5"),
    ],
)
def test_a_bad_setting_ends_with_2(
    bags: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    code, text = call(
        *(capsys, "convert", bags, "--to", "rlds", "--output", tmp_path / "out", "--workers", 1),
        *arguments,
    )
    assert code == 2 and expected in text


def test_stats_writes_what_normalization_reads(
    bags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dataset_statistics.json"
    code, text = call(capsys, "stats", bags, "--output", path, "--name", "cube")
    assert code == 0 and "3 episodes" in text
    assert read_statistics(path)["cube"]["num_trajectories"] == 3
    code, text = call(capsys, "stats", tmp_path / "nowhere", "--output", path)
    assert code == 2 and "it is missing" in text


def test_doctor_writes_its_report_and_ends_with_1_for_bad_episodes(
    bags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    code, text = call(capsys, "doctor", bags, "--output", out, "--workers", 1)
    assert code == 0 and "3 episodes: 0 good, 3 suspect, 0 bad" in text  # too short, all of them
    assert len(list(out.glob("*.png"))) == 3
    assert len(json.loads((out / "doctor.json").read_text())["episodes"]) == 3
    Take(seconds=0.6, missing=("cam_high",)).write(bags / "e3")
    code, text = call(capsys, "doctor", bags, "--output", out, "--workers", 2)
    assert code == 1 and "cannot be read:" in text and "1 unreadable" in text


def test_doctor_of_nothing_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = call(capsys, "doctor", tmp_path)
    assert code == 2 and "found none" in text


def test_inspect_shows_episodes_and_what_was_assumed(
    bags: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = call(capsys, "inspect", bags)
    assert code == 0 and "3 of 3 episodes" in text
    code, text = call(capsys, "inspect", bags, "--cameras", "cam_front")
    assert code == 1 and "0 of 3 episodes" in text and "expected cameras among" in text


def test_recover_finishes_what_was_cut_short(
    bags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bags / "e0" / "metadata.yaml").unlink()
    file = bags / "e0" / "e0_0.mcap"
    file.write_bytes(file.read_bytes()[:-50])
    code, text = call(capsys, "inspect", bags)
    assert code == 1 and "vla_oft recover" in text
    code, text = call(capsys, "recover", bags / "e0", bags / "e1")
    assert code == 0 and "finished" in text and "is whole" in text
    assert call(capsys, "inspect", bags)[0] == 0
    code, text = call(capsys, "recover", tmp_path)
    assert code == 2 and "expected a bag folder" in text


def test_data_of_branch_2_0_are_put_right_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from episode_samples import write_2_0

    write_2_0(make_episode(steps=5), tmp_path / "a.hdf5")
    assert call(capsys, "inspect", tmp_path)[0] == 1
    code, text = call(capsys, "inspect", tmp_path, "--on-2-0", "repair")
    assert code == 0 and "put right" in text
    write_hdf5(make_episode(steps=5), tmp_path / "b.hdf5")
    assert call(capsys, "inspect", tmp_path / "b.hdf5")[0] == 0
