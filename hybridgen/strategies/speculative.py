"""Speculative decoding: the SLM drafts, the LLM verifies in one forward, the text is the LLM's.

Leviathan, Kalman, Matias 2023 ("Fast inference from transformers via speculative decoding") and
Chen et al. 2023 for ``verification="rejection"``; Daliri, Musco, Suresh 2024 ("Coupling without
communication and drafter-invariant speculative decoding") for ``verification="coupled"``, of which
greedy decoding is the temperature 0 case.
"""

from functools import partial

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loop import Program
from hybridgen.engine.pair import Pair
from hybridgen.engine.state import State
from hybridgen.engine.steps import append, embeddable
from hybridgen.kernels.philox import DRAFT, TARGET
from hybridgen.kernels.sampling import LOG_Z, sample
from hybridgen.kernels.verify import SOURCE_LLM, verify_coupled, verify_rejection
from hybridgen.request import Request
from hybridgen.result import Stats
from hybridgen.strategies.base import RoundStrategy, RowCounts
from hybridgen.strategies.declarations import SPECULATIVE


class Speculative(RoundStrategy):
    """``num_drafts`` tokens a round; ``verification`` "rejection" or "coupled"."""

    declaration = SPECULATIVE

    def num_drafts(self, request: Request) -> int:
        drafts: int = request.num_drafts
        return drafts

    def program(self, state: State, pair: Pair, request: Request) -> Program:
        rejection = request.verification == "rejection" and request.temperature > 0
        return Program(
            partial(speculative_round, state, pair.slm, pair.llm, request.num_drafts, rejection)
        )

    def describe(self, counts: RowCounts, state: State, row: int, request: Request) -> Stats:
        rounds = counts.accepted_runs()
        drafted = request.num_drafts * len(rounds)
        return {
            "decode_steps": len(rounds),
            "draft_generated": drafted,
            "draft_accepted": sum(rounds),
            "accepted_per_position": [
                sum(accepted > i for accepted in rounds) for i in range(request.num_drafts)
            ],
            "num_drafts": request.num_drafts,
            "verification": request.verification,
        }


def speculative_round(
    state: State, slm: Decoder, llm: Decoder, num_drafts: int, rejection: bool
) -> None:
    """Draft ``num_drafts`` tokens, verify them in one LLM forward, append what was accepted.

    The draft's first step feeds the last two tokens: when every draft was accepted, the SLM has
    never seen the last of them. Without ``rejection`` draft and LLM choose with the same noise,
    and the drafts' logits need not be kept.
    """
    positions = state.length + state.offsets  # [K + 2, B]: length - 2, ..., length + K - 1
    tokens = state.tokens.gather(1, positions[:2].t().clamp_min(0))  # [B, 2]
    state.block[:, 0].copy_(tokens[:, 1])
    start = positions[0]
    shared = min(slm.vocab_size, llm.vocab_size)
    for i in range(num_drafts):
        logits = slm(embeddable(state, tokens, slm), start)[:, -1, :shared]
        start = positions[i + 2]
        stream = DRAFT if rejection else TARGET
        token, truncation = sample(logits, state.sampling, state.seed, start, stream)
        tokens = state.block[:, i + 1 : i + 2]
        tokens.copy_(token[:, None])
        state.draft_truncation[:, i].copy_(truncation)
        if rejection:
            state.draft_logits[:, i].copy_(logits)
    drafts = state.block[:, 1:]
    logits = llm(state.block, positions[1])  # [B, K + 1, V]
    if rejection:
        new, count, broken = verify_rejection(
            logits,
            state.draft_logits,
            drafts,
            state.draft_truncation,
            state.sampling,
            state.seed,
            state.length,
        )
    else:
        new, count, broken = verify_coupled(
            logits, drafts, state.sampling, state.seed, state.length
        )
    broken = broken | state.draft_truncation[:, :, LOG_Z].isnan().any(1)
    append(state, new, count, broken, SOURCE_LLM)
