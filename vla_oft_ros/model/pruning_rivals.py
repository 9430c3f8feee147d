"""Other ways to choose visual tokens, behind SpecPrune's interface and at its number of tokens.

Each ranks all visual tokens once, after the static layer, and keeps the best at every stage. So
the passes cost the same, and only the choice differs. None of them looks at earlier inferences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla_oft_ros.model import pruning
from vla_oft_ros.model.llm import LayerOutput
from vla_oft_ros.model.pruner import StagedPruner
from vla_oft_ros.model.pruning_plan import PruningPlan
from vla_oft_ros.model.tokens import TokenLayout
from vla_oft_ros.types import KeptBy, MotionMode


def received_attention(queries: Tensor, keys: Tensor, logsumexp: Tensor) -> Tensor:
    """Attention that each visual token receives, averaged over all queries and heads (FastV, arXiv
    2403.06764).

    Args:
        queries: (h, S, d) rotated queries of the whole sequence.
        keys: (h, n, d) rotated keys of the visual tokens.
        logsumexp: (h, S) normalisers of these queries.

    Returns:
        (n,) 0 … 1.
    """
    # Head by head: one (S, n) is held at a time.
    total = torch.zeros(keys.shape[1], device=keys.device, dtype=logsumexp.dtype)
    for q, k, normalizer in zip(queries, keys, logsumexp, strict=True):
        logits = (q.to(total.dtype) * q.shape[-1] ** -0.5) @ k.to(total.dtype).T  # (S, n)
        total += (logits - normalizer[:, None]).exp().mean(dim=0)
    return total / len(keys)


def diversity_order(features: Tensor, count: int) -> Tensor:
    """The tokens that max-min diversity picks, in its order (DivPrune, arXiv 2503.02175).

    The first is the one farthest from its nearest neighbour; each next one is farthest from those
    already picked. Distances are 1 - cosine.

    Args:
        features: (n, D).
        count: Tokens to pick, 1 … n.

    Returns:
        (count,) int64 token indices.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    distance = 1.0 - unit @ unit.T  # (n, n)
    others = distance + torch.eye(len(unit), device=unit.device) * 4.0  # beyond any distance, 2
    picked = [others.amin(dim=1).argmax()]
    nearest = distance[picked[0]].index_fill(0, picked[0], -torch.inf)  # (n,) to the picked ones
    for _ in range(count - 1):
        picked.append(nearest.argmax())
        nearest = torch.minimum(nearest, distance[picked[-1]])
        nearest = nearest.index_fill(0, picked[-1], -torch.inf)
    return torch.stack(picked)


class RankPruner(StagedPruner):
    """Ranks the visual tokens once, by the rival that the plan's method names.

    DivPrune's features are the hidden states after the static layer, where every method chooses
    here; the original takes the projected patches.

    Args:
        plan: Layers and counts; method random, fastv or divprune.
        layout: Where the tokens are.
        text: Positions of the instruction tokens in the whole sequence.
        generator: Randomness of `random`.
        mode: From the action-aware controller.
    """

    def __init__(
        self,
        plan: PruningPlan,
        layout: TokenLayout,
        text: slice,
        *,
        generator: torch.Generator,
        mode: MotionMode = MotionMode.COARSE,
    ) -> None:
        super().__init__(plan, layout, text)
        self._generator = generator
        self._mode = mode

    def scores_layer(self, layer: int) -> bool:
        """See `TokenPruner`."""
        return self.plan.config.method == "fastv" and layer == self.plan.static_layer

    def look(self, layer: int, output: LayerOutput) -> None:
        """See `StagedPruner`."""
        if layer != self.plan.static_layer:
            return
        method = self.plan.config.method
        if method == "random":
            order = torch.rand(self.plan.vision, generator=self._generator)
            self._importance = order.to(self._importance)
        elif method == "fastv":
            queries = output.queries[0]
            normalizer = (
                pruning.row_logsumexp(queries, pruning.all_heads(output.keys[0], queries))
                if output.logsumexp is None
                else output.logsumexp[0]
            )
            keys = pruning.all_heads(output.keys[0, :, self.rows], queries)
            self._importance = received_attention(queries, keys, normalizer)
        else:
            order = diversity_order(output.hidden[0, self.rows], self.plan.budgets[self._mode])
            places = torch.arange(len(order), 0, -1, device=order.device)
            # The first picked weighs most; those never picked keep weight 0.
            self._importance = self._importance.index_copy(0, order, places.to(self._importance))

    def select(self) -> Tensor:
        """See `StagedPruner`."""
        kept = pruning.keep_highest(self._importance, self.plan.budgets[self._mode])
        reason = KeptBy.LOCAL if self.plan.config.method == "fastv" else KeptBy.FILL
        shape = (self.plan.cameras, self.plan.patches)
        self.reasons = torch.full(shape, int(reason), dtype=torch.uint8, device=kept.device)
        return kept
