"""`attention.py` on a CPU in one call: norms, rotation, cache and softmax, token by token.

A token's heads of one key head are taken together, so that its keys and values are read once for
all of them. A row's bits depend on its own keys alone: nothing is padded, no chunks are combined,
and no company changes the order of a sum. Scores, sums and the cache are float32.

The size of a head and the heads of a group are known when a kernel is compiled, so that loops over
them are unrolled: each comes as a tuple, whose length is part of its type. Threads share the key
heads of all rows, of which each is one thread's: their number changes no bits.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from hybridgen.kernels.attention import attention_reference
from hybridgen.kernels.attention_plan import EIGHT, is_compiled
from hybridgen.kernels.numba_utils import ELEMENT, FAST, c_function, exp, numbers_at, rounded, wide

# Multiplications from which threads share the work: 450 us of one thread, 370 of two; of half as
# many two threads take as long as one.
SHARED = 1 << 22

# What a task is, int64 each: addresses and sizes of a layer; then those of a step, in which strides
# of the cache are in numbers.
QKV, OUTPUT, NORM, KV_HEADS, WINDOW, CACHE = range(6)
START, COS, SIN, _BATCH, _COUNT, _ROWS, _POSITIONS = range(6, 13)
_VALUE_STRIDE, _HEAD_STRIDE, _ROW_STRIDE = range(13, 16)
STEP, TASK = _BATCH, 16
Task = ctypes.c_int64 * TASK

_NO_INT = np.int64(0)
_ZERO, _ONE, _TWO, _LOWEST = np.float32(0), np.float32(1), np.float32(2), np.float32(-1e30)


def attention(
    qkv: Tensor,
    cache: Tensor,
    start: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_norm: Tensor | None,
    eps: float,
    window: int,
    softcap: float,
) -> Tensor:
    """See `hybridgen.kernels.attention.attention_reference`; cos and sin need carry no plan."""
    if not is_compiled(cache.shape[4], qkv.dtype):
        return attention_reference(qkv, cache, start, cos, sin, qk_norm, eps, window, softcap)
    _, kv_heads, _, _, dim = cache.shape
    tokens, width = qkv.shape
    group = width // (dim * kv_heads) - 2
    qkv, start, cos, sin = (x.contiguous() for x in (qkv, start, cos, sin))
    output = qkv.new_empty(tokens, group * kv_heads * dim)
    count, batch = cos.shape[0], start.shape[0]
    if tokens > count:
        output[count:].zero_()
    norm = None if qk_norm is None else qk_norm.contiguous()
    norm_at = 0 if norm is None else norm.data_ptr()
    own = qkv.data_ptr(), output.data_ptr(), norm_at, kv_heads, window, cache.data_ptr()
    places = start.data_ptr(), cos.data_ptr(), sin.data_ptr()
    task = Task(*own, *places, *step_of(batch, count, tokens, cache))
    function = attend_function(dim // EIGHT, group, qkv.dtype).ctypes
    given = ctypes.addressof(task), eps, softcap
    pairs, threads = batch * kv_heads, torch.get_num_threads()
    if threads == 1 or pairs == 1 or count * output.shape[1] * _keys(start, window) < SHARED:
        function(0, pairs, *given)
    else:
        _share(threads, pairs, function, given)
    return output


def step_of(batch: int, count: int, rows: int, cache: Tensor) -> tuple[int, ...]:
    """What a task has from `STEP` on, the same for all layers of a step.

    It follows the addresses of start int64 [B], and of cos and sin of ``count`` tokens.

    rows    of qkv and the output
    """
    return batch, count, rows, cache.shape[3], *cache.stride()[:3]


def _keys(start: Tensor, window: int) -> int:
    """About how many keys a query sees at most."""
    return window or int(start.max()) + 1


def _share(threads: int, pairs: int, function: Any, given: Any) -> None:
    """``function`` of all ``pairs`` by so many threads, this one among them."""
    share = -(-pairs // threads)
    parts = [(i, min(i + share, pairs)) for i in range(0, pairs, share)]
    others = [_pool(threads - 1).submit(function, *part, *given) for part in parts[1:]]
    function(*parts[0], *given)
    for other in others:
        other.result()


@lru_cache(maxsize=8)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="hybridgen-attention")


@cache
def attend_function(num_eights: int, group: int, kept: torch.dtype) -> Any:
    """Attention of pairs of a row and a key head, ``first_pair`` to ``last_pair - 1``, of a `Task`.

    For heads of 8 * ``num_eights`` numbers, ``group`` query heads to a key head, and qkv and output
    of dtype ``kept``.
    """
    eights, heads, element = (0,) * num_eights, (0,) * group, ELEMENT[kept]
    D, G = EIGHT * num_eights, group

    @c_function(*[types.int64] * 3, *[types.float32] * 2)
    def run(first_pair, last_pair, address, eps, softcap):
        task = numbers_at(address, _NO_INT, TASK)
        batch, count, rows, kv_heads = task[_BATCH], task[_COUNT], task[_ROWS], task[KV_HEADS]
        positions = task[_POSITIONS]
        qkv = numbers_at(task[QKV], element, (rows, kv_heads * (G + 2) * D))
        output = numbers_at(task[OUTPUT], element, (rows, kv_heads * G * D))
        start = numbers_at(task[START], _NO_INT, batch)
        cos = numbers_at(task[COS], _ZERO, (count, D))
        sin = numbers_at(task[SIN], _ZERO, (count, D))
        norm_heads = kv_heads * (G + 1) if task[NORM] else 0
        norm = numbers_at(task[NORM], _ZERO, (norm_heads, D))
        tokens = count // batch
        q, x = np.empty((G, D), np.float32), np.empty(D, np.float32)
        sums, scores = np.empty((G, D), np.float32), np.empty((G, positions), np.float32)
        for pair in range(first_pair, last_pair):
            b, h = pair // kv_heads, pair % kv_heads
            first_key = task[CACHE] + 4 * (h * task[_HEAD_STRIDE] + b * task[_ROW_STRIDE])
            keys = numbers_at(first_key, _ZERO, (positions, D))
            values = numbers_at(first_key + 4 * task[_VALUE_STRIDE], _ZERO, (positions, D))
            for i in range(tokens):
                row, place = b * tokens + i, max(start[b] + i, 0)
                key, value = kv_heads * G + h, kv_heads * (G + 1) + h
                _head(eights, qkv[row], key, norm, eps, x)
                _turn(eights, x, cos[row], sin[row], keys[place])
                for d in range(D):
                    values[place, d] = wide(qkv[row, value * D + d])
            for i in range(tokens):
                row, place = b * tokens + i, max(start[b] + i, 0)
                for g in range(G):
                    _head(eights, qkv[row], h * G + g, norm, eps, x)
                    _turn(eights, x, cos[row], sin[row], q[g])
                first = max(place + 1 - task[WINDOW], 0) if task[WINDOW] > 0 else 0
                seen = slice(first, place + 1)
                _attend(eights, heads, q, keys[seen], values[seen], softcap, scores, sums)
                for g in range(G):
                    for d in range(D):
                        output[row, (h * G + g) * D + d] = rounded(sums[g, d], output)

    return run


@njit(fastmath=FAST, inline="always")
def _head(eights, row, head, norm, eps, x):
    """``x`` [D] = rms_norm of head number ``head`` of ``row``, or itself where there is no norm."""
    D = EIGHT * len(eights)
    for d in range(D):
        x[d] = wide(row[head * D + d])
    if norm.shape[0] > 0:
        total = _ZERO
        for d in range(D):
            total += x[d] * x[d]
        scale = _ONE / np.sqrt(total / np.float32(D) + eps)
        for d in range(D):
            x[d] = x[d] * scale * norm[head, d]


@njit(fastmath=FAST, inline="always")
def _turn(eights, x, cos, sin, target):
    """``target`` [D] = x rotated; sin is signed."""
    half = EIGHT * len(eights) // 2
    for d in range(half):
        target[d] = x[d] * cos[d] + x[d + half] * sin[d]
        target[d + half] = x[d + half] * cos[d + half] + x[d] * sin[d + half]


@njit(fastmath=FAST, inline="always")
def _attend(eights, heads, q, keys, values, softcap, scores, sums):
    """``sums`` [G, D] = softmax(q [G, D] . keys [N, D] / sqrt(D)) values [N, D]."""
    D, G = EIGHT * len(eights), len(heads)
    count = len(keys)
    scale = _ONE / np.sqrt(np.float32(D))
    for k in range(count):
        for g in range(G):
            total = _ZERO
            for d in range(D):
                total += q[g, d] * keys[k, d]
            scores[g, k] = total * scale
    for g in range(G):
        _softmax(scores[g, :count], softcap)
    sums[:] = _ZERO
    for k in range(count):
        for g in range(G):
            weight = scores[g, k]
            for d in range(D):
                sums[g, d] += weight * values[k, d]


@njit(fastmath=FAST, inline="always")
def _softmax(row, softcap):
    """In place, of scores capped before."""
    if softcap > _ZERO:
        for k in range(len(row)):
            x = row[k] / softcap
            power = exp(-_TWO * abs(x))
            row[k] = softcap * np.copysign((_ONE - power) / (_ONE + power), x)
    largest = _LOWEST
    for k in range(len(row)):
        largest = max(largest, row[k])
    total = _ZERO
    for k in range(len(row)):
        row[k] = exp(row[k] - largest)
        total += row[k]
    for k in range(len(row)):
        row[k] /= total
