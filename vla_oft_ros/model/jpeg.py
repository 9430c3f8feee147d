"""What JPEG does to an image, computed on the device: encode and decode without the file in
between.

Entropy coding loses nothing, so a round trip is colour conversion, chroma subsampling, DCT and
rounding, and back. Written in the integers of libjpeg (accurate forward DCT, fast inverse DCT,
fancy upsampling), so that the result equals `image_ops.jpeg_round_trip` bit for bit; a test holds
the two together. Facts: libjpeg-turbo jccolor.c, jcsample.c, jfdctint.c, jcdctmgr.c, jidctfst.c,
jdsample.c, jdcolor.c.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vla_oft_ros.model.image_ops import JPEG_QUALITY

BLOCK = 8
MCU = 16
"""Side of the smallest unit with 4:2:0 chroma, pixels."""
CENTRE = 128
COLOR_BITS = 16

# ITU-T T.81, Annex K.1: example tables that libjpeg scales by the quality; rows of the block.
_LUMA = """
     16  11  10  16  24  40  51  61
     12  12  14  19  26  58  60  55
     14  13  16  24  40  57  69  56
     14  17  22  29  51  87  80  62
     18  22  37  56  68 109 103  77
     24  35  55  64  81 104 113  92
     49  64  78  87 103 121 120 101
     72  92  95  98 112 100 103  99
"""
_CHROMA = """
     17  18  24  47  99  99  99  99
     18  21  26  66  99  99  99  99
     24  26  56  99  99  99  99  99
     47  66  99  99  99  99  99  99
     99  99  99  99  99  99  99  99
     99  99  99  99  99  99  99  99
     99  99  99  99  99  99  99  99
     99  99  99  99  99  99  99  99
"""


def jpeg_round_trip(images: Tensor) -> Tensor:
    """Encodes and decodes with quality 95 and 4:2:0 chroma.

    Args:
        images: (N, H, W, 3) uint8 RGB, H and W multiples of 16.

    Returns:
        (N, H, W, 3) uint8 RGB.

    Raises:
        ValueError: if H or W is no multiple of 16; the edge rules of libjpeg are not repeated
            here.
    """
    if images.shape[1] % MCU or images.shape[2] % MCU:
        raise ValueError(
            f"jpeg_round_trip: expected height and width in multiples of {MCU}; got "
            f"{tuple(images.shape[1:3])}"
        )
    luma, blue, red = _rgb_to_ycc(images.int())
    luma = _code(luma, _LUMA)
    blue, red = (_upsample(_code(_downsample(plane), _CHROMA)) for plane in (blue, red))
    return _ycc_to_rgb(luma, blue, red)


def _fix(x: float, bits: int) -> int:
    """A constant in fixed point, rounded as libjpeg's FIX."""
    return math.floor(x * (1 << bits) + 0.5)


def _descale(x: Tensor, bits: int) -> Tensor:
    """Divides by 2^bits, rounding half up."""
    return (x + (1 << (bits - 1))) >> bits


