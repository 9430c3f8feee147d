"""A control for evaluations: a network of the same sizes that has learnt nothing.

What it still achieves is not owed to the training. Knows nothing of episodes.
"""

from __future__ import annotations

import torch
from torch import nn


def shuffle_weights(model: nn.Module, seed: int = 0) -> None:
    """Puts the values of every weight tensor in random order, in place.

    Every tensor keeps its mean and spread, so that activations stay within reason.

    Args:
        model: Any network.
        seed: Of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            values = parameter.detach().flatten()[order.to(parameter.device)]
            parameter.copy_(values.view_as(parameter))
