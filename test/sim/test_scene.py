"""Laws of the scene: what is drawn may differ from gym-aloha's assets, what collides may not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco", reason="the extra 'sim' is not installed")

from vla_oft_ros.sim import scene  # noqa: E402
from vla_oft_ros.sim.aloha_world import AlohaWorld  # noqa: E402
from vla_oft_ros.sim.demonstrator import SCRIPTS, Demonstrator  # noqa: E402
from vla_oft_ros.sim.scene import MOUNTS, assets_dir, build_model, cluster_vertices, read_stl  # noqa: E402
from vla_oft_ros.sim.tasks import TRANSFER_CUBE, Cube  # noqa: E402

pytestmark = pytest.mark.sim


def test_physics_is_that_of_the_untouched_assets_bit_for_bit(world: AlohaWorld) -> None:
    model = mujoco.MjModel.from_xml_path(str(assets_dir() / scene.SCENE_FILE))
    data = mujoco.MjData(model)
    start = world.state()
    begin = mujoco.MjData(world.model)
    mujoco.mj_setState(world.model, begin, start.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    data.qpos[:], data.ctrl[:] = begin.qpos, begin.ctrl
    ours = mujoco.MjData(world.model)
    for targets in Demonstrator(world.model, SCRIPTS["transfer_cube"]).plan(
        world.cube_pose("red_box")
    ):
        world.set_targets(targets)
        now = world.state()
        mujoco.mj_setState(world.model, ours, now.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        data.ctrl[:] = ours.ctrl
        world.advance(40_000_000)
        mujoco.mj_step(model, data, 20)
    end = world.state()
    mujoco.mj_setState(world.model, ours, end.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
    assert world.reward() == 4
    np.testing.assert_array_equal(ours.qpos, data.qpos)
    np.testing.assert_array_equal(ours.qvel, data.qvel)


def test_drawn_meshes_have_less_than_a_third_of_the_triangles() -> None:
    model = build_model(TRANSFER_CUBE.cubes, 64, 64)
    drawn = [i for i in range(model.nmesh) if model.mesh(i).name.endswith("/drawn")]
    exact = [i for i in range(model.nmesh) if i not in drawn]
    assert len(drawn) == len(exact)
    assert 3 * model.mesh_facenum[drawn].sum() < model.mesh_facenum[exact].sum()


def test_what_is_drawn_cannot_collide_and_what_collides_is_not_drawn_twice() -> None:
    model = build_model(TRANSFER_CUBE.cubes, 64, 64)
    for index in range(model.ngeom):
        if model.geom_type[index] == mujoco.mjtGeom.mjGEOM_MESH:
            drawn = model.mesh(model.geom_dataid[index]).name.endswith("/drawn")
            assert (model.geom_group[index] == scene.HIDDEN_GROUP) != drawn
            if drawn:
                assert model.geom_contype[index] == model.geom_conaffinity[index] == 0


def test_several_cubes_of_any_colour_can_lie_on_the_table() -> None:
    cubes = [
        Cube(name="green_box", rgba=(0, 1, 0, 1)),
        Cube(name="red_box", rgba=(1, 0, 0, 1)),
    ]
    model = build_model(cubes, 64, 64)
    assert model.nq == 16 + 7 * 2
    green, red = model.geom("green_box"), model.geom("red_box")
    np.testing.assert_array_equal(green.size, red.size)
    np.testing.assert_array_equal(green.friction, red.friction)
    np.testing.assert_array_equal(green.rgba, [0, 1, 0, 1])
    assert model.body("green_box_body").mass[0] == model.body("red_box_body").mass[0] == 0.05


def test_clustering_moves_no_vertex_further_than_the_diagonal_of_a_cell() -> None:
    vertices = np.random.default_rng(0).uniform(-1, 1, (300, 3))
    faces = np.arange(300, dtype=np.int32).reshape(100, 3)
    coarse, kept = cluster_vertices(vertices, faces, 0.2)
    nearest = np.linalg.norm(vertices[:, None] - coarse[None], axis=2).min(axis=1)
    assert nearest.max() <= 0.2 * np.sqrt(3)
    assert kept.max() < len(coarse) < len(vertices)
    assert all(len(set(face)) == 3 for face in kept.tolist())


def test_clustering_with_tiny_cells_keeps_the_mesh() -> None:
    vertices, faces = read_stl(assets_dir() / "vx300s_1_base.stl")
    coarse, kept = cluster_vertices(vertices, faces, 1e-9)
    assert coarse.shape == vertices.shape
    area = [
        np.linalg.norm(np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]]), axis=1).sum()
        for v, f in ((vertices, faces), (coarse, kept))
    ]
    assert area[0] == pytest.approx(area[1], rel=1e-9)


def test_stl_of_the_table_is_a_box_of_twelve_triangles() -> None:
    vertices, faces = read_stl(assets_dir() / "tabletop.stl")
    assert vertices.shape == (8, 3) and faces.shape == (12, 3)


@pytest.mark.parametrize("camera", MOUNTS)
def test_camera_frames_are_right_handed_and_look_forward_with_the_sky_on_top(camera: str) -> None:
    mount = MOUNTS[camera]
    rotation = mount.orientation()
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    assert rotation[:, 2] @ mount.forward > 0
    assert rotation[2, 1] < 0  # down in the image is down on the mount


def test_missing_assets_are_named_with_the_line_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no such package.*pip install --no-deps gym-aloha=="):
        assets_dir()
    empty = ModuleSpec("gym_aloha", None, is_package=True)
    empty.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: empty)
    with pytest.raises(ValueError, match=r"no such file in it.*pip install"):
        assets_dir()


def test_gym_aloha_is_never_imported() -> None:
    code = (
        "import sys; from vla_oft_ros.sim.scene import build_model; build_model((), 8, 8); "
        "assert not {'gym_aloha', 'dm_control', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
