"""Is this episode fit for training? Looks at one whole `Episode`, whatever it was read from.

`quality` judges messages while they arrive; here the steps of an episode are judged as a policy
would be trained on them. Every check is a function of arrays; `doctor` puts them together.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from vla_oft_ros.aloha import ACTION_NAMES, ARM_DIM, ARMS, GRIPPERS, position_limits
from vla_oft_ros.config import check_fields, doc
from vla_oft_ros.data.episode import UNKNOWN, Episode
from vla_oft_ros.data.verdict import Finding, Verdict
from vla_oft_ros.recording_traps import recording_problems

MOTION_RAD = 0.02
"""A joint that has moved so far is in motion; encoders jitter by 0.0015 (4096 ticks a turn)."""
_SWAP_RAD = 0.1
"""Followers are closer to their own leaders than this on average."""
_JUMP_RAD_S = 9.0
"""An action that moves faster than almost three times the motors' π rad/s is no demonstration."""
_JOINTS = [index for index in range(len(ACTION_NAMES)) if index not in GRIPPERS]


@dataclass(frozen=True, kw_only=True)
class EpisodeLimits:
    """When an episode is suspect."""

    max_camera_gap_s: float = field(
        default=0.15, metadata=doc("Longest time without a new image.", unit="s", ge=0.0, le=10.0)
    )
    max_skew_s: float = field(
        default=0.05, metadata=doc("Largest time between the cameras.", unit="s", ge=0.0, le=10.0)
    )
    max_frozen_s: float = field(
        default=0.5,
        metadata=doc("Longest time of the same pixels in motion.", unit="s", ge=0.0, le=60.0),
    )
    max_duplicate_share: float = field(
        default=0.2, metadata=doc("Share of repeated images in motion.", ge=0.0, le=1.0)
    )
    min_brightness: float = field(
        default=10.0, metadata=doc("Darkest image, mean of 0 … 255.", ge=0.0, le=255.0)
    )
    gripper_margin: float = field(
        default=0.15, metadata=doc("How far openings may leave 0 … 1.", ge=0.0, le=2.0)
    )
    max_beyond_share: float = field(
        default=0.05,
        metadata=doc("Share of actions beyond the follower's limits.", ge=0.0, le=1.0),
    )
    max_idle_s: float = field(
        default=1.5, metadata=doc("Longest rest at begin and end.", unit="s", ge=0.0, le=60.0)
    )
    max_pause_s: float = field(
        default=3.0, metadata=doc("Longest rest in between.", unit="s", ge=0.0, le=60.0)
    )
    min_length_s: float = field(
        default=2.0, metadata=doc("Shortest episode.", unit="s", ge=0.0, le=600.0)
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, eq=False)
class CameraLook:
    """What was seen of one camera, step by step.

    Attributes:
        digests: (T,) equal images have equal digests.
        brightness: (T,) mean of 0 … 255.
        change: (T - 1,) mean absolute difference of successive images, 0 … 255.
    """

    digests: np.ndarray
    brightness: np.ndarray
    change: np.ndarray


def digest_of(image: np.ndarray) -> int:
    """Checksum of every third row and column of a (H, W, 3) uint8 image."""
    return zlib.crc32(np.ascontiguousarray(image[::3, ::3]).data)


def find_problems(
    episode: Episode, looks: Mapping[str, CameraLook], limits: EpisodeLimits
) -> list[Finding]:
    """Everything that is wrong with one episode.

    Args:
        episode: The episode.
        looks: Camera name → what was seen of it.
        limits: What is still good.
    """
    moving = motion(episode.qpos)
    return [
        *check_description(episode),
        *check_timing(episode, limits),
        *(
            found
            for name, look in looks.items()
            for found in check_pixels(name, look, moving, episode.rate_hz, limits)
        ),
        *check_numbers(episode, limits),
        *check_sides(episode, looks),
        *check_rest(episode, limits),
    ]


def motion(qpos: np.ndarray) -> np.ndarray:
    """(T,) float64: how far some joint has travelled since the first step, rad, ascending."""
    steps = np.abs(np.diff(qpos[:, _JOINTS], axis=0)).max(axis=1, initial=0.0)
    return np.concatenate([[0.0], np.cumsum(steps)])


