"""Builds the MuJoCo model of a bimanual ALOHA from the assets that the gym-aloha wheel ships.

The physics is that of gym-aloha, number for number. What is added or replaced can only be seen:
the three cameras of a real ALOHA, and coarser copies of the meshes, since software OpenGL spends
its time on triangles. gym_aloha itself is never imported; only its folder of XML and STL files is
read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_oft_ros.aloha import ARMS, CAMERAS
from vla_oft_ros.sim.tasks import TABLE, Cube

ASSETS_PACKAGE = "gym_aloha"
ASSETS_INSTALL = "pip install --no-deps gym-aloha==0.1.5"
SCENE_FILE = "bimanual_viperx_transfer_cube.xml"

CLUSTER_M = 0.004
"""Edge of the cells to which mesh vertices are gathered: a fifth of the triangles, and it looks
the same at 640x480."""
Z_NEAR_M = 0.01
"""Nearest visible distance. gym-aloha's 0.166 m would cut the grippers out of the wrist images."""
HIDDEN_GROUP = 3
"""Geometry group that MuJoCo does not draw by default; holds the meshes that collide."""
ARM_RGBA = (0.17, 0.17, 0.18, 1.0)
TABLE_RGBA = (0.62, 0.55, 0.47, 1.0)
ROOM_RGBA = (0.5, 0.52, 0.55, 1.0)
"""Colours as in a real ALOHA's images: black arms above a wooden table in a grey room."""
ROOM_HALF_M = 2.0
FLOOR_M = -0.75


@dataclass(frozen=True, kw_only=True)
class CameraMount:
    """Where a camera sits.

    Attributes:
        body: Body that carries it.
        position_m: Position in the frame of the body.
        forward: Viewing direction in that frame, not necessarily of length 1; the image's up is
            nearest to +z.
        fovy_deg: Vertical field of view.
    """

    body: str
    position_m: tuple[float, float, float]
    forward: tuple[float, float, float]
    fovy_deg: float

    def orientation(self) -> np.ndarray:
        """(3, 3) float64 rotation from optical frame (x right, y down, z forward) to body."""
        forward = np.array(self.forward) / np.linalg.norm(self.forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward], axis=1)


def _wrist(arm: str) -> CameraMount:
    # Above the gripper, looking along the fingers and down by 32 degrees: the view of ALOHA's
    # wrist cameras (D405).
    tilt = np.deg2rad(32.0)
    return CameraMount(
        body=f"vx300s_{arm}/gripper_link",
        position_m=(0.0, 0.0, 0.095),
        forward=(float(np.cos(tilt)), 0.0, -float(np.sin(tilt))),
        fovy_deg=58.0,
    )


MOUNTS = dict(
    zip(
        CAMERAS,
        (
            CameraMount(
                body="world",
                position_m=(0.0, 0.0, 0.80),
                forward=(0.0, 0.50, -0.68),
                fovy_deg=58.0,
            ),
            *(_wrist(arm) for arm in ARMS),
        ),
        strict=True,
    )
)
"""Camera name → mount. Poses chosen by eye to look like a real ALOHA's images; x of gripper_link
points along the fingers, z away from the table."""


