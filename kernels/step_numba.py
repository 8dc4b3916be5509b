"""A decoder from tokens to logits on a CPU in one call, by one team of threads.

The parts are those of the ops of `linear.py` and `attention.py`, called by their addresses, and
give the same bits. An op costs 10 to 20 us beside its work, and threads are woken for each product,
which for a small model is longer than the products take. Here they are woken once, and meet at the
end of each line of a layer, before which each embeds its own tokens:

    normed = rms_norm(x)
    qkv = normed W_qkv
    seen = attention(qkv)
    y = x + seen W_output
    normed = rms_norm(y)
    both = normed W_gate_up
    inner = silu(gate) * up, both = (gate, up)
    x = y + inner W_down
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from hybridgen.kernels import attention_numba as attending
from hybridgen.kernels import embed_numba as embedding
from hybridgen.kernels import product_numba as multiplying
from hybridgen.kernels.attention_plan import EIGHT
from hybridgen.kernels.embed_numba import are_there
from hybridgen.kernels.linear import FEW_ROWS
from hybridgen.kernels.linear_numba import gate_function, norm_function
from hybridgen.kernels.numba_utils import c_function, numbers_at
from hybridgen.kernels.openmp import parallel, team_size
from hybridgen.kernels.step import Layer, Product, Weights
from hybridgen.kernels.team_numba import ask, call, claim, meet, offering

SHARED = 1 << 19  # multiplications from which threads share a step
MEETINGS = 8  # of a layer
UNIT = 64  # gates that are one thread's: some vectors
_NO_INT, _ZERO = np.int64(0), np.float32(0)

# What a step is, int64 each: addresses of data and of functions, sizes.
_X, _Y, _NORMED, _BOTH, _INNER, _PRODUCTS, _ATTENDS, _NORMS, _EPS, _COUNTERS = range(10)
_MULTIPLY, _MULTIPLY_LAST, _ATTEND, _NORM, _GATE, _OFFER, _THREADS = range(10, 17)
_LAYERS, _ROWS, _PAIRS, _HIDDEN, _WIDTH, _FILLS, _EMBED, _EMBEDDED, _BATCH, _MISSED = range(17, 27)
_STEP = 27
_Step = ctypes.c_int64 * _STEP


class Step:
    """The layers and the head of one decoder; see `step.step`, which makes it.

    It has room for the activations of `linear.FEW_ROWS` tokens: as with a decoder's cache, two
    threads of Python cannot use it at once.
    """

    def __init__(
        self, weights: Weights, rope: Tensor, eps: float, head_dim: int, group: int
    ) -> None:
        layers, norm, head = weights.layers, weights.norm, weights.head
        (qkv, _, _), (output, _, _), (both, _, _), (down, _, _) = layers[0].products
        self._kv_heads, self._vocab = len(qkv) // head_dim // (group + 2), len(head[0])
        self._work = sum(p[0].numel() for layer in layers for p in layer.products)
        widths = len(output), len(output), len(output), len(qkv), output.shape[1], len(both)
        turns = down.shape[1], head_dim, head_dim
        self._space = [norm.new_empty(FEW_ROWS, width) for width in (*widths, *turns)]
        self._held: list[Tensor] = []  # what addresses are of, beside the space

        norms = [each for layer in layers for each in (layer.input_norm, layer.mlp_norm)]
        tasks = [task for layer in layers for task in self._multiply(layer)]
        logits = norm.new_empty(FEW_ROWS, 0)  # each step has its own
        tasks.append(self._task(self._space[2], head, logits, None))
        self._products = np.array(tasks, np.int64)
        still = norm.new_ones(FEW_ROWS, head_dim), norm.new_zeros(FEW_ROWS, head_dim)
        self._attends = np.array([self._attend(layer, still) for layer in layers], np.int64)
        self._order = np.arange(len(layers))
        self._counters = np.zeros(1 + MEETINGS * len(layers) + 1, np.int64)
        addresses = np.array([self._vector(t).data_ptr() for t in (*norms, norm)], np.int64)
        self._norms, self._eps = addresses, np.array([eps, weights.scale], np.float32)
        self._embeds = self._embed(weights.embedding, rope)
        self._brought: tuple[int, ...] = ()  # what the tasks are of
        self._cache: Sequence[Tensor] = ()

        places = [space.data_ptr() for space in self._space]
        data = self._products, self._attends, self._norms, self._eps, self._counters
        functions = (
            multiplying.product_function(qkv.dtype),
            multiplying.product_function(head[0].dtype),
            attending.attend_function(head_dim // EIGHT, group, torch.float32),
            norm_function(torch.float32, torch.float32),
            gate_function(torch.float32),
        )
        self._drive = _function()  # compiled here, not in the midst of the first text
        self._step = _Step(
            *(*places[:3], *places[5:7]),  # those between are in tasks alone
            *(each.ctypes.data for each in data),
            *(function.address for function in functions),
            *(offering(), 0, len(layers), 0, 0, len(output), down.shape[1], 0),
            embedding.embed_function(weights.embedding.dtype).address,
            *(self._embeds.ctypes.data, 0, 0),
        )

    def _embed(self, table: Tensor, rope: Tensor) -> Any:
        """The task of the embedding, but for what a step brings."""
        self._held += [table, rope]
        task = np.zeros(embedding.TASK, np.int64)
        x, *_, cos, sin = (space.data_ptr() for space in self._space)
        task[: embedding.START] = table.data_ptr(), rope.data_ptr(), x, cos, sin
        task[embedding.HIDDEN :] = table.shape[1], table.shape[0], rope.shape[1], rope.shape[3]
        return task

    def _multiply(self, layer: Layer) -> list[Any]:
        """The tasks of its products."""
        x, y, normed, qkv, seen, both, inner, *_ = self._space
        ends = (normed, qkv, None), (seen, y, x), (normed, both, None), (inner, x, y)
        pairs = zip(layer.products, ends, strict=True)
        return [self._task(given, product, to, added) for product, (given, to, added) in pairs]

    def _task(self, x: Tensor, product: Product, y: Tensor, residual: Tensor | None) -> Any:
        weight, bias, scale = product
        self._held.append(weight)
        vectors = [None if each is None else self._vector(each) for each in (scale, bias)]
        return multiplying.task_of(x, weight, y, *vectors, residual)

    def _attend(self, layer: Layer, still: Sequence[Tensor]) -> list[int]:
        """The task of its attention, but for what a step brings; ``still`` turns nothing."""
        task = [0] * attending.TASK
        task[attending.QKV], task[attending.OUTPUT] = (each.data_ptr() for each in self._space[3:5])
        task[attending.KV_HEADS], task[attending.WINDOW] = self._kv_heads, layer.window
        if layer.qk_norm is not None:
            task[attending.NORM] = self._vector(layer.qk_norm).data_ptr()
        turns = self._space[-2:] if layer.rotates else still
        self._held += turns
        task[attending.COS], task[attending.SIN] = (each.data_ptr() for each in turns)
        return task

    def _vector(self, tensor: Tensor) -> Tensor:
        self._held.append(tensor.float().contiguous())
        return self._held[-1]

    def __call__(self, tokens: Tensor, start: Tensor, cache: Sequence[Tensor]) -> Tensor:
        """Logits [B, M, V] float32 of ``tokens`` int64 [B, M], up to `linear.FEW_ROWS` of them.

        start    int64 [B]: position of each row's first token; -1 counts as 0
        cache    of each layer [2, kv_heads, B, positions, D] float32, in one tensor
        """
        logits = self._space[0].new_empty(*tokens.shape, self._vocab)
        self._products[-1, multiplying.Y] = logits.data_ptr()
        self._run(tokens, start, cache, False)
        return logits

    def fill(self, tokens: Tensor, start: Tensor, cache: Sequence[Tensor]) -> None:
        """Write the keys and values of such a step, as far as they go, and compute no more."""
        self._run(tokens, start, cache, True)

    def _run(self, tokens: Tensor, start: Tensor, cache: Sequence[Tensor], fills: bool) -> None:
        rows, step = tokens.numel(), self._step
        team, threads = parallel(), torch.get_num_threads()
        if self._work * rows < SHARED:
            threads = 1
        start = start.contiguous()
        self._bring(tokens, start, cache)
        self._counters.fill(0)
        step[_ROWS], step[_PAIRS], step[_FILLS] = rows, len(start) * self._kv_heads, fills
        step[_BATCH], step[_MISSED] = len(start), 0
        if threads == 1 or team is None:
            step[_THREADS] = 0
            self._drive.ctypes(ctypes.addressof(step))
        else:
            step[_THREADS] = team_size()
            team(self._drive.address, ctypes.addressof(step), threads, 0)
        if step[_MISSED]:
            raise IndexError("a token or a position is beyond the tables of the model")

    def _bring(self, tokens: Tensor, start: Tensor, cache: Sequence[Tensor]) -> None:
        """Put into the tasks what is a step's own."""
        products, attends, embeds = self._products, self._attends, self._embeds
        places = start.data_ptr(), tokens.data_ptr()
        products[:, multiplying.NEXT] = 0
        attends[:, attending.START] = places[0]
        embeds[embedding.START : embedding.ROW] = places
        brought = *tokens.shape, *tokens.stride()
        if brought == self._brought and cache is self._cache:
            return  # as in the step before, most of the time
        self._brought, self._cache = brought, cache
        batch, count, row, column = brought
        embeds[embedding.ROW : embedding.HIDDEN] = 8 * row, 8 * column, count
        products[:, multiplying.ROWS] = batch * count
        first = cache[0]
        attends[:, attending.STEP :] = attending.step_of(batch, batch * count, batch * count, first)
        place, apart = first.data_ptr(), cache[-1].data_ptr() - first.data_ptr()
        attends[:, attending.CACHE] = place + apart // max(len(cache) - 1, 1) * self._order


