"""Takes the pictures of docs/pictures/ from a live simulated run: `make pictures`.

    python3 tools/ros_env.py python tools/make_pictures.py --checkpoint DIR

Simulation, policy, controller and viewer run as processes, without a display. The overlays and the
planned paths are what token_viewer_node published; a take of the scripted operator is recorded for
the doctor. The handover shows the policy if it did the task, else the scripted operator; its title
says which.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
from live_run import Moment, Run, Scene, watch
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from vla_oft_ros.aloha import ARM_DIM, ARMS, CAMERAS, load_profile
from vla_oft_ros.cli import build_parser
from vla_oft_ros.data.hdf5 import write_hdf5
from vla_oft_ros.data.sources import ReadOptions, find_sources, read_source
from vla_oft_ros.overlay_caption import with_title
from vla_oft_ros.shipped_policies import DEMO_POLICY, checkpoint_path
from vla_oft_ros.sim.aloha_world import AlohaWorld
from vla_oft_ros.sim.contact_sheet import contact_sheet

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
LARGEST_BYTES = 300_000
RANDOM = "random"
SCENE_CAMERA = "angle"
"""A camera of gym-aloha's scene that looks at both arms from the front."""
SCENE_PX, SUPERSAMPLED = (960, 720), 2
SCENE_ROWS = slice(60, 640)
"""Without the wall above and the floor below."""
PLAN_RGB = {"left": (255, 140, 26), "right": (26, 190, 255)}
"""As the markers of `viewer_markers`."""
MOMENTS = 5
FROZEN_S = 1.2
BORDER_PX = 25
_GAP_PX = 6
_INK = (20, 20, 20)
_SVG = """\
<svg viewBox="0 0 {terminal_width} {terminal_height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; \
line-height: {line_height}px; }}
{styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" \
width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
<rect width="{terminal_width}" height="{terminal_height}" fill="#fdfdfd"/>
<g clip-path="url(#{unique_id}-clip-terminal)" transform="translate(14 4) scale(0.97)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""
"""Terminal text without a window around it, in a font that needs no download."""
_PAPER = TerminalTheme(
    (253, 253, 253),
    _INK,
    [
        *((20, 20, 20), (190, 30, 30), (20, 125, 45), (170, 105, 0)),
        *((30, 80, 190), (140, 50, 150), (0, 120, 130), (110, 110, 110)),
    ],
)


def project(points_m: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Where points of the world are in a camera's image.

    Args:
        points_m: (N, 3) in the frame of the world, before the camera.
        pose: (4, 4) pose of the camera's optical frame in the world.
        intrinsics: (3, 3) pinhole matrix.

    Returns:
        (N, 2) pixels, x to the right and y down.
    """
    seen = (points_m - pose[:3, 3]) @ pose[:3, :3] @ intrinsics.T  # (N, 3)
    return np.asarray(seen[:, :2] / seen[:, 2:])


