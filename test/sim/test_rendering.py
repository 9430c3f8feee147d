"""Laws of the camera images: shape, colour, geometry, life and death of the OpenGL context."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")

from vla_oft_ros.aloha import CAMERAS, GripperCalibration, start_pose
from vla_oft_ros.sim import rendering
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.contact_sheet import contact_sheet

pytestmark = pytest.mark.sim


def is_red(image: np.ndarray) -> np.ndarray:
    """(H, W) bool: where the cube is seen."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return (red > 120) & (green < 80) & (blue < 80)


def test_images_come_as_rgb_bytes_of_the_asked_size_in_the_order_of_the_cameras(
    calibration: GripperCalibration,
) -> None:
    world = AlohaWorld(calibration, width_px=200, height_px=96)
    images = world.images()
    world.close()
    assert tuple(images) == CAMERAS
    for image in images.values():
        assert image.shape == (96, 200, 3) and image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.std() > 10


def test_the_red_cube_is_red_and_lies_where_intrinsics_and_pose_of_the_camera_put_it(
    world: AlohaWorld,
) -> None:
    world.advance(500_000_000)  # lets the cube fall
    cube = world.cube_pose("red_box")[:3]
    camera_from_world = np.linalg.inv(world.camera_pose("cam_high"))
    x, y, z = camera_from_world[:3, :3] @ cube + camera_from_world[:3, 3]
    expected = (world.intrinsics("cam_high") @ [x / z, y / z, 1.0])[:2]
    rows, columns = np.nonzero(is_red(world.images()["cam_high"]))
    assert rows.size > 10
    np.testing.assert_allclose([columns.mean(), rows.mean()], expected, atol=1.5)


def test_nothing_is_red_but_the_cube(world: AlohaWorld) -> None:
    away = np.array([0.0, -3.0, 0.05, 1.0, 0.0, 0.0, 0.0])
    world.reset(cube_poses={"red_box": away})
    assert not any(is_red(image).any() for image in world.images().values())


@pytest.mark.parametrize("camera", ["cam_left_wrist", "cam_right_wrist"])
def test_wrist_camera_sees_its_own_gripper_move(world: AlohaWorld, camera: str) -> None:
    world.set_targets(start_pose(0.0))
    world.advance(2_000_000_000)
    closed = world.images()[camera]
    opened_one = start_pose(0.0)
    opened_one[6 if camera == "cam_left_wrist" else 13] = 1.0
    world.set_targets(opened_one)
    world.advance(2_000_000_000)
    opened = world.images()[camera]
    changed = np.abs(closed.astype(int) - opened).max(axis=-1) > 10
    assert changed[60:].mean() > 0.05  # the lower half, where the fingers are


def test_new_images_do_not_overwrite_old_ones(world: AlohaWorld) -> None:
    first = world.images()["cam_high"]
    copy = first.copy()
    world.set_targets(start_pose(1.0) + 0.5)
    world.advance(1_000_000_000)
    second = world.images()["cam_high"]
    np.testing.assert_array_equal(first, copy)
    assert np.any(first != second)


def test_closing_twice_is_harmless_and_images_come_back_when_asked_for(world: AlohaWorld) -> None:
    before = world.images()["cam_high"]
    world.close()
    world.close()
    np.testing.assert_array_equal(world.images()["cam_high"], before)


def test_forgotten_worlds_do_not_complain_at_exit() -> None:
    code = (
        "from vla_oft_ros.aloha import load_profile\n"
        "from vla_oft_ros.sim.aloha_world import AlohaWorld\n"
        "gripper = load_profile('sim').gripper\n"
        "worlds = [AlohaWorld(gripper, width_px=32, height_px=32) for _ in range(2)]\n"
        "[world.images() for world in worlds]\n"
        "worlds.pop()\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")


def test_backend_is_decided_when_images_are_first_asked_for(
    world: AlohaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.close()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(ValueError, match=r"MUJOCO_GL: expected one of egl, osmesa.*got 'glfw'"):
        world.images()
    monkeypatch.delenv("MUJOCO_GL")
    assert world.images()


def test_egl_is_preferred_and_osmesa_taken_where_egl_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_egl_works", lambda: True)
    monkeypatch.setattr(rendering, "_loads", lambda library: True)
    assert rendering.choose_backend() == "egl"
    monkeypatch.setattr(rendering, "_egl_works", lambda: False)
    assert rendering.choose_backend() == "osmesa"


def test_without_any_opengl_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_egl_works", lambda: False)
    monkeypatch.setattr(rendering, "_loads", lambda library: False)
    with pytest.raises(ValueError, match="apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"):
        rendering.choose_backend()


def test_contact_sheet_has_a_row_per_moment_and_a_column_per_camera() -> None:
    images = {
        camera: np.full((48, 64, 3), 60 * index, np.uint8)
        for index, camera in enumerate(CAMERAS, start=1)
    }
    sheet = contact_sheet([images, images], tile_width=32)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * 24 + 4, 3 * 32 + 2 * 4, 3)
    for index in range(3):
        np.testing.assert_array_equal(sheet[30, 36 * index + 16], [60 * (index + 1)] * 3)


@pytest.mark.parametrize(
    "moments", [[], [{"a": np.zeros((4, 4, 3), np.uint8)}, {"b": np.zeros((4, 4, 3), np.uint8)}]]
)
def test_contact_sheet_refuses_moments_of_different_cameras(
    moments: list[dict[str, np.ndarray]],
) -> None:
    with pytest.raises(ValueError, match="same cameras in each"):
        contact_sheet(moments)
