"""What stands between the layers of the LLM and drops visual tokens: SpecPrune, and replay.

A pruner lives for one inference. What one inference leaves to the next is a `PruningState`, handed
in and read off afterwards; nothing else survives. The arithmetic is in `pruning`, the numbers are
in `pruning_plan`. Only visual tokens are ever dropped, and every patch index is camera · P + patch
of the original layout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vla_oft_ros.model import pruning
from vla_oft_ros.model.llm import LayerOutput
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.tokens import TokenLayout
from vla_oft_ros.types import KeptBy, MotionMode, RetainedTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class PruningState:
    """What one inference leaves to the next one of the same episode.

    Attributes:
        global_patches: (N, P) bool, V_global for the next inference.
        entropies: (depth,) float, H̄ of each layer in the episode's first inference.
    """

    global_patches: Tensor
    entropies: Tensor


@dataclass(frozen=True, eq=False)
class Stage:
    """What was still there after a pruning stage.

    Attributes:
        layer: Layers run so far, 1 after the first.
        patches: (n,) int64 ascending patch indices.
    """

    layer: int
    patches: Tensor


class StagedPruner(ABC):
    """Drops visual tokens after the static layer and after each dynamic one.

    Subclasses say what a patch is worth; this class keeps the books. It is a `TokenPruner`, and it
    starts afresh whenever it sees the first layer: each pass of a diffusion checkpoint is pruned
    by itself.

    Args:
        plan: Layers and counts.
        layout: Where the tokens are.
        text: Positions of the instruction tokens in the whole sequence.

    Attributes:
        stages: What each stage of the last pass left.
        reasons: (N, P) uint8 `KeptBy` flags of static pruning; None if nothing was pruned.
    """

    def __init__(self, plan: PruningPlan, layout: TokenLayout, text: slice) -> None:
        if (layout.cameras, layout.patches_per_camera) != (plan.cameras, plan.patches):
            raise ValueError(
                f"pruner: expected {plan.cameras} views of {plan.patches} patches, as the plan; "
                f"got {layout.cameras} of {layout.patches_per_camera}"
            )
        if not layout.prompt.start <= text.start < text.stop <= layout.prompt.stop:
            raise ValueError(
                f"pruner: expected instruction tokens within the prompt, positions "
                f"{layout.prompt.start} to {layout.prompt.stop - 1}; got {text}"
            )
        self.plan = plan
        self.layout = layout
        self._text = text
        self.stages: list[Stage] = []
        self.reasons: Tensor | None = None
        self._present = torch.arange(plan.vision)
        self._importance = torch.zeros(plan.vision)

    @abstractmethod
    def scores_layer(self, layer: int) -> bool:
        """See `TokenPruner`."""

    @abstractmethod
    def look(self, layer: int, output: LayerOutput) -> None:
        """Takes what it needs from a layer, before anything is dropped after it."""

    @abstractmethod
    def select(self) -> Tensor | None:
        """Static choice: (kept,) int64 ascending patch indices; None prunes nothing at all."""

    def after_layer(self, layer: int, positions: Tensor, output: LayerOutput) -> Tensor | None:
        """See `TokenPruner`."""
        if layer == 1:
            self._present = torch.arange(self.plan.vision, device=positions.device)
            self._importance = torch.zeros(
                self.plan.vision, device=positions.device, dtype=_score_dtype(output)
            )
            self.stages, self.reasons = [], None
        self.look(layer, output)
        kept: Tensor | None = None
        if layer == self.plan.static_layer:
            kept = self.select()
        elif layer in self.plan.dynamic_layers and self.stages:
            count = self.plan.after_stage(len(self._present))
            kept = pruning.keep_highest(self._importance, count)
        if kept is None:
            return None
        rows = self.rows
        self._present, self._importance = self._present[kept], self._importance[kept]
        self.stages.append(Stage(layer, self._present))
        everything = torch.arange(len(positions), device=positions.device)
        return torch.cat([everything[: rows.start], kept + rows.start, everything[rows.stop :]])

    @property
    def rows(self) -> slice:
        """Where the visual tokens still present are in a layer's tensors."""
        start = self.layout.vision.start
        return slice(start, start + len(self._present))

    @property
    def text_rows(self) -> slice:
        """Where the instruction tokens are now: visual tokens before them may be gone."""
        gone = self.plan.vision - len(self._present)
        return slice(self._text.start - gone, self._text.stop - gone)

    def retained(
        self, cameras: Sequence[str], stamps_ns: Mapping[str, int], grid: tuple[int, int]
    ) -> tuple[RetainedTokens, ...]:
        """What the last pass kept of each camera: after static pruning and each dynamic stage.

        Args:
            cameras: Names in the order of the network.
            stamps_ns: Stamp of each camera's image, nanoseconds.
            grid: (rows, columns) of patches.
        """
        return retained_tokens(self.stages, self.reasons, cameras, stamps_ns, grid)


