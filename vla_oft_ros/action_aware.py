"""SpecPrune's action-aware controller for two arms: is the motion under way coarse or fine?

Speeds come from forward kinematics of joint targets that were really published, one control step
apart. The paper normalises them by the controller's range; absolute joint targets have none, so a
speed is divided by the 99th percentile of the data set (`MotionScale`). Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vla_oft_ros.aloha import ARM_DIM, ARMS
from vla_oft_ros.kinematics import ARM_JOINT_COUNT, GripperMotion, gripper_motion
from vla_oft_ros.types import MotionMode

_PERCENTILE = 99.0
_SMALLEST_M = 1e-4
_SMALLEST_RAD = 1e-3
"""Least scale: a data set in which nothing moves must not turn noise into speed."""


@dataclass(frozen=True, kw_only=True)
class MotionScale:
    """What counts as a fast step of a gripper in one data set; stored beside its statistics.

    The defaults are those of the scripted demonstrations of this package (`motion_scale` of twelve
    of them at 25 Hz), for checkpoints that come without a scale.

    Attributes:
        translation_m: 99th percentile of the way per control step, m.
        rotation_rad: 99th percentile of the turn per control step, rad.
    """

    translation_m: float = 0.018
    rotation_rad: float = 0.059

    def __post_init__(self) -> None:
        if not (self.translation_m > 0.0 and self.rotation_rad > 0.0):
            raise ValueError(
                "MotionScale: expected positive percentiles; got "
                f"{self.translation_m} m and {self.rotation_rad} rad"
            )


@dataclass(frozen=True, kw_only=True)
class ActionAwareThresholds:
    """When motion is fine (SpecPrune, Eq. 10 and 11); speeds are normalised by `MotionScale`.

    Attributes:
        translation: v_t below this is slow.
        rotation: v_r below this is slow.
        leave_factor: Fine motion ends above this many times a threshold; 1 is the paper's.
        rest: An arm below this share in both speeds is at rest and says nothing.
    """

    translation: float = 0.5
    rotation: float = 0.2
    leave_factor: float = 1.0
    rest: float = 0.02

    def __post_init__(self) -> None:
        if not (
            self.leave_factor >= 1.0 and 0.0 <= self.rest < min(self.translation, self.rotation)
        ):
            raise ValueError(
                "ActionAwareThresholds: expected leave_factor of at least 1 and rest below both "
                f"thresholds; got {self}"
            )


@dataclass(frozen=True, kw_only=True)
class ActionAwareState:
    """What the controller remembers; a new episode begins with a new one.

    Attributes:
        arm_is_fine: Per arm, left first; an arm at rest keeps what it was.
        mode: The answer.
    """

    arm_is_fine: tuple[bool, ...] = (False,) * len(ARMS)
    mode: MotionMode = MotionMode.FINE


def arm_motion(before: np.ndarray, after: np.ndarray, dt_s: float) -> GripperMotion:
    """Speeds of both grippers between two successive joint targets.

    Args:
        before: (..., 14) joint targets.
        after: (..., 14) joint targets one control step later.
        dt_s: Length of the step, s.

    Returns:
        Speeds of shape (..., 2), left first.

    Raises:
        ValueError: if the targets are not two arms.
    """
    return gripper_motion(_arms(before), _arms(after), dt_s)


def motion_scale(episodes: Iterable[np.ndarray]) -> MotionScale:
    """Measures the scale of a data set.

    Args:
        episodes: (T, 14) actions each, at the control rate.

    Raises:
        ValueError: if no episode has two steps.
    """
    ways: list[np.ndarray] = []
    turns: list[np.ndarray] = []
    for actions in episodes:
        if len(actions) < 2:
            continue
        motion = arm_motion(actions[:-1], actions[1:], 1.0)
        ways.append(motion.translation_m_s.ravel())  # (T - 1, 2) → (2T - 2,)
        turns.append(motion.rotation_rad_s.ravel())
    if not ways:
        raise ValueError("motion_scale: expected an episode of at least two steps; got none")
    return MotionScale(
        translation_m=max(float(np.percentile(np.concatenate(ways), _PERCENTILE)), _SMALLEST_M),
        rotation_rad=max(float(np.percentile(np.concatenate(turns), _PERCENTILE)), _SMALLEST_RAD),
    )


def next_mode(
    state: ActionAwareState,
    before: np.ndarray,
    after: np.ndarray,
    scale: MotionScale,
    thresholds: ActionAwareThresholds,
) -> ActionAwareState:
    """One control step of the controller.

    An arm becomes fine when it is slow in translation and rotation and does not rise; it stays so
    until one of its speeds is above its threshold. The motion is fine if any moving arm is, or if
    no arm moves.

    Args:
        state: After the step before.
        before: (14,) joint targets published one control step ago.
        after: (14,) joint targets published now.
        scale: Of the data set.
        thresholds: Of Eq. 10 and 11.

    Returns:
        The new state, with the mode.
    """
    motion = arm_motion(before, after, 1.0)  # per control step
    fine = list(state.arm_is_fine)
    moving = []
    for arm in range(len(ARMS)):
        translation = float(motion.translation_m_s[arm]) / scale.translation_m
        rotation = float(motion.rotation_rad_s[arm]) / scale.rotation_rad
        if translation < thresholds.rest and rotation < thresholds.rest:
            continue
        moving.append(arm)
        if fine[arm]:
            fine[arm] = (
                translation <= thresholds.leave_factor * thresholds.translation
                and rotation <= thresholds.leave_factor * thresholds.rotation
            )
        else:
            fine[arm] = (
                translation < thresholds.translation
                and rotation < thresholds.rotation
                and float(motion.rise_m_s[arm]) <= 0.0
            )
    is_fine = not moving or any(fine[arm] for arm in moving)
    return ActionAwareState(
        arm_is_fine=tuple(fine), mode=MotionMode.FINE if is_fine else MotionMode.COARSE
    )


def _arms(targets: np.ndarray) -> np.ndarray:
    targets = np.asarray(targets, dtype=np.float64)
    if targets.ndim == 0 or targets.shape[-1] != ARM_DIM * len(ARMS):
        raise ValueError(
            f"targets: expected (..., {ARM_DIM * len(ARMS)}) of two arms; got {targets.shape}"
        )
    arms = targets.reshape(*targets.shape[:-1], len(ARMS), ARM_DIM)  # (..., 2, 7)
    return arms[..., :ARM_JOINT_COUNT]
