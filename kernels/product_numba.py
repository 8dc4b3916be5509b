"""Products of up to `linear.FEW_ROWS` rows with a weight that is read as it lies in memory.

    y[r, o] = scale[o] * sum_k x[r, k] * weight[o, k] + bias[o] + residual[r, o]

The weight is float32, bfloat16 or int8; sums are float32, and of a bfloat16 x rounded once. To
widen a weight in registers costs nothing beside reading it: with one of bfloat16 a float32 product
takes half the bytes and gives the same. A row's bits do not depend on the number of rows, its
place, or the number of threads.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from hybridgen.kernels.dots_numba import dots
from hybridgen.kernels.linear import STEP
from hybridgen.kernels.numba_utils import FAST, c_function, numbers_at
from hybridgen.kernels.openmp import parallel
from hybridgen.kernels.team_numba import claim

SHARED = 1 << 17  # multiplications from which threads share a product
CLAIMED = 1 << 16  # numbers of a weight, about, that a thread takes at a time
TOGETHER = 6  # rows up to which one output's sums are in registers; beyond, three rows of two

_ELEMENTS = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0), torch.int8: np.int8(0)}
_ZERO, _NO_INT = np.float32(0), np.int64(0)
_1, _2, _3, _4, _5, _6 = ((0,) * count for count in range(1, 7))

# What a task is, int64 each: what is claimed next, sizes, addresses.
NEXT, _OUTPUTS, _CLAIMED, ROWS, _DEPTH, X, _WEIGHT, Y, _SCALE, _BIAS, RESIDUAL = range(11)
TASK = 11
Task = ctypes.c_int64 * TASK


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x [R, H], float32 or bfloat16, H a multiple of `linear.STEP`; weight [O, H], contiguous;
    scale [O], bias [O] and residual [R, O] -> [R, O] in x's dtype, contiguous."""
    # A call of torch's costs about as much as ten outputs: none is made for nothing.
    wide = x if x.dtype == torch.float32 and x.is_contiguous() else x.float().contiguous()
    (rows, depth), outputs = x.shape, weight.shape[0]
    y = wide.new_empty(rows, outputs)
    others = [None if t is None else t.float().contiguous() for t in (scale, bias, residual)]
    task = task_of(wide, weight, y, *others)
    run, threads = product_function(weight.dtype), torch.get_num_threads()
    team = parallel()
    if threads == 1 or team is None or rows * outputs * depth < SHARED:
        run.ctypes(ctypes.addressof(task))
    else:
        team(run.address, ctypes.addressof(task), threads, 0)
    return y if x.dtype == torch.float32 else y.to(x.dtype)


def task_of(
    x: Tensor, weight: Tensor, y: Tensor, *others: Tensor | None
) -> "ctypes.Array[ctypes.c_int64]":
    """Of x [R, H], weight [O, H] and y [R, O], then scale [O], bias [O] and residual [R, O].

    All are contiguous, all but the weight float32, and the caller holds them until it is done.
    """
    (rows, depth), outputs = x.shape, weight.shape[0]
    claimed = max(CLAIMED // depth, 2) & -2  # outputs, two of them beside each other
    given = [0 if t is None else t.data_ptr() for t in others]
    places = x.data_ptr(), weight.data_ptr(), y.data_ptr()
    return Task(0, outputs, claimed, rows, depth, *places, *given)


@cache
def product_function(kept: torch.dtype) -> Any:
    """Does its share of a task, whose address it takes; compiled for weights of dtype ``kept``."""
    element = _ELEMENTS[kept]
    size = element.itemsize

    @c_function(types.int64)
    def run(address):
        task = numbers_at(address, _NO_INT, TASK)
        outputs, claimed = task[_OUTPUTS], task[_CLAIMED]
        while True:
            first = claim(address + 8 * NEXT) * claimed
            if first >= outputs:
                return
            last = min(first + claimed, outputs)
            _products(first, last, task, element, size)
            _finish(first, last, task)

    return run


@njit
def _products(first, last, task, element, size):
    """The sums of outputs ``first`` to ``last - 1`` for all rows."""
    rows = task[ROWS]
    if rows == 1:
        _outputs(first, last, 0, task, element, size, _1, _1)
    elif rows == 2:
        _outputs(first, last, 0, task, element, size, _2, _1)
    elif rows == 3:
        _outputs(first, last, 0, task, element, size, _3, _1)
    elif rows == 4:
        _outputs(first, last, 0, task, element, size, _4, _1)
    elif rows == 5:
        _outputs(first, last, 0, task, element, size, _5, _1)
    elif rows == TOGETHER:
        _outputs(first, last, 0, task, element, size, _6, _1)
    else:
        for o in range(first, last - 1, 2):
            _rows(o, o + 2, task, element, size, _2)
        if (last - first) % 2:
            _rows(last - 1, last, task, element, size, _1)


@njit
def _rows(first, last, task, element, size, together):
    """All rows' sums of as many outputs as ``together``, which stay in the nearest cache."""
    rows = task[ROWS]
    for row in range(0, rows - 2, 3):
        _outputs(first, last, row, task, element, size, _3, together)
    if rows % 3 == 1:
        _outputs(first, last, rows - 1, task, element, size, _1, together)
    elif rows % 3 == 2:
        _outputs(first, last, rows - 2, task, element, size, _2, together)


@njit
def _outputs(first, last, row, task, element, size, rows, together):
    """Outputs of as many rows as ``rows`` from ``row`` on, as many at a time as ``together``."""
    depth, y_stride = task[_DEPTH], 4 * task[_OUTPUTS]
    x_stride, weight_stride = 4 * depth, size * depth
    x, y = task[X] + row * x_stride, task[Y] + row * y_stride
    for o in range(first, last, len(together)):
        weight, at = task[_WEIGHT] + o * weight_stride, y + 4 * o
        steps = depth // STEP
        dots(x, x_stride, weight, weight_stride, at, y_stride, steps, rows, together, element)


@njit(fastmath=FAST)
def _finish(first, last, task):
    """Scale, bias and residual of these outputs, in place."""
    rows, outputs = task[ROWS], task[_OUTPUTS]
    y = numbers_at(task[Y], _ZERO, (rows, outputs))
    if task[_SCALE]:
        scale = numbers_at(task[_SCALE], _ZERO, outputs)
        for r in range(rows):
            for o in range(first, last):
                y[r, o] *= scale[o]
    if task[_BIAS]:
        bias = numbers_at(task[_BIAS], _ZERO, outputs)
        for r in range(rows):
            for o in range(first, last):
                y[r, o] += bias[o]
    if task[RESIDUAL]:
        residual = numbers_at(task[RESIDUAL], _ZERO, (rows, outputs))
        for r in range(rows):
            for o in range(first, last):
                y[r, o] += residual[r, o]