class SpecPruner(StagedPruner):
    """SpecPrune-VLA, two levels (arXiv 2509.05614, Alg. 1).

    Without `state` or `similarity` the pass is dense, and only looks: the first inference of an
    episode supplies V_global and the entropies to those that follow.

    Args:
        plan: Layers and counts.
        layout: Where the tokens are.
        text: Positions of the instruction tokens in the whole sequence.
        state: Of the previous inference; None in the first one.
        similarity: (N, P) from `pruning.patch_similarity`; None without reference images.
        mode: From the action-aware controller.
    """

    def __init__(
        self,
        plan: PruningPlan,
        layout: TokenLayout,
        text: slice,
        *,
        state: PruningState | None = None,
        similarity: Tensor | None = None,
        mode: MotionMode = MotionMode.COARSE,
    ) -> None:
        super().__init__(plan, layout, text)
        self._previous = state
        self._similarity = similarity
        self._mode = mode
        self._prunes = state is not None and similarity is not None
        self._confidence = torch.zeros(plan.depth)  # ω_conf of each layer
        if state is not None:
            self._confidence = (
                torch.ones_like(state.entropies)
                if plan.config.layer_weights == "uniform"
                else pruning.entropy_confidence(state.entropies, plan.config.entropy_epsilon)
            )
        self._table = torch.zeros(0)
        self._local: list[Tensor] = []
        self._global: list[Tensor] = []
        self._entropies: list[Tensor] = []

    def scores_layer(self, layer: int) -> bool:
        """See `TokenPruner`."""
        plan = self.plan
        reads = layer in plan.local_layers or plan.is_weighed(layer)
        return layer in plan.global_layers or (self._prunes and reads)

    def look(self, layer: int, output: LayerOutput) -> None:
        """See `StagedPruner`."""
        if layer == 1:
            self._local, self._global, self._entropies = [], [], []
        if self._previous is None:
            self._entropies.append(self._entropy(output))
        if not self.scores_layer(layer):
            return
        text = self._text_attention(output)  # (h, n)
        plan = self.plan
        if self._prunes and layer in plan.local_layers:
            self._local.append(text.mean(dim=0).view(plan.cameras, plan.patches))  # Eq. 2
        if self._prunes and plan.is_weighed(layer):
            if len(self._table) != len(self._present):
                self._table = pruning.rank_table(len(self._present), plan.rank_slope, text)
            self._importance = pruning.moving_average(
                self._importance,
                pruning.rank_weights(text, self._table),
                self._confidence[layer - 1],
                plan.config.beta,
            )
        if layer in plan.global_layers:
            everywhere = text.new_full((plan.vision,), -torch.inf)
            everywhere = everywhere.index_copy(0, self._present, text.mean(dim=0))
            self._global.append(everywhere.view(plan.cameras, plan.patches))

    def select(self) -> Tensor | None:
        """See `StagedPruner`."""
        if not self._prunes:
            return None
        assert self._previous is not None and self._similarity is not None
        plan = self.plan
        scores = torch.stack(self._local)  # (layers, N, P)
        reasons = pruning.static_reasons(
            self._previous.global_patches,
            scores,
            self._similarity.to(scores.device),
            local_count=plan.local_counts[self._mode],
            dynamic_count=plan.dynamic_counts[self._mode],
            tau=plan.config.tau,
        )
        budget = None
        if plan.config.preset == "static_shape":
            budget = plan.budgets[self._mode]
            reasons = pruning.fill_to(reasons, scores, budget)
        self.reasons = reasons
        return pruning.indices_of(reasons.flatten() > 0, budget)

    @property
    def state(self) -> PruningState:
        """What this inference leaves to the next one.

        Raises:
            RuntimeError: before a pass has run through all layers.
        """
        if len(self._global) != len(self.plan.global_layers):
            raise RuntimeError("SpecPruner.state: run the model with this pruner first")
        # A patch that was dropped before one of the layers has no score there: -inf.
        average = torch.stack(self._global).mean(dim=0)  # (N, P)
        entropies = (
            torch.stack(self._entropies) if self._previous is None else self._previous.entropies
        )
        return PruningState(
            global_patches=pruning.top_mask(average, self.plan.global_count),
            entropies=entropies,
        )

    def _text_attention(self, output: LayerOutput) -> Tensor:
        queries = output.queries[0, :, self.rows]  # (h, n, d)
        if output.logsumexp is None:
            normalizer = pruning.row_logsumexp(queries, pruning.all_heads(output.keys[0], queries))
        else:
            normalizer = output.logsumexp[0, :, self.rows]  # (h, n)
        text_keys = pruning.all_heads(output.keys[0, :, self.text_rows], queries)  # (h, m, d)
        return pruning.text_attention(queries, text_keys, normalizer)

    def _entropy(self, output: LayerOutput) -> Tensor:
        queries = output.queries[0, :, self.text_rows]  # (h, m, d)
        keys = pruning.all_heads(output.keys[0, :, self.rows], queries)  # (h, n, d)
        return pruning.attention_entropy(queries, keys)


