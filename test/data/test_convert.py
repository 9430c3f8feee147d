"""What goes in comes out, what is left out is named, counts said are counts on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from bag_samples import Take
from episode_samples import make_episode, write_2_0

from vla_oft_ros.data import convert as convert_module
from vla_oft_ros.data.bag import read_bag
from vla_oft_ros.data.bag_recovery import annotate_bag
from vla_oft_ros.data.convert import (
    PARTS,
    ConversionError,
    ConversionReport,
    ConvertOptions,
    PartResult,
    choose_splits,
    convert,
)
from vla_oft_ros.data.episode import EpisodeError
from vla_oft_ros.data.hdf5 import Hdf5Options, read_hdf5, write_hdf5
from vla_oft_ros.data.lerobot import episode_readers
from vla_oft_ros.data.rlds import read_dataset
from vla_oft_ros.data.sources import ReadOptions, find_sources, read_source
from vla_oft_ros.normalization import read_statistics


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven bags, the last of them a failure."""
    folder = tmp_path_factory.mktemp("bags")
    for number in range(11):
        take = Take(seconds=0.6, size=(24, 32), seed=number)
        outcome = "failure" if number == 10 else "success"
        take.write(folder / f"episode_{number}", outcome=outcome)
    return folder


def run(
    bags: Path, output: Path, to: str = "hdf5", workers: int = 1, **options: object
) -> ConversionReport:
    made = ConvertOptions(to=to, **options)  # type: ignore[arg-type]
    return convert(find_sources([bags]), output, made, workers=workers)


def test_bags_become_hdf5_with_the_same_numbers_and_pixels(bags: Path, tmp_path: Path) -> None:
    report = run(bags, tmp_path / "out")
    assert report.episodes == 10 and report.skipped == ()
    assert report.failures == (str(bags / "episode_10"),)
    for number in range(10):
        original = read_bag(bags / f"episode_{number}")
        episode = read_hdf5(tmp_path / "out" / f"episode_{number}.hdf5")
        assert np.array_equal(episode.qpos, original.qpos.astype(np.float32))
        assert np.array_equal(episode.action, original.action.astype(np.float32))
        for camera in original.cameras:
            for step in range(len(original)):
                assert np.array_equal(episode.images[camera][step], original.images[camera][step])
        assert (episode.instruction, episode.profile) == ("transfer the cube", "sim")
        assert (episode.rate_hz, episode.color_order) == (25.0, "rgb")
        assert episode.outcome == "success"
    assert not (tmp_path / "out" / PARTS).exists()


@pytest.mark.parametrize("to", ["hdf5", "rlds", "lerobot"])
def test_episodes_said_are_episodes_on_disk(bags: Path, tmp_path: Path, to: str) -> None:
    report = run(bags, tmp_path / "out", to, workers=2 if to == "rlds" else 1, name="cube")
    assert report.episodes == 10 == len(report.converted) == sum(report.splits.values())
    content = read_statistics(tmp_path / "out" / "dataset_statistics.json")["cube"]
    assert content["num_trajectories"] == 10
    assert content["num_transitions"] == sum(result.steps for result in report.converted)
    if to == "hdf5":
        back = [read_hdf5(path) for path in sorted((tmp_path / "out").glob("*.hdf5"))]
    elif to == "rlds":
        folder = tmp_path / "out/cube/1.0.0"
        back = [e for split in report.splits for e in read_dataset(folder, split)]
        assert report.splits == {"train": 9, "val": 1} or report.splits == {"val": 1, "train": 9}
    else:
        back = [reader() for reader in episode_readers(tmp_path / "out")]
    sums = sorted(float(episode.action.astype(np.float32).sum()) for episode in back)
    originals = [read_bag(bags / f"episode_{number}") for number in range(10)]
    expected = sorted(float(e.action.astype(np.float32).sum()) for e in originals)
    assert len(back) == 10 and np.allclose(sums, expected, rtol=1e-5)


def test_failures_are_kept_when_asked_for(bags: Path, tmp_path: Path) -> None:
    report = run(bags, tmp_path / "out", keep_failures=True)
    assert report.episodes == 11 and report.failures == ()
    assert read_hdf5(tmp_path / "out" / "episode_10.hdf5").outcome == "failure"


def test_an_interrupted_conversion_goes_on_where_it_was(
    bags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = convert_module.write_hdf5, []

    def until_power_fails(episode: object, path: Path, **options: bool) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path)
        real(episode, path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(convert_module, "write_hdf5", until_power_fails)
    with pytest.raises(KeyboardInterrupt):
        run(bags, tmp_path / "out")
    monkeypatch.setattr(convert_module, "write_hdf5", real)
    report = run(bags, tmp_path / "out")
    assert sum(result.resumed for result in report.converted) == 4
    assert report.episodes == 10
    assert [result.source for result in report.converted] == [
        str(bags / f"episode_{number}") for number in range(10)
    ]


def test_a_source_that_changed_meanwhile_is_converted_again(bags: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bags, tmp_path / "bags")
    bad = copy / "episode_3" / "episode_3_0.mcap"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-100])
    with pytest.raises(ConversionError, match=r"(?s)1 of 11 episodes.*episode_3.*--on-bad skip"):
        run(copy, tmp_path / "out")
    bad.write_bytes(whole)
    annotate_bag(copy / "episode_5", {"outcome": "failure"})
    report = run(copy, tmp_path / "out")
    again = [Path(r.source).name for r in report.converted if not r.resumed]
    assert again == ["episode_3"] and report.episodes == 9
    assert [Path(source).name for source in report.failures] == ["episode_5", "episode_10"]


