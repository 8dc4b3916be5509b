"""The start of a step on a CPU: rows of the embedding, and of the table of rotary positions."""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit, types

from hybridgen.kernels.numba_utils import ELEMENT, c_function, numbers_at, wide

# What a task is, int64 each: addresses, then sizes. Token i of row b is number b * COUNT + i.
TABLE, ROPE, X, COS, SIN, START, TOKENS = range(7)
ROW, COLUMN, COUNT, HIDDEN, VOCAB, POSITIONS, DIM = range(7, 14)
"""Strides of tokens in bytes, and how many there are of a row; then sizes of the tables."""
TASK = 14
_INT, _FLOAT = np.int64(0), np.float32(0)


@cache
def embed_function(kept: torch.dtype) -> Any:
    """Tokens ``first`` to ``last - 1`` of a task, of an embedding [VOCAB, HIDDEN] of dtype ``kept``
    that is multiplied by ``scale``: the float32 rows of X, COS and SIN.

    ROPE is float32 [2, POSITIONS, DIM]. Tokens and positions are such as `are_there`.
    """
    element = ELEMENT[kept]
    size = kept.itemsize

    @c_function(*[types.int64] * 3, types.float32)
    def run(first, last, address, scale):
        task = numbers_at(address, _INT, TASK)
        hidden, dim, count = task[HIDDEN], task[DIM], task[COUNT]
        start = numbers_at(task[START], _INT, last // count + 1)
        for n in range(first, last):
            b = n // count
            i = n - b * count
            token = numbers_at(task[TOKENS] + b * task[ROW] + i * task[COLUMN], _INT, 1)[0]
            position = max(start[b] + i, 0)
            row = numbers_at(task[TABLE] + token * hidden * size, element, hidden)
            x = numbers_at(task[X] + 4 * n * hidden, _FLOAT, hidden)
            for h in range(hidden):
                x[h] = wide(row[h]) * scale
            cosines = task[ROPE] + 4 * position * dim
            sines = cosines + 4 * task[POSITIONS] * dim
            cos, sin = numbers_at(cosines, _FLOAT, dim), numbers_at(sines, _FLOAT, dim)
            to_cos = numbers_at(task[COS] + 4 * n * dim, _FLOAT, dim)
            to_sin = numbers_at(task[SIN] + 4 * n * dim, _FLOAT, dim)
            for d in range(dim):
                to_cos[d], to_sin[d] = cos[d], sin[d]

    return run


@njit(error_model="numpy")
def are_there(address, rows):
    """Whether the tables have all tokens of a task of ``rows`` rows, and their positions."""
    task = numbers_at(address, _INT, TASK)
    start, count = numbers_at(task[START], _INT, rows), task[COUNT]
    for b in range(rows):
        if start[b] + count > task[POSITIONS]:
            return False
        for i in range(count):
            token = numbers_at(task[TOKENS] + b * task[ROW] + i * task[COLUMN], _INT, 1)[0]
            if not 0 <= token < task[VOCAB]:
                return False
    return True
