"""Examines a whole set of episodes: each by itself with `episode_checks`, then against the others.

What no single episode can tell, the set can: that two cameras, two arms or two colours changed
places in some of them, that one is there twice, that one is unlike all others.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from vla_oft_ros.aloha import ARM_DIM, ARMS
from vla_oft_ros.data.episode import Episode
from vla_oft_ros.data.episode_checks import CameraLook, EpisodeLimits, digest_of, find_problems
from vla_oft_ros.data.sources import ReadOptions, Source, read_source
from vla_oft_ros.data.verdict import Finding, Verdict, worst

THUMBNAIL_PX = (32, 24)
"""Width and height of the pictures that are compared."""
PICTURE_PX = (212, 159)
"""Width and height of the pictures that are shown."""
_MIN_SET = 4
"""Fewer episodes have no majority to be unlike of."""
_SWAPPED = 0.6
"""Things count as swapped if that explains their difference to the set to this share."""
_MIN_COLOUR = 6.0
"""Mean difference of colours, 0 … 255, below which nothing is read from them."""
_MIN_POSE_RAD = 0.1
_MIN_SWAP_RAD = 0.03
_UNUSUAL = 3.0
"""So many times the usual distance to the middle of the set."""
_FAR_OUT = 8.0
"""Median absolute deviations from the median; a normal distribution reaches 8 never."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeReport:
    """What is known about one episode after its examination.

    Attributes:
        source: Where it comes from.
        findings: What is wrong with it.
        steps: T.
        rate_hz: Steps per second.
        instruction: What was asked for.
        profile: Robot profile.
        outcome: Its label.
        notes: What its reader assumed or repaired.
        digest: Equal episodes have equal digests.
        pose: (4, 14) mean and standard deviation of qpos and action.
        largest_step_rad: Largest step of an arm joint between two actions.
        thumbnails: Camera → (3, h, w, 3) uint8 pictures: at the start, in the middle, at the end.
        mean_images: Camera → (h, w, 3) float32, mean over the episode.
        sizes: Camera → (height, width).
        qpos: (T, 14), for the plots.
        action: (T, 14), for the plots.
    """

    source: str
    findings: tuple[Finding, ...]
    steps: int
    rate_hz: float
    instruction: str
    profile: str
    outcome: str
    notes: tuple[str, ...]
    digest: str
    pose: np.ndarray
    largest_step_rad: float
    thumbnails: dict[str, np.ndarray]
    mean_images: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]
    qpos: np.ndarray = field(repr=False)
    action: np.ndarray = field(repr=False)

    @property
    def verdict(self) -> Verdict:
        """The worst of its findings."""
        return worst(self.findings)

    def with_findings(self, findings: Sequence[Finding]) -> EpisodeReport:
        """The same with more findings."""
        return replace(self, findings=(*self.findings, *findings))

    def as_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "verdict": self.verdict.name.lower(),
            "findings": [
                {"check": one.check, "verdict": one.verdict.name.lower(), "text": one.text}
                for one in self.findings
            ],
            "steps": self.steps,
            "rate_hz": self.rate_hz,
            "duration_s": self.steps / self.rate_hz,
            "instruction": self.instruction,
            "profile": self.profile,
            "outcome": self.outcome,
            "cameras": {camera: list(size) for camera, size in self.sizes.items()},
            "largest_step_rad": self.largest_step_rad,
            "notes": list(self.notes),
        }


