"""Weights as int8 with a scale per output, for `linear.py`'s products at half the bytes.

    scale[o] = max_k |w[o, k]| / 127        q[o, k] = round(w[o, k] / scale[o]),  |q| <= 127

Symmetric and of weights alone: activations stay as they are. The scale is cut to 17 bits, so that
scale * q, of 7 bits more, is exact in float32, and to quantise that again gives the same. It is at
least 2^-126, the least number that keeps all its bits: rows of zeros, and of numbers too small to
matter, need no case of their own.
"""

import torch
from torch import Tensor

LARGEST = 127
LEAST_SCALE = 2.0**-126
SEVEN_BITS = -128  # what is left of a number without the last seven
BLOCK = 1 << 22  # elements that are float32 at a time


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` [O, H >= 1] -> int8 [O, H] and float32 scales [O], both contiguous.

    weight  float32, bfloat16 or float16, of any device; rows are taken by blocks, so that no
            float32 copy of the whole is made

    ``|weight - scale * q| <= scale * (1/2 + 2^-16)``, what exceeds a half being the rounding of a
    float32 quotient and the cut of the scale. Raises ValueError where a row has NaN or infinity.
    """
    outputs, depth = weight.shape
    q = torch.empty(outputs, depth, dtype=torch.int8, device=weight.device)
    scale = torch.empty(outputs, dtype=torch.float32, device=weight.device)
    rows = max(BLOCK // depth, 1)
    for start in range(0, outputs, rows):
        block = weight[start : start + rows]
        largest = block.abs().amax(1).float()
        broken = largest.isfinite().logical_not_().nonzero()
        if len(broken):
            raise ValueError(f"row {start + int(broken[0])} of the weight has NaN or infinity")
        of_row = scale[start : start + rows].copy_(largest / LARGEST)
        of_row.view(torch.int32).bitwise_and_(SEVEN_BITS)
        of_row.clamp_(min=LEAST_SCALE)
        q[start : start + rows] = (block / of_row.unsqueeze(1)).round_()
    return q, scale


def dequantise(q: Tensor, scale: Tensor) -> Tensor:
    """``scale [O] * q [O, H]``, float32 and exact for what `quantise` gave."""
    return q.float().mul_(scale.unsqueeze(1))
