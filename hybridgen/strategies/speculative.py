"""Speculative decoding: the SLM drafts, the LLM verifies in one forward, the text is the LLM's.

Leviathan, Kalman, Matias 2023 ("Fast inference from transformers via speculative decoding") and
Chen et al. 2023 for ``verification="rejection"``; Daliri, Musco, Suresh 2024 ("Coupling without
communication and drafter-invariant speculative decoding") for ``verification="coupled"``, of which
greedy decoding is the temperature 0 case.
"""

from collections.abc import Sequence

from hybridgen.engine.loop import Program, Repeat
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.verify import SOURCE_LLM
from hybridgen.request import Request
from hybridgen.result import Stats
from hybridgen.strategies.adaptive import LOOKUP
from hybridgen.strategies.auto import MOST_DRAFTS, Auto, Experience, start_texts
from hybridgen.strategies.base import RoundStrategy, Written
from hybridgen.strategies.declarations import AUTO, SPECULATIVE, Declaration
from hybridgen.strategies.drafts import Proposer, SlmDrafts, speculative_round


class Speculative(RoundStrategy):
    """``num_drafts`` tokens a round, or as many as pay; ``verification`` "rejection" or "coupled".

    proposer    who drafts; one that does not draw is verified by coupling, whatever is asked for:
                that too is exact
    """

    def __init__(
        self, proposer: Proposer | None = None, declaration: Declaration = SPECULATIVE
    ) -> None:
        self.declaration = declaration
        self.proposer = SlmDrafts() if proposer is None else proposer
        self.reads_slm = self.proposer.reads_slm

    def load(self, batch: Batch, request: Request, rows: Sequence[int]) -> None:
        if request.num_drafts == AUTO and self.reads_slm:
            start_texts(batch, rows)

    def program(self, batch: Batch, request: Request) -> Program:
        with_q = self._verification(request) == "rejection" and not request.sampling.greedy
        if request.num_drafts == AUTO:
            return Auto(batch, self.proposer, with_q, batch.own(self._experience))
        return Repeat(batch.round(speculative_round, self.proposer, request.num_drafts, with_q))

    def _experience(self, batch: Batch) -> Experience:
        return Experience.of(self.proposer)

    def _verification(self, request: Request) -> str:
        """Coupled where drafts have no distribution, or their number depends on time."""
        if not self.proposer.draws:
            return "coupled"
        default = "coupled" if request.num_drafts == AUTO else "rejection"
        return str(request.verification or default)

    def describe(self, written: Written, request: Request) -> Stats:
        asked = {"num_drafts": request.num_drafts, "verification": self._verification(request)}
        if request.num_drafts == AUTO:
            return described(written) | asked
        rounds = written.accepted_runs()
        found = {} if self.proposer.reads_slm else {"lookup_tokens": written.lookup}
        return {
            "decode_steps": len(rounds),
            "draft_generated": request.num_drafts * len(rounds),
            "draft_accepted": sum(rounds),
            "accepted_per_position": per_position(rounds, request.num_drafts),
            **asked,
            **found,
        }


def described(written: Written) -> Stats:
    """The statistics of a text whose rounds were chosen."""
    arms, accepted, at = [], [], 0
    for choice, gained in written.rounds:
        own = written.sources[at : at + gained]
        arms.append(choice.arm)
        accepted.append(sum(source != SOURCE_LLM for source in own))
        at += gained
    return {
        "decode_steps": len(arms),
        "draft_generated": sum(arm.drafts for arm in arms),
        "draft_accepted": sum(accepted),
        "accepted_per_position": per_position(accepted, MOST_DRAFTS),
        "rounds_without_drafts": sum(arm.drafts == 0 for arm in arms),
        "lookup_rounds": sum(arm.drafter == LOOKUP for arm in arms),
        "lookup_tokens": written.lookup,
    }


def per_position(accepted: Sequence[int], most: int) -> list[int]:
    """In how many rounds the first, second, ... draft was accepted."""
    return [sum(count > i for count in accepted) for i in range(most)]