def draw_path(image: np.ndarray, pixels: np.ndarray, rgb: Sequence[int], width: int) -> None:
    """Draws a planned path in place: a line, and a dot per control step, the first one largest."""
    places = [(round(float(x)), round(float(y))) for x, y in pixels]
    for thick, color in ((2 * width, _INK), (width, rgb)):
        line = np.array(places, np.int32)
        cv2.polylines(image, [line], False, color, thick, cv2.LINE_AA)
    for place in reversed(places):
        radius = width * 2 if place == places[0] else round(width * 1.2)
        cv2.circle(image, place, radius, rgb, -1, cv2.LINE_AA)
        cv2.circle(image, place, radius, _INK, max(width // 3, 1), cv2.LINE_AA)


class SceneView:
    """Draws the simulated robot as it stood, with the path that each gripper shall take."""

    def __init__(self) -> None:
        width, height = (side * SUPERSAMPLED for side in SCENE_PX)
        self._world = AlohaWorld(load_profile("sim").gripper, width_px=width, height_px=height)
        self._pose = self._world.camera_pose(SCENE_CAMERA)
        self._intrinsics = self._world.intrinsics(SCENE_CAMERA)

    def worth(self, scene: Scene) -> float:
        """Length of the planned paths, m; nothing if they leave the picture."""
        for path in scene.paths.values():
            across, down = self._pixels(path).T / SUPERSAMPLED
            inside = (across > BORDER_PX) & (across < SCENE_PX[0] - BORDER_PX)
            inside &= (down > SCENE_ROWS.start + BORDER_PX) & (down < SCENE_ROWS.stop - BORDER_PX)
            if not inside.all():
                return 0.0
        return scene.way_m

    def picture(self, scene: Scene) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        self._world.reset(cube_poses=scene.cubes)
        for index, arm in enumerate(ARMS):
            start = index * ARM_DIM
            self._world.place_arm(arm, scene.qpos[start : start + ARM_DIM - 1])
        image = self._world.images([SCENE_CAMERA])[SCENE_CAMERA]
        for arm, path in scene.paths.items():
            draw_path(image, self._pixels(path), PLAN_RGB[arm], 3 * SUPERSAMPLED)
        picture = cv2.resize(image, SCENE_PX, interpolation=cv2.INTER_AREA)[SCENE_ROWS]
        return with_title(picture, "   ".join(scene.status.splitlines()))

    def close(self) -> None:
        """Frees what drawing has taken."""
        self._world.close()

    def _pixels(self, path: np.ndarray) -> np.ndarray:
        return project(path, self._pose, self._intrinsics)


def overlay_picture(overlays: Moment) -> np.ndarray:
    """The three overlays side by side, at three quarters of their size."""
    tiles = [
        cv2.resize(overlays[camera], None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
        for camera in CAMERAS
    ]
    gap = np.full((tiles[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    return np.hstack([tiles[0], gap, tiles[1], gap, tiles[2]])


def handover_picture(moments: Sequence[Moment], title: str) -> np.ndarray:
    """Some moments, evenly spaced, with a line above."""
    places = np.linspace(0, len(moments) - 1, MOMENTS).round().astype(int)
    return with_title(contact_sheet([moments[place] for place in places]), title)


def tell(*arguments: str, worst: int = 0) -> str:
    """What a command of `vla_oft` prints, as a picture of the terminal.

    Args:
        arguments: Of the command line.
        worst: Highest exit code that is meant.

    Raises:
        RuntimeError: if it ends with a higher one.
    """
    parsed = build_parser().parse_args(arguments)
    console = Console(record=True, file=StringIO(), width=96, highlight=False)
    console.print(f"[bold]$ vla_oft {' '.join(arguments)}[/]", soft_wrap=True)
    if parsed.run(parsed, console) > worst:
        raise RuntimeError(console.export_text())
    drawn = console.export_svg(theme=_PAPER, code_format=_SVG, unique_id="vla_oft")
    # rich clips its last line by a path that it does not define.
    paths = set(re.findall(r'clipPath id="([^"]+)"', drawn))
    return re.sub(
        r' clip-path="url\(#([^)]+)\)"', lambda found: found[0] if found[1] in paths else "", drawn
    )


def scripted_moments(recordings: Path) -> list[Moment]:
    """What the cameras saw in a recorded take, five times a second."""
    episode = read_source(find_sources([recordings])[0], ReadOptions())
    step = max(round(episode.rate_hz / 5), 1)
    return [
        {camera: episode.images[camera][place] for camera in CAMERAS}
        for place in range(0, len(episode), step)
    ]


def spoil(recordings: Path, copy: Path) -> None:
    """Writes a copy of a take in which the camera above stands still for a while."""
    episode = read_source(find_sources([recordings])[0], ReadOptions())
    images = {camera: np.stack(list(episode.images[camera])) for camera in CAMERAS}
    first, steps = len(episode) // 3, round(FROZEN_S * episode.rate_hz)
    images[CAMERAS[0]][first : first + steps] = images[CAMERAS[0]][first]
    write_hdf5(replace(episode, images=images), copy, compress=True)


def take(
    checkpoint: str, folder: Path, *, seconds: float, seed: int, recordings: Path | None = None
) -> dict[str, bytes]:
    """Takes all pictures.

    Args:
        checkpoint: As for `vla_oft demo`.
        folder: For logs, recordings and a random policy.
        seconds: Simulated time of the live run.
        seed: Of the objects' poses.
        recordings: Folder of two bags of the scripted operator; None records them.

    Returns:
        File name → content.
    """
    view = SceneView()
    directory = _policy(checkpoint, folder, seed)
    console = Console(highlight=False)
    console.print(f"Watching the policy for up to {seconds:g} s of simulated time")
    run = watch(directory, folder, seconds=seconds, seed=seed, worth=view.worth)
    os.chdir(folder)  # so that the commands show short paths
    if recordings is None:
        console.print(f"{run.summary}; recording two takes of the scripted operator")
        tell("record-demo", "--episodes", "2", "--seed", str(seed), "--output", "recorded")
        recordings = folder / "recorded"
    takes = folder / "takes"
    takes.mkdir()
    spoil(recordings / "episode_000001", takes / "frozen.hdf5")
    first = takes / "episode_000000"
    first.symlink_to(recordings / first.name)
    doctor = tell("doctor", "takes", "--output", "report", "--workers", "1", worst=1)
    plan = view.picture(run.scene)
    view.close()
    return {
        "overlays.jpg": encoded(overlay_picture(run.scene.overlays)),
        "plan.jpg": encoded(plan),
        "doctor.svg": doctor.encode(),
        "doctor_episode.jpg": encoded(_read(folder / "report" / "episode_0000.png")),
        "handover.jpg": encoded(_handover(run, checkpoint, first)),
    }


def encoded(picture: np.ndarray) -> bytes:
    """JPEG of an (H, W, 3) uint8 RGB picture, small enough for a repository.

    Raises:
        RuntimeError: if it cannot be.
    """
    for quality in (92, 85, 75, 60):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
        done, data = cv2.imencode(".jpg", picture[..., ::-1], options)
        if done and data.size <= LARGEST_BYTES:
            return bytes(data.tobytes())
    raise RuntimeError(f"a {picture.shape} picture does not fit into {LARGEST_BYTES} bytes")


def _handover(run: Run, checkpoint: str, recordings: Path) -> np.ndarray:
    if run.handover:
        who, moments = f"policy {Path(checkpoint).name}", run.handover
    else:
        who, moments = "scripted operator", scripted_moments(recordings)
    seconds = (len(moments) - 1) / 5
    return handover_picture(moments, f'{who}: "{run.instruction}", 0 to {seconds:.1f} s')


def _policy(checkpoint: str, folder: Path, seed: int) -> Path:
    if checkpoint != RANDOM:
        return checkpoint_path(checkpoint).resolve()
    from vla_oft_ros.model.small_checkpoint import make_random_checkpoint

    make_random_checkpoint(folder / RANDOM, seed=seed)
    return folder / RANDOM


def _read(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None, path
    return np.asarray(picture[..., ::-1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--checkpoint", default=DEMO_POLICY, help="as for `vla_oft demo` (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="simulated time to watch")
    parser.add_argument("--seed", type=int, default=10_000, help="of cube pose and random policy")
    parser.add_argument(
        "--recordings",
        type=Path,
        help="two takes of `vla_oft record-demo` to examine (default: recorded for it)",
    )
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder to write")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    with tempfile.TemporaryDirectory(prefix="pictures_") as folder:
        here = Path.cwd()
        pictures: Mapping[str, bytes] = take(
            arguments.checkpoint,
            Path(folder),
            seconds=arguments.seconds,
            seed=arguments.seed,
            recordings=arguments.recordings and arguments.recordings.resolve(),
        )
        os.chdir(here)
    output.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    for name, content in pictures.items():
        (output / name).write_bytes(content)
        console.print(f"{output / name}  {len(content) / 1000:.0f} kB", soft_wrap=True)


if __name__ == "__main__":
    main()
