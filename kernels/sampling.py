"""Filtering and sampling: a filtered distribution is a logits row plus two numbers.

Temperature T, then top-k, top-p and min-p, each renormalising what the one before it left (the
order of transformers' warpers). Each keeps an upper set of the row, so all of them keep

    { x : logit[x] >= tau },    p(x) = exp(logit[x] / T - log_z),

tau the lowest kept logit as it stands in the row (before T), log_z the logarithm of the sum of
exp(logit / T) over the kept. In descending order of probability, with before(i) the mass in front
of token i out of `mass`, what top-k left:

    top-k   logit >= the k-th largest                           off at 0 (or k >= V)
    top-p   before(i) < top_p * mass                            off at 1
    min-p   p >= min_p * the largest p                          off at 0

Ties at the threshold are kept together, so neither the sort nor the device can change the set, and
the first token is always kept. A logit of -inf is never kept. At temperature 0 the distribution is
all on the argmax (the first of equals), tau is the maximum and log_z is 0; nothing is divided.

A token is the argmax over the kept of (logit - max) / T + gumbel(seed, position, token, stream)
(Gumbel-max; Maddison, Tarlow and Minka 2014), the first of equals: an exact draw that depends on
the row and its own seed and position alone.

A broken row (any NaN, any +inf, or nothing but -inf) has log_z = NaN and token 0; the others
around it do not notice.

Shapes: logits [R, V] float32 or bfloat16, any row stride; sampling [R, 4] float32 with the columns
below; seed and position [R] int64. tau and log_z are float32 [R], tokens int64 [R]. The inputs are
read only. The precision of log_z, 2**-24 of its size, is the relative precision of p.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from hybridgen.kernels.philox import gumbel
from hybridgen.kernels.registry import define

TEMPERATURE, TOP_K, TOP_P, MIN_P = 0, 1, 2, 3
"""Columns of `sampling`. Greedy: temperature 0. Off: top_k 0, top_p 1, min_p 0."""

Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]

_LOWEST = np.finfo(np.float32).min
_SMALL_K = 128


def float_rows(logits: torch.Tensor) -> Floats:
    """The rows as float32 in numpy: a view where they are float32 already."""
    rows: Floats = logits.detach().float().numpy()
    return rows


def _candidates(rows: Floats, top_k: Integers) -> Floats:
    """Every logit that may be kept, descending: [R, V], or [R, k + 1] where that is enough.

    NaN sorts first, as the largest. With top-k on in every row, one logit beyond the widest k
    shows whether the k-th has equals outside; if it has, the whole rows are sorted.
    """
    if top_k.min() >= 1 and (width := int(top_k.max())) < min(_SMALL_K, rows.shape[1]):
        top: Floats = torch.from_numpy(rows).topk(width + 1).values.numpy()
        row = np.arange(len(rows))
        if not (top[row, top_k - 1] == top[row, top_k]).any():
            return top
    return np.ascontiguousarray(np.sort(rows, axis=1)[:, ::-1])


class FilteredRows:
    """Rows [R, V] with their filter: what `filter_logits` returns and `draw` needs.

    `rows` are the given ones, unless some are broken: those are replaced, in a copy, by a row that
    keeps token 0 alone.
    """

    def __init__(self, rows: Floats, sampling: Floats) -> None:
        self.temperature, top_k, top_p, min_p = sampling.T.astype(np.float64)[:, :, None]
        self.greedy: Bools = ~(self.temperature > 0)
        if self.greedy.any():
            self.temperature = np.where(self.greedy, 1.0, self.temperature)
            top_k = np.where(self.greedy, 1.0, top_k)
        limit = top_k.astype(np.int64)[:, 0]
        top = _candidates(rows, limit)
        broken: Bools = ~np.isfinite(top[:, 0])
        self.rows = rows
        if broken.any():
            self.rows = rows.copy()
            self.rows[broken] = -np.inf
            self.rows[broken, 0] = 0
            top = _candidates(self.rows, limit)

        self.max = top[:, :1].astype(np.float64)
        index = np.arange(len(rows))
        width = top.shape[1]
        last = np.where((limit < 1) | (limit > width), width, limit) - 1
        kept = top >= np.maximum(top[index, last], _LOWEST)[:, None]
        weight = np.exp((top - self.max) / self.temperature)
        # A running sum, not a pairwise one: the same to the bit however many columns follow.
        mass = np.add.accumulate(np.where(kept, weight, 0.0), axis=1)
        kept[:, 1:] &= mass[:, :-1] < np.where(top_p < 1, top_p * mass[:, -1:], np.inf)
        kept &= weight >= np.minimum(min_p, 1.0)
        self.tau: Floats = top[index, kept.sum(axis=1) - 1]
        with_ties = (top >= self.tau[:, None]).sum(axis=1)
        log_z = np.log(mass[index, with_ties - 1]) + (self.max / self.temperature)[:, 0]
        self.log_z: Floats = np.where(self.greedy[:, 0], 0.0, log_z).astype(np.float32)
        self.log_z[broken] = np.nan

    def kept(self) -> tuple[Integers, Integers]:
        """Row and token of every kept logit, [n] each, in row-major order."""
        return np.divmod(np.flatnonzero(self.rows >= self.tau[:, None]), self.rows.shape[1])

    def score(self, row: Integers, token: Integers) -> Doubles:
        """Log-weights (logit - max) / T of the kept tokens, [n]; 0 for all of a greedy row."""
        score: Doubles = (self.rows[row, token] - self.max[row, 0]) / self.temperature[row, 0]
        return score

    def draw(self, seed: Integers, position: Integers, stream: int) -> Integers:
        """One token a row, int64 [R]."""
        row, token = self.kept()
        score = self.score(row, token) + gumbel(seed[row], position[row], token, stream)
        return first_argmax(np.where(self.greedy[row, 0], 0.0, score), row, token)


def first_argmax(score: Doubles, row: Integers, token: Integers) -> Integers:
    """For each row its first token of the largest score; entries in row-major order, none empty."""
    if row[-1] == 0:
        return token[score.argmax(keepdims=True)]
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    best = np.maximum.reduceat(score, starts)
    losers_last = np.where(score == best[row], token, np.iinfo(np.int64).max)
    return np.minimum.reduceat(losers_last, starts)


def greedy_rows(rows: Floats) -> tuple[Integers, Floats, Floats]:
    """`sample_rows` where every temperature is 0: token, maximum and 0 (NaN where broken)."""
    token = rows.argmax(axis=1)
    tau: Floats = rows[np.arange(len(rows)), token]
    log_z = tau * 0  # NaN where the maximum is not finite
    if np.isnan(log_z).any():
        broken = np.isnan(log_z)
        token[broken] = 0
        tau[broken] = 0
    return token, tau, log_z


def sample_rows(
    rows: Floats, sampling: Floats, seed: Integers, position: Integers, stream: int
) -> tuple[Integers, Floats, Floats]:
    """Token, tau and log_z of each row, [R]; `sample` in numpy."""
    if not sampling[:, TEMPERATURE].any():
        return greedy_rows(rows)
    filtered = FilteredRows(rows, sampling)
    return filtered.draw(seed, position, stream), filtered.tau, filtered.log_z


def _filter_logits(
    logits: torch.Tensor, sampling: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """tau and log_z, float32 [R], of logits [R, V] filtered by sampling [R, 4]."""
    filtered = FilteredRows(float_rows(logits), sampling.numpy())
    return torch.from_numpy(filtered.tau), torch.from_numpy(filtered.log_z)


def _filter_logits_fake(
    logits: torch.Tensor, sampling: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = logits.shape[0]
    tau = logits.new_empty(rows, dtype=torch.float32)
    return tau, torch.empty_like(tau)


def _sample(
    logits: torch.Tensor,
    sampling: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    stream: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One token a row, int64 [R], and the tau and log_z it was drawn with, float32 [R]."""
    token, tau, log_z = sample_rows(
        float_rows(logits), sampling.numpy(), seed.numpy(), position.numpy(), stream
    )
    return torch.from_numpy(token), torch.from_numpy(tau), torch.from_numpy(log_z)


def _sample_fake(
    logits: torch.Tensor,
    sampling: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
    stream: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tau, log_z = _filter_logits_fake(logits, sampling)
    return torch.empty_like(tau, dtype=torch.int64), tau, log_z


filter_logits = define(
    "filter_logits(Tensor logits, Tensor sampling) -> (Tensor, Tensor)",
    _filter_logits,
    _filter_logits_fake,
)
sample = define(
    "sample(Tensor logits, Tensor sampling, Tensor seed, Tensor position, int stream)"
    " -> (Tensor, Tensor, Tensor)",
    _sample,
    _sample_fake,
)