class ReplayPruner:
    """Keeps exactly what a recorded inference kept; a `TokenPruner`.

    Args:
        layout: Where the tokens are.
        retained: `ActionChunk.retained` of one inference.
        cameras: Names in the order of the network.
    """

    def __init__(
        self, layout: TokenLayout, retained: Sequence[RetainedTokens], cameras: Sequence[str]
    ) -> None:
        self._kept: dict[int, Tensor] = {}
        for tokens in retained:
            if tokens.layer == 0:  # dense
                continue
            kept = self._kept.setdefault(tokens.layer, _without_patches(layout))
            first = layout.patches(cameras.index(tokens.camera)).start
            kept[first + torch.from_numpy(tokens.patch_indices).long()] = True

    def scores_layer(self, layer: int) -> bool:
        """No layer: everything is known."""
        return False

    def after_layer(self, layer: int, positions: Tensor, output: LayerOutput) -> Tensor | None:
        """See `TokenPruner`."""
        if layer not in self._kept:
            return None
        kept = self._kept[layer].to(positions.device)[positions]
        return kept.nonzero().flatten()


def retained_tokens(
    stages: Sequence[Stage],
    reasons: Tensor | None,
    cameras: Sequence[str],
    stamps_ns: Mapping[str, int],
    grid: tuple[int, int],
) -> tuple[RetainedTokens, ...]:
    """What a pass kept of each camera, after static pruning and each dynamic stage.

    Args:
        stages: `StagedPruner.stages`; none is a dense pass.
        reasons: `StagedPruner.reasons`.
        cameras: Names in the order of the network.
        stamps_ns: Stamp of each camera's image, nanoseconds.
        grid: (rows, columns) of patches.
    """
    if not stages or reasons is None:
        return dense_retained(cameras, stamps_ns, grid)
    per_view = grid[0] * grid[1]
    flags = reasons.flatten().cpu().numpy()
    found = []
    for stage in stages:
        patches = stage.patches.cpu().numpy()
        views = patches // per_view
        for view, camera in enumerate(cameras):
            mine = patches[views == view]
            found.append(
                RetainedTokens(
                    camera=camera,
                    stamp_ns=stamps_ns[camera],
                    grid=grid,
                    layer=stage.layer,
                    patch_indices=(mine % per_view).astype(np.int32),
                    kept_by=flags[mine],
                )
            )
    return tuple(found)


def dense_retained(
    cameras: Sequence[str], stamps_ns: Mapping[str, int], grid: tuple[int, int]
) -> tuple[RetainedTokens, ...]:
    """The record of a pass in which nothing was pruned; arguments as `StagedPruner.retained`."""
    count = grid[0] * grid[1]
    return tuple(
        RetainedTokens(
            camera=camera,
            stamp_ns=stamps_ns[camera],
            grid=grid,
            layer=0,
            patch_indices=np.arange(count, dtype=np.int32),
            kept_by=np.full(count, KeptBy.DENSE, dtype=np.uint8),
        )
        for camera in cameras
    )


def _without_patches(layout: TokenLayout) -> Tensor:
    """(S,) bool, True at every token but the visual ones."""
    kept = torch.ones(layout.length, dtype=torch.bool)
    kept[layout.vision] = False
    return kept


def _score_dtype(output: LayerOutput) -> torch.dtype:
    return torch.promote_types(output.queries.dtype, torch.float32)