@cache
def _function() -> Any:
    """A thread's part of a step, whose address it takes."""

    @c_function(types.int64)
    def run(address):
        step = numbers_at(address, _NO_INT, _STEP)
        threads = ask(step[_THREADS]) if step[_THREADS] != 0 else np.int64(1)
        me, met = claim(step[_COUNTERS]), step[_COUNTERS] + 8
        product, attend, norm = step[_PRODUCTS], step[_ATTENDS], step[_NORMS]
        if not are_there(step[_EMBEDDED], step[_BATCH]):
            step[_MISSED] = 1
            return
        first, last = _part(me, threads, step[_ROWS])  # of which it takes the norms, too
        scale = numbers_at(step[_EPS], _ZERO, 2)[1]
        call(step[_EMBED], (first, last, step[_EMBEDDED], scale))
        for i in range(step[_LAYERS]):
            if step[_FILLS] and i == step[_LAYERS] - 1:
                _attend(step, (me, threads, met), product, attend, norm)
                return
            _layer(step, (me, threads, met), product, attend, norm)
            product += 8 * 4 * multiplying.TASK
            attend += 8 * attending.TASK
            norm += 8 * 2
            met += 8 * MEETINGS
        _norm(step, me, threads, step[_X], norm)
        meet(met, threads, step[_OFFER])
        call(step[_MULTIPLY_LAST], (product,))

    return run