def test_unusable_episodes_stop_or_are_left_out_by_name(bags: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bags, tmp_path / "bags")
    Take(seconds=0.6, missing=("cam_high",)).write(copy / "episode_11")
    (copy / "episode_12").mkdir()
    (copy / "episode_12" / "broken.mcap").write_bytes(b"no bag")
    with pytest.raises(ConversionError) as error:
        run(copy, tmp_path / "out")
    assert "2 of 13 episodes" in str(error.value)
    assert "cam_high" in str(error.value) and "broken.mcap" in str(error.value)
    report = run(copy, tmp_path / "out", on_bad="skip")
    assert report.episodes == 10 and len(report.skipped) == 2
    assert "cam_high" in report.skipped[0].problem


def test_mixed_rates_are_refused_or_brought_to_one(tmp_path: Path) -> None:
    for number, rate in enumerate((25.0, 50.0, 50.0)):
        episode = make_episode(steps=20, seed=number, rate_hz=rate)
        write_hdf5(episode, tmp_path / "in" / f"episode_{number}.hdf5")
    with pytest.raises(ConversionError, match=r"25 Hz in 1, e\.g\. .*50 Hz in 2.*--rate"):
        run(tmp_path / "in", tmp_path / "out")
    report = run(tmp_path / "in", tmp_path / "out", read=ReadOptions(rate_hz=25.0))
    assert [result.steps for result in report.converted] == [20, 10, 10]
    assert "resampled from 50 to 25 Hz" in report.converted[1].notes


def test_branch_2_0_is_refused_or_repaired(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    episode = make_episode(steps=20)
    write_2_0(episode, tmp_path / "in" / "episode_0.hdf5")
    with pytest.raises(ConversionError, match=r"branch 2\.0"):
        run(tmp_path / "in", tmp_path / "out")
    repair = ReadOptions(hdf5=Hdf5Options(on_2_0="repair"))
    report = run(tmp_path / "in", tmp_path / "out", read=repair)
    assert any("put right" in note for note in report.converted[0].notes)
    back = read_hdf5(tmp_path / "out" / "episode_0.hdf5")
    assert np.allclose(back.qpos, episode.qpos, atol=1e-6)


def test_the_preprocessed_form_has_folders_for_training_and_validation(
    bags: Path, tmp_path: Path
) -> None:
    report = run(bags, tmp_path / "out", preprocessed=True, val_share=0.2)
    assert report.splits in ({"train": 8, "val": 2}, {"val": 2, "train": 8})
    assert len(list((tmp_path / "out/train").iterdir())) == 8
    with h5py.File(tmp_path / "out/val/episode_1.hdf5") as file:
        assert file["observations/images/cam_high"].shape[1:] == (256, 256, 3)


def test_a_finished_set_is_not_written_into(bags: Path, tmp_path: Path) -> None:
    run(bags, tmp_path / "out")
    with pytest.raises(ConversionError, match="expected a new folder"):
        run(bags, tmp_path / "out")


def test_no_usable_episode_is_an_error(tmp_path: Path) -> None:
    episode = make_episode(steps=5)
    object.__setattr__(episode, "outcome", "failure")
    write_hdf5(episode, tmp_path / "in" / "a.hdf5")
    with pytest.raises(ConversionError, match="at least one usable episode"):
        run(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("count", "share", "held_out"),
    [(1, 0.5, 0), (2, 0.05, 1), (40, 0.05, 2), (10, 0.0, 0), (2, 0.9, 1)],
)
def test_validation_gets_its_share_and_training_is_never_empty(
    count: int, share: float, held_out: int
) -> None:
    splits = choose_splits(count, share, seed=1)
    assert splits.count("val") == held_out and len(splits) == count
    assert splits == choose_splits(count, share, seed=1)


def test_options_that_contradict_each_other_are_refused() -> None:
    for wrong in (
        {"to": "csv"},
        {"to": "rlds", "compress": True},
        {"to": "hdf5", "compress": True, "preprocessed": True},
        {"to": "rlds", "val_share": 1.0},
        {"to": "rlds", "name": "put X"},
    ):
        with pytest.raises(ValueError, match=r"expected|HDF5"):
            ConvertOptions(**wrong)  # type: ignore[arg-type]


def test_sources_are_found_at_any_depth_in_the_order_of_their_numbers(
    bags: Path, tmp_path: Path
) -> None:
    write_hdf5(make_episode(steps=3), tmp_path / "b" / "deep" / "episode_0.hdf5")
    found = find_sources([bags, tmp_path, bags / "episode_1"])
    assert [source.path.name for source in found] == [
        *(f"episode_{number}" for number in range(11)),
        "episode_0.hdf5",
    ]
    for wrong in (tmp_path / "missing", tmp_path / "b" / "empty"):
        (tmp_path / "b" / "empty").mkdir(exist_ok=True)
        with pytest.raises(EpisodeError, match="expected"):
            find_sources([wrong])


def test_a_lerobot_set_is_a_source_of_many(bags: Path, tmp_path: Path) -> None:
    run(bags, tmp_path / "lerobot", to="lerobot")
    sources = find_sources([tmp_path / "lerobot"])
    assert len(sources) == 10
    episode = read_source(sources[3], ReadOptions())
    assert np.allclose(episode.action, read_bag(bags / "episode_3").action, atol=1e-6)


def test_parts_are_told_as_they_are_done(bags: Path, tmp_path: Path) -> None:
    told: list[PartResult] = []
    options = ConvertOptions(to="hdf5")
    convert(find_sources([bags]), tmp_path / "out", options, workers=1, on_part=told.append)
    assert len(told) == 11
