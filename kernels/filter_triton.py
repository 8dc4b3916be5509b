"""From candidates to a filter: tau and the kept weight of a row, exactly.

Three ways, all of the same integer comparisons (see `sampling`):

pairs    up to 128 candidates: each against all others, a few at a time
search   more of them: bisection over `key_of` for the place where the count, or the mass, of what
         is strictly greater passes the edge; at most 32 rounds over the list
search   the same over the whole row, where the candidates do not suffice
"""

import triton
import triton.language as tl

from hybridgen.kernels.candidates_triton import SMALL, load_logits
from hybridgen.kernels.weights_triton import LOWEST, key_of, logit_of, weights

PAIRS = tl.constexpr(SMALL)
_STEP = tl.constexpr(16)


@triton.jit
def filter_pairs(values_ptr, count, x, largest, has_k, k, total, top_p, rate, bound):
    """tau and kept weight of ``count`` <= `PAIRS` candidates ``x`` [PAIRS], padded with -inf.

    total  the weight before top-p; where ``has_k``, it is that of what top-k keeps instead
    """
    weight = weights(x, largest, rate)
    kept = x >= LOWEST
    if has_k:
        greater = tl.zeros([PAIRS], tl.int32)
        for first in range(0, count, _STEP):
            j = first + tl.arange(0, _STEP)
            other = tl.load(values_ptr + j, mask=j < count, other=float("-inf"))
            greater += tl.sum((other[:, None] > x[None, :]).to(tl.int32), 0)
        kept = kept & (greater < k)
        total = tl.sum(tl.where(kept, weight, 0), 0)
    least = tl.min(tl.where(kept, x, float("inf")), 0)
    if top_p < 1:
        edge = top_p * total.to(tl.float64)
        before = tl.zeros([PAIRS], tl.int64)
        for first in range(0, count, _STEP):
            j = first + tl.arange(0, _STEP)
            other = tl.load(values_ptr + j, mask=j < count, other=float("-inf"))
            other_weight = tl.where(other >= least, weights(other, largest, rate), 0)
            before += tl.sum(tl.where(other[None, :] > x[:, None], other_weight[None, :], 0), 1)
        kept = kept & ((before.to(tl.float64) < edge) | (x == largest))
    kept = kept & (weight >= bound)
    return tl.min(tl.where(kept, x, float("inf")), 0), tl.sum(tl.where(kept, weight, 0), 0)


@triton.jit
def filter_search(
    logits_ptr,
    count,
    largest,
    has_k,
    k,
    total,
    top_p,
    rate,
    bound,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """tau and kept weight of the ``count`` logits at ``logits_ptr``, as `filter_pairs`."""
    floor = key_of(tl.full([], LOWEST, tl.float32), SHIFT)
    if has_k:
        floor = _bisect(logits_ptr, count, floor, largest, k, rate, False, SHIFT, BLOCK)
        _lowest, total = _above(logits_ptr, count, floor, largest, rate, 0, SHIFT, BLOCK)
    if top_p < 1:
        edge = top_p * total.to(tl.float64)
        floor = _bisect(logits_ptr, count, floor, largest, edge, rate, True, SHIFT, BLOCK)
    return _above(logits_ptr, count, floor, largest, rate, bound, SHIFT, BLOCK)


@triton.jit
def _bisect(
    logits_ptr,
    count,
    low,
    largest,
    limit,
    rate,
    MASS: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The lowest key from ``low`` on above which there are less than ``limit``.

    MASS: the weight of the logits of greater keys; else their number.
    """
    low, high = low.to(tl.int64), key_of(largest, SHIFT).to(tl.int64)
    while low < high:
        middle = low + (high - low) // 2
        above = tl.zeros([BLOCK], tl.int64)
        for first in range(0, count, BLOCK):
            x = load_logits(logits_ptr, first + tl.arange(0, BLOCK), count)
            unit = weights(x, largest, rate) if MASS else 1
            above += tl.where(key_of(x, SHIFT) > middle, unit, 0)
        if tl.sum(above, 0).to(tl.float64) < limit:
            high = middle
        else:
            low = middle + 1
    return low.to(tl.int32)


@triton.jit
def _above(
    logits_ptr, count, floor, largest, rate, bound, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    """The smallest logit of key >= floor and weight >= bound, and the weight of all such."""
    lowest = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    mass = tl.zeros([BLOCK], tl.int64)
    for first in range(0, count, BLOCK):
        x = load_logits(logits_ptr, first + tl.arange(0, BLOCK), count)
        weight = weights(x, largest, rate)
        kept = (x >= LOWEST) & (key_of(x, SHIFT) >= floor) & (weight >= bound)
        lowest = tl.minimum(lowest, tl.where(kept, key_of(x, 0), 0x7FFFFFFF))
        mass += tl.where(kept, weight, 0)
    return logit_of(tl.min(lowest, 0)), tl.sum(mass, 0)
