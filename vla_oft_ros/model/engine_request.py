"""What goes into the engine and what comes out: instruction, request, answer, and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vla_oft_ros.model.pruner import PruningState, Stage, retained_tokens
from vla_oft_ros.model.tokens import TokenLayout
from vla_oft_ros.model.vla import Modulations
from vla_oft_ros.types import MotionMode, RetainedTokens


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What runs, and why not what was asked for.

    Attributes:
        kind: eager, compiled or cuda_graph.
        precision: bf16, fp32, fp64, or fp8 for LLM products in e4m3 and the rest in bf16.
        fallbacks: What was asked for, what runs instead, and why; empty if all is as asked.
    """

    kind: str
    precision: str
    fallbacks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join((f"{self.kind}, {self.precision}", *self.fallbacks))


@dataclass(frozen=True, kw_only=True, eq=False)
class Instruction:
    """What a pass needs of an instruction, computed once; made by `Engine.instruction`.

    Attributes:
        layout: Where the tokens are.
        text: First position of the operator's words in the sequence, and the one after the last.
        input_ids: (1, ids) int64.
        prompt: (1, L + 1, D) embeddings of prompt and stop token.
        modulations: FiLM; None without it or if it is computed in every pass.
    """

    layout: TokenLayout
    text: tuple[int, int]
    input_ids: Tensor
    prompt: Tensor
    modulations: Modulations | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One question to the network.

    Attributes:
        instruction: From `Engine.instruction`.
        images: N images (H, W, 3) uint8 RGB, in the order of the checkpoint's cameras.
        proprio: (A,) normalised; None for checkpoints without a proprio projector.
        references: The images some ticks ago; None prunes nothing by SpecPrune.
        state: `Answer.state` of the pass before; None prunes nothing by SpecPrune.
        mode: How many tokens pruning keeps.
        dense: No pruner at all, whatever the plan says.
        noise: (1, K, A) start of a diffusion run.
    """

    instruction: Instruction
    images: Sequence[np.ndarray]
    proprio: np.ndarray | None
    references: Sequence[np.ndarray] | None = None
    state: PruningState | None = None
    mode: MotionMode = MotionMode.FINE
    dense: bool = False
    noise: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What the network answers.

    Attributes:
        actions: (K, A) float64 in robot units.
        normalized: (K, A) float64, nominally in [-1, 1].
        state: For the next request of the episode; None unless SpecPrune looked.
        stages: What pruning left after each stage.
        reasons: (N, P) uint8 `KeptBy` flags; None for a dense pass.
    """

    actions: np.ndarray
    normalized: np.ndarray
    state: PruningState | None
    stages: tuple[Stage, ...]
    reasons: Tensor | None

    def retained(
        self, cameras: Sequence[str], stamps_ns: Mapping[str, int], grid: tuple[int, int]
    ) -> tuple[RetainedTokens, ...]:
        """What was kept of each camera; see `pruner.retained_tokens`."""
        return retained_tokens(self.stages, self.reasons, cameras, stamps_ns, grid)
