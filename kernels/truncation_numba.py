"""The filter of `sampling.py` for one row, compiled for a CPU: the three numbers, to the bit.

A row is never sorted as a whole. With a small top-k its largest logits are kept in order while it
is read, and the rest is decided among them. Else every weight is computed, and their masses are
added up in buckets, eight for each factor of 2: the nucleus ends in one of them, and that one alone
is sorted, as far as is needed. Sums are of integers, and numbers are rounded where they are there.
"""

import numpy as np
from numba import njit

from hybridgen.kernels.numba_utils import as_bits, as_float, wide
from hybridgen.kernels.sampling import ENOUGH
from hybridgen.kernels.weights import (
    COLDEST,
    HOTTEST,
    LOG2_E,
    ONE,
    POLYNOMIAL,
    ROUND,
    ROUND_20,
    UNDERFLOW,
    WEIGHT_BITS,
)

MOST_IN_ORDER = 256  # inserting into a longer list takes longer than to partition the row
_BLOCK = 64
_BUCKETS, _TO_BUCKET, _BUCKET_OF_1 = 8 * WEIGHT_BITS + 1, np.int32(20), np.int32(127 * 8)

_ZERO, _ONE = np.float32(0), np.float32(1)
_NAN, _LOWEST = np.float32(np.nan), np.finfo(np.float32).min
_INFINITE, _MAGNITUDE = np.int32(0x7F800000), np.int32(0x7FFFFFFF)
_SIGN, _MANTISSA, _0, _FIRST = np.int32(31), np.int32(23), np.int32(0), np.int32(-(2**31))
_ROUND, _ROUND_20, _UNDERFLOW = np.float32(ROUND), np.float32(ROUND_20), np.float32(UNDERFLOW)
_BIAS = np.int32(127 + WEIGHT_BITS)
_C6, _C5, _C4, _C3, _C2, _C1 = (np.float32(c) for c in POLYNOMIAL)


@njit(error_model="numpy")
def truncate(row, temperature, top_k, top_p, min_p):
    """tau, max and log_z of ``row`` [V]."""
    largest = largest_of(row)
    if largest != largest:
        return _ZERO, _ZERO, _NAN
    if not temperature > 0:
        return largest, largest, _ZERO
    rate = np.float32(1 / bounded(temperature) * LOG2_E)
    share = top_p * ENOUGH if top_p < 1 else np.inf
    least = min(min_p, 1.0) * ONE
    if 1 <= top_k < len(row):
        k = int(top_k)
        if k <= MOST_IN_ORDER:
            tau, mass = _of_few(row, largest, rate, k, share, least)
        else:
            tau, mass = _of_all(row, largest, rate, _kth(row, k), share, least)
    else:
        tau, mass = _of_all(row, largest, rate, _LOWEST, share, least)
    return tau, largest, np.float32(np.log(mass / ONE))


@njit(error_model="numpy")
def bounded(temperature):
    """See `weights.bounded`."""
    return min(max(temperature, COLDEST), HOTTEST)


@njit(error_model="numpy")
def largest_of(row):
    """The largest number of ``row``; NaN where that, or one of the row, is not finite or NaN."""
    most, magnitude = _FIRST, _0
    for i in range(len(row)):
        bits = as_bits(wide(row[i]))
        most = max(most, _ordered(bits))
        magnitude = max(magnitude, np.int32(bits & _MAGNITUDE))
    largest = as_float(_ordered(most))
    return largest if magnitude <= _INFINITE and abs(largest) < np.inf else _NAN


@njit(error_model="numpy")
def _ordered(bits):
    """Bits of floats as integers that are ordered as they are, and back."""
    return np.int32(bits ^ ((bits >> _SIGN) & _MAGNITUDE))  # numba computes with 64 bits


@njit(error_model="numpy")
def _of_few(row, largest, rate, k, share, least):
    """tau, and the mass of what is not below it, of the ``k`` largest and their equals."""
    top, weight = np.empty(k, np.float32), np.empty(k, np.int64)
    in_order(row, top, np.empty(0, np.int64))
    equal, total = 0, 0
    for i in range(len(row)):
        equal += wide(row[i]) == top[k - 1]
    for i in range(k):
        equal -= top[i] == top[k - 1]
        weight[i] = _weight(top[i], largest, rate)
        total += weight[i]
    last = weight[k - 1]
    edge = share * float(total + equal * last)
    mass, tau, i = weight[0], top[0], 1
    while i < k and top[i] >= _LOWEST and weight[i] >= least:
        if top[i] < tau and not float(mass) < edge:
            break
        tau = top[i]
        mass += weight[i]
        i += 1
    return tau, mass + equal * last if tau == top[k - 1] else mass


