"""The ops of `linear.py` on a CPU with what stands around their products compiled.

The products are `linear.py`'s, packed or int8 as there. Norm and gate are rounded where the
references round: in half precision to nearest after the normalised row and after the activation.
Rows are taken one by one, so that a row's bits do not depend on the others.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels import linear
from hybridgen.kernels.linear import product
from hybridgen.kernels.numba_utils import array, compiled, exp, rounded, wide

_ONE = np.float32(1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`layers.rms_norm` of x [R, H], rows of any stride, with weight [H], contiguous."""
    y = x.new_empty(x.shape)
    _rms_norm(array(x), array(weight), np.float32(eps), array(y))
    return y


def gated(both: Tensor) -> Tensor:
    """``silu(gate) * up`` [R, I] of ``both`` [R, 2 I], gate beside up."""
    y = both.new_empty(both.shape[0], both.shape[1] // 2)
    _gated(array(both), array(y))
    return y


def norm_linear(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor:
    """See `linear.norm_linear_reference`."""
    if x.dtype == torch.float16:
        return linear.norm_linear_reference(x, norm, eps, weight, bias, scale)
    return product(rms_norm(x, norm, eps), weight, bias, scale)


def norm_gated_linear(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor:
    """See `linear.norm_gated_linear_reference`."""
    if x.dtype == torch.float16:
        return linear.norm_gated_linear_reference(x, norm, eps, weight, bias, scale)
    return gated(product(rms_norm(x, norm, eps), weight, bias, scale))


@compiled
def _rms_norm(x: Any, weight: Any, eps: Any, y: Any) -> None:
    rows, width = x.shape
    for r in range(rows):
        total = np.float32(0)
        for i in range(width):
            value = wide(x[r, i])
            total += value * value
        scale = _ONE / np.sqrt(total / np.float32(width) + eps)
        for i in range(width):
            value = rounded(wide(x[r, i]) * scale, y)
            y[r, i] = rounded(wide(value) * wide(weight[i]), y)


@compiled
def _gated(both: Any, y: Any) -> None:
    rows, width = y.shape
    for r in range(rows):
        for i in range(width):
            gate = wide(both[r, i])
            power = exp(-abs(gate))
            part = _ONE / (_ONE + power)
            silu = rounded(gate * (part if gate >= 0 else power * part), y)
            y[r, i] = rounded(wide(silu) * wide(both[r, width + i]), y)
