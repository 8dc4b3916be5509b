"""Speculative decoding: the SLM drafts, the LLM verifies in one forward, the text is the LLM's.

Leviathan, Kalman, Matias 2023 ("Fast inference from transformers via speculative decoding") and
Chen et al. 2023 for ``verification="rejection"``; Daliri, Musco, Suresh 2024 ("Coupling without
communication and drafter-invariant speculative decoding") for ``verification="coupled"``, of which
greedy decoding is the temperature 0 case.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from hybridgen.engine.loop import Program, Repeat
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.verify import SOURCE_LLM
from hybridgen.request import Request
from hybridgen.result import Stats
from hybridgen.strategies.auto import (
    MOST_DRAFTS,
    Auto,
    Choice,
    Experience,
    Unread,
    read_by_slm,
)
from hybridgen.strategies.base import RoundStrategy, Written
from hybridgen.strategies.declarations import AUTO, SPECULATIVE, Declaration
from hybridgen.strategies.drafts import Proposer, SlmDrafts, speculative_round
from hybridgen.strategies.estimates import LOOKUP, MODEL, Arm


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

    def slm_waits(
        self, batch: Batch, request: Request, unread: Mapping[int, tuple[int, int]]
    ) -> bool:
        """See `RoundStrategy`. It does where it may never be asked."""
        if request.num_drafts != AUTO or not self.reads_slm:
            return False
        batch.own(Unread).add(unread)
        return True

    def program(self, batch: Batch, request: Request) -> Program:
        with_q = self._verification(request) == "rejection" and not request.sampling.greedy
        count = request.num_drafts
        if count == AUTO:
            return Auto(batch, self.proposer, with_q, batch.own(self._experience))
        arm = Arm(MODEL if self.reads_slm else LOOKUP, count)
        return Repeat(batch.round(speculative_round, self.proposer, count, with_q), Choice(arm))

    def _experience(self, batch: Batch) -> Experience:
        return Experience.of(self.proposer)

    def _verification(self, request: Request) -> str:
        """Coupled where drafts have no distribution, or their number depends on time."""
        if not self.proposer.draws:
            return "coupled"
        default = "coupled" if request.num_drafts == AUTO else "rejection"
        return str(request.verification or default)

    def cached(self, batch: Batch, request: Request) -> tuple[Tensor, Tensor]:
        """See `RoundStrategy`. Where every draft was accepted, the SLM has not read the last."""
        slm, llm = super().cached(batch, request)
        if self.reads_slm:
            slm = (slm - 1).clamp_min(0)
            if request.num_drafts == AUTO:
                slm = slm.minimum(batch.own(read_by_slm))
        return slm, llm

    def describe(self, written: Written, request: Request) -> Stats:
        arms, accepted, at = [], [], 0
        for choice, gained in written.rounds:
            own = written.sources[at : at + gained]
            arms.append(choice.arm)
            accepted.append(sum(source != SOURCE_LLM for source in own))
            at += gained
        is_chosen = request.num_drafts == AUTO
        stats: Stats = {
            "decode_steps": len(arms),
            "draft_generated": sum(arm.drafts for arm in arms),
            "draft_accepted": sum(accepted),
            "accepted_per_position": per_position(
                accepted, MOST_DRAFTS if is_chosen else request.num_drafts
            ),
            "num_drafts": request.num_drafts,
            "verification": self._verification(request),
        }
        if is_chosen:
            stats["rounds_without_drafts"] = sum(arm.drafts == 0 for arm in arms)
            stats["lookup_rounds"] = sum(arm.drafter == LOOKUP for arm in arms)
        if is_chosen or not self.reads_slm:
            stats["lookup_tokens"] = written.lookup
        return stats


def per_position(accepted: Sequence[int], most: int) -> list[int]:
    """In how many rounds the first, second, ... draft was accepted."""
    return [sum(count > i for count in accepted) for i in range(most)]
