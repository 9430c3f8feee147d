"""The pictures of the pages: all there, small, shown, and drawn where things are."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.config import TokenViewerConfig
from vla_oft_ros.types import KeptBy

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures"
LARGEST_BYTES = 300_000
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.fixture
def make_pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The tool that takes them."""
    for name in ("mujoco", "torch", "rclpy", "h5py"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_pictures

    yield make_pictures
    for name in ("make_pictures", "live_run"):
        sys.modules.pop(name, None)


def shown() -> set[Path]:
    """Every picture that some page shows."""
    return {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }


def test_every_picture_is_small_and_shown_on_a_page_with_words_for_who_cannot_see_it() -> None:
    there = set(PICTURES.iterdir())
    assert there == {path for path in shown() if path.parent == PICTURES}
    assert {path.name for path in there if path.stat().st_size > LARGEST_BYTES} == set()


def test_the_first_page_shows_a_picture() -> None:
    first = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGES[0].read_text(encoding="utf-8"))
    assert any((ROOT / target).parent == PICTURES for target in first)


def test_drawn_text_needs_nothing_from_elsewhere() -> None:
    for path in PICTURES.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        elsewhere = set(re.findall(r"https?://[^\"' )]+", text))
        assert elsewhere <= {"http://www.w3.org/2000/svg"}
        clips = set(re.findall(r"url\(#([^)]+)\)", text))
        assert clips <= set(re.findall(r'id="([^"]+)"', text)), "a line would not be seen"


def test_the_page_on_looking_names_every_topic_of_the_viewer_and_every_reason() -> None:
    page = (DOCS / "live_view.md").read_text(encoding="utf-8")
    heard = {"chunk_topic", "retained_tokens_topic", "pruning_status_topic", "target_topic"}
    for item in fields(TokenViewerConfig):
        if item.name.endswith("_topic") and item.name not in {*heard, "safety_topic"}:
            assert f"`{item.default}" in page, item.name
    for reason in KeptBy:
        assert f"| {str(reason.name).lower()} |" in page


@pytest.mark.sim
def test_a_point_of_the_world_is_drawn_where_the_camera_sees_it(
    make_pictures: ModuleType,
) -> None:
    from vla_oft_ros.aloha import load_profile
    from vla_oft_ros.sim.aloha_world import AlohaWorld

    camera = make_pictures.SCENE_CAMERA
    world = AlohaWorld(load_profile("sim").gripper, width_px=320, height_px=240)
    cube = world.cube_pose("red_box")[:3]
    there = make_pictures.project(cube[None], world.camera_pose(camera), world.intrinsics(camera))
    red, green, blue = np.moveaxis(world.images([camera])[camera].astype(int), -1, 0)
    world.close()
    rows, columns = np.nonzero((red > 120) & (green < 80) & (blue < 80))
    assert rows.size > 10
    np.testing.assert_allclose(there[0], [columns.mean(), rows.mean()], atol=1.5)


@pytest.mark.sim
def test_the_moment_with_the_longest_plan_within_the_picture_is_shown(
    make_pictures: ModuleType,
) -> None:
    from live_run import Scene

    def scene(end: tuple[float, float, float]) -> Scene:
        start = np.array([0.0, 0.5, 0.2])
        path = np.linspace(start, end, 25)
        return Scene({}, {"left": path, "right": path[:1]}, "", np.zeros(14), {})

    view = make_pictures.SceneView()
    short, long, away = (scene((x, 0.5, 0.2)) for x in (0.1, 0.2, 3.0))
    assert 0 < view.worth(short) < view.worth(long)
    assert view.worth(long) == pytest.approx(0.2)
    assert view.worth(away) == 0.0
    view.close()


def test_a_picture_that_cannot_be_small_is_refused(make_pictures: ModuleType) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
    with pytest.raises(RuntimeError, match="does not fit"):
        make_pictures.encoded(noise)
    assert len(make_pictures.encoded(noise[:300, :300])) <= LARGEST_BYTES


def test_a_command_that_goes_wrong_is_not_shown_as_a_picture(
    make_pictures: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "episode_000000").mkdir()
    (tmp_path / "episode_000000" / "episode_000000_0.mcap").write_bytes(b"torn")
    torn = str(tmp_path / "episode_000000")
    with pytest.raises(RuntimeError, match="cannot be read"):
        make_pictures.tell("inspect", torn)
    assert "cannot" in make_pictures.tell("inspect", torn, worst=1)


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(1800)
def test_the_pictures_are_taken_from_a_live_run(
    make_pictures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    taken = make_pictures.take("random", tmp_path, seconds=6.0, seed=0)
    assert set(taken) == {path.name for path in PICTURES.iterdir()}
    assert len(CAMERAS) == 3 and max(map(len, taken.values())) <= LARGEST_BYTES
