"""Whose turn it is: the decision of token routing, and what the LLM has to read for it.

`route`. A row is routed when its metric exceeds its threshold; a row that is done never is. A
threshold may move: it is then first set to a quantile of the row's last W metrics, this one among
them, so that the share ``rate`` of its decisions routes. Of n metrics seen, n at most W, it is
number floor(n * share + 0.5) in descending order, from 0 and not below it: so many are above it.
What is unseen is -inf, and so is the quantile where W or more are to be above it. A NaN, of a row
that is broken, is kept as +inf.

The quantile alone drifts from its rate by points in a thousand decisions, since the metrics of a
text come in runs and repeat. So the share is the rate, and 1 / 32 more for each decision by which
the row has routed less than its rate so far, or less for each that it has routed too many:
share = rate + (taken * rate - routed) * STEER, in float32 and in this order. Where it is 1 all are
routed and where it is 0 none, so whatever the metrics, a row never is off its rate by more than
32 * max(rate, 1 - rate) + 1 decisions.

`unread`. What the LLM reads of a routed row begins where it stopped last: what it has read keeps
its bits. A row that is not routed is read behind its end, where nothing is kept: so what becomes of
it does not depend on the rows beside it.
"""

import numpy as np
import torch
from torch import Tensor

from hybridgen.kernels.registry import define
from hybridgen.kernels.verify import NOTE, PENDING
from hybridgen.kernels.window import between, up_to

STEER = 1 / 32  # a power of two: products with it are exact

_STEER = np.float32(STEER)


def route_reference(
    value: Tensor,
    done: Tensor,
    length: Tensor,
    cached: Tensor,
    rate: Tensor,
    threshold: Tensor,
    metrics: Tensor,
    decisions: Tensor,
    routed: Tensor,
    report: Tensor,
    moving: bool,
) -> Tensor:
    """Decide about each row; returned is where the SLM's token stands: not routed, bool [B].

    value float32 [B] of any stride, done bool [B], length and cached int64 [B] (tokens, and those
    that the LLM has read) and rate float32 [B] are read. routed bool [B] is written, and the report
    int64 [B, HEAD + WINDOW] of `verify`: as PENDING how many tokens the LLM is to read, 0 where it
    is not to. Where ``moving``, but not of rows that are done: threshold float32 [B], metrics
    float32 [B, W], W a power of two from 16 on, and decisions int64 [B, 2], those taken and of
    them those that routed; and as NOTE the threshold's bits.
    """
    metric, finished, told = value.detach().numpy(), done.numpy(), report.numpy()
    edge = threshold.numpy()
    if moving:
        live = np.flatnonzero(~finished)
        edge[live] = _quantiles(metric, rate.numpy(), metrics.numpy(), decisions.numpy(), live)
        told[live, NOTE] = edge.view(np.int32)[live]
    turns = (metric > edge) & ~finished
    if moving:
        counts = decisions.numpy()
        counts[:, 0] += ~finished
        counts[:, 1] += turns
    routed.numpy()[:] = turns
    told[:, PENDING] = (length.numpy() - cached.numpy()) * turns
    return torch.from_numpy(~turns)


def _quantiles(
    metric: np.ndarray, rate: np.ndarray, kept: np.ndarray, decisions: np.ndarray, live: np.ndarray
) -> np.ndarray:
    """The moved thresholds of the rows ``live``, whose metrics are counted and kept."""
    width, new = kept.shape[1], metric[live]
    taken, asked = decisions[live, 0], decisions[live, 1]
    kept[live, taken % width] = np.where(np.isnan(new), np.inf, new)
    owed = taken.astype(np.float32) * rate[live] - asked.astype(np.float32)
    seen = np.minimum(taken + 1, width).astype(np.float32)
    rank = (seen * (rate[live] + owed * _STEER) + np.float32(0.5)).astype(np.int64)
    rank = np.maximum(rank, 0)
    ordered = np.sort(kept[live], axis=1)
    quantile = ordered[up_to(len(live)), np.maximum(width - 1 - rank, 0)]
    moved: np.ndarray = np.where(rank < width, quantile, np.float32(-np.inf))
    return moved


def _route_fake(
    value: Tensor,
    done: Tensor,
    length: Tensor,
    cached: Tensor,
    rate: Tensor,
    threshold: Tensor,
    metrics: Tensor,
    decisions: Tensor,
    routed: Tensor,
    report: Tensor,
    moving: bool,
) -> Tensor:
    return torch.empty_like(done)


def unread_reference(
    tokens: Tensor, length: Tensor, routed: Tensor, cached: Tensor, count: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The next ``count`` tokens that the LLM is to read of each row, and that it will have.

    tokens int64 [B, T], length int64 [B] and routed bool [B] are read. cached int64 [B], how many
    tokens the LLM has read, goes on by ``count`` where routed, but leaves the last ``keep`` of the
    text. Returned are ids [B, count], the place of the first [B] and, as b * count + i, the last
    one i of each row that is not behind its end [B], all int64.
    """
    ends, turns, read = length.numpy(), routed.numpy(), cached.numpy()
    first = np.where(turns, read, ends)
    last = np.minimum(np.maximum(ends - 1 - first, 0), count - 1)
    np.copyto(read, np.minimum(read + count, ends - keep), where=turns)
    ids = between(tokens.numpy(), ends, first, count)
    last += up_to(len(ends)) * count
    return torch.from_numpy(ids), torch.from_numpy(first), torch.from_numpy(last)


def _unread_fake(
    tokens: Tensor, length: Tensor, routed: Tensor, cached: Tensor, count: int, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    first = torch.empty_like(length)
    return length.new_empty(len(length), count), first, torch.empty_like(first)


route = define(
    "route(Tensor value, Tensor done, Tensor length, Tensor cached, Tensor rate,"
    " Tensor(a!) threshold, Tensor(b!) metrics, Tensor(c!) decisions, Tensor(d!) routed,"
    " Tensor(e!) report, bool moving) -> Tensor",
    route_reference,
    _route_fake,
    "routing_triton:route",
)
unread = define(
    "unread(Tensor tokens, Tensor length, Tensor routed, Tensor(a!) cached, int count, int keep)"
    " -> (Tensor, Tensor, Tensor)",
    unread_reference,
    _unread_fake,
    "routing_triton:unread",
)
