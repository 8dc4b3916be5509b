"""The baselines: one model alone, on the same engine as the strategies."""

from functools import partial

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loop import Program
from hybridgen.engine.pair import Pair
from hybridgen.engine.state import State
from hybridgen.engine.steps import feed, sample_and_commit
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.request import Request
from hybridgen.result import Stats
from hybridgen.strategies.base import RoundStrategy, RowCounts
from hybridgen.strategies.declarations import Declaration


class Single(RoundStrategy):
    """``declaration`` LLM or SLM."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self.reads_slm, self.reads_llm = self.name == "slm", self.name == "llm"

    def program(self, state: State, pair: Pair, request: Request) -> Program:
        model, source = (pair.llm, SOURCE_LLM) if self.reads_llm else (pair.slm, SOURCE_SLM)
        shared = min(pair.slm.vocab_size, pair.llm.vocab_size)
        vocab = model.vocab_size if self.reads_llm else shared
        return Program(partial(single_round, state, model, source, vocab))

    def describe(self, counts: RowCounts, state: State, row: int, request: Request) -> Stats:
        return {"decode_steps": counts.total}


def single_round(state: State, model: Decoder, source: int, vocab_size: int) -> None:
    """One token, drawn from the first ``vocab_size`` columns of the model's logits."""
    logits = feed(state, model, 1, 1)[:, -1, :vocab_size]
    sample_and_commit(state, logits, state.done.logical_not(), source)
