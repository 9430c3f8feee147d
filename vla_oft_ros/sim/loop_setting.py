"""How a policy is run in an episode of the simulation, what it has to be able to do, and what is
written down about it. Plain values; `closed_loop` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from vla_oft_ros.action_aware import MotionScale
from vla_oft_ros.config import (
    ChunkQueueConfig,
    ConfigError,
    PolicyNodeConfig,
    SafetyConfig,
    SyncConfig,
)
from vla_oft_ros.types import ActionChunk, MotionMode, Observation

SIGHTS = ("own", "blank", "other")
MODES = ("action_aware", "coarse", "fine")


class Actor(Protocol):
    """What answers observations; a `Policy`, or something that knows better."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that it wants to see; none are drawn for an actor that wants none."""

    @property
    def motion_scale(self) -> MotionScale:
        """What counts as fast, for the action-aware controller."""

    def reset(self) -> None:
        """Begins an episode."""

    def infer(self, observation: Observation, *, mode: MotionMode) -> ActionChunk:
        """Predicts a chunk."""


@dataclass(frozen=True, kw_only=True)
class LoopSetting:
    """How a policy is run in an episode.

    Attributes:
        queue: Join of chunks. With `sync` the policy is asked when its chunk has been played, and
            the arms wait for the answer, as the official evaluation does.
        safety: Limits of the safety gate.
        sync: Limits of observations.
        execute_steps: Control steps from one question to the next; `sync` has no use for it.
        latency_ms: Simulated time from an observation to its chunk.
        mode: How many tokens pruning keeps: action_aware follows the motion; coarse or fine is
            always the same.
        sight: What the policy sees: own is its own robot, blank is grey images, other is a robot
            that does the same beside another cube.
        instruction: What the policy hears instead of what the episode asks for; empty is that.
        looks_back: Whether observations carry reference images; SpecPrune wants them.
        time_limit_s: An episode ends here at the latest.
        settle_s: An episode ends this long after the task was first done, if it still is.
    """

    queue: ChunkQueueConfig = field(default_factory=ChunkQueueConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    execute_steps: int = PolicyNodeConfig.execute_steps
    latency_ms: float = 0.0
    mode: str = "action_aware"
    sight: str = "own"
    instruction: str = ""
    looks_back: bool = False
    time_limit_s: float = 10.0
    settle_s: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("mode", MODES), ("sight", SIGHTS)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"LoopSetting.{name}: expected one of {', '.join(choices)}; got "
                    f"{getattr(self, name)!r}"
                )
        if self.execute_steps < 1 or self.latency_ms < 0.0 or self.settle_s < 0.0:
            raise ConfigError(
                "LoopSetting: expected execute_steps of at least 1 and no negative latency_ms or "
                f"settle_s; got {self.execute_steps}, {self.latency_ms:g} and {self.settle_s:g}"
            )
        if not self.time_limit_s > 0.0:
            raise ConfigError(
                f"LoopSetting.time_limit_s: expected a positive time; got {self.time_limit_s:g}"
            )


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What became of one episode.

    Attributes:
        success: The task's own rule held when the episode ended.
        max_reward: Highest reward seen.
        done_s: When the rule held for the first time, simulated s; None if never.
        end_s: When the episode ended.
        nearest_mm: How near a tool point came to the middle of the cube that is meant.
        inference_ms: Wall time of each inference.
        inference_cpu_ms: CPU time of each inference, all threads together.
        kept: Share of the patches kept at the end of each inference.
        ticks: Control ticks.
        idle_ticks: Ticks without an action after the first chunk had come.
        held_ticks: Ticks in which the gate held the arms or had stopped them.
        refused: Chunks that the queue refused and observations that could not be made.
        interventions: Changes by the safety gate, kind → number; idle ticks are not counted again.
    """

    success: bool
    max_reward: int
    done_s: float | None
    end_s: float
    nearest_mm: float
    inference_ms: tuple[float, ...]
    inference_cpu_ms: tuple[float, ...]
    kept: tuple[float, ...]
    ticks: int
    idle_ticks: int
    held_ticks: int
    refused: int
    interventions: dict[str, int]