def check_description(episode: Episode) -> Iterator[Finding]:
    """What the episode does not say about itself, and what its reader had to repair."""
    for note in episode.notes:
        if note.startswith(("damaged", "kept the longest", "left out")) or "left out" in note:
            yield Finding(Verdict.SUSPECT, note, "damaged")
    if not episode.instruction:
        yield Finding(Verdict.SUSPECT, "it carries no instruction", "instruction")
    if episode.color_order == UNKNOWN:
        text = "the source does not say whether its images are rgb or bgr; look at the pictures"
        yield Finding(Verdict.SUSPECT, text, "colour order")


def check_timing(episode: Episode, limits: EpisodeLimits) -> Iterator[Finding]:
    """Irregular steps, cameras that pause, cameras that are apart."""
    if episode.duration_s < limits.min_length_s:
        text = f"{episode.duration_s:.1f} s long, expected at least {limits.min_length_s:g} s"
        yield Finding(Verdict.SUSPECT, text, "length")
    steps_s = np.diff(episode.stamps_ns) / 1e9
    longest_s = float(steps_s.max(initial=0.0))
    if longest_s > 1.5 / episode.rate_hz:
        at_s = float(episode.stamps_ns[int(np.argmax(steps_s))] - episode.stamps_ns[0]) / 1e9
        text = (
            f"{longest_s * 1e3:.0f} ms between two steps after {at_s:.1f} s, expected "
            f"{1e3 / episode.rate_hz:.0f} ms"
        )
        yield Finding(Verdict.BAD, text, "gap")
    stamps = episode.image_stamps_ns or {}
    for camera, exposed_ns in stamps.items():
        gap_s = float(np.diff(exposed_ns).max(initial=0)) / 1e9
        if gap_s > limits.max_camera_gap_s:
            text = (
                f"{camera}: no new image for {gap_s * 1e3:.0f} ms, expected at most "
                f"{limits.max_camera_gap_s * 1e3:.0f} ms"
            )
            yield Finding(Verdict.BAD, text, "gap")
        if np.any(np.diff(exposed_ns) < 0):
            yield Finding(Verdict.BAD, f"{camera}: stamps go back in time", "order")
    if len(stamps) > 1:
        together = np.stack(list(stamps.values()))
        skew_s = (together.max(axis=0) - together.min(axis=0)) / 1e9
        share = float(np.mean(skew_s > limits.max_skew_s))
        if share > 0.02:
            text = (
                f"cameras are up to {skew_s.max() * 1e3:.0f} ms apart, more than "
                f"{limits.max_skew_s * 1e3:.0f} ms in {share:.0%} of the steps"
            )
            yield Finding(Verdict.SUSPECT, text, "skew")


def check_pixels(
    camera: str, look: CameraLook, moving: np.ndarray, rate_hz: float, limits: EpisodeLimits
) -> Iterator[Finding]:
    """Frozen, repeated and dark images of one camera.

    Args:
        camera: Its name.
        look: What was seen of it.
        moving: (T,) from `motion`; images may repeat while nothing moves.
        rate_hz: Steps per second.
        limits: What is still good.
    """
    starts = np.flatnonzero(np.diff(look.digests, prepend=look.digests[0] - 1))
    ends = np.append(starts[1:], len(look.digests))  # runs of one picture
    moved = moving[ends - 1] - moving[starts] > MOTION_RAD
    frozen_s = float(((ends - starts) * moved).max(initial=0)) / rate_hz
    repeats = int((ends - starts - 1).sum())
    if frozen_s > limits.max_frozen_s:
        text = f"{camera}: the same picture for {frozen_s:.1f} s while the arms moved"
        yield Finding(Verdict.BAD, text, "frozen")
    elif moving[-1] > 10 * MOTION_RAD and repeats > limits.max_duplicate_share * len(look.digests):
        still = np.diff(moving) < MOTION_RAD / rate_hz
        same = look.digests[1:] == look.digests[:-1]
        share = float(np.mean(same[~still])) if np.any(~still) else 0.0
        if share > limits.max_duplicate_share:
            text = (
                f"{camera}: {share:.0%} of the images repeat the one before while the arms moved; "
                "it is slower than the episode"
            )
            yield Finding(Verdict.SUSPECT, text, "duplicate")
    dark = look.brightness < limits.min_brightness
    if np.any(dark):
        verdict = Verdict.BAD if np.mean(dark) > 0.02 else Verdict.SUSPECT
        text = (
            f"{camera}: {int(dark.sum())} of {dark.size} images are dark, mean "
            f"{look.brightness.min():.1f} of 255; is the lens covered?"
        )
        yield Finding(verdict, text, "dark")


