"""Pruning without a choice: what it costs to drop tokens, apart from finding out which."""

from __future__ import annotations

import torch
from torch import Tensor

from vla_oft_ros.model.engine import Engine
from vla_oft_ros.model.engine_pass import PassShape
from vla_oft_ros.model.llm import LayerOutput
from vla_oft_ros.model.pruner import PruningState, SpecPruner
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.types import KeptBy, MotionMode


class Unchosen(SpecPruner):
    """Keeps as many tokens as SpecPrune, the first ones: nothing is scored, compared or left to
    the next pass.
    """

    def scores_layer(self, layer: int) -> bool:
        """No layer."""
        return False

    def look(self, layer: int, output: LayerOutput) -> None:
        """Nothing."""

    def select(self) -> Tensor:
        """The first ones, as many as the plan has for the mode."""
        device = self._importance.device
        shape = (self.plan.cameras, self.plan.patches)
        self.reasons = torch.full(shape, int(KeptBy.FILL), dtype=torch.uint8, device=device)
        return torch.arange(self.plan.budgets[self._mode], device=device)

    @property
    def state(self) -> PruningState:
        """Empty."""
        nothing = torch.zeros(0, device=self._importance.device)
        return PruningState(global_patches=nothing, entropies=nothing)


def without_choice(engine: Engine, plan: PruningPlan, mode: MotionMode) -> None:
    """Has an engine drop the first tokens, in a pass that has no images to compare with."""

    def pruner(shape: PassShape, *_: object) -> Unchosen:
        own = plan.for_length(shape.layout.length)
        return Unchosen(own, shape.layout, slice(*shape.text), mode=mode)

    # For this one row; no user should be able to ask for it.
    engine._network._pruner = pruner  # type: ignore[method-assign]
