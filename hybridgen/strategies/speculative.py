"""Speculative decoding: the SLM drafts, the LLM verifies in one forward, the text is the LLM's.

Leviathan, Kalman, Matias 2023 ("Fast inference from transformers via speculative decoding") and
Chen et al. 2023 for ``verification="rejection"``; Daliri, Musco, Suresh 2024 ("Coupling without
communication and drafter-invariant speculative decoding") for ``verification="coupled"``, of which
greedy decoding is the temperature 0 case.
"""

from hybridgen.engine.loop import Program, Repeat
from hybridgen.engine.rounds import Batch
from hybridgen.engine.steps import append, read
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_LOOKUP, SOURCE_SLM
from hybridgen.request import Request
from hybridgen.result import Stats
from hybridgen.strategies.base import RoundStrategy, Written
from hybridgen.strategies.declarations import SPECULATIVE, Declaration
from hybridgen.strategies.drafts import Proposer, SlmDrafts, verify


class Speculative(RoundStrategy):
    """``num_drafts`` tokens a round; ``verification`` "rejection" or "coupled".

    proposer    who drafts; one that does not draw is verified by coupling, whatever is asked for:
                that too is exact
    """

    def __init__(
        self, proposer: Proposer | None = None, declaration: Declaration = SPECULATIVE
    ) -> None:
        self.declaration = declaration
        self.proposer = SlmDrafts() if proposer is None else proposer
        self.reads_slm = self.proposer.reads_slm

    def program(self, batch: Batch, request: Request) -> Program:
        with_q = self._verification(request) == "rejection" and not request.sampling.greedy
        return Repeat(batch.round(speculative_round, self.proposer, request.num_drafts, with_q))

    def _verification(self, request: Request) -> str:
        return str(request.verification) if self.proposer.draws else "coupled"

    def describe(self, written: Written, request: Request) -> Stats:
        rounds = written.accepted_runs()
        drafted = request.num_drafts * len(rounds)
        found = {} if self.proposer.reads_slm else {"lookup_tokens": written.lookup}
        return {
            "decode_steps": len(rounds),
            "draft_generated": drafted,
            "draft_accepted": sum(rounds),
            "accepted_per_position": [
                sum(accepted > i for accepted in rounds) for i in range(request.num_drafts)
            ],
            "num_drafts": request.num_drafts,
            "verification": self._verification(request),
            **found,
        }


def speculative_round(batch: Batch, proposer: Proposer, num_drafts: int, with_q: bool) -> None:
    """Propose ``num_drafts`` tokens, read them in one LLM forward, append what was accepted."""
    rows, drafts = batch.rows, batch.drafts(num_drafts, with_q)
    start = rows.length - 1
    drafts.block[:, :1].copy_(rows.tokens.gather(1, start[:, None]))
    broken = proposer.propose(batch, drafts)
    new, count, unreadable = verify(read(rows, batch.llm, drafts.block, start), drafts, rows)
    drafter = SOURCE_SLM if proposer.reads_slm else SOURCE_LOOKUP
    unreadable = unreadable if broken is None else unreadable | broken
    append(rows, new, count, unreadable, SOURCE_LLM, drafter=drafter)
