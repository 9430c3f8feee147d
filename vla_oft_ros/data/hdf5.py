"""ALOHA HDF5 files: one episode per file, as ACT, openvla-oft and openpi read them.

Raw images or JPEG rows padded with zeros (Interbotix), and openvla-oft's preprocessed form with
256x256 images. Every dialect in circulation can be read; what a file does not say is noted, what
cannot be right is refused. Sources: tonyzhaozh/aloha record_episodes.py, Interbotix/aloha,
moojink/openvla-oft preprocess_split_aloha_data.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from vla_oft_ros.aloha import (
    ACTION_DIM,
    ARM_DIM,
    CAMERAS,
    GRIPPERS,
    GripperCalibration,
    load_profile,
)
from vla_oft_ros.data.atomic import new_file
from vla_oft_ros.data.episode import RGB, UNKNOWN, Episode, EpisodeError, LazyImages
from vla_oft_ros.data.optional import require
from vla_oft_ros.image_decoding import ImageError, decode_compressed
from vla_oft_ros.model.image_ops import resize_bicubic
from vla_oft_ros.recording_traps import recording_problems

JPEG_QUALITY = 90
"""Interbotix records at 50; its artefacts are visible to a policy."""
PREPROCESSED_PX = 256
"""Side of openvla-oft's preprocessed images."""
UNKNOWN_RATE_HZ = 50.0
"""What ALOHA's own recorders run at; they do not write it down."""
FROM_2_0 = "interbotix_2_0"
_MAX_BYTES = 2**28
"""Of one image, or of one vector over a whole episode: 2**28 bytes are 14 joints for 13 hours."""
_MAX_ENTRIES = 1000
"""Groups and data sets of an episode; recordings have about 20."""
_NOT_ALOHA = (LookupError, TypeError, AttributeError, RuntimeError, OSError, OverflowError)
"""What h5py and numpy make of a file with other things in it."""
_CAMERA_ALIASES = {
    "camera_high": "cam_high",
    "camera_wrist_left": "cam_left_wrist",
    "camera_wrist_right": "cam_right_wrist",
    "camera_low": "cam_low",
}
"""Names of Interbotix' branch 2.0."""
_FINGER_SPAN_2_0 = (0.0440, 0.0579)
"""Metres that branch 2.0 normalises servo angles with (Interbotix/aloha#20)."""


@dataclass(frozen=True, kw_only=True)
class Hdf5Options:
    """How a file is read where it does not say so itself.

    Attributes:
        instruction: What was asked for; empty takes the file's.
        profile: Robot profile; empty takes the file's.
        rate_hz: Steps per second; 0 takes the file's, or ALOHA's usual 50 with a note.
        color_order: "rgb" or "bgr"; empty takes the file's, or rgb with a note.
        on_2_0: What to do with data of Interbotix' branch 2.0: "refuse" or "repair".
    """

    instruction: str = ""
    profile: str = ""
    rate_hz: float = 0.0
    color_order: str = ""
    on_2_0: str = "refuse"


def write_hdf5(
    episode: Episode, path: Path, *, compress: bool = False, preprocessed: bool = False
) -> None:
    """Writes one episode; whole or not at all.

    Args:
        episode: What to write. Vectors are stored as float32, as ALOHA does.
        path: File to write; replaced if it exists.
        compress: JPEG rows with `compress_len`, as Interbotix writes them.
        preprocessed: openvla-oft's form: 256x256 images (bicubic, squashed) and /relative_action.

    Raises:
        ValueError: if both forms are asked for; openvla-oft reads no compressed files.
    """
    if compress and preprocessed:
        raise ValueError(
            "compress and preprocessed: expected one of them; openvla-oft's preprocessed files "
            "hold raw images"
        )
    h5py = require("h5py")
    with new_file(path) as part, h5py.File(part, "w", rdcc_nbytes=2 * 2**20) as file:
        _write_attributes(file, episode, compress)
        action = episode.action.astype(np.float32)
        file["action"] = action
        if preprocessed:
            file["relative_action"] = relative_action(action)
        nothing = np.zeros((len(episode), ACTION_DIM), dtype=np.float32)
        observations = file.create_group("observations")
        observations["qpos"] = episode.qpos.astype(np.float32)
        for name, values in (("qvel", episode.qvel), ("effort", episode.effort)):
            # Readers expect both; what was not recorded is zero, and the attribute says so.
            observations[name] = nothing if values is None else values.astype(np.float32)
            file.attrs[f"{name}_recorded"] = values is not None
        file["stamps_ns"] = episode.stamps_ns
        for name, pose in (episode.object_poses or {}).items():
            file[f"object_poses/{name}"] = pose
        for camera, stamps in (episode.image_stamps_ns or {}).items():
            file[f"image_stamps_ns/{camera}"] = stamps
        group = observations.create_group("images")
        if compress:
            _write_jpeg(file, group, episode)
        else:
            _write_raw(group, episode, preprocessed)