def _rgb_to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, H, W, 3) int32 → three (N, H, W) planes, 0 … 255 (jccolor.c)."""
    r, g, b = rgb.unbind(-1)
    half = 1 << (COLOR_BITS - 1)
    offset = (CENTRE << COLOR_BITS) + half - 1

    def mix(red: float, green: float, blue: float, rest: int) -> Tensor:
        terms = ((red, r), (green, g), (blue, b))
        fixed = [int(math.copysign(_fix(abs(c), COLOR_BITS), c)) * plane for c, plane in terms]
        return (fixed[0] + fixed[1] + fixed[2] + rest) >> COLOR_BITS

    return (
        mix(0.29900, 0.58700, 0.11400, half),
        mix(-0.16874, -0.33126, 0.50000, offset),
        mix(0.50000, -0.41869, -0.08131, offset),
    )


def _ycc_to_rgb(luma: Tensor, blue: Tensor, red: Tensor) -> Tensor:
    """Three (N, H, W) planes → (N, H, W, 3) uint8 (jdcolor.c)."""
    cb, cr = blue - CENTRE, red - CENTRE
    half = 1 << (COLOR_BITS - 1)
    r = luma + ((_fix(1.40200, COLOR_BITS) * cr + half) >> COLOR_BITS)
    green = -_fix(0.34414, COLOR_BITS) * cb - _fix(0.71414, COLOR_BITS) * cr + half
    g = luma + (green >> COLOR_BITS)
    b = luma + ((_fix(1.77200, COLOR_BITS) * cb + half) >> COLOR_BITS)
    return torch.stack([r, g, b], dim=-1).clamp(0, 255).to(torch.uint8)


def _downsample(plane: Tensor) -> Tensor:
    """(N, H, W) → (N, H/2, W/2): means of 2x2, rounded down and up in turn along a row
    (jcsample.c).
    """
    sums = rearrange(plane, "n (h y) (w x) -> n h w (y x)", y=2, x=2).sum(-1, dtype=torch.int32)
    bias = 1 + torch.arange(sums.shape[-1], device=plane.device, dtype=torch.int32) % 2
    return (sums + bias) >> 2


def _upsample(plane: Tensor) -> Tensor:
    """(N, h, w) → (N, 2h, 2w): weights 3 and 1 towards the nearer sample on both axes (jdsample.c,
    fancy).
    """
    grown = F.pad(plane[:, None].float(), (0, 0, 1, 1), mode="replicate")[:, 0].int()
    centre, above, below = grown[:, 1:-1], grown[:, :-2], grown[:, 2:]
    rows = torch.stack([3 * centre + above, 3 * centre + below], dim=2)  # (N, h, 2, w)
    rows = rows.flatten(1, 2)  # (N, 2h, w)
    left = torch.cat([rows[..., :1], rows[..., :-1]], dim=-1)
    right = torch.cat([rows[..., 1:], rows[..., -1:]], dim=-1)
    columns = torch.stack([(3 * rows + left + 8) >> 4, (3 * rows + right + 7) >> 4], dim=-1)
    return columns.flatten(-2)  # (N, 2h, 2w)


def _code(plane: Tensor, table: str) -> Tensor:
    """One plane (N, H, W) through DCT, quantisation and back."""
    quantizer, multipliers = _quantizer(table, plane.device)
    blocks = rearrange(plane - CENTRE, "n (rows y) (cols x) -> n rows cols y x", y=BLOCK, x=BLOCK)
    steps = quantizer << 3  # the forward DCT's result is scaled by 8
    coefficients = _forward_dct(blocks)
    levels = coefficients.sign() * ((coefficients.abs() + (steps >> 1)) // steps)
    restored = _inverse_dct(levels * multipliers)
    return rearrange(restored, "n rows cols y x -> n (rows y) (cols x)")


@lru_cache(maxsize=8)
def _quantizer(table: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Quantisation steps at `JPEG_QUALITY` (jcparam.c) and `_fast_multipliers`, each (8, 8) int32,
    kept on their device.
    """
    steps = torch.tensor(_scaled_table(table), dtype=torch.int32, device=device)
    steps = steps.view(BLOCK, BLOCK)
    return steps, _fast_multipliers(steps)


