"""A strategy with one option, in one file: the LLM writes every ``period``-th token."""

from hybridgen.engine.loop import Program, Repeat
from hybridgen.engine.rounds import Batch
from hybridgen.engine.steps import feed, sample_and_append
from hybridgen.fields import Field, integer
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.request import Request
from hybridgen.result import Stats, same
from hybridgen.strategies.base import RoundStrategy, Written
from hybridgen.strategies.declarations import Declaration

PERIOD = Field("period", 4, integer(2, 16), "the LLM writes every N-th token", metavar="N")


class Relay(RoundStrategy):
    declaration = Declaration(
        "relay", "the models take turns", (PERIOD,), {"period": same}, ("Period: {period}",)
    )

    def program(self, batch: Batch, request: Request) -> Program:
        return Repeat(batch.round(relay_round, request.period))

    def describe(self, written: Written, request: Request) -> Stats:
        return {"decode_steps": written.total, "period": request.period}


def relay_round(batch: Batch, period: int) -> None:
    """The SLM writes ``period`` - 1 tokens, the LLM one."""
    rows, count = batch.rows, 2  # the SLM has not read the LLM's token
    for _ in range(period - 1):
        logits = feed(rows, batch.slm, count)[:, -1]
        sample_and_append(rows, logits, None, SOURCE_SLM)
        count = 1
    logits = feed(rows, batch.llm, period)[:, -1]
    sample_and_append(rows, logits, None, SOURCE_LLM)
