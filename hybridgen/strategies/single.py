"""The baselines: one model alone, on the same engine as the strategies."""

from hybridgen.engine.loop import Program, Repeat
from hybridgen.engine.rounds import Batch
from hybridgen.engine.steps import feed, sample_and_append
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.request import Request
from hybridgen.result import Stats
from hybridgen.strategies.base import RoundStrategy, Written
from hybridgen.strategies.declarations import Declaration


class Single(RoundStrategy):
    """``declaration`` LLM or SLM."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self.reads_slm, self.reads_llm = declaration.name == "slm", declaration.name == "llm"
        self.llm_decides = self.reads_llm

    def program(self, batch: Batch, request: Request) -> Program:
        return Repeat(batch.round(single_round, SOURCE_LLM if self.reads_llm else SOURCE_SLM))

    def describe(self, written: Written, request: Request) -> Stats:
        return {"decode_steps": written.total}


def single_round(batch: Batch, source: int) -> None:
    """One token a row, by the model that ``source`` names."""
    rows = batch.rows
    model = batch.llm if source == SOURCE_LLM else batch.slm
    sample_and_append(rows, feed(rows, model, 1).select(1, -1), None, source)
