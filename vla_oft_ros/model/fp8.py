"""Linear layers in 8-bit floating point (e4m3): weights scaled per output, activations per row.

A row of activations holds a few very large numbers (Llama's BOS token more than any), and one
scale for a whole tensor would round all others away; so each row brings its own, computed on the
fly. On a GPU `torch._scaled_mm` multiplies; elsewhere the same numbers are multiplied in float32,
which is how tests look at the arithmetic. Source of the format: Micikevicius et al. 2022 (arXiv
2209.05433).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""Largest number of e4m3 (arXiv 2209.05433, Table 1)."""
FP8_STEP = 2.0**-4
"""Half the distance between neighbouring e4m3 numbers, relative to them: three mantissa bits."""
ROW_MULTIPLE = 16
"""`torch._scaled_mm` wants both sizes of a weight to be multiples of this."""
MIN_CAPABILITY = (9, 0)
"""Row-wise scales need the matrix units of sm_90 (torch's own condition)."""


class Fp8Weight(NamedTuple):
    """A weight (outputs, inputs) in e4m3 and the factor (outputs, 1) float32 of each row."""

    values: Tensor
    scale: Tensor


Weight = Tensor | Fp8Weight


def quantize_rows(x: Tensor) -> Fp8Weight:
    """Scales each row to the full range of e4m3 and rounds.

    Args:
        x: (rows, columns) float.
    """
    largest = x.abs().amax(dim=-1, keepdim=True).float()  # (rows, 1)
    scale = largest.clamp(min=torch.finfo(torch.float32).tiny * FP8_MAX) / FP8_MAX
    return Fp8Weight((x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale)


def rows_of(weight: Weight, start: int, stop: int) -> Weight:
    """Some outputs of a weight, sharing its memory."""
    if isinstance(weight, Fp8Weight):
        return Fp8Weight(weight.values[start:stop], weight.scale[start:stop])
    return weight[start:stop]


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x·Wᵀ without a bias: (…, inputs) → (…, outputs) in the dtype of `x`."""
    if not isinstance(weight, Fp8Weight):
        return torch.nn.functional.linear(x, weight)
    rows = quantize_rows(x.flatten(0, -2))  # (rows, inputs)
    if x.device.type == "cuda":
        out = torch._scaled_mm(
            rows.values,
            weight.values.t(),
            scale_a=rows.scale,
            scale_b=weight.scale.t(),
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
    else:
        product = rows.values.float() @ weight.values.float().t()
        out = (product * rows.scale * weight.scale.t()).to(x.dtype)
    return out.view(*x.shape[:-1], -1)


def fp8_problem(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]) -> str | None:
    """Why the device cannot multiply e4m3 rows; None if it can.

    Args:
        device: Where the network runs.
        dtype: Of its activations.
        sizes: Inputs and outputs of the layers.
    """
    if device.type != "cuda":
        return f"{device.type} has no fp8 matrix units"
    if dtype is not torch.bfloat16:
        return f"fp8 needs bf16 activations, the network computes in {dtype}"
    odd = [size for size in sizes if size % ROW_MULTIPLE]
    if odd:
        return f"fp8 needs layer sizes in multiples of {ROW_MULTIPLE}, the network has {odd[0]}"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return (
            f"fp8 with a scale per row needs compute capability {MIN_CAPABILITY[0]}."
            f"{MIN_CAPABILITY[1]}, the GPU has {capability[0]}.{capability[1]}"
        )
    try:  # the library has its own opinion
        probe = torch.ones(512, 512, device=device, dtype=dtype)
        linear(probe, quantize_rows(probe))
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return f"torch._scaled_mm refuses: {str(error).splitlines()[0]}"
    return None