def assets_dir() -> Path:
    """Folder of gym-aloha's XML and STL files, found without importing the package.

    Raises:
        ValueError: if the package or the folder is absent; says how to install it.
    """
    spec = importlib.util.find_spec(ASSETS_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "assets"
        if (folder / SCENE_FILE).is_file():
            return folder
    raise ValueError(
        f"simulation: expected the robot's meshes, {SCENE_FILE}, in the Python package "
        f"{ASSETS_PACKAGE!r}; found {'no such file in it' if spec else 'no such package'}. "
        f"Install them: {ASSETS_INSTALL}"
    )


def build_model(cubes: Iterable[Cube], width: int, height: int) -> mujoco.MjModel:
    """Compiles the scene: two ViperX 300 S on a table, cubes, and the cameras of `MOUNTS`.

    Args:
        cubes: Free objects, in the order of their coordinates.
        width: Largest image width to be rendered, px.
        height: Largest image height to be rendered, px.

    Returns:
        The model; its first 16 coordinates are the joints of the left, then of the right arm, each
        six angles and two finger positions.

    Raises:
        ValueError: if the assets are missing.
    """
    folder = assets_dir()
    spec = mujoco.MjSpec.from_file(str(folder / SCENE_FILE))
    _replace_cubes(spec, cubes)
    _add_cameras(spec)
    _draw_coarse_meshes(spec, folder)
    _add_room(spec)
    spec.visual.quality.shadowsize = 0
    spec.visual.quality.offsamples = 0
    spec.visual.global_.offwidth = width
    spec.visual.global_.offheight = height
    model = spec.compile()
    model.vis.map.znear = Z_NEAR_M / model.stat.extent  # MuJoCo counts it in extents of the model
    return model


def _replace_cubes(spec: mujoco.MjSpec, cubes: Iterable[Cube]) -> None:
    """Puts the task's cubes in the place of the file's one box, with its physical properties."""
    box = spec.body("box")
    mass, inertia = box.mass, np.array(box.inertia)
    joint = _values(spec.joint("red_box_joint"), "type", "frictionloss")
    geom = _values(spec.geom("red_box"), "type", "size", "condim", "solimp", "solref", "friction")
    spec.delete(box)
    for key in list(spec.keys):
        spec.delete(key)  # its length is that of one box
    for cube in cubes:
        body = spec.worldbody.add_body(name=f"{cube.name}_body", mass=mass, inertia=inertia)
        body.explicitinertial = True
        body.add_joint(name=f"{cube.name}_joint", **joint)
        body.add_geom(name=cube.name, rgba=cube.rgba, **geom)


def _values(element: Any, *names: str) -> dict[str, Any]:
    """Copies of some attributes of an element, which outlive it."""
    return {name: copy(getattr(element, name)) for name in names}


def _add_cameras(spec: mujoco.MjSpec) -> None:
    for name, mount in MOUNTS.items():
        quaternion = np.empty(4)
        # MuJoCo's cameras look along -z with y up; optical frames look along +z with y down.
        mujoco.mju_mat2Quat(quaternion, (mount.orientation() * [1.0, -1.0, -1.0]).ravel())
        body = spec.worldbody if mount.body == "world" else spec.body(mount.body)
        body.add_camera(name=name, pos=mount.position_m, quat=quaternion, fovy=mount.fovy_deg)


def _draw_coarse_meshes(spec: mujoco.MjSpec, folder: Path) -> None:
    """Gives every mesh a coarse twin that is drawn; the exact one stays, unseen, to collide."""
    coarse: dict[str, str] = {}
    for mesh in list(spec.meshes):
        vertices, faces = cluster_vertices(
            *read_stl(folder / mesh.file), CLUSTER_M / mesh.scale[0]
        )
        twin = spec.add_mesh(name=f"{mesh.name}/drawn", scale=mesh.scale)
        twin.uservert, twin.userface = vertices.ravel(), faces.ravel()
        # The twin weighs nothing; as a shell it needs no closed surface, which clustering does not
        # preserve.
        twin.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        coarse[mesh.name] = twin.name
    for geom in list(spec.geoms):
        if geom.type != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        drawn = geom.parent.add_geom(meshname=coarse[geom.meshname], contype=0, conaffinity=0)
        drawn.rgba = TABLE_RGBA if geom.name == TABLE else ARM_RGBA
        for name in ("type", "pos", "quat", "alt"):
            setattr(drawn, name, getattr(geom, name))
        geom.group = HIDDEN_GROUP


def _add_room(spec: mujoco.MjSpec) -> None:
    """A floor and four walls around the robot, which nothing can touch.

    A third of the price of a sky box, which OpenGL in software fills texel by texel.
    """
    far, thick = ROOM_HALF_M, 0.01
    middle = FLOOR_M + far
    for position, half_size in (
        ((0.0, 0.0, FLOOR_M), (far, far, thick)),
        ((far, 0.0, middle), (thick, far, far)),
        ((-far, 0.0, middle), (thick, far, far)),
        ((0.0, far, middle), (far, thick, far)),
        ((0.0, -far, middle), (far, thick, far)),
    ):
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=position,
            size=half_size,
            rgba=ROOM_RGBA,
            contype=0,
            conaffinity=0,
        )


def read_stl(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a binary STL file.

    Returns:
        (V, 3) float64 distinct vertices in the file's unit, and (F, 3) int32 vertex indices of
        each triangle.
    """
    triangle = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    data = path.read_bytes()
    count = int(np.frombuffer(data, "<u4", count=1, offset=80)[0])
    corners = np.frombuffer(data, triangle, count=count, offset=84)["corners"]
    vertices, index = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)  # (F·3, 3)
    return vertices.astype(np.float64), index.reshape(-1, 3).astype(np.int32)


def cluster_vertices(
    vertices: np.ndarray, faces: np.ndarray, cell: float
) -> tuple[np.ndarray, np.ndarray]:
    """Merges all vertices of one grid cell into their mean and drops the triangles that collapse.

    Args:
        vertices: (V, 3) float64.
        faces: (F, 3) int32 vertex indices.
        cell: Edge of a cell, in the unit of `vertices`.

    Returns:
        Vertices (V', 3) float64 and faces (F', 3) int32 of the coarser mesh, each face once.
    """
    cells = np.floor(vertices / cell).astype(np.int64)
    _, cluster, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    cluster = cluster.reshape(-1)
    means = np.zeros((counts.size, 3))
    np.add.at(means, cluster, vertices)
    means /= counts[:, None]
    coarse = cluster[faces]
    a, b, c = coarse.T
    coarse = coarse[(a != b) & (b != c) & (c != a)]
    # Rotated so that the smallest index leads, equal triangles of equal orientation become equal
    # rows.
    first = np.argmin(coarse, axis=1)
    turned = np.take_along_axis(coarse, (first[:, None] + np.arange(3)) % 3, axis=1)
    return means, np.unique(turned, axis=0).astype(np.int32)
