"""Token routing: the SLM writes, and hands a token to the LLM when it is unsure of it.

The metric is the SLM's entropy, or its aleatoric uncertainty (LogTokU, Ma et al. 2025), as in R2R
(Fu et al. 2025, "R2R: Efficiently navigating divergent reasoning paths with small-large model token
routing"). After the prompt the LLM reads nothing until it is asked; then it catches up, up to 16
tokens a forward.
"""

from functools import partial

import torch
from torch import Tensor

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loop import Program
from hybridgen.engine.pair import Pair
from hybridgen.engine.state import QUANTILE_WINDOW, State
from hybridgen.engine.steps import append, feed, sample_and_commit
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


class Routing(RoundStrategy):
    """``declaration`` UNCERTAINTY or ENTROPY, which name the metric."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self.metric = declaration.name

    def threshold(self, request: Request) -> float:
        threshold: float | None = request.threshold
        return THRESHOLDS[self.metric] if threshold is None else threshold

    def program(self, state: State, pair: Pair, request: Request) -> Program:
        writes = request.llm_consecutive_tokens
        rate = route_rate(request.llm_fraction, writes)
        evidence = EVIDENCE[request.evidence]
        return Program(
            partial(slm_round, state, pair.slm, pair.llm, self.metric, evidence, rate, writes),
            partial(llm_rounds, state, pair.llm, writes),
        )

    def describe(self, counts: RowCounts, state: State, row: int, request: Request) -> Stats:
        return {
            "decode_steps": counts.total,
            # -inf, where every token is routed: no metric is below 0
            "threshold": max(float(state.threshold[row]), 0.0),
            "llm_consecutive_tokens": request.llm_consecutive_tokens,
        }


def route_rate(llm_fraction: float | None, writes: int) -> float:
    """The share of SLM steps to route so that the LLM writes ``llm_fraction`` of the tokens.

    Of n steps, r·n are routed and give ``writes`` tokens each, the others give one.
    """
    if llm_fraction is None:
        return -1.0
    return llm_fraction / (writes - llm_fraction * (writes - 1))


def slm_round(
    state: State,
    slm: Decoder,
    llm: Decoder,
    metric: str,
    evidence: int,
    rate: float,
    count: int,
) -> None:
    """The SLM reads its last ``count`` tokens; its next one is appended, or the row is routed.

    A row is routed when the metric exceeds its threshold. ``rate`` >= 0 first moves the threshold
    to a running quantile. ``state.pending`` tells how far the LLM has to catch up.
    """
    logits = feed(state, slm, count, count)[:, -1, : min(slm.vocab_size, llm.vocab_size)]
    token, broken, value = draw_and_measure(state, logits, metric, evidence)
    if rate >= 0:
        move_threshold(state, value, rate)
    torch.logical_and(value > state.threshold, state.done.logical_not(), out=state.routed)
    active = state.routed.logical_not()
    append(state, token[:, None], active.long(), broken, SOURCE_SLM)
    state.pending.copy_(((state.length - state.llm_cached) * state.routed).max())


def llm_rounds(state: State, llm: Decoder, writes: int, pending: int) -> None:
    """The LLM reads the ``pending`` tokens it has not seen and writes ``writes`` tokens."""
    while pending > MAX_FEED:
        catch_up_round(state, llm, MAX_FEED, pending)
        pending -= MAX_FEED
    bucket = next(size for size in (1, 2, 4, 8, MAX_FEED) if size >= pending)
    llm_round(state, llm, bucket)
    for _ in range(writes - 1):
        llm_round(state, llm, 1)


def catch_up_round(state: State, llm: Decoder, count: int, behind: int) -> None:
    """The LLM reads ``count`` tokens, from ``behind`` before the end of each row."""
    feed(state, llm, count, behind)


def llm_round(state: State, llm: Decoder, count: int) -> None:
    """The LLM reads the last ``count`` tokens of each row and writes one where it was routed."""
    logits = feed(state, llm, count, count)[:, -1]
    sample_and_commit(state, logits, state.routed, SOURCE_LLM)
    state.llm_cached.copy_(torch.where(state.routed, state.length - 1, state.llm_cached))


def draw_and_measure(
    state: State, logits: Tensor, metric: str, evidence: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The SLM's token of logits [B, V], whether they are broken, and their metric; [B] each.

    The metric is at temperature 1, whatever the sampling.
    """
    k = 0 if metric == "entropy" else LOGTOKU_K
    token, truncation, measures = sample_measured(
        logits, state.sampling, state.seed, state.length, TARGET, k, evidence
    )
    value = measures[:, ENTROPY if metric == "entropy" else ALEATORIC]
    return token, truncation[:, LOG_Z].isnan(), value


def move_threshold(state: State, value: Tensor, rate: float) -> None:
    """Set each row's threshold to the (1 - rate) quantile of its last QUANTILE_WINDOW metrics."""
    slot = state.decisions.remainder(QUANTILE_WINDOW)[:, None]
    state.metrics.scatter_(1, slot, value[:, None])
    state.decisions.add_(1)
    seen = state.decisions.clamp_max(QUANTILE_WINDOW)
    rank = (seen * rate + 0.5).long()  # so many of those seen are to be above the threshold
    ordered = state.metrics.sort(dim=1, descending=True).values
    quantile = ordered.gather(1, rank.clamp_max(QUANTILE_WINDOW - 1)[:, None])[:, 0]
    state.threshold.copy_(torch.where(rank < QUANTILE_WINDOW, quantile, -torch.inf))
