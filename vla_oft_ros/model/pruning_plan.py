"""What a `PruningConfig` means for one model: set sizes, layers, budgets, tokens per layer, FLOPs.

The configuration speaks of 256 patches per camera and 32 layers, as the paper does; a plan holds
the numbers of the model at hand. Pure arithmetic; knows nothing of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vla_oft_ros.config import ConfigError, PruningConfig
from vla_oft_ros.model.llm import LlamaConfig
from vla_oft_ros.types import MotionMode

PAPER_PATCHES = 256
PAPER_LAYERS = 32


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """A configuration resolved against the sizes of one model; made by `resolve`.

    Attributes:
        config: What it was made from.
        cameras: N.
        patches: P, patches per camera.
        depth: Layers of the LLM.
        static_layer: Static pruning follows this layer; layers count from 1.
        local_layers: Layers that give local scores.
        global_layers: Layers that give the global scores of the next inference.
        dynamic_layers: Dynamic stages follow these layers.
        global_count: Patches per view of V_global.
        local_counts: Patches per view and local layer, per mode.
        dynamic_counts: Patches per view of V_dynamic, at most, per mode.
        budgets: Visual tokens of all views after static pruning, per mode.
        rank_slope: k of the rank weight for this number of patches.
    """

    config: PruningConfig
    cameras: int
    patches: int
    depth: int
    static_layer: int
    local_layers: tuple[int, ...]
    global_layers: tuple[int, ...]
    dynamic_layers: tuple[int, ...]
    global_count: int
    local_counts: dict[MotionMode, int]
    dynamic_counts: dict[MotionMode, int]
    budgets: dict[MotionMode, int]
    rank_slope: float

    @classmethod
    def resolve(
        cls, config: PruningConfig, *, cameras: int, patches: int, depth: int
    ) -> PruningPlan:
        """Fits a configuration to a model.

        Layers scale by depth / 32, rounded up. A dynamic stage that would then follow another one
        with no layer between them has nothing new to go by and is left out, as are all stages when
        they would drop nothing.

        Args:
            config: With a method other than none.
            cameras: N.
            patches: P.
            depth: Layers of the LLM.

        Raises:
            ConfigError: if the model is too shallow, or a budget is smaller than the largest
                union or larger than the number of patches.
        """

        def layer_of(layer: int) -> int:
            return min(max(math.ceil(layer * depth / PAPER_LAYERS), 1), depth)

        # The first layers are early in a model of any depth: they do not scale.
        static_layer = config.static_layer
        if depth <= static_layer:
            raise ConfigError(
                f"PruningConfig.static_layer: expected fewer than the {depth} layers of this "
                f"model; got {static_layer}. Set pruning.method to none"
            )
        dynamic_layers: list[int] = []
        for layer in map(layer_of, config.dynamic_layers):
            after = layer - (dynamic_layers or [static_layer])[-1]
            if after > 1 and layer < depth and config.gamma < 1.0:
                dynamic_layers.append(layer)

        def count(paper_count: int) -> int:
            return min(round(config.alpha * paper_count * patches / PAPER_PATCHES), patches)

        coarse, fine = MotionMode.COARSE, MotionMode.FINE
        global_count = count(config.global_count)
        local = {coarse: count(config.local_count_coarse), fine: count(config.local_count_fine)}
        dynamic = {
            coarse: count(config.dynamic_count_coarse),
            fine: count(config.dynamic_count_fine),
        }
        budgets = {}
        for mode, wanted in ((coarse, config.budget_coarse), (fine, config.budget_fine)):
            union = global_count + len(config.local_layers) * local[mode] + dynamic[mode]
            largest = cameras * min(union, patches)
            if wanted and not largest <= wanted <= cameras * patches:
                raise ConfigError(
                    f"PruningConfig.budget_{mode.value}: expected 0, or from {largest} (the "
                    f"largest union) to {cameras * patches} (all patches); got {wanted}"
                )
            budgets[mode] = wanted or largest
        return cls(
            config=config,
            cameras=cameras,
            patches=patches,
            depth=depth,
            static_layer=static_layer,
            local_layers=config.local_layers,
            global_layers=tuple(sorted({layer_of(layer) for layer in config.global_layers})),
            dynamic_layers=tuple(dynamic_layers),
            global_count=global_count,
            local_counts=local,
            dynamic_counts=dynamic,
            budgets=budgets,
            rank_slope=config.rank_slope * PAPER_PATCHES / patches,
        )

    @property
    def vision(self) -> int:
        """N·P, visual tokens before pruning."""
        return self.cameras * self.patches

    def for_length(self, length: int) -> PruningPlan:
        """The plan for sequences of `length` tokens before pruning: budgets filled up to the next
        `length_multiple`.
        """
        multiple = self.config.length_multiple
        if not multiple or self.config.preset != "static_shape":
            return self
        others = length - self.vision
        budgets = {
            mode: min(-(-(others + budget) // multiple) * multiple - others, self.vision)
            for mode, budget in self.budgets.items()
        }
        return replace(self, budgets=budgets)

    def is_weighed(self, layer: int) -> bool:
        """Whether the layer adds to the importance: between stages, not where one follows."""
        last = max(self.dynamic_layers, default=self.static_layer)
        return self.static_layer < layer < last and layer not in self.dynamic_layers

    def after_stage(self, present: int) -> int:
        """Visual tokens that a dynamic stage keeps of those present; at least one."""
        # The small term keeps products such as 0.9 · 230, which are whole numbers, whole.
        return max(math.floor(self.config.gamma * present + 1e-9), 1)

    def visual_counts(self, static_kept: int) -> tuple[int, ...]:
        """Visual tokens in each layer of a pruned pass.

        Args:
            static_kept: Visual tokens that static pruning keeps.
        """
        counts, present = [], self.vision
        for layer in range(1, self.depth + 1):
            counts.append(present)
            if layer == self.static_layer:
                present = static_kept
            elif layer in self.dynamic_layers:
                present = self.after_stage(present)
        return tuple(counts)

    def scored_counts(self, static_kept: int) -> tuple[int, ...]:
        """Visual tokens scored against the instruction in each layer of a pruned pass; 0 where
        none is.
        """
        return tuple(
            count
            if layer in self.local_layers or layer in self.global_layers or self.is_weighed(layer)
            else 0
            for layer, count in enumerate(self.visual_counts(static_kept), start=1)
        )


def llm_flops(llm: LlamaConfig, lengths: Sequence[int]) -> int:
    """Floating-point operations of the LLM's matrix products, 2 per multiply-add.

    Args:
        llm: Sizes.
        lengths: Tokens in each layer.
    """
    kv_width = llm.kv_heads * llm.head_dim
    per_token = 2 * llm.width * (2 * llm.width + 2 * kv_width + 3 * llm.mlp_hidden)
    return sum(length * per_token + 4 * length**2 * llm.width for length in lengths)


def scoring_flops(llm: LlamaConfig, scored: Sequence[int], text_tokens: int) -> int:
    """Operations of the scores beside the attention kernel (Eq. 2).

    Args:
        llm: Sizes.
        scored: Visual tokens scored in each layer.
        text_tokens: m.
    """
    return sum(2 * count * text_tokens * llm.width for count in scored)