def check_episode(episode: Episode, limits: EpisodeLimits | None = None) -> EpisodeReport:
    """Examines one episode by itself; looks at every image once.

    Args:
        episode: The episode.
        limits: What is still good.
    """
    looks: dict[str, CameraLook] = {}
    thumbnails: dict[str, np.ndarray] = {}
    mean_images: dict[str, np.ndarray] = {}
    chosen = (0, len(episode) // 2, len(episode) - 1)
    for camera, images in episode.images.items():
        digests, film = [], []
        for step in range(len(episode)):
            image = images[step]
            digests.append(digest_of(image))
            film.append(_shrunk(image, THUMBNAIL_PX))
        small = np.stack(film)  # (T, h, w, 3)
        looks[camera] = CameraLook(
            digests=np.array(digests, dtype=np.int64),
            brightness=small.mean(axis=(1, 2, 3)),
            change=np.abs(np.diff(small.astype(np.int16), axis=0)).mean(axis=(1, 2, 3)),
        )
        thumbnails[camera] = np.stack([_shrunk(images[step], PICTURE_PX) for step in chosen])
        mean_images[camera] = small.mean(axis=0, dtype=np.float32)
    steps = np.abs(np.diff(episode.action, axis=0).reshape(-1, len(ARMS), ARM_DIM)[..., :-1])
    return EpisodeReport(
        source=episode.source,
        findings=tuple(find_problems(episode, looks, limits or EpisodeLimits())),
        steps=len(episode),
        rate_hz=episode.rate_hz,
        instruction=episode.instruction,
        profile=episode.profile,
        outcome=episode.outcome,
        notes=episode.notes,
        digest=hashlib.blake2b(
            episode.qpos.tobytes() + episode.action.tobytes(), digest_size=16
        ).hexdigest(),
        pose=np.stack(
            [
                *(episode.qpos.mean(axis=0), episode.qpos.std(axis=0)),
                *(episode.action.mean(axis=0), episode.action.std(axis=0)),
            ]
        ),
        largest_step_rad=float(steps.max(initial=0.0)),
        thumbnails=thumbnails,
        mean_images=mean_images,
        sizes={camera: images[0].shape[:2] for camera, images in episode.images.items()},
        qpos=episode.qpos,
        action=episode.action,
    )


def _shrunk(image: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    return np.asarray(cv2.resize(image, size_px, interpolation=cv2.INTER_AREA))


def examine(
    sources: Sequence[Source],
    options: ReadOptions,
    *,
    workers: int = 1,
    on_one: Callable[[], None] = lambda: None,
) -> list[EpisodeReport | str]:
    """Reads and examines episodes, in parallel.

    Args:
        sources: The episodes.
        options: How they are read.
        workers: Processes.
        on_one: Called when an episode is done.

    Returns:
        A report for each, or why it cannot be read.
    """
    if workers <= 1:
        results = []
        for source in sources:
            results.append(_examine_one(source, options))
            on_one()
        return results
    # Spawned, not forked: OpenCV and HDF5 have threads that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_examine_one, source, options) for source in sources]
        for _ in as_completed(futures):
            on_one()
    return [future.result() for future in futures]


def _examine_one(source: Source, options: ReadOptions) -> EpisodeReport | str:
    try:
        return check_episode(read_source(source, options))
    except ValueError as error:
        text = str(error)
        return text if str(source.path) in text else f"{source}: {text}"


def check_set(reports: Sequence[EpisodeReport]) -> list[EpisodeReport]:
    """Compares episodes with each other; returns the reports with what that adds."""
    checks: list[Callable[[Sequence[EpisodeReport]], list[list[Finding]]]] = [
        _differences,
        _duplicates,
    ]
    if len(reports) >= _MIN_SET:
        checks += [_swapped_cameras, _swapped_colours, _swapped_arms, _outliers]
    findings: list[list[Finding]] = [[] for _ in reports]
    for check in checks:
        for mine, found in zip(findings, check(reports), strict=True):
            mine += found
    return [report.with_findings(found) for report, found in zip(reports, findings, strict=True)]


def _differences(reports: Sequence[EpisodeReport]) -> list[list[Finding]]:
    """Episodes that differ from the majority in what a set must have in common."""
    findings: list[list[Finding]] = [[] for _ in reports]
    for what, values in (
        ("rate", [f"{report.rate_hz:g} Hz" for report in reports]),
        ("profile", [report.profile or "unknown" for report in reports]),
        ("cameras", [str(report.sizes) for report in reports]),
    ):
        usual = max(dict.fromkeys(values), key=values.count)
        for mine, value in zip(findings, values, strict=True):
            if value != usual:
                text = f"{what}: {value}, most of the set has {usual}"
                mine.append(Finding(Verdict.BAD, text, f"mixed {what}"))
    return findings


def _duplicates(reports: Sequence[EpisodeReport]) -> list[list[Finding]]:
    first: dict[str, str] = {}
    findings: list[list[Finding]] = []
    for report in reports:
        original = first.setdefault(report.digest, report.source)
        text = f"the same numbers as {original}"
        is_copy = original != report.source
        findings.append([Finding(Verdict.BAD, text, "copy")] if is_copy else [])
    return findings


def _usual_images(reports: Sequence[EpisodeReport]) -> dict[str, np.ndarray]:
    """Camera → median over the set of the mean images."""
    cameras = set.intersection(*(set(report.mean_images) for report in reports))
    return {
        camera: np.median([report.mean_images[camera] for report in reports], axis=0)
        for camera in sorted(cameras)
    }


def _swapped_cameras(reports: Sequence[EpisodeReport]) -> list[list[Finding]]:
    usual = _usual_images(reports)
    findings: list[list[Finding]] = []
    for report in reports:
        mine: list[Finding] = []
        cameras = list(usual)
        for place, one in enumerate(cameras):
            for other in cameras[place + 1 :]:
                images = report.mean_images
                straight = _distance(images[one], usual[one])
                straight += _distance(images[other], usual[other])
                crossed = _distance(images[one], usual[other])
                crossed += _distance(images[other], usual[one])
                if straight > 2 * _MIN_COLOUR and crossed < _SWAPPED * straight:
                    text = f"{one} and {other} look as if they had changed places"
                    mine.append(Finding(Verdict.BAD, text, "swapped cameras"))
        findings.append(mine)
    return findings


def _swapped_colours(reports: Sequence[EpisodeReport]) -> list[list[Finding]]:
    usual = _usual_images(reports)
    findings: list[list[Finding]] = []
    for report in reports:
        straight = sum(_distance(report.mean_images[c], usual[c]) for c in usual)
        crossed = sum(_distance(report.mean_images[c][..., ::-1], usual[c]) for c in usual)
        is_swapped = straight > len(usual) * _MIN_COLOUR and crossed < _SWAPPED * straight
        text = "red and blue look as if they had changed places: rgb and bgr are mixed"
        findings.append([Finding(Verdict.BAD, text, "colour order")] if is_swapped else [])
    return findings


def _distance(image: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(image - other).mean())


def _swapped_arms(reports: Sequence[EpisodeReport]) -> list[list[Finding]]:
    usual = np.median([report.pose for report in reports], axis=0)
    spread = float(np.median([_distance(report.pose, usual) for report in reports]))
    least_rad = max(_UNUSUAL * spread, _MIN_SWAP_RAD)
    findings: list[list[Finding]] = []
    for report in reports:
        swapped = np.concatenate([report.pose[:, ARM_DIM:], report.pose[:, :ARM_DIM]], axis=1)
        straight, crossed = _distance(report.pose, usual), _distance(swapped, usual)
        is_swapped = straight > least_rad and crossed < _SWAPPED * straight
        text = "left and right arm move as if they had changed places"
        findings.append([Finding(Verdict.BAD, text, "swapped arms")] if is_swapped else [])
    return findings


def _outliers(reports: Sequence[EpisodeReport]) -> list[list[Finding]]:
    findings: list[list[Finding]] = [[] for _ in reports]
    usual = np.median([report.pose for report in reports], axis=0)
    for what, unit, values, least in (
        ("length", "s", [report.steps / report.rate_hz for report in reports], 1.0),
        ("largest step", "rad", [report.largest_step_rad for report in reports], 0.05),
        ("way of moving", "rad", [_distance(r.pose, usual) for r in reports], _MIN_POSE_RAD),
    ):
        middle = float(np.median(values))
        spread = max(float(np.median(np.abs(np.array(values) - middle))), least / _FAR_OUT)
        for mine, value in zip(findings, values, strict=True):
            if abs(value - middle) > _FAR_OUT * spread:
                text = f"{what}: {value:.2f} {unit}, the middle of the set is {middle:.2f} {unit}"
                mine.append(Finding(Verdict.SUSPECT, text, "outlier"))
    return findings