@njit
def _layer(step, team, product, attend, norm):
    """The addresses are of its first product, of its attention, and of its first norm's."""
    me, threads, met = team
    offer, task = step[_OFFER], 8 * multiplying.TASK
    _attend(step, team, product, attend, norm)
    meet(met + 16, threads, offer)
    call(step[_MULTIPLY], (product + task,))
    meet(met + 24, threads, offer)
    _norm(step, me, threads, step[_Y], norm + 8)
    meet(met + 32, threads, offer)
    call(step[_MULTIPLY], (product + 2 * task,))
    meet(met + 40, threads, offer)
    rows, width = step[_ROWS], step[_WIDTH]
    first, last = _part(me, threads, (width + UNIT - 1) // UNIT)
    first, last = first * UNIT, min(last * UNIT, width)
    call(step[_GATE], (step[_BOTH], step[_INNER], rows, width, first, last))
    meet(met + 48, threads, offer)
    call(step[_MULTIPLY], (product + 3 * task,))
    meet(met + 56, threads, offer)


@njit
def _attend(step, team, product, attend, norm):
    """Its first half: what it writes to the cache, and what it sees there."""
    me, threads, met = team
    _norm(step, me, threads, step[_X], norm)
    meet(met, threads, step[_OFFER])
    call(step[_MULTIPLY], (product,))
    meet(met + 8, threads, step[_OFFER])
    first, last = _part(me, threads, step[_PAIRS])
    eps = numbers_at(step[_EPS], _ZERO, 1)[0]
    call(step[_ATTEND], (first, last, attend, eps, _ZERO))


@njit
def _norm(step, me, threads, x, norm):
    """This thread's rows of those at ``x``, by the weights whose address is at ``norm``."""
    first, last = _part(me, threads, step[_ROWS])
    weight, eps = numbers_at(norm, _NO_INT, 1)[0], numbers_at(step[_EPS], _ZERO, 1)[0]
    width = step[_HIDDEN]
    at = 4 * width * first
    call(step[_NORM], (x + at, weight, step[_NORMED] + at, last - first, width, eps))


@njit
def _part(me, threads, count):
    """Thread ``me``'s of ``count``, as the first and the one after the last."""
    each = (count + threads - 1) // threads
    return min(me * each, count), min((me + 1) * each, count)