def _write_attributes(file: Any, episode: Episode, compress: bool) -> None:
    file.attrs["sim"] = episode.profile == "sim"
    if compress:
        file.attrs["compress"] = True
    for name in ("instruction", "profile", "color_order", "outcome", "source"):
        file.attrs[name] = getattr(episode, name)
    file.attrs["rate_hz"] = episode.rate_hz
    file.attrs["notes"] = "\n".join(episode.notes)


def relative_action(action: np.ndarray) -> np.ndarray:
    """(T, 14) forward differences, the last one repeated, as openvla-oft's preprocessing."""
    if len(action) < 2:
        return np.zeros_like(action)
    steps = np.diff(action, axis=0)
    return np.concatenate([steps, steps[-1:]])  # (T, 14)


def _write_raw(group: Any, episode: Episode, preprocessed: bool) -> None:
    for camera, images in episode.images.items():
        target: Any = None
        for step in range(len(episode)):
            image = images[step]
            if preprocessed:
                image = resize_bicubic(image, PREPROCESSED_PX)
            if target is None:
                shape = (len(episode), *image.shape)
                target = group.create_dataset(
                    camera, shape, dtype="uint8", chunks=(1, *image.shape)
                )
            target[step] = image


def _write_jpeg(file: Any, group: Any, episode: Episode) -> None:
    lengths = np.zeros((len(episode.images), len(episode)), dtype=np.float32)
    for place, (camera, images) in enumerate(episode.images.items()):
        rows = []
        for step in range(len(episode)):
            # RGB goes in where OpenCV expects BGR, and comes out so: ALOHA's own convention.
            done, data = cv2.imencode(
                ".jpg", images[step], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            )
            if not done:
                raise EpisodeError(f"{episode.source}: image {step} of {camera} is no image")
            rows.append(data.reshape(-1))
            lengths[place, step] = data.size
        padded = np.zeros((len(rows), max(row.size for row in rows)), dtype=np.uint8)
        for step, row in enumerate(rows):
            padded[step, : row.size] = row
        group.create_dataset(camera, data=padded, chunks=(1, padded.shape[1]))
    file["compress_len"] = lengths


def read_hdf5(path: Path, options: Hdf5Options | None = None) -> Episode:
    """Reads one episode.

    Args:
        path: The file.
        options: What the file does not say.

    Returns:
        The episode; its images are read when they are asked for.

    Raises:
        EpisodeError: naming the file, what was expected and what to do.
    """
    options = options or Hdf5Options()
    h5py = require("h5py")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise EpisodeError(f"{path}: expected an HDF5 file; {error}") from None
    try:
        return _episode(path, file, options)
    except _NOT_ALOHA as error:
        file.close()
        raise EpisodeError(f"{path}: expected ALOHA's layout; {error}") from None
    except BaseException:
        file.close()
        raise


def _episode(path: Path, file: Any, options: Hdf5Options) -> Episode:
    attributes = {name: _plain(value) for name, value in file.attrs.items()}
    notes = [note for note in str(attributes.get("notes", "")).split("\n") if note]
    rate_hz = options.rate_hz or float(attributes.get("rate_hz", 0.0))
    if not rate_hz:
        rate_hz = UNKNOWN_RATE_HZ
        notes.append(f"the file does not say its rate; taken as {rate_hz:g} Hz")
    _refuse_strangers(path, file)
    qpos = np.asarray(file["observations/qpos"], dtype=np.float64)
    action = np.asarray(file["action"], dtype=np.float64)
    told = options.color_order or str(attributes.get("color_order", UNKNOWN))
    if told == UNKNOWN:
        notes.append("the file does not say its colour order; taken as rgb")
    images: dict[str, LazyImages] = {}
    for name in sorted(file["observations/images"], key=_camera_place):
        camera = _CAMERA_ALIASES.get(name, name)
        images[camera] = _images(path, file, name, len(qpos), told == "bgr")
    stamps = np.round(np.arange(len(qpos)) * 1e9 / rate_hz).astype(np.int64)
    episode = Episode(
        images=images,
        qpos=qpos,
        action=action,
        qvel=_recorded(file, attributes, "qvel"),
        effort=_recorded(file, attributes, "effort"),
        stamps_ns=np.asarray(file["stamps_ns"]) if "stamps_ns" in file else stamps,
        image_stamps_ns={
            name: np.asarray(data) for name, data in file.get("image_stamps_ns", {}).items()
        }
        or None,
        rate_hz=rate_hz,
        instruction=options.instruction or str(attributes.get("instruction", "")),
        profile=options.profile or str(attributes.get("profile", "")),
        color_order=UNKNOWN if told == UNKNOWN else RGB,
        outcome=str(attributes.get("outcome", "")),
        object_poses={
            name: np.asarray(data) for name, data in file.get("object_poses", {}).items()
        }
        or None,
        source=str(path),
        notes=tuple(notes),
    )
    return _without_2_0(episode, options)