@njit(error_model="numpy")
def in_order(row, top, ids):
    """The largest numbers of ``row``, descending, into ``top`` [k <= V]; whose they are into
    ``ids`` [k], or [0] where nobody asks.

    As many blocks as are asked for have a number not below ``bound``; in the others what is below
    it is not looked at.
    """
    k, count, told = len(top), 0, len(ids) > 0
    most = _largest_of_blocks(row)
    bound = _kth_largest(most, k) if k < len(most) else _FIRST
    bound = bound if bound != _0 else np.int32(-1)  # 0.0 and -0.0 are equal
    floor, least = bound, as_float(_ordered(bound))
    for block in range(len(most)):
        if most[block] < bound or (count == k and most[block] <= floor):
            continue
        for i in range(block * _BLOCK, min((block + 1) * _BLOCK, len(row))):
            x = wide(row[i])
            if x < least or (count == k and not x > top[k - 1]):
                continue
            at = min(count, k - 1)
            while at > 0 and top[at - 1] < x:
                top[at] = top[at - 1]
                if told:
                    ids[at] = ids[at - 1]
                at -= 1
            top[at] = x
            if told:
                ids[at] = i
            count = min(count + 1, k)
            floor = _ordered(as_bits(top[count - 1]))


@njit(error_model="numpy")
def _largest_of_blocks(row):
    """As ordered bits."""
    most = np.empty(-(-len(row) // _BLOCK), np.int32)
    for block in range(len(most)):
        largest = _FIRST
        for i in range(block * _BLOCK, min((block + 1) * _BLOCK, len(row))):
            largest = max(largest, _ordered(as_bits(wide(row[i]))))
        most[block] = largest
    return most


@njit(error_model="numpy")
def _kth_largest(numbers, k):
    """Of more than k."""
    top, count = np.empty(k, np.int32), 0
    for x in numbers:
        if count == k and x <= top[k - 1]:
            continue
        at = min(count, k - 1)
        while at > 0 and top[at - 1] < x:
            top[at] = top[at - 1]
            at -= 1
        top[at] = x
        count = min(count + 1, k)
    return top[k - 1]


@njit(error_model="numpy")
def _kth(row, k):
    """The k-th largest of ``row``, if it is finite: the least of a heap of the k largest."""
    heap = np.empty(k, np.float32)
    for i in range(k):
        heap[i] = -wide(row[i])
    _heapify(heap)
    for i in range(k, len(row)):
        if -wide(row[i]) < heap[0]:
            heap[0] = -wide(row[i])
            _sift(heap, 0)
    return max(-heap[0], _LOWEST)


@njit(error_model="numpy")
def _heapify(heap):
    """Order ``heap`` so that none is larger than the one at half its place."""
    for at in range(len(heap) // 2 - 1, -1, -1):
        _sift(heap, at)


@njit(error_model="numpy")
def _sift(heap, at):
    """Let the number ``at`` its place sink to where it belongs."""
    x, count = heap[at], len(heap)
    below = 2 * at + 1
    while below < count:
        if below + 1 < count and heap[below + 1] > heap[below]:
            below += 1
        if heap[below] <= x:
            break
        heap[at] = heap[below]
        at, below = below, 2 * below + 1
    heap[at] = x


@njit(error_model="numpy")
def _of_all(row, largest, rate, floor, share, least):
    """tau, and the mass of what is not below it, where top-k keeps what is not below ``floor``."""
    weight, total = np.empty(len(row), np.int64), 0
    for i in range(len(row)):
        x = wide(row[i])
        weight[i] = _weight(x, largest, rate) if x >= floor else 0
        total += weight[i]
    if share < 1:
        floor = _nucleus(row, weight, share * float(total), largest, rate)
    lowest, mass = _ordered(as_bits(largest)), 0
    for i in range(len(row)):
        x = wide(row[i])
        if x >= floor and weight[i] >= least:
            lowest = min(lowest, _ordered(as_bits(x)))
            mass += weight[i]
    return as_float(_ordered(lowest)), mass


@njit(error_model="numpy")
def _nucleus(row, weight, edge, largest, rate):
    """The lowest logit with less than ``edge`` of mass in front of it, or the largest."""
    masses = np.zeros(_BUCKETS, np.int64)
    for i in range(len(row)):
        masses[_bucket(weight[i])] += weight[i]
    before, mass, found = 0, 0, -1
    for bucket in range(_BUCKETS - 1, -1, -1):
        if masses[bucket] > 0 and float(mass) < edge:
            before, found = mass, bucket
        mass += masses[bucket]
    inside = np.empty(len(row), np.float32)
    count = 0
    for i in range(len(row)):
        if weight[i] > 0 and _bucket(weight[i]) == found:
            inside[count] = wide(row[i])
            count += 1
    _heapify(inside[:count])
    tau = largest
    while count > 0 and float(before) < edge:
        tau = inside[0]
        before += _weight(tau, largest, rate)
        count -= 1
        if count > 0:
            inside[0] = inside[count]
            _sift(inside[:count], 0)
    return tau


@njit(error_model="numpy")
def _bucket(weight):
    """A larger weight is never in a lower one."""
    return max((as_bits(np.float32(weight)) >> _TO_BUCKET) - _BUCKET_OF_1, _0)


@njit(error_model="numpy")
def _weight(x, largest, rate):
    """See `weights.weights`."""
    y = (x - largest) * rate
    y = y if y > _UNDERFLOW else _UNDERFLOW
    n = y + _ROUND - _ROUND
    f = y - n + _ROUND_20 - _ROUND_20
    power = (((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _ONE
    return np.int64(power * as_float((np.int32(n) + _BIAS) << _MANTISSA))
