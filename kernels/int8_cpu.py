"""The products of `linear.py` on a CPU, where a weight may be int8: torch's own kernel for it.

    y[r, o] = scale[o] * sum_k x[r, k] * q[o, k]        x, y and scale bfloat16, q int8

The kernel keeps sums in float32 and rounds once, after the scale, which it takes in bfloat16: an
error of at most 2^-8 of an output, as its own rounding. It reads the weight again for every four
rows: one to four cost what their bytes do, sixteen more than a product in bfloat16, and many are
better taken with the weight as bfloat16 for once (`linear.scaled_product`). A row's bits do not
depend on its company up to `linear.INT8_ROWS`, as `row_tile` finds out.

In float32 torch has no such kernel but a loop that takes two to twenty times as long as the plain
product; scales of float32 say that it is not to be used.
"""

import torch
from torch import Tensor

from hybridgen.kernels.quantise import quantise

STEP = 16  # numbers that the kernel reads at a time: at another depth it would read past the end


def quantise_for_cpu(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`quantise` of ``weight`` [O, H], with the scale as the kernel takes it if it can.

    That is bfloat16, where ``dtype`` is, what products are computed in, and for a depth of whole
    `STEP`s; else float32.
    """
    q, scale = quantise(weight)
    suits = dtype == torch.bfloat16 and weight.shape[1] % STEP == 0
    return q, scale.to(torch.bfloat16) if suits else scale
