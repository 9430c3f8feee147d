"""What the doctor found, as JSON and as pictures; pictures are drawn with OpenCV alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vla_oft_ros.aloha import ACTION_NAMES, ARM_DIM, ARM_JOINTS, ARMS, GRIPPERS
from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.doctor import EpisodeReport
from vla_oft_ros.data.verdict import Verdict

REPORT_FILE = "doctor.json"
_COLOURS = {
    Verdict.UNKNOWN: (128, 128, 128),
    Verdict.GOOD: (40, 150, 60),
    Verdict.SUSPECT: (220, 150, 0),
    Verdict.BAD: (210, 40, 40),
}
_JOINT_COLOURS = (
    *((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)),
    *((140, 86, 75), (0, 0, 0)),
)
_PANEL_PX = (640, 160)
_LINE_PX = 18


def write_report(
    directory: Path, reports: Sequence[EpisodeReport], unreadable: Sequence[str] = ()
) -> Path:
    """Writes `doctor.json` and one picture per episode.

    Args:
        directory: Folder to write.
        reports: What was found.
        unreadable: Why other episodes could not be read.

    Returns:
        Path of the JSON file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    for place, report in enumerate(reports):
        picture = f"episode_{place:04d}.png"
        image = draw_episode(report)
        done, data = cv2.imencode(".png", image[..., ::-1])
        if not done:
            raise ValueError(f"{picture}: OpenCV cannot encode a {image.shape} picture")
        with new_file(directory / picture) as part:
            part.write_bytes(data.tobytes())
        entries.append({**report.as_mapping(), "picture": picture})
    counts = {
        verdict.name.lower(): sum(report.verdict is verdict for report in reports)
        for verdict in Verdict
    }
    path = directory / REPORT_FILE
    with new_file(path) as part:
        content = {"episodes": entries, "verdicts": counts, "unreadable": list(unreadable)}
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def draw_episode(report: EpisodeReport) -> np.ndarray:
    """One episode at a glance: pictures at start, middle and end of each camera, joints and
    grippers of both arms (actions thick, states thin, colours by joint), and what is wrong.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    width = 2 * _PANEL_PX[0]
    rows = [_headline(report, width)]
    pictures = []
    for camera, frames in report.thumbnails.items():
        strip = np.hstack(list(frames))  # (h, 3 · w, 3)
        _write(strip, camera, (6, 16), (255, 255, 255))
        pictures.append(strip)
    if pictures:
        pictures.append(_legend(*pictures[0].shape[:2]))
    for first in range(0, len(pictures), 2):
        rows.append(_filled(np.hstack(pictures[first : first + 2]), width))
    panels = []
    for place, arm in enumerate(ARMS):
        joints = range(place * ARM_DIM, (place + 1) * ARM_DIM - 1)
        panels.append(_curves(report, joints, f"{arm} arm, rad"))
    rows.append(np.hstack(panels))
    rows.append(np.hstack([_curves(report, [place], ACTION_NAMES[place]) for place in GRIPPERS]))
    return np.vstack(rows)


def _headline(report: EpisodeReport, width: int) -> np.ndarray:
    lines = [
        f"{report.verdict.name}  {Path(report.source).name}  {report.steps} steps at "
        f"{report.rate_hz:g} Hz  {report.instruction}",
        *(f"- {finding.text}" for finding in report.findings),
    ]
    image = np.full((_LINE_PX * len(lines) + 8, width, 3), 255, dtype=np.uint8)
    for place, line in enumerate(lines):
        colour = _COLOURS[report.verdict] if place == 0 else (40, 40, 40)
        _write(image, line, (6, _LINE_PX * (place + 1)), colour)
    return image


def _write(
    image: np.ndarray, text: str, corner: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's fonts know no other letters
    cv2.putText(image, plain, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)


def _legend(height: int, width: int) -> np.ndarray:
    """What the curves mean, as large as a camera's pictures."""
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    for place, (name, colour) in enumerate(zip(ARM_JOINTS, _JOINT_COLOURS, strict=False)):
        down = 8 + _LINE_PX * (place + 1)
        cv2.line(image, (16, down - 5), (40, down - 5), colour, 2, cv2.LINE_AA)
        _write(image, name, (50, down), (40, 40, 40))
    for place, (text, thickness) in enumerate((("action", 2), ("measured", 1))):
        down = 8 + _LINE_PX * (place + 1)
        cv2.line(image, (216, down - 5), (240, down - 5), (40, 40, 40), thickness, cv2.LINE_AA)
        _write(image, text, (250, down), (40, 40, 40))
    return image


def _filled(image: np.ndarray, width: int) -> np.ndarray:
    image = image[:, :width]
    return np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=255)


def _curves(report: EpisodeReport, dimensions: Sequence[int], title: str) -> np.ndarray:
    width, height = _PANEL_PX
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    values = np.concatenate([report.action[:, dimensions], report.qpos[:, dimensions]])
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-3)
    across = np.linspace(4, width - 5, report.steps)
    for place, dimension in enumerate(dimensions):
        colour = _JOINT_COLOURS[place]
        for series, thickness in ((report.action, 2), (report.qpos, 1)):
            down = height - 8 - (series[:, dimension] - low) / span * (height - 32)
            points = np.stack([across, down], axis=1).round().astype(np.int32)
            cv2.polylines(image, [points], False, colour, thickness, cv2.LINE_AA)
    _write(image, f"{title}  {low:.2f} .. {high:.2f}", (6, 14), (40, 40, 40))
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), (200, 200, 200), 1)
    return image
