"""Filtering and sampling: a filtered distribution is a logits row plus three numbers.

Temperature T, then top-k, top-p and min-p, each renormalising what the one before it left (the
order of transformers' warpers). Each keeps an upper set of the row, so all of them keep

    { x : logit[x] >= tau },    p(x) = exp((logit[x] - max) / T - log_z),

tau the lowest kept logit and max the largest one as they stand in the row (before T), log_z the
logarithm of the sum of exp((logit - max) / T) over the kept: from 0 to log V at any T, so that no
temperature makes p a difference of large numbers. In descending order of probability, with
before(i) the mass in front of token i out of `mass`, what top-k left:

    top-k   logit >= the k-th largest                           off at 0 (or k >= V)
    top-p   before(i) < top_p * mass                            off at 1
    min-p   p >= min_p * the largest p                          off at 0

The masses are sums of the integer `weights`, and ties at the threshold are kept together: neither
the order of a sum, nor a sort, nor the device can change the set. The first token is always kept.
A logit of -inf is never kept. At temperature 0 the distribution is all on the argmax (the first of
equals), tau is the maximum and log_z is 0; nothing is divided.

`sampling` is float64, and top-p and min-p are decided on these doubles. A decimal is seldom a
double, though, and a product is rounded: 0.07 * 100 is above 7. So top-p's edge is the double
top_p * mass less 2**-50 of it, which is more than these roundings come to, and nothing beside the
2**-21 that a weight is known to: where a set's mass is exactly the decimal that the user wrote, it
is enough. min-p's edge for a weight, min_p * 2**44, is not rounded.

A token is the argmax over the kept of (logit - max) / T + gumbel(seed, position, token, stream)
(Gumbel-max; Maddison, Tarlow and Minka 2014), the first of equals: an exact draw that depends on
the row and its own seed and position alone.

A broken row (any NaN, any +inf, or nothing but -inf) has log_z = NaN, tau and max 0 and token 0;
the others around it do not notice.

Shapes: logits [R, V] float32, bfloat16 or float16, any row stride, V up to
`weights.MAX_VOCAB`; sampling [R, 4] float64 with the columns below; seed and position [R] int64.
The three numbers are a truncation, float32 [R, 3]; tokens are int64 [R]. The inputs are read only.
The precision of log_z, 2**-24 of its size, is the relative precision of p.
"""

from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybridgen.kernels.philox import gumbel
from hybridgen.kernels.registry import define
from hybridgen.kernels.weights import ONE, bounded, rate, weights

TEMPERATURE, TOP_K, TOP_P, MIN_P = 0, 1, 2, 3
"""Columns of `sampling`. Greedy: temperature 0. Off: top_k 0, top_p 1, min_p 0."""

ENOUGH = 1 - 2.0**-50
"""Of the mass that top_p asks for, so that no rounding asks for more than the decimal does."""

TAU, LARGEST, LOG_Z = 0, 1, 2
"""Columns of a truncation."""

Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.integer[Any]]

_LOWEST = np.finfo(np.float32).min
_NO_TOKEN = np.iinfo(np.int64).max
_SMALL = 128


def float_rows(logits: Tensor) -> Floats:
    """The rows as float32 in numpy: a view where they are float32 already."""
    rows: Floats = logits.detach().float().numpy()
    return rows


class Parameters(NamedTuple):
    """The columns of `sampling` for each row, [R], and what can be said of all rows at once."""

    temperature: Doubles  # 1 where greedy
    rate: Floats  # of the weights at that temperature
    top_k: Integers  # 1 where greedy
    top_p: Doubles  # times `ENOUGH` where on
    min_p: Doubles
    greedy: Bools | None  # None: no row is
    all_greedy: bool
    widest: int  # the largest top_k; 0: top_k is off in some row
    least: int  # the smallest top_k
    has_top_p: bool
    has_min_p: bool


def parameters(sampling: Tensor, repeat: int = 1) -> Parameters:
    """`sampling` [R, 4], each row `repeat` times over."""
    if sampling.dtype != torch.float64:
        raise TypeError(f"sampling must be float64, got {sampling.dtype}")
    return _parameters(sampling.numpy().tobytes(), repeat)