@lru_cache(maxsize=2)
def _scaled_table(table: str) -> list[int]:
    scale = 200 - 2 * JPEG_QUALITY
    return [min(max((int(step) * scale + 50) // 100, 1), 255) for step in table.split()]


def _fast_multipliers(quantizer: Tensor) -> Tensor:
    """Steps with the scale factors of the fast inverse DCT folded in, two fractional bits
    (jddctmgr.c).
    """
    factors = [1.0] + [math.cos(k * math.pi / 16) * math.sqrt(2) for k in range(1, BLOCK)]
    scales = [[round(a * b * (1 << 14)) for b in factors] for a in factors]
    table = torch.tensor(scales, dtype=torch.int32, device=quantizer.device)
    return _descale(quantizer * table, 12)


# Constants of the accurate DCT, 13 fractional bits (jfdctint.c).
DCT_BITS = 13
DCT_EXTRA_BITS = 2
"""Bits that the first pass keeps in addition."""


def _forward_dct(blocks: Tensor) -> Tensor:
    """(…, 8, 8) int32 samples around 0 → coefficients scaled by 8 (jfdctint.c)."""
    rows = _forward_pass(blocks, -DCT_EXTRA_BITS, DCT_BITS - DCT_EXTRA_BITS)
    columns = _forward_pass(rows.transpose(-1, -2), DCT_EXTRA_BITS, DCT_BITS + DCT_EXTRA_BITS)
    return columns.transpose(-1, -2)


def _forward_pass(x: Tensor, even_bits: int, odd_bits: int) -> Tensor:
    """One dimension of the accurate DCT along the last axis; negative `even_bits` shift left."""
    d = x.unbind(-1)
    s0, s1, s2, s3 = (d[i] + d[7 - i] for i in range(4))
    t7, t6, t5, t4 = (d[i] - d[7 - i] for i in range(4))

    def even(value: Tensor) -> Tensor:
        return value << -even_bits if even_bits < 0 else _descale(value, even_bits)

    def odd(value: Tensor) -> Tensor:
        return _descale(value, odd_bits)

    def times(value: Tensor, constant: float) -> Tensor:
        return value * _fix(constant, DCT_BITS)

    e0, e3, e1, e2 = s0 + s3, s0 - s3, s1 + s2, s1 - s2
    z = times(e2 + e3, 0.541196100)
    z5 = times(t4 + t6 + t5 + t7, 1.175875602)
    z1 = -times(t4 + t7, 0.899976223)
    z2 = -times(t5 + t6, 2.562915447)
    z3 = -times(t4 + t6, 1.961570560) + z5
    z4 = -times(t5 + t7, 0.390180644) + z5
    return torch.stack(
        [
            even(e0 + e1),
            odd(times(t7, 1.501321110) + z1 + z4),
            odd(z + times(e3, 0.765366865)),
            odd(times(t6, 3.072711026) + z2 + z3),
            even(e0 - e1),
            odd(times(t5, 2.053119869) + z2 + z4),
            odd(z - times(e2, 1.847759065)),
            odd(times(t4, 0.298631336) + z1 + z3),
        ],
        dim=-1,
    )


FAST_BITS = 8
"""Fractional bits of the fast inverse DCT's constants; products are cut, not rounded (jidctfst.c).
"""


def _inverse_dct(coefficients: Tensor) -> Tensor:
    """(…, 8, 8) int32 from `_fast_multipliers` → samples 0 … 255 (jidctfst.c)."""
    columns = _inverse_pass(coefficients.transpose(-1, -2)).transpose(-1, -2)
    return ((_inverse_pass(columns) >> (2 + 3)) + CENTRE).clamp(0, 255)


def _inverse_pass(x: Tensor) -> Tensor:
    """One dimension of the fast inverse DCT (Arai, Agui, Nakajima) along the last axis."""
    c = x.unbind(-1)

    def times(value: Tensor, constant: float) -> Tensor:
        return (value * int(math.copysign(_fix(abs(constant), FAST_BITS), constant))) >> FAST_BITS

    a, b = c[0] + c[4], c[0] - c[4]
    d = c[2] + c[6]
    e = times(c[2] - c[6], 1.414213562) - d
    e0, e3, e1, e2 = a + d, a - d, b + e, b - e
    z13, z10, z11, z12 = c[5] + c[3], c[5] - c[3], c[1] + c[7], c[1] - c[7]
    o7 = z11 + z13
    z5 = times(z10 + z12, 1.847759065)
    o6 = times(z10, -2.613125930) + z5 - o7
    o5 = times(z11 - z13, 1.414213562) - o6
    o4 = times(z12, 1.082392200) - z5 + o5
    return torch.stack(
        [e0 + o7, e1 + o6, e2 + o5, e3 - o4, e3 + o4, e2 - o5, e1 - o6, e0 - o7], dim=-1
    )
