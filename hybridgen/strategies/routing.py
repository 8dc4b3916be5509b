"""Token routing: the SLM writes, and hands a token to the LLM when it is unsure of it.

The metric is the SLM's entropy, or its aleatoric uncertainty (LogTokU, Ma et al. 2025), as in R2R
(Fu et al. 2025, "R2R: Efficiently navigating divergent reasoning paths with small-large model token
routing"). After the prompt the LLM reads nothing until it is asked; then it catches up, up to 16
tokens a forward.
"""

import torch
from torch import Tensor

from hybridgen.engine.loop import Program
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import QUANTILE_WINDOW, Routing
from hybridgen.engine.steps import append, feed, sample_and_append
from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.sampling import LOG_Z
from hybridgen.kernels.uncertainty import ALEATORIC, ENTROPY, EVIDENCE, sample_measured
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.request import Request
from hybridgen.result import Stats
from hybridgen.strategies.base import RoundStrategy, RowCounts
from hybridgen.strategies.declarations import THRESHOLDS, Declaration

LOGTOKU_K = 10
MAX_FEED = 16


class TokenRouting(RoundStrategy):
    """``declaration`` UNCERTAINTY or ENTROPY, which name the metric."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self.metric = declaration.name

    def load(self, batch: Batch, request: Request) -> None:
        given, fraction = request.threshold, request.llm_fraction
        threshold = THRESHOLDS[self.metric] if given is None else given
        rate = 0.0 if fraction is None else route_rate(fraction, request.llm_consecutive_tokens)
        batch.routing.load(batch.rows, threshold, rate)

    def program(self, batch: Batch, request: Request) -> Program:
        writes = request.llm_consecutive_tokens
        moving = request.llm_fraction is not None
        return Program(
            batch.round(slm_round, self.metric, EVIDENCE[request.evidence], moving, writes),
            batch.routing.pending,
            lambda pending: llm_rounds(batch, writes, pending),
        )

    def describe(self, counts: RowCounts, batch: Batch, row: int, request: Request) -> Stats:
        return {
            "decode_steps": counts.total,
            # -inf, where every token is routed: no metric is below 0
            "threshold": max(float(batch.routing.threshold[row]), 0.0),
            "llm_consecutive_tokens": request.llm_consecutive_tokens,
        }


def route_rate(llm_fraction: float, writes: int) -> float:
    """The share of SLM steps to route so that the LLM writes ``llm_fraction`` of the tokens.

    Of n steps, r·n are routed and give ``writes`` tokens each, the others give one.
    """
    return llm_fraction / (writes - llm_fraction * (writes - 1))


def slm_round(batch: Batch, metric: str, evidence: int, moving: bool, count: int) -> None:
    """The SLM reads its last ``count`` tokens; its next one is appended, or the row is routed.

    A row is routed when the metric, at temperature 1 whatever the sampling, exceeds its threshold,
    which first moves to a running quantile if it is ``moving``. ``pending`` then tells how far the
    LLM has to catch up.
    """
    k, column = (0, ENTROPY) if metric == "entropy" else (LOGTOKU_K, ALEATORIC)
    rows, routing = batch.rows, batch.routing
    logits = feed(rows, batch.slm, count, count)[:, -1]
    token, truncation, measures = sample_measured(
        logits, rows.sampling, rows.seed, rows.length, TARGET, k, evidence
    )
    value = measures[:, column]
    if moving:
        move_threshold(routing, value)
    torch.logical_and(value > routing.threshold, rows.done.logical_not(), out=routing.routed)
    count_new, broken = routing.routed.logical_not().long(), truncation[:, LOG_Z].isnan()
    append(rows, token[:, None], count_new, broken, SOURCE_SLM, {"measures": measures})
    routing.pending.copy_(((rows.length - routing.llm_cached) * routing.routed).max())


def llm_rounds(batch: Batch, writes: int, pending: int) -> None:
    """The LLM reads the ``pending`` tokens it has not seen and writes ``writes`` tokens."""
    while pending > MAX_FEED:
        batch.round(catch_up_round, MAX_FEED)()
        pending -= MAX_FEED
    bucket = next(size for size in (1, 2, 4, 8, MAX_FEED) if size >= pending)
    batch.round(llm_round, bucket)()
    for _ in range(writes - 1):
        batch.round(llm_round, 1)()


def catch_up_round(batch: Batch, count: int) -> None:
    """The LLM reads ``count`` tokens, from ``pending`` before the end of each row on."""
    feed(batch.rows, batch.llm, count, batch.routing.pending)
    batch.routing.pending.sub_(count)


def llm_round(batch: Batch, count: int) -> None:
    """The LLM reads the last ``count`` tokens of each row and writes one where it was routed."""
    rows, routing = batch.rows, batch.routing
    logits = feed(rows, batch.llm, count, count)[:, -1]
    sample_and_append(rows, logits, routing.routed, SOURCE_LLM)
    routing.llm_cached.copy_(torch.where(routing.routed, rows.length - 1, routing.llm_cached))


def move_threshold(routing: Routing, value: Tensor) -> None:
    """Set each row's threshold to the (1 - rate) quantile of its last QUANTILE_WINDOW metrics."""
    slot = routing.decisions.remainder(QUANTILE_WINDOW)[:, None]
    routing.metrics.scatter_(1, slot, value[:, None])
    routing.decisions.add_(1)
    seen = routing.decisions.clamp_max(QUANTILE_WINDOW)
    rank = (seen * routing.rate + 0.5).long()  # so many of those seen are to be above the threshold
    ordered = routing.metrics.sort(dim=1, descending=True).values
    quantile = ordered.gather(1, rank.clamp_max(QUANTILE_WINDOW - 1)[:, None])[:, 0]
    routing.threshold.copy_(torch.where(rank < QUANTILE_WINDOW, quantile, -torch.inf))
