"""What the episodes of one condition say together: success rate with its interval, and figures.

Plain arithmetic over `EpisodeResult`; knows nothing of physics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_oft_ros.sim.loop_setting import EpisodeResult

_Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the episodes of one condition say together.

    Attributes:
        name: Of the condition.
        episodes: How many.
        successes: How many succeeded.
        low: Lower end of the Wilson 95 % interval of the success rate.
        high: Upper end.
        rewards: Episodes by their highest reward, from 0 up.
        done_s: Median time to success, simulated s; NaN without success.
        nearest_mm: Median of how near a tool came to the cube.
        inference_ms: Median wall time of an inference.
        inference_cpu_ms: Median CPU time of an inference.
        kept: Mean share of patches kept, over all inferences, dense first ones included.
        idle: Share of ticks without an action after the first chunk.
        interventions: Changes by the safety gate per episode.
    """

    name: str
    episodes: int
    successes: int
    low: float
    high: float
    rewards: tuple[int, ...]
    done_s: float
    nearest_mm: float
    inference_ms: float
    inference_cpu_ms: float
    kept: float
    idle: float
    interventions: float


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson 1927); (0, 1) without episodes.

    Raises:
        ValueError: if there are more successes than episodes, or negative numbers.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(
            f"wilson_interval: expected 0 … episodes successes; got {successes} of {episodes}"
        )
    if episodes == 0:
        return 0.0, 1.0
    share, z2 = successes / episodes, _Z95**2
    middle = share + z2 / (2 * episodes)
    half = _Z95 * math.sqrt(share * (1 - share) / episodes + z2 / (4 * episodes**2))
    scale = 1 + z2 / episodes
    # Rounding must push no end across the rate itself, or out of 0 … 1.
    low, high = (middle - half) / scale, (middle + half) / scale
    return min(max(low, 0.0), share), max(min(high, 1.0), share)


def summarize(name: str, results: Sequence[EpisodeResult], max_reward: int) -> Summary:
    """Puts the episodes of one condition together.

    Args:
        name: Of the condition.
        results: At least one.
        max_reward: Highest reward of the task.
    """
    successes = sum(result.success for result in results)
    low, high = wilson_interval(successes, len(results))
    counts = Counter(result.max_reward for result in results)
    done_s = [r.done_s for r in results if r.success and r.done_s is not None]

    def over_inferences(of: str) -> list[float]:
        return [value for result in results for value in getattr(result, of)]

    return Summary(
        name=name,
        episodes=len(results),
        successes=successes,
        low=low,
        high=high,
        rewards=tuple(counts[reward] for reward in range(max_reward + 1)),
        done_s=float(np.median(done_s)) if done_s else math.nan,
        nearest_mm=float(np.median([result.nearest_mm for result in results])),
        inference_ms=float(np.median(over_inferences("inference_ms") or [math.nan])),
        inference_cpu_ms=float(np.median(over_inferences("inference_cpu_ms") or [math.nan])),
        kept=float(np.mean(over_inferences("kept") or [math.nan])),
        idle=sum(r.idle_ticks for r in results) / sum(r.ticks for r in results),
        interventions=float(np.mean([sum(r.interventions.values()) for r in results])),
    )
