"""What a device really reaches, in the same run as everything else: matrix products and copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from latency.rounds import free_memory, time_call
from vla_oft_ros.model.llm import LlamaConfig

REPEATS, WARM_UP = 20, 5
FULL_SIDE, FULL_COPY_BYTES = 8192, 4 << 30
TINY_SIDE, TINY_COPY_BYTES = 512, 16 << 20


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Rates reached; None where the device cannot, with the reason in `problems`.

    Attributes:
        flop_per_s: Square product in the format of the weights.
        fp8_flop_per_s: The same in e4m3.
        bytes_per_s: Copy, read and written bytes together.
        problems: What could not be measured and why.
    """

    flop_per_s: float
    fp8_flop_per_s: float | None
    bytes_per_s: float
    problems: tuple[str, ...]


def measure_ceilings(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> Ceilings:
    """Times square products and a copy, on random data."""
    side = TINY_SIDE if tiny else FULL_SIDE
    flop_per_s = 2 * side**3 / _product_s(side, device, dtype)
    free_memory()
    problems: list[str] = []
    fp8_flop_per_s = None
    try:
        if device.type != "cuda":
            raise ValueError("needs a CUDA GPU")
        fp8_flop_per_s = 2 * side**3 / _fp8_product_s(side, device)
    except Exception as error:  # whatever a device or a build says to formats it does not know
        problems.append(f"fp8 product: {str(error).splitlines()[0]}")
    free_memory()
    copied = TINY_COPY_BYTES if tiny else FULL_COPY_BYTES
    bytes_per_s = 2 * copied / _copy_s(copied, device)
    free_memory()
    return Ceilings(
        flop_per_s=flop_per_s,
        fp8_flop_per_s=fp8_flop_per_s,
        bytes_per_s=bytes_per_s,
        problems=tuple(problems),
    )


def products_of_a_layer(
    llm: LlamaConfig, lengths: Sequence[int], device: torch.device, dtype: torch.dtype
) -> dict[int, float]:
    """Tokens → seconds of the four products of one LLM layer: where the plateaus are."""
    kv_width = llm.kv_heads * llm.head_dim
    shapes = [
        (llm.width, llm.width + 2 * kv_width),
        (llm.width, llm.width),
        (llm.width, 2 * llm.mlp_hidden),
        (llm.mlp_hidden, llm.width),
    ]
    weights = [torch.randn(out, into, device=device, dtype=dtype) for into, out in shapes]
    found = {}
    for length in lengths:
        rows = {into: torch.randn(length, into, device=device, dtype=dtype) for into, _ in shapes}

        def layer(rows: dict[int, torch.Tensor] = rows) -> None:
            for weight in weights:
                torch.nn.functional.linear(rows[weight.shape[1]], weight)

        found[length] = _seconds(layer, device)
    return found


def _product_s(side: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return _seconds(lambda: left @ right, device)


def _fp8_product_s(side: int, device: torch.device) -> float:
    left, right = (
        torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2)
    )
    one = torch.ones((), device=device)
    # The second factor is column-major, as the product wants it.
    return _seconds(
        lambda: torch._scaled_mm(
            left,
            right.t(),
            scale_a=one,
            scale_b=one,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        ),
        device,
    )


def _copy_s(size_bytes: int, device: torch.device) -> float:
    source = torch.empty(size_bytes // 2, device=device, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    return _seconds(lambda: target.copy_(source), device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median time of a call, several in a row on a GPU, whose launches then hide each other."""
    in_a_row = 10 if device.type == "cuda" else 1

    def calls() -> None:
        for _ in range(in_a_row):
            call()

    for _ in range(WARM_UP):
        call()
    times = [time_call(calls, device) for _ in range(REPEATS)]
    each = median(one.wall_s if one.device_s is None else one.device_s for one in times)
    return each / in_a_row
