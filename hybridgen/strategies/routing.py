"""Token routing: the SLM writes, and hands a token to the LLM when it is unsure of it.

The metric is the SLM's entropy, or its aleatoric uncertainty (LogTokU, Ma et al. 2025), as in R2R
(Fu et al. 2025, "R2R: Efficiently navigating divergent reasoning paths with small-large model token
routing"). After the prompt the LLM reads nothing until it is asked; then it catches up, up to 16
tokens a forward.
"""

import struct
from collections.abc import Callable, Sequence

from torch import Tensor

from hybridgen.engine.limits import MAX_FEED
from hybridgen.engine.loop import Outcome, Program
from hybridgen.engine.rounds import Batch
from hybridgen.engine.steps import append, feed, read, sample_and_append
from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.routing import route, unread
from hybridgen.kernels.uncertainty import ALEATORIC, ENTROPY, EVIDENCE, sample_measured
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.request import Request
from hybridgen.result import Stats
from hybridgen.strategies.base import RoundStrategy, Written
from hybridgen.strategies.declarations import THRESHOLDS, Declaration

LOGTOKU_K = 10
BUCKETS = 1, 2, 4, 8, MAX_FEED  # tokens that the LLM reads in one forward


class TokenRouting(RoundStrategy):
    """``declaration`` UNCERTAINTY or ENTROPY, which name the metric."""

    llm_decides = False

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self.metric = declaration.name

    def load(self, batch: Batch, request: Request, rows: Sequence[int]) -> None:
        threshold, fraction = self._threshold(request), request.llm_fraction
        rate = 0.0 if fraction is None else route_rate(fraction, request.llm_consecutive_tokens)
        batch.routing.load(batch.rows, threshold, rate, rows)

    def _threshold(self, request: Request) -> float:
        return float(THRESHOLDS[self.metric] if request.threshold is None else request.threshold)

    def program(self, batch: Batch, request: Request) -> Program:
        writes = request.llm_consecutive_tokens
        moving = request.llm_fraction is not None
        return Routed(
            batch.round(slm_round, self.metric, EVIDENCE[request.evidence], moving, writes),
            batch,
            writes,
        )

    def cached(self, batch: Batch, request: Request) -> tuple[Tensor, Tensor]:
        """See `RoundStrategy`. What the LLM has written the SLM has read in the step after it."""
        slm, llm = super().cached(batch, request)
        return slm, llm.minimum(batch.routing.llm_cached)

    def describe(self, written: Written, request: Request) -> Stats:
        threshold = self._threshold(request)
        if request.llm_fraction is not None:
            (threshold,) = struct.unpack("f", struct.pack("i", written.note))
        return {
            "decode_steps": written.total,
            # -inf, where every token is routed: no metric is below 0
            "threshold": max(threshold, 0.0),
            "llm_consecutive_tokens": request.llm_consecutive_tokens,
        }


class Routed(Program):
    """Steps of the SLM, and where one has routed rows, the LLM's rounds before the next.

    It waits for each step's report: running ahead would waste an SLM step a routed token.
    """

    waits = True

    def __init__(self, step: Callable[[], None], batch: Batch, writes: int) -> None:
        self.step, self.pending = step, 0
        self.catch_up = batch.round(catch_up_round, MAX_FEED)
        self.llm_rounds = {size: batch.round(llm_round, size) for size in BUCKETS}
        self.writes = writes

    def enqueue(self) -> None:
        """What the last step asks the LLM for, then a step of the SLM."""
        if self.pending:
            self.write(self.pending)
        self.step()

    def write(self, pending: int) -> None:
        """The LLM reads the ``pending`` tokens it has not seen and writes ``writes`` tokens."""
        while pending > MAX_FEED:
            self.catch_up()
            pending -= MAX_FEED
        self.llm_rounds[next(size for size in BUCKETS if size >= pending)]()
        for _ in range(self.writes - 1):
            self.llm_rounds[1]()

    def reported(self, outcome: Outcome) -> None:
        """Whether rows have been routed."""
        self.pending = outcome.pending


def route_rate(llm_fraction: float, writes: int) -> float:
    """The share of SLM steps to route so that the LLM writes ``llm_fraction`` of the tokens.

    Of n steps, r·n are routed and give ``writes`` tokens each, the others give one.
    """
    return llm_fraction / (writes - llm_fraction * (writes - 1))


def slm_round(batch: Batch, metric: str, evidence: int, moving: bool, count: int) -> None:
    """The SLM reads its last ``count`` tokens; its next one is appended, or the row is routed.

    A row is routed when the metric, at temperature 1 whatever the sampling, exceeds its threshold,
    which first moves to a running quantile if it is ``moving``. The report tells how far the LLM
    has to catch up.
    """
    k, column = (0, ENTROPY) if metric == "entropy" else (LOGTOKU_K, ALEATORIC)
    rows = batch.rows
    logits = feed(rows, batch.slm, count).select(1, -1)
    token, truncation, measures = sample_measured(
        logits, rows.sampling, rows.seed, rows.length, TARGET, k, evidence
    )
    stands = decide(batch, measures.select(1, column), moving)
    append(rows, token.unsqueeze(1), stands, None, SOURCE_SLM, truncation=truncation)


def decide(batch: Batch, metric: Tensor, moving: bool) -> Tensor:
    """Route the rows whose ``metric`` float32 [B] exceeds their threshold; which do not, bool [B].

    moving    the threshold is first moved to a running quantile
    """
    rows, routing = batch.rows, batch.routing
    stands: Tensor = route(
        metric,
        rows.done,
        rows.length,
        routing.llm_cached,
        routing.rate,
        routing.threshold,
        routing.metrics,
        routing.decisions,
        routing.routed,
        rows.report,
        moving,
    )
    return stands


def catch_up_round(batch: Batch, count: int) -> None:
    """The LLM reads ``count`` of the tokens it has not seen, of each routed row, but the last."""
    rows, routing = batch.rows, batch.routing
    ids, start, _ = unread(rows.tokens, rows.length, routing.routed, routing.llm_cached, count, 1)
    read(rows, batch.llm, ids, start, drafted=False)


def llm_round(batch: Batch, count: int) -> None:
    """The LLM reads the at most ``count`` tokens it has not seen and writes one, where routed."""
    rows, routing = batch.rows, batch.routing
    ids, start, last = unread(
        rows.tokens, rows.length, routing.routed, routing.llm_cached, count, 0
    )
    logits = read(rows, batch.llm, ids, start, drafted=False).flatten(0, 1)
    after_last = logits if count == 1 else logits.index_select(0, last)
    sample_and_append(rows, after_last, routing.routed, SOURCE_LLM)
