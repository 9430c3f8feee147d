"""Tells from the numbers of a recording whether it follows the conventions of this package.

Interbotix' branch 2.0 records the right arm first and feeds servo angles into a normaliser made
for metres (Interbotix/aloha#20); nothing in its files says so. Knows nothing of file formats.
"""

from __future__ import annotations

import numpy as np

from vla_oft_ros.aloha import ACTION_DIM, ARM_DIM, ARMS, GRIPPERS

_LARGEST_OPENING = 2.0
"""Any finger geometry read with any constants stays within -0.2 … 1.4; branch 2.0 gives 41 … 113.
"""
_MIN_EVIDENCE = 0.2
"""Difference of correlations below which nobody can tell the arms apart."""


def recording_problems(proprio: np.ndarray, wrist_change: np.ndarray | None = None) -> list[str]:
    """What is wrong with a recording, one sentence each.

    Args:
        proprio: (T, 14) recorded joint states.
        wrist_change: (T - 1, 2) mean absolute difference of successive images of the left and the
            right wrist camera; None if there are no images.

    Raises:
        ValueError: if a shape is wrong.
    """
    if proprio.ndim != 2 or proprio.shape[1] != ACTION_DIM:
        raise ValueError(f"proprio: expected (T, {ACTION_DIM}); got {proprio.shape}")
    found = []
    openings = np.abs(proprio[:, list(GRIPPERS)])
    if openings.size and np.nanmax(openings) > _LARGEST_OPENING:
        found.append(
            f"gripper openings reach {np.nanmax(openings):.1f}, expected 0 to 1: servo angles "
            "were normalised as metres, as Interbotix' branch 2.0 does, which also records the "
            "right arm first; use profile interbotix_2_0"
        )
    if wrist_change is not None and swap_evidence(proprio, wrist_change) > _MIN_EVIDENCE:
        found.append(
            "each wrist camera moves with the other arm: the arms or the wrist cameras are "
            "swapped; check arm_order and camera_topics of the profile"
        )
    return found


def swap_evidence(proprio: np.ndarray, wrist_change: np.ndarray) -> float:
    """Whether wrist images change when the other arm moves, -1 (left is left) … 1 (swapped).

    A wrist camera's image changes most when its own arm moves. Compared are the correlations of
    arm speed and image change, crossed minus straight, averaged over the arms.

    Args:
        proprio: (T, 14) recorded joint states.
        wrist_change: (T - 1, 2) mean absolute difference of successive wrist images, left, right.

    Raises:
        ValueError: if a shape is wrong.
    """
    steps = np.abs(np.diff(proprio, axis=0))  # (T - 1, 14)
    if wrist_change.shape != (len(steps), len(ARMS)):
        raise ValueError(
            f"wrist_change: expected ({len(steps)}, {len(ARMS)}), one row per pair of images; got "
            f"{wrist_change.shape}"
        )
    speed = np.stack(
        [steps[:, arm * ARM_DIM : arm * ARM_DIM + ARM_DIM - 1].sum(axis=1) for arm in range(2)]
    )  # (arms, T - 1)
    change = wrist_change.T
    straight = np.mean([_correlation(speed[arm], change[arm]) for arm in range(2)])
    crossed = np.mean([_correlation(speed[arm], change[1 - arm]) for arm in range(2)])
    return float(crossed - straight) / 2.0


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; 0 where one of the two stands still."""
    if len(first) < 2 or np.std(first) == 0.0 or np.std(second) == 0.0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
