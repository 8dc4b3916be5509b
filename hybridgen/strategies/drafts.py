"""Who proposes drafts, and how the LLM's verdict on them is asked for.

Verification asks for no more than a `Drafts`: tokens, and the distributions q that they were drawn
from where there are any. With q it may accept by rejection; without, drafts are compared with the
LLM's own choices (coupled, or greedy), which is exact for drafts from anywhere.
"""

from typing import Protocol

import torch
from torch import Tensor

from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Drafts, Rows
from hybridgen.engine.steps import append, read
from hybridgen.kernels.philox import DRAFT, TARGET
from hybridgen.kernels.sampling import sample_into
from hybridgen.kernels.verify import (
    SOURCE_LLM,
    SOURCE_LOOKUP,
    SOURCE_SLM,
    Verdict,
    verify_coupled,
    verify_rejection,
)
from hybridgen.kernels.window import window


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

        ``drafts.ends`` holds the last two committed tokens, and ``drafts.positions`` where they
        and the drafts are. Where ``drafts.q`` is not None (only for a proposer that draws), it and
        ``drafts.truncation`` are to hold what the drafts were drawn from on the stream DRAFT.
        Returns the truncations, float32 [B, ..., 3], of all logits that it read, which tell broken
        rows, or None if it read none. It runs on the device, as every round does: no decision on
        the host.
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
        rows, slm = batch.rows, batch.slm
        tokens, start = drafts.ends, drafts.starts[0]
        stream = TARGET if drafts.q is None else DRAFT
        for position, token, fed, truncation, q in drafts.steps:
            logits = read(rows, slm, tokens, start).select(1, -1)
            sample_into(logits, rows.sampling, rows.seed, position, stream, token, truncation, q)
            if rows.kept is not None:
                rows.kept.drawn.append(logits)
            tokens, start = fed, position
        return drafts.truncation


def verify(logits: Tensor, drafts: Drafts, rows: Rows, truncation: Tensor | None = None) -> Verdict:
    """The LLM's verdict, of its logits [B, K + 1, V] after ``drafts.block``.

    truncation    float32 [B, K + 1, 3], written: what makes them distributions; None: not told

    Returns the new tokens [B, K + 1], how many of them stand [B], and the broken rows [B].
    """
    how = rows.sampling, rows.seed, rows.length, truncation
    verdict: Verdict = (
        verify_coupled(logits, drafts.tokens, *how)
        if drafts.q is None
        else verify_rejection(logits, drafts.q, drafts.tokens, drafts.truncation, *how)
    )
    return verdict


def speculative_round(batch: Batch, proposer: Proposer, num_drafts: int, with_q: bool) -> None:
    """Propose ``num_drafts`` tokens, read them in one LLM forward, append what was accepted."""
    rows, drafts = batch.rows, batch.drafts(num_drafts, with_q)
    window(rows.tokens, rows.length, None, drafts.ends, drafts.positions)
    if rows.kept is not None:
        rows.kept.drawn.clear()  # a round that was interrupted may have left some
    read_by_it = proposer.propose(batch, drafts)
    logits = read(rows, batch.llm, drafts.block, drafts.starts[1])
    truncation = None
    if rows.kept is not None:
        truncation = logits.new_empty(*logits.shape[:2], 3, dtype=torch.float32)
    new, count, broken = verify(logits, drafts, rows, truncation)
    if rows.kept is not None and truncation is not None:
        rows.kept.keep(rows.length, drafts.tokens, drafts.truncation, logits, truncation)
    drafter = SOURCE_SLM if proposer.reads_slm else SOURCE_LOOKUP
    append(rows, new, count, broken, SOURCE_LLM, drafter, read_by_it)