@lru_cache(maxsize=64)  # a request asks with the same few numbers for every token
def _parameters(sampling: bytes, repeat: int) -> Parameters:
    columns = np.frombuffer(sampling, np.float64).reshape(-1, 4)
    temperature, k, top_p, min_p = np.repeat(columns, repeat, axis=0).T.copy()
    greedy = ~(temperature > 0)
    temperature[greedy], k[greedy] = 1, 1
    temperature = bounded(temperature)
    top_k = k.astype(np.int64)
    least = int(top_k.min())
    return Parameters(
        temperature,
        rate(temperature),
        top_k,
        np.where(top_p < 1, top_p * ENOUGH, 1),
        np.minimum(min_p, 1.0),
        greedy if greedy.any() else None,
        bool(greedy.all()),
        int(top_k.max()) if least >= 1 else 0,
        least,
        bool((top_p < 1).any()),
        bool((min_p > 0).any()),
    )


def _top(rows: Floats, params: Parameters) -> Floats:
    """What top-k keeps of the rows: [R, C], descending, NaN first, -inf for what it dropped.

    With top-k on in every row, one logit beyond the widest k shows whether the k-th has an equal
    outside; if it has, more are taken. With top-k off in some row, or more to take than a sixteenth
    of the vocabulary, the rows are sorted.
    """
    vocab, top_k, row = rows.shape[1], params.top_k, np.arange(len(rows))
    width = params.widest + 1
    while 1 < width <= min(max(_SMALL, vocab // 16), vocab):  # beyond, a sort is faster
        top: Floats = torch.from_numpy(rows).topk(width).values.numpy()
        threshold = top[row, top_k - 1]
        if not ((threshold == top[:, -1]) & (threshold >= _LOWEST)).any():
            exact = width == params.widest + 1 and params.least == params.widest
            return top[:, :-1] if exact else _drop_below(top, threshold)
        width *= 4
    top = np.ascontiguousarray(np.sort(rows, axis=1)[:, ::-1])
    last = np.where((top_k < 1) | (top_k > vocab), vocab, top_k) - 1
    return _drop_below(top, top[row, last])


def _drop_below(top: Floats, threshold: Floats) -> Floats:
    return np.where(top < threshold[:, None], np.float32(-np.inf), top)


class FilteredRows:
    """Rows [R, V] with their filter: what `filter_logits` returns, and what a draw needs.

    `rows` are the given ones, unless some are broken: those are replaced, in a copy, by a row that
    keeps token 0 alone. `truncation` is float32 [R, 3], `max` its maxima in float64 [R].
    """

    def __init__(self, rows: Floats, params: Parameters) -> None:
        top = _top(rows, params)
        broken: Bools | None = None
        if not np.isfinite(top[:, 0]).all():
            broken = ~np.isfinite(top[:, 0])
            rows = rows.copy()
            rows[broken] = -np.inf
            rows[broken, 0] = 0
            top = _top(rows, params)

        self.rows, self.params = rows, params
        self.max: Doubles = top[:, 0].astype(np.float64)
        weight = weights(top, top[:, :1], params.rate[:, None])
        mass = weight.cumsum(axis=1)
        kept = top >= _LOWEST
        if params.has_top_p:
            edge = np.where(params.top_p < 1, params.top_p * mass[:, -1], np.inf)
            kept[:, 1:] &= mass[:, :-1] < edge[:, None]
        if params.has_min_p:
            kept &= weight >= (params.min_p * ONE)[:, None]
        row = np.arange(len(rows))
        self.truncation: Floats = np.empty((len(rows), 3), np.float32)
        self.tau: Floats = self.truncation[:, TAU]
        self.log_z: Floats = self.truncation[:, LOG_Z]
        self.tau[:] = top[row, kept.sum(axis=1) - 1]
        self.truncation[:, LARGEST] = top[:, 0]
        last = (top >= self.tau[:, None]).sum(axis=1) - 1
        self.log_z[:] = np.log(mass[row, last] / ONE)
        if params.greedy is not None:
            self.log_z[params.greedy] = 0
        if broken is not None:
            self.log_z[broken] = np.nan

    def kept(self, among: Integers | None = None) -> tuple[Integers, Integers]:
        """Row and token of every kept logit, [n] each in row-major order; or of rows `among`."""
        rows, tau = (self.rows, self.tau) if among is None else (self.rows[among], self.tau[among])
        index, token = np.divmod(np.flatnonzero(rows >= tau[:, None]), rows.shape[1])
        return index, token

    def score(self, row: Integers, token: Integers) -> Doubles:
        """Log-weights (logit - max) / T of kept tokens, [n]."""
        score: Doubles = (self.rows[row, token] - self.max[row]) / self.params.temperature[row]
        return score

    def noise(
        self, row: Integers, token: Integers, seed: Integers, position: Integers, stream: Any
    ) -> Floats:
        """Gumbel noise for kept tokens, all [n]; 0 in greedy rows, whose kept score the same."""
        noise = gumbel(seed, position, token, stream)
        if self.params.greedy is not None:
            noise[self.params.greedy[row]] = 0
        return noise

    def draw(self, seed: Integers, position: Integers, stream: int) -> Integers:
        """One token a row, int64 [R]."""
        row, token = self.kept()
        noise = self.noise(row, token, seed[row], position[row], stream)
        return first_best(self.score(row, token) + noise, row, token)


def first_best(score: Doubles, row: Integers, token: Integers) -> Integers:
    """Each row's first token of the largest score; [n] in row-major order, no row without one."""
    if row[-1] == 0:
        return token[[score.argmax()]]
    starts = row_starts(row)
    is_best = score == np.maximum.reduceat(score, starts)[row]
    return np.minimum.reduceat(np.where(is_best, token, _NO_TOKEN), starts)


def row_starts(row: Integers) -> Integers:
    """Where each row's entries begin, of row numbers [n] in order, none left out."""
    return np.flatnonzero(np.diff(row, prepend=-1))


def _greedy_rows(rows: Floats) -> tuple[Integers, Floats]:
    """`sample_rows` where every temperature is 0: the argmax, which is all that is kept."""
    token = rows.argmax(axis=1)
    largest = rows[np.arange(len(rows)), token]
    truncation = np.zeros((len(rows), 3), np.float32)
    truncation[:, :LOG_Z] = largest[:, None]
    if not np.isfinite(largest).all():
        broken = ~np.isfinite(largest)
        token[broken], truncation[broken] = 0, (0, 0, np.nan)
    return token, truncation


def sample_rows(
    rows: Floats, params: Parameters, seed: Integers, position: Integers, stream: int
) -> tuple[Integers, Floats]:
    """Token [R] and truncation [R, 3] of each row; `sample` in numpy."""
    if params.all_greedy:
        return _greedy_rows(rows)
    filtered = FilteredRows(rows, params)
    return filtered.draw(seed, position, stream), filtered.truncation


def filter_logits_reference(logits: Tensor, sampling: Tensor) -> Tensor:
    """The truncation, float32 [R, 3], of logits [R, V] filtered by sampling [R, 4]."""
    return torch.from_numpy(FilteredRows(float_rows(logits), parameters(sampling)).truncation)


def _filter_logits_fake(logits: Tensor, sampling: Tensor) -> Tensor:
    return logits.new_empty((logits.shape[0], 3), dtype=torch.float32)


def sample_reference(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
) -> tuple[Tensor, Tensor]:
    """One token a row, int64 [R], and the truncation it was drawn from, float32 [R, 3]."""
    token, truncation = sample_rows(
        float_rows(logits), parameters(sampling), seed.numpy(), position.numpy(), stream
    )
    return torch.from_numpy(token), torch.from_numpy(truncation)


def _sample_fake(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
) -> tuple[Tensor, Tensor]:
    token = logits.new_empty(logits.shape[0], dtype=torch.int64)
    return token, _filter_logits_fake(logits, sampling)


def sample_into_reference(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
    token: Tensor,
    truncation: Tensor,
    kept: Tensor | None,
) -> None:
    """`sample` into ``token`` int64 [R] and ``truncation`` float32 [R, 3], rows of any stride.

    kept    the logits are copied there, [R, V] of their dtype, or None
    """
    chosen, filtered = sample_rows(
        float_rows(logits), parameters(sampling), seed.numpy(), position.numpy(), stream
    )
    token.numpy()[:] = chosen
    truncation.numpy()[:] = filtered
    if kept is not None:
        kept.copy_(logits)


def _sample_into_fake(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
    token: Tensor,
    truncation: Tensor,
    kept: Tensor | None,
) -> None:
    return None


filter_logits = define(
    "filter_logits(Tensor logits, Tensor sampling) -> Tensor",
    filter_logits_reference,
    _filter_logits_fake,
    "sampling_triton:filter_logits",
    "sampling_numba:filter_logits",
)
sample = define(
    "sample(Tensor logits, Tensor sampling, Tensor seed, Tensor position, int stream)"
    " -> (Tensor, Tensor)",
    sample_reference,
    _sample_fake,
    "sampling_triton:sample",
    "sampling_numba:sample",
)
sample_into = define(
    "sample_into(Tensor logits, Tensor sampling, Tensor seed, Tensor position, int stream,"
    " Tensor(a!) token, Tensor(b!) truncation, Tensor(c!)? kept) -> ()",
    sample_into_reference,
    _sample_into_fake,
    "sampling_triton:sample_into",
    "sampling_numba:sample_into",
)
