"""The doctor lets a good demonstration pass and names each thing that can be wrong with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from vla_oft_ros.aloha import CAMERAS, start_pose
from vla_oft_ros.data.doctor import check_episode, check_set
from vla_oft_ros.data.doctor_report import draw_episode, write_report
from vla_oft_ros.data.episode import Episode
from vla_oft_ros.data.verdict import Verdict

SIZE = (24, 32)


def good(seed: int = 0, steps: int = 150) -> Episode:
    """A demonstration without fault: left and right arm move at different times, and so do the
    images of their wrist cameras; each camera has colours of its own.
    """
    rng = np.random.default_rng(seed)
    time_s = np.arange(steps) / 25.0
    left = 0.3 * np.sin(2.0 * time_s + rng.uniform(0, 0.2)) * (time_s < 3.0)
    right = 0.3 * np.sin(2.0 * time_s + rng.uniform(0, 0.2)) * (time_s >= 2.6)
    action = np.tile(start_pose(0.5), (steps, 1))
    action[:, :6] += left[:, None] - left[0]
    action[:, 7:13] += right[:, None] * 0.8 + 0.15
    action += rng.normal(0, 1e-4, action.shape)
    kernel = np.ones(4) / 4.0  # the followers lag, and are smoother
    padded = np.concatenate([np.repeat(action[:1], 3, axis=0), action])
    qpos = np.stack([np.convolve(padded[:, d], kernel, "valid") for d in range(14)], axis=1)
    images = {}
    bases = ((150, 90, 50), (60, 140, 40), (50, 60, 150))
    offsets = (np.arange(steps) * 0.3, 60 * left, 60 * right)
    for camera, base, offset in zip(CAMERAS, bases, offsets, strict=True):
        columns = np.arange(SIZE[1])[None, None, :] + offset[:, None, None]
        pattern = 25 * np.sin(0.8 * columns) * np.ones((1, SIZE[0], 1))
        film = np.array(base)[None, None, None] + pattern[..., None]
        film = film + rng.normal(0, 1.0, film.shape)
        images[camera] = np.clip(film, 0, 255).astype(np.uint8)
    stamps = 10**9 + np.arange(steps) * 40_000_000
    return Episode(
        images=images,
        qpos=qpos,
        action=action,
        stamps_ns=stamps,
        image_stamps_ns={camera: stamps - 10_000_000 * i for i, camera in enumerate(CAMERAS)},
        rate_hz=25.0,
        instruction="hand over",
        profile="sim",
        color_order="rgb",
        source=f"episode {seed}",
    )


def test_a_good_demonstration_has_no_findings() -> None:
    report = check_episode(good())
    assert report.findings == () and report.verdict is Verdict.GOOD


def images_of(episode: Episode, change: Callable[[dict[str, np.ndarray]], None]) -> Episode:
    images = {camera: np.array(film) for camera, film in episode.images.items()}
    change(images)
    return replace(episode, images=images)


def freeze(images: dict[str, np.ndarray]) -> None:
    images["cam_high"][40:60] = images["cam_high"][40]


def repeat(images: dict[str, np.ndarray]) -> None:
    images["cam_high"][1::2] = images["cam_high"][0:-1:2]


def darken(images: dict[str, np.ndarray]) -> None:
    images["cam_left_wrist"][100:] = 2


def swap_wrists(images: dict[str, np.ndarray]) -> None:
    left, right = "cam_left_wrist", "cam_right_wrist"
    images[left], images[right] = images[right], images[left]


def swap_colours(images: dict[str, np.ndarray]) -> None:
    for camera in images:
        images[camera] = images[camera][..., ::-1].copy()


def halves_swapped(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[:, 7:], values[:, :7]], axis=1)


def changed(name: str, change: Callable[[np.ndarray], object]) -> Episode:
    episode = good()
    values = np.array(getattr(episode, name))
    change(values)
    return replace(episode, **{name: values})


def at(place: tuple[slice | int, ...], value: float) -> Callable[[np.ndarray], object]:
    return lambda values: values.__setitem__(place, value)


def late_camera() -> Episode:
    episode = good()
    stamps = {camera: np.array(s) for camera, s in (episode.image_stamps_ns or {}).items()}
    stamps["cam_high"] += 90_000_000
    return replace(episode, image_stamps_ns=stamps)


def paused_camera() -> Episode:
    episode = good()
    stamps = {camera: np.array(s) for camera, s in (episode.image_stamps_ns or {}).items()}
    stamps["cam_high"][50:58] = stamps["cam_high"][50]
    return replace(episode, image_stamps_ns=stamps)


def with_rest(head: int, tail: int) -> Episode:
    episode = good()
    steps = [0] * head + list(range(150)) + [149] * tail
    index = np.array(steps)
    stamps = 10**9 + np.arange(len(steps)) * 40_000_000
    return replace(
        episode,
        images={camera: np.asarray(film)[index] for camera, film in episode.images.items()},
        qpos=episode.qpos[index],
        action=episode.action[index],
        stamps_ns=stamps,
        image_stamps_ns=None,
    )


@pytest.mark.parametrize(
    ("make", "check", "verdict"),
    [
        (lambda: images_of(good(), freeze), "frozen", Verdict.BAD),
        (lambda: images_of(good(), repeat), "duplicate", Verdict.SUSPECT),
        (lambda: images_of(good(), darken), "dark", Verdict.BAD),
        (lambda: images_of(good(), swap_wrists), "swapped sides", Verdict.SUSPECT),
        (lambda: replace(good(), action=halves_swapped(good().action)), *("swapped arms", 3)),
        (lambda: changed("qpos", at((slice(None), 6), 60.0)), "branch 2.0", Verdict.BAD),
        (lambda: changed("qpos", at((slice(None), 13), 1.3)), "gripper", Verdict.SUSPECT),
        (lambda: changed("action", at((slice(20), 1), -2.0)), "limits", Verdict.SUSPECT),
        (lambda: changed("action", at((70, 3), 1.0)), "jump", Verdict.SUSPECT),
        (lambda: changed("stamps_ns", lambda s: s.__iadd__(10**9 * (s > s[70]))), "gap", 3),
        (late_camera, "skew", Verdict.SUSPECT),
        (paused_camera, "gap", Verdict.BAD),
        (lambda: with_rest(50, 0), "rest", Verdict.SUSPECT),
        (lambda: with_rest(0, 50), "rest", Verdict.SUSPECT),
        (lambda: changed("qpos", at((slice(None),), 0.2)), "rest", Verdict.BAD),
        (lambda: good(steps=150).taken(range(30)), "length", Verdict.SUSPECT),
        (lambda: replace(good(), instruction=""), "instruction", Verdict.SUSPECT),
        (lambda: replace(good(), color_order="unknown"), "colour order", Verdict.SUSPECT),
        (lambda: good().noted("damaged: cut off"), "damaged", Verdict.SUSPECT),
    ],
)
def test_each_fault_is_named(make: Callable[[], Episode], check: str, verdict: int) -> None:
    report = check_episode(make())
    found = {finding.check: finding.verdict for finding in report.findings}
    assert found.get(check) == verdict, report.findings
    assert report.verdict >= verdict


def test_a_pause_in_the_middle_is_named() -> None:
    episode = good()
    index = np.array([*range(70), *[70] * 90, *range(71, 150)])
    paused = replace(
        episode,
        images={camera: np.asarray(film)[index] for camera, film in episode.images.items()},
        qpos=episode.qpos[index],
        action=episode.action[index],
        stamps_ns=10**9 + np.arange(len(index)) * 40_000_000,
        image_stamps_ns=None,
    )
    report = check_episode(paused)
    assert "pause" in {finding.check for finding in report.findings}
    # Nothing moved meanwhile, so the pictures that did not change are no fault of the camera.
    assert "frozen" not in {finding.check for finding in report.findings}


@pytest.fixture(scope="module")
def reports() -> list[object]:
    return [check_episode(good(seed)) for seed in range(6)]


def test_a_good_set_has_no_findings(reports: list) -> None:
    assert [report.findings for report in check_set(reports)] == [()] * 6


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (lambda: images_of(good(7), swap_wrists), "swapped cameras"),
        (lambda: images_of(good(7), swap_colours), "colour order"),
        (
            lambda: replace(
                good(7),
                qpos=halves_swapped(good(7).qpos),
                action=halves_swapped(good(7).action),
            ),
            "swapped arms",
        ),
        (
            lambda: replace(
                good(7),
                source="elsewhere",
                images=good(3).images,
                qpos=good(3).qpos,
                action=good(3).action,
            ),
            "copy",
        ),
        (lambda: good(7, steps=600), "outlier"),
        (lambda: good(7).resampled(12.5), "mixed rate"),
        (lambda: replace(good(7), profile="aloha1"), "mixed profile"),
    ],
)
def test_an_episode_unlike_the_set_is_named_and_no_other(
    reports: list, make: Callable[[], Episode], check: str
) -> None:
    *others, odd = check_set([*reports, check_episode(make())])
    assert check in {finding.check for finding in odd.findings}, odd.findings
    assert all(report.findings == () for report in others)


def test_the_report_says_what_was_found_in_json_and_pictures(
    tmp_path: Path, reports: list
) -> None:
    bad = check_episode(images_of(good(9), darken))
    path = write_report(tmp_path, [*reports[:2], bad], ["x: unreadable"])
    content = json.loads(path.read_text())
    assert content["verdicts"] == {"unknown": 0, "good": 2, "suspect": 0, "bad": 1}
    assert content["unreadable"] == ["x: unreadable"]
    entry = content["episodes"][2]
    assert entry["verdict"] == "bad"
    assert "dark" in {finding["check"] for finding in entry["findings"]}
    for place in range(3):
        picture = cv2.imread(str(tmp_path / content["episodes"][place]["picture"]))
        assert picture is not None and picture.shape[1] == 1280
    assert not np.array_equal(draw_episode(bad), draw_episode(reports[0]))
