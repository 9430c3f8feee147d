"""ALOHA HDF5: what goes in comes out; ACT's own layout; every dialect read or refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from episode_samples import assert_same_images, assert_same_numbers, make_episode, write_2_0

from vla_oft_ros.data.episode import EpisodeError
from vla_oft_ros.data.hdf5 import Hdf5Options, read_hdf5, relative_action, write_hdf5
from vla_oft_ros.model.image_ops import resize_bicubic


def test_a_raw_file_gives_back_the_episode_exactly(tmp_path: Path) -> None:
    episode = make_episode()
    write_hdf5(episode, tmp_path / "a.hdf5")
    back = read_hdf5(tmp_path / "a.hdf5")
    assert_same_numbers(episode, back)
    assert_same_images(episode, back)
    assert episode.qvel is not None and back.qvel is not None
    assert np.array_equal(episode.qvel, back.qvel) and back.effort is None
    assert np.array_equal(episode.stamps_ns, back.stamps_ns)
    assert episode.image_stamps_ns is not None and back.image_stamps_ns is not None
    for camera in episode.cameras:
        assert np.array_equal(episode.image_stamps_ns[camera], back.image_stamps_ns[camera])
    assert (back.profile, back.color_order, back.outcome) == ("sim", "rgb", "success")
    assert back.notes == ()


def test_where_objects_were_travels_with_a_file(tmp_path: Path) -> None:
    poses = {"red_box": np.array([0.1, 0.5, 0.02, 1.0, 0.0, 0.0, 0.0])}
    write_hdf5(replace(make_episode(), object_poses=poses), tmp_path / "a.hdf5")
    back = read_hdf5(tmp_path / "a.hdf5").object_poses
    assert back is not None and list(back) == ["red_box"]
    assert np.array_equal(back["red_box"], poses["red_box"])
    write_hdf5(make_episode(), tmp_path / "b.hdf5")
    assert read_hdf5(tmp_path / "b.hdf5").object_poses is None


def test_a_jpeg_file_gives_back_numbers_exactly_and_images_nearly(tmp_path: Path) -> None:
    episode = make_episode()
    write_hdf5(episode, tmp_path / "a.hdf5", compress=True)
    back = read_hdf5(tmp_path / "a.hdf5")
    assert_same_numbers(episode, back)
    assert_same_images(episode, back, tolerance=2.0)


def test_act_finds_its_own_fields_and_types(tmp_path: Path) -> None:
    episode = make_episode(steps=5)
    write_hdf5(episode, tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file.attrs["sim"] and "compress" not in file.attrs
        for name in ("action", "observations/qpos", "observations/qvel", "observations/effort"):
            assert file[name].shape == (5, 14) and file[name].dtype == np.float32
        for camera in ("cam_high", "cam_left_wrist", "cam_right_wrist"):
            images = file[f"observations/images/{camera}"]
            assert images.shape == (5, 48, 64, 3) and images.dtype == np.uint8
            assert images.chunks == (1, 48, 64, 3)
        assert not file["observations/effort"][:].any() and not file.attrs["effort_recorded"]


def test_interbotix_finds_padded_rows_their_lengths_and_its_colours(tmp_path: Path) -> None:
    episode = make_episode(steps=4)
    write_hdf5(episode, tmp_path / "a.hdf5", compress=True)
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file.attrs["compress"]
        rows = file["observations/images/cam_left_wrist"]
        lengths = file["compress_len"]
        assert lengths.shape == (3, 4) and lengths.dtype == np.float32
        length = int(lengths[1, 2])
        assert rows[2, length - 2 : length].tobytes() == b"\xff\xd9"
        assert not rows[2, length:].any()
        # Its reader decodes with OpenCV and does not swap.
        image = cv2.imdecode(rows[2], 1).astype(int)
    assert np.abs(image - episode.images["cam_left_wrist"][2]).mean() < 2.0


def test_the_preprocessed_form_is_that_of_openvla_oft(tmp_path: Path) -> None:
    episode = make_episode(steps=4)
    write_hdf5(episode, tmp_path / "a.hdf5", preprocessed=True)
    with h5py.File(tmp_path / "a.hdf5") as file:
        images = file["observations/images/cam_high"]
        assert images.shape == (4, 256, 256, 3)
        assert np.array_equal(images[3], resize_bicubic(episode.images["cam_high"][3], 256))
        steps = np.diff(episode.action.astype(np.float32), axis=0)
        assert np.array_equal(file["relative_action"][:], [*steps, steps[-1]])
    assert_same_numbers(episode, read_hdf5(tmp_path / "a.hdf5"))
    with pytest.raises(ValueError, match="expected one of them"):
        write_hdf5(episode, tmp_path / "b.hdf5", preprocessed=True, compress=True)
    assert not (tmp_path / "b.hdf5").exists()


def test_relative_actions_add_up_to_the_way_gone() -> None:
    action = make_episode(steps=9).action
    assert np.allclose(action[0] + relative_action(action)[:-1].sum(axis=0), action[-1])
    assert relative_action(action[:1]).shape == (1, 14)


def plain_act(path: Path, **changes: object) -> None:
    """A file as ACT writes it: no attributes but `sim`."""
    episode = make_episode(steps=6)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        file["action"] = episode.action
        file["observations/qpos"] = episode.qpos
        file["observations/qvel"] = episode.qvel
        for camera, images in episode.images.items():
            file[f"observations/images/{camera}"] = np.asarray(images)
        for name, value in changes.items():
            key = name.replace("__", "/")
            del file[key]
            if value is not None:
                file[key] = value


def test_what_a_file_does_not_say_is_noted(tmp_path: Path) -> None:
    plain_act(tmp_path / "a.hdf5")
    episode = read_hdf5(tmp_path / "a.hdf5")
    assert episode.rate_hz == 50.0 and episode.color_order == "unknown"
    assert any("rate" in note for note in episode.notes)
    assert any("colour order" in note for note in episode.notes)
    said = Hdf5Options(rate_hz=25.0, color_order="rgb", instruction="wave", profile="aloha1")
    episode = read_hdf5(tmp_path / "a.hdf5", said)
    assert (episode.rate_hz, episode.color_order, episode.notes) == (25.0, "rgb", ())
    assert (episode.instruction, episode.profile) == ("wave", "aloha1")


def test_bgr_files_come_out_as_rgb(tmp_path: Path) -> None:
    plain_act(tmp_path / "a.hdf5")
    rgb = read_hdf5(tmp_path / "a.hdf5", Hdf5Options(color_order="rgb"))
    bgr = read_hdf5(tmp_path / "a.hdf5", Hdf5Options(color_order="bgr"))
    assert bgr.color_order == "rgb"
    for step in range(6):
        assert np.array_equal(
            bgr.images["cam_high"][step], rgb.images["cam_high"][step][..., ::-1]
        )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"action": None}, "ALOHA's layout.*action"),
        ({"action": np.zeros((5, 14))}, r"action \(6, 14\)"),
        ({"observations__images__cam_high": np.zeros((5, 4, 4, 3), np.uint8)}, "6 images of"),
        ({"observations__images__cam_high": np.zeros((6, 4, 4, 3))}, "as uint8"),
        ({"observations__qpos": np.full((6, 14), np.nan)}, "finite qpos"),
    ],
)
def test_a_file_of_another_layout_is_named_and_refused(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    plain_act(tmp_path / "a.hdf5", **changes)
    with pytest.raises(EpisodeError, match=rf"a\.hdf5: .*{expected}"):
        read_hdf5(tmp_path / "a.hdf5")


def test_a_file_that_is_no_hdf5_and_a_jpeg_that_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.hdf5").write_text("hello")
    with pytest.raises(EpisodeError, match="expected an HDF5 file"):
        read_hdf5(tmp_path / "a.hdf5")
    rows = np.zeros((6, 100), np.uint8)
    plain_act(tmp_path / "b.hdf5", observations__images__cam_high=rows)
    with pytest.raises(EpisodeError, match="image 2 of cam_high is no JPEG"):
        read_hdf5(tmp_path / "b.hdf5").images["cam_high"][2]


def test_data_of_branch_2_0_is_refused_or_repaired_exactly(tmp_path: Path) -> None:
    episode = make_episode(steps=8)
    write_2_0(episode, tmp_path / "a.hdf5")
    with pytest.raises(EpisodeError, match=r"branch 2\.0.*--on-2-0 repair"):
        read_hdf5(tmp_path / "a.hdf5")
    back = read_hdf5(tmp_path / "a.hdf5", Hdf5Options(on_2_0="repair"))
    assert np.allclose(back.qpos, episode.qpos, rtol=0, atol=1e-9)
    assert np.array_equal(back.action, episode.action)
    assert back.cameras == episode.cameras
    assert_same_images(episode, back)
    assert back.profile == "interbotix_2_0" and "put right" in back.notes[-1]


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    broken = make_episode(steps=3)
    images = dict(broken.images)
    images["cam_high"] = np.zeros((3, 0, 0, 3), np.uint8)
    object.__setattr__(broken, "images", images)
    with pytest.raises(Exception, match=r".+"):
        write_hdf5(broken, tmp_path / "a.hdf5", compress=True)
    assert list(tmp_path.iterdir()) == []
