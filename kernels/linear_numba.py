"""The ops of `linear.py` on a CPU with what stands around their products compiled.

The products are `linear.py`'s. Norm and gate are rounded where the
references round: in half precision to nearest after the normalised row and after the activation.
Rows are taken one by one, so that a row's bits do not depend on the others.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from hybridgen.kernels import linear, product_numba
from hybridgen.kernels.linear import is_compiled, product
from hybridgen.kernels.numba_utils import ELEMENT, c_function, exp, numbers_at, rounded, wide

_ZERO, _ONE = np.float32(0), np.float32(1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`layers.rms_norm` of x [R, H], of any stride, with weight [H]."""
    x, weight, (rows, width) = x.contiguous(), weight.contiguous(), x.shape
    y = x.new_empty(rows, width)
    run = norm_function(x.dtype, weight.dtype)
    run.ctypes(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, eps)
    return y


def gated(both: Tensor) -> Tensor:
    """``silu(gate) * up`` [R, I] of ``both`` [R, 2 I], gate beside up."""
    both, (rows, width) = both.contiguous(), both.shape
    y = both.new_empty(rows, width // 2)
    inner = width // 2
    gate_function(both.dtype).ctypes(both.data_ptr(), y.data_ptr(), rows, inner, 0, inner)
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


@cache
def norm_function(kept: torch.dtype, kept_weight: torch.dtype) -> Any:
    """RMSNorm of contiguous rows at address ``x`` to ``y``, with ``weight`` [width]."""
    element, weight_element = ELEMENT[kept], ELEMENT[kept_weight]

    @c_function(*[types.int64] * 5, types.float32)
    def run(x, weight, y, rows, width, eps):
        given, target = numbers_at(x, element, (rows, width)), numbers_at(y, element, (rows, width))
        norm = numbers_at(weight, weight_element, width)
        for r in range(rows):
            total = _ZERO
            for i in range(width):
                value = wide(given[r, i])
                total += value * value
            scale = _ONE / np.sqrt(total / np.float32(width) + eps)
            for i in range(width):
                value = rounded(wide(given[r, i]) * scale, target)
                target[r, i] = rounded(wide(value) * wide(norm[i]), target)

    return run


@cache
def gate_function(kept: torch.dtype) -> Any:
    """Numbers ``first`` to ``last - 1`` of each row of silu(gate) * up, at ``y`` [rows, width].

    ``both`` is the address of contiguous rows of gates [width] and ups [width].
    """
    element = ELEMENT[kept]

    @c_function(*[types.int64] * 6)
    def run(both, y, rows, width, first, last):
        given = numbers_at(both, element, (rows, 2 * width))
        target = numbers_at(y, element, (rows, width))
        for r in range(rows):
            for i in range(first, last):
                gate = wide(given[r, i])
                power = exp(-abs(gate))
                part = _ONE / (_ONE + power)
                silu = rounded(gate * (part if gate >= 0 else power * part), target)
                target[r, i] = rounded(wide(silu) * wide(given[r, width + i]), target)

    return run
