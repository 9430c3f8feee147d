"""The LLM's weights as the engine multiplies them: packed, and in 8 bits if asked for.

Packing puts the rows of several layers that read the same input into one tensor and lets their
parameters be views of it: names and values stay, nothing is held twice, and any number of engines
can share one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla_oft_ros.model.fp8 import Weight, quantize_rows, rows_of
from vla_oft_ros.model.llm import DecoderLayer, LlamaModel


class LayerWeights(NamedTuple):
    """One decoder layer.

    Attributes:
        input_norm: (D,) before attention.
        qkv: Query, key and value, one tensor or three.
        query: Query alone.
        key_value: Key and value, one tensor or two.
        out: Attention's output.
        post_norm: (D,) before the MLP.
        gate_up: Gate and up, one tensor or two.
        down: The MLP's output.
    """

    input_norm: Tensor
    qkv: tuple[Weight, ...]
    query: Weight
    key_value: tuple[Weight, ...]
    out: Weight
    post_norm: Tensor
    gate_up: tuple[Weight, ...]
    down: Weight


def layer_weights(model: LlamaModel, *, fuse: bool, fp8: bool) -> tuple[LayerWeights, ...]:
    """The weights of every layer.

    Args:
        model: Without adapters; its parameters become views if `fuse`.
        fuse: Pack those that read the same input.
        fp8: Round them to e4m3; the parameters stay as they are.

    Raises:
        ValueError: if a layer is not a plain linear layer.
    """
    return tuple(
        _one_layer(layer, fuse, fp8) for layer in model.layers if isinstance(layer, DecoderLayer)
    )


def _one_layer(layer: DecoderLayer, fuse: bool, fp8: bool) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    qkv = _together((attention.q_proj, attention.k_proj, attention.v_proj), fuse, fp8)
    queries = attention.q_proj.out_features
    if fuse:
        total = queries + attention.k_proj.out_features + attention.v_proj.out_features
        query: Weight = rows_of(qkv[0], 0, queries)
        key_value: tuple[Weight, ...] = (rows_of(qkv[0], queries, total),)
    else:
        query, *rest = qkv
        key_value = tuple(rest)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=qkv,
        query=query,
        key_value=key_value,
        out=_together((attention.o_proj,), False, fp8)[0],
        post_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=_together((mlp.gate_proj, mlp.up_proj), fuse, fp8),
        down=_together((mlp.down_proj,), False, fp8)[0],
    )


def _together(linears: Sequence[nn.Module], fuse: bool, fp8: bool) -> tuple[Weight, ...]:
    plain = []
    for linear in linears:
        if not isinstance(linear, nn.Linear):
            raise ValueError(
                f"engine: expected plain linear layers in the LLM, got {type(linear).__name__}; "
                "merge adapters before making an engine"
            )
        plain.append(linear)
    weights = [packed(plain)] if fuse else [linear.weight.detach() for linear in plain]
    return tuple(quantize_rows(weight) if fp8 else weight for weight in weights)


@torch.no_grad()
def packed(linears: Sequence[nn.Linear]) -> Tensor:
    """One tensor with the rows of all layers, of which their weights are views from now on.

    Args:
        linears: Without biases, with equally many inputs; done again, it changes nothing.

    Returns:
        (sum of outputs, inputs).
    """
    weights = [linear.weight for linear in linears]
    rows = [len(weight) for weight in weights]
    if not _adjacent(weights):
        joined = torch.cat([weight.detach() for weight in weights])
        for linear, part in zip(linears, torch.split(joined, rows), strict=True):
            linear.weight.data = part
        weights = [linear.weight for linear in linears]
    columns = weights[0].shape[1]
    return weights[0].detach().as_strided((sum(rows), columns), (columns, 1))


def _adjacent(weights: Sequence[Tensor]) -> bool:
    """Whether each tensor begins where the one before ends, in the same memory."""
    storage = weights[0].untyped_storage().data_ptr()
    expected = weights[0].data_ptr()
    for weight in weights:
        elsewhere = weight.untyped_storage().data_ptr() != storage
        if elsewhere or weight.data_ptr() != expected or not weight.is_contiguous():
            return False
        expected += weight.numel() * weight.element_size()
    return True