def check_numbers(episode: Episode, limits: EpisodeLimits) -> Iterator[Finding]:
    """Grippers out of range, actions beyond limits, jumps, states that follow nothing."""
    problems = recording_problems(episode.qpos)
    for problem in problems:
        yield Finding(Verdict.BAD, problem, "branch 2.0")
    for place in () if problems else GRIPPERS:
        low, high = float(episode.qpos[:, place].min()), float(episode.qpos[:, place].max())
        if low < -limits.gripper_margin or high > 1.0 + limits.gripper_margin:
            text = (
                f"{ACTION_NAMES[place]}: openings from {low:.2f} to {high:.2f}, expected 0 to 1; "
                f"is {episode.profile or 'its'!s} the right profile?"
            )
            yield Finding(Verdict.SUSPECT, text, "gripper")
    lower, upper = position_limits()
    beyond = np.maximum(episode.action - upper, lower - episode.action)
    for place in _JOINTS:
        share = float(np.mean(beyond[:, place] > 0.0))
        if share > limits.max_beyond_share:
            text = (
                f"{ACTION_NAMES[place]}: {share:.0%} of the actions lie beyond the follower's "
                f"limits, by up to {beyond[:, place].max():.2f} rad"
            )
            yield Finding(Verdict.SUSPECT, text, "limits")
    speed = np.abs(np.diff(episode.action, axis=0)[:, _JOINTS]) * episode.rate_hz
    if speed.size and speed.max() > _JUMP_RAD_S:
        step, joint = np.unravel_index(int(np.argmax(speed)), speed.shape)
        text = (
            f"{ACTION_NAMES[_JOINTS[int(joint)]]}: the action jumps by "
            f"{speed.max() / episode.rate_hz:.2f} rad after {int(step) / episode.rate_hz:.1f} s"
        )
        yield Finding(Verdict.SUSPECT, text, "jump")


def check_sides(episode: Episode, looks: Mapping[str, CameraLook]) -> Iterator[Finding]:
    """Left and right mixed up: between actions and states, or between arms and wrist cameras."""
    split = (len(episode), len(ARMS), ARM_DIM)
    action = episode.action.reshape(split)[..., :-1]  # (T, 2, 6)
    qpos = episode.qpos.reshape(split)[..., :-1]
    straight = float(np.abs(action - qpos).mean())
    crossed = float(np.abs(action - qpos[:, ::-1]).mean())
    if straight > _SWAP_RAD and crossed < 0.5 * straight:
        text = (
            f"each action is {straight:.2f} rad from its own arm and {crossed:.2f} rad from the "
            "other: the arms of actions and states are swapped"
        )
        yield Finding(Verdict.BAD, text, "swapped arms")
    wrists = [looks.get(f"cam_{arm}_wrist") for arm in ARMS]
    changes = [look.change for look in wrists if look is not None]
    if len(changes) == len(ARMS) and len(episode) > 2:
        known = recording_problems(episode.qpos)
        for problem in recording_problems(episode.qpos, np.stack(changes, axis=1)):
            if problem not in known:
                yield Finding(Verdict.SUSPECT, problem, "swapped sides")


def check_rest(episode: Episode, limits: EpisodeLimits) -> Iterator[Finding]:
    """Rest at begin and end, pauses in between, no motion at all."""
    moved = motion_steps(episode.qpos)
    if not moved.size:
        yield Finding(Verdict.BAD, "no joint moves", "rest")
        return
    for where, steps in (("first", moved[0]), ("last", len(episode) - 1 - moved[-1])):
        rest_s = float(steps) / episode.rate_hz
        if rest_s > limits.max_idle_s:
            text = (
                f"the arms stand still for the {where} {rest_s:.1f} s, expected at most "
                f"{limits.max_idle_s:g} s"
            )
            yield Finding(Verdict.SUSPECT, text, "rest")
    pause_s = float(np.diff(moved).max(initial=0)) / episode.rate_hz
    if pause_s > limits.max_pause_s:
        text = f"a pause of {pause_s:.1f} s in between; policies learn to wait there for ever"
        yield Finding(Verdict.SUSPECT, text, "pause")


def motion_steps(qpos: np.ndarray) -> np.ndarray:
    """Steps at which some joint or gripper has moved by `MOTION_RAD` since the last such step."""
    moved, reference = [], qpos[0]
    for step in range(1, len(qpos)):
        if np.abs(qpos[step] - reference).max() > MOTION_RAD:
            moved.append(step)
            reference = qpos[step]
    return np.array(moved, dtype=np.int64)
