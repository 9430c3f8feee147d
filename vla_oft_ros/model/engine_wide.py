"""What the engine computes in float32 between products in bfloat16.

Products take their operands in the format of the weights; everything between them is rounded once,
when the next product reads it, and not after every operation: residual streams, norms, gates,
FiLM, the way of the robot's joints into the network and of the actions out of it. How much each
matters: docs/performance.md. A network in float32 or float64 computes what the model's own forward
does, bit for bit. *Wide* is float32, or float64 in a network of that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vla_oft_ros.model.action_head import RegressionHead, ResidualBlock
from vla_oft_ros.model.llm import rms_norm
from vla_oft_ros.model.projector import ValueProjector


def wide(x: Tensor) -> Tensor:
    """Casts to float32, unless the tensor is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def wide_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A small layer in the format of its input: wide (…, inputs) → wide (…, outputs)."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def narrow_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A large layer in the format of its weights: wide (…, inputs) → wide (…, outputs)."""
    out: Tensor = layer(x.to(layer.weight.dtype))
    return out.to(x.dtype)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm of a wide tensor, wide."""
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def narrow_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of a wide tensor, rounded once, to the format of the weight."""
    return rms_norm(x, weight, eps).to(weight.dtype)


def value_token(projector: ValueProjector, values: Tensor) -> Tensor:
    """`ValueProjector` of wide values (1, A): (1, D) wide."""
    return narrow_linear(projector.fc2, F.gelu(wide_linear(projector.fc1, values)))


def actions_of(head: RegressionHead, hidden: Tensor) -> Tensor:
    """`RegressionHead` of wide hidden states (1, K·A, D): (1, K, A) wide."""
    network = head.model
    steps = rearrange(hidden, "b (k a) d -> b k (a d)", a=head.action_dim)
    x = F.relu(narrow_linear(network.fc1, layer_norm(network.layer_norm1, steps)))
    for block in network.mlp_resnet_blocks:
        assert isinstance(block, ResidualBlock)
        norm, layer = block.ffn
        assert isinstance(norm, nn.LayerNorm) and isinstance(layer, nn.Linear)
        x = x + F.relu(narrow_linear(layer, layer_norm(norm, x)))
    return wide_linear(network.fc2, layer_norm(network.layer_norm2, x))
