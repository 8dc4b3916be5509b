"""The ops of `linear.py` on a CPU with what stands around their products compiled.

The products are `linear.py`'s. Norm and gate are rounded where the
references round: in half precision to nearest after the normalised row and after the activation.
Rows are taken one by one, so that a row's bits do not depend on the others.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels import linear, product_numba
from hybridgen.kernels.linear import is_compiled, product
from hybridgen.kernels.numba_utils import ELEMENT, compiled, exp, numbers_at, rounded, wide

_ONE = np.float32(1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`layers.rms_norm` of x [R, H], of any stride, with weight [H]."""
    x, weight, (rows, width) = x.contiguous(), weight.contiguous(), x.shape
    y = x.new_empty(rows, width)
    elements = ELEMENT[x.dtype], ELEMENT[weight.dtype]
    _rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), *elements, rows, width, eps)
    return y


def gated(both: Tensor) -> Tensor:
    """``silu(gate) * up`` [R, I] of ``both`` [R, 2 I], gate beside up."""
    both, (rows, width) = both.contiguous(), both.shape
    y = both.new_empty(rows, width // 2)
    _gated(both.data_ptr(), y.data_ptr(), ELEMENT[both.dtype], rows, width // 2)
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


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None = None
) -> Tensor:
    """See `linear.linear_residual_reference`."""
    if x.dtype == torch.float32 and is_compiled(x, weight):  # bfloat16 is rounded before the sum
        return product_numba.product(x, weight, bias, scale, residual)
    return linear.linear_residual_reference(x, weight, bias, residual, scale)


@compiled
def _rms_norm(
    x_at: int,  # [rows, width], contiguous, as y is
    weight_at: int,  # [width]
    y_at: int,
    element: Any,  # of x and y
    weight_element: Any,
    rows: int,
    width: int,
    eps: float,
) -> None:
    x, y = numbers_at(x_at, element, (rows, width)), numbers_at(y_at, element, (rows, width))
    weight = numbers_at(weight_at, weight_element, width)
    for r in range(rows):
        total = np.float32(0)
        for i in range(width):
            value = wide(x[r, i])
            total += value * value
        scale = _ONE / np.sqrt(total / np.float32(width) + np.float32(eps))
        for i in range(width):
            value = rounded(wide(x[r, i]) * scale, y)
            y[r, i] = rounded(wide(value) * wide(weight[i]), y)


@compiled
def _gated(both_at: int, y_at: int, element: Any, rows: int, width: int) -> None:
    both = numbers_at(both_at, element, (rows, 2 * width))
    y = numbers_at(y_at, element, (rows, width))
    for r in range(rows):
        for i in range(width):
            gate = wide(both[r, i])
            power = exp(-abs(gate))
            part = _ONE / (_ONE + power)
            silu = rounded(gate * (part if gate >= 0 else power * part), y)
            y[r, i] = rounded(wide(silu) * wide(both[r, width + i]), y)