def _refuse_strangers(path: Path, file: Any) -> None:
    """HDF5 can read any file of the machine as if it were its own, and claim numbers that it does
    not store; neither belongs into an episode.
    """
    h5py = require("h5py")
    waiting = [file]
    seen = 0
    while waiting:
        group = waiting.pop()
        for name in group:
            seen += 1
            if not isinstance(group.get(name, getlink=True), h5py.HardLink) or seen > _MAX_ENTRIES:
                raise EpisodeError(
                    f"{path}: expected groups and data of its own, {_MAX_ENTRIES} at most; "
                    f"{group.name}/{name} is a link, or one too many"
                )
            entry = group[name]
            if isinstance(entry, h5py.Group):
                waiting.append(entry)
                continue
            is_image = entry.name.startswith("/observations/images/")
            claimed = int(np.prod(entry.shape[1 if is_image else 0 :] or 1, dtype=object))
            claimed *= entry.dtype.itemsize
            if entry.external or entry.is_virtual or claimed > _MAX_BYTES:
                raise EpisodeError(
                    f"{path}: expected {entry.name} within the file and of at most {_MAX_BYTES} "
                    f"bytes{' per image' if is_image else ''}; got {entry.shape} {entry.dtype}, "
                    f"{'elsewhere' if entry.external or entry.is_virtual else 'here'}"
                )


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _camera_place(name: str) -> tuple[int, str]:
    name = _CAMERA_ALIASES.get(name, name)
    return (CAMERAS.index(name) if name in CAMERAS else len(CAMERAS), name)


def _recorded(file: Any, attributes: Mapping[str, Any], name: str) -> np.ndarray | None:
    if not attributes.get(f"{name}_recorded", True) or name not in file["observations"]:
        return None
    return np.asarray(file["observations"][name], dtype=np.float64)


def _images(path: Path, file: Any, name: str, steps: int, is_bgr: bool) -> LazyImages:
    """The images of one camera, RGB, decoded on demand."""
    data = file["observations/images"][name]
    if len(data) != steps:
        raise EpisodeError(f"{path}: expected {steps} images of {name}; got {len(data)}")
    if data.dtype != np.uint8 or data.ndim not in (2, 4):
        raise EpisodeError(
            f"{path}: expected images of {name} as uint8 (T, H, W, 3), or (T, bytes) JPEG; got "
            f"{data.dtype} {data.shape}"
        )

    def load(step: Hashable) -> np.ndarray:
        stored = np.asarray(data[cast(int, step)])
        if stored.ndim == 1:  # JPEG with zeros behind; a decoder stops at its end mark
            try:
                stored = decode_compressed("jpeg", stored)[..., ::-1]  # in OpenCV's order
            except ImageError as error:
                raise EpisodeError(f"{path}: image {step} of {name} is no JPEG; {error}") from None
        return np.ascontiguousarray(stored[..., ::-1]) if is_bgr else np.asarray(stored)

    return LazyImages(range(steps), load)


def _without_2_0(episode: Episode, options: Hdf5Options) -> Episode:
    """Refuses or repairs data of Interbotix' branch 2.0."""
    problems = recording_problems(episode.qpos)
    if not problems:
        return episode
    if options.on_2_0 != "repair":
        raise EpisodeError(
            f"{episode.source}: {problems[0]}. Read it with --on-2-0 repair to have arms and "
            "grippers put right"
        )
    return repaired_2_0(episode, load_profile(options.profile or FROM_2_0).gripper)


def repaired_2_0(episode: Episode, gripper: GripperCalibration) -> Episode:
    """Puts the left arm first and turns the gripper values of branch 2.0 into openings.

    Args:
        episode: As recorded: right arm first; gripper entries of qpos are servo angles divided by
            the span of finger metres.
        gripper: Calibration of the robot.
    """

    def swapped(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[:, ARM_DIM:], values[:, :ARM_DIM]], axis=1)  # (T, 14)

    closed_m, open_m = _FINGER_SPAN_2_0
    qpos = swapped(episode.qpos)
    for place in GRIPPERS:
        servo_rad = qpos[:, place] * (open_m - closed_m) + closed_m
        qpos[:, place] = [gripper.observed_opening(angle) for angle in servo_rad.tolist()]
    return replace(
        episode,
        qpos=qpos,
        action=swapped(episode.action),
        qvel=None if episode.qvel is None else swapped(episode.qvel),
        effort=None if episode.effort is None else swapped(episode.effort),
        profile=episode.profile or FROM_2_0,
    ).noted("recorded by Interbotix' branch 2.0: arms and gripper values were put right")
