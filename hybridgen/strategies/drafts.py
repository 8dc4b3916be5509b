"""Who proposes drafts, and how the LLM's verdict on them is asked for.

Verification asks for no more than a `Drafts`: tokens, and the distributions q that they were drawn
from where there are any. With q it may accept by rejection; without, drafts are compared with the
LLM's own choices (coupled, or greedy), which is exact for drafts from anywhere.
"""

from typing import Protocol

from torch import Tensor

from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Drafts, Rows
from hybridgen.engine.steps import append, read
from hybridgen.kernels.philox import DRAFT, TARGET
from hybridgen.kernels.sampling import LOG_Z, sample
from hybridgen.kernels.verify import (
    SOURCE_LLM,
    SOURCE_LOOKUP,
    SOURCE_SLM,
    Verdict,
    verify_coupled,
    verify_rejection,
)


class Proposer(Protocol):
    """Fills the drafts of a round. It is hashable, and part of the round's name.

    reads_slm    it asks the SLM, which then reads the prompt too
    draws        it can tell the distributions that it draws from
    """

    reads_slm: bool
    draws: bool

    def __hash__(self) -> int: ...

    def propose(self, batch: Batch, drafts: Drafts) -> Tensor | None:
        """Write ``drafts.tokens``, the proposed continuation of each row of ``batch``, in place.

        ``drafts.block[:, 0]`` holds the last committed tokens. Where ``drafts.q`` is not None (only
        for a proposer that draws), it and ``drafts.truncation`` are to hold what the drafts were
        drawn from on the stream DRAFT. Returns the broken rows, bool [B], or None if none can be.
        It runs on the device, as every round does: no decision on the host.
        """
        ...


class SlmDrafts:
    """The SLM drafts, token by token."""

    reads_slm = draws = True

    def propose(self, batch: Batch, drafts: Drafts) -> Tensor | None:
        """See `Proposer`.

        The first step feeds the last two tokens: when every draft was accepted, the SLM has never
        seen the last of them. Without q, draft and LLM choose with the same noise.
        """
        rows, slm, q = batch.rows, batch.slm, drafts.q
        positions = rows.length + drafts.offsets  # [K + 2, B]: length - 2, ..., length + K - 1
        start = positions[0]
        tokens = rows.tokens.gather(1, positions[:2].t().clamp_min(0))  # [B, 2]
        stream = TARGET if q is None else DRAFT
        for i in range(drafts.tokens.shape[1]):
            logits = read(rows, slm, tokens, start)[:, -1]
            start = positions[i + 2]
            token, truncation = sample(logits, rows.sampling, rows.seed, start, stream)
            tokens = drafts.tokens[:, i : i + 1]
            tokens.copy_(token[:, None])
            drafts.truncation[:, i].copy_(truncation)
            if q is not None:
                q[:, i].copy_(logits)
        return drafts.truncation[:, :, LOG_Z].isnan().any(1)


def verify(logits: Tensor, drafts: Drafts, rows: Rows) -> Verdict:
    """The LLM's verdict, of its logits [B, K + 1, V] after ``drafts.block``.

    Returns the new tokens [B, K + 1], how many of them stand [B], and the broken rows [B].
    """
    how = rows.sampling, rows.seed, rows.length
    verdict: Verdict = (
        verify_coupled(logits, drafts.tokens, *how)
        if drafts.q is None
        else verify_rejection(logits, drafts.q, drafts.tokens, drafts.truncation, *how)
    )
    return verdict


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
