"""`verify.py` in Triton: all rows and positions in one set of launches, nothing on the host.

1 to 4  filter every row of the target and draw the LLM's own token of it (sampling_triton.py)
5       `judge`, a program a sequence: accept the leading drafts, coupled or by rejection
6, 7    rejection only: blocks of the one row where a draft was rejected (residual_triton.py)

All noise is keyed by position and token, so a verdict does not depend on the rest of the batch.

Predicted on an H100, K = 4, one row of 151936: the five rows are 3 MB, so 3 us for each of the two
sweeps, then 3 + 1.3 + 2.5 (judge) = 13 us coupled; 3 and 1.5 more for the residual = 17 us.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.candidates_triton import (
    FIELDS,
    OPEN,
    Logits,
    address_of,
    filter_of,
    logits_of,
    row_of,
    sweep,
)
from hybridgen.kernels.launch_triton import launch_options, wait_for_previous
from hybridgen.kernels.philox import ACCEPT, TARGET
from hybridgen.kernels.philox_triton import uniform
from hybridgen.kernels.residual_triton import Drafted, probability, replace_rejected
from hybridgen.kernels.sampling_triton import (
    Best,
    Draws,
    best_block,
    launch_draw,
    launch_resolve,
)
from hybridgen.kernels.truncation_triton import Drawn, load_truncations
from hybridgen.kernels.verify import Verdict

_ACCEPT = tl.constexpr(ACCEPT)

# As in sampling_triton.py: addresses of single numbers, whose alignment is of no matter.
SCALARS = ["drafts_ptr", "draft_truncation_ptr", "sampling_ptr", "seed_ptr", "length_ptr"]


class Choices(NamedTuple):
    """The LLM's own choices: what launches 1 to 4 leave of each of the B * (K + 1) rows."""

    record: Tensor  # int64 [rows, FIELDS]
    truncation: Tensor  # float32 [rows, 3]
    token: Tensor  # int64 [rows], of closed rows
    best: Best  # of open ones


class Results(NamedTuple):
    """The verdict."""

    tokens: Tensor  # int64 [B, K + 1]
    counts: Tensor  # int64 [B]
    broken: Tensor  # bool [B]


@triton.jit(
    do_not_specialize=["vocab", "draft_vocab", "count"], do_not_specialize_on_alignment=SCALARS
)
def judge(
    logits,
    draft_logits,  # None: coupled
    drafts_ptr,  # int64 [B, K]
    stride_drafts,
    draft_truncation_ptr,  # float32 [B, K, 3]
    stride_draft_truncation,
    sampling_ptr,
    stride_sampling,
    seed_ptr,
    length_ptr,
    choices,
    results,  # out
    vocab,
    draft_vocab,
    count,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of two >= COLUMNS
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """Accept the leading drafts of a sequence.

    Grid: sequences. Reads the drafts, ``choices``, and for rejection of both models' logits those
    of the drafts; writes ``results``. By rejection the token after an accepted run that is not
    whole is the LLM's own choice until launch 7.
    """
    wait_for_previous(PDL)
    batch = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    row = batch * COLUMNS + column
    inside, drafted = column < COLUMNS, column < COLUMNS - 1
    chosen = tl.load(choices.token + row, mask=inside, other=0)
    for i in range(COLUMNS):
        if tl.load(choices.record + (batch * COLUMNS + i) * FIELDS + OPEN) == 1:
            token = best_block(choices.best, batch * COLUMNS + i, count, BLOCKS)
            chosen = tl.where(column == i, token, chosen)
    draft = tl.load(drafts_ptr + batch * stride_drafts + column, mask=drafted, other=-1)
    tau, largest, log_z = load_truncations(choices.truncation, row, inside)
    accept = draft == chosen
    tokens = chosen
    if draft_logits is not None:
        heat, _, _, _, greedy = filter_of(sampling_ptr + batch * stride_sampling, vocab)
        known = drafted & (draft < vocab)
        row_ptr = row_of(logits, batch, column.to(tl.int64))
        logit = tl.load(row_ptr + draft, mask=known, other=float("-inf")).to(tl.float32)
        p = probability(logit, tau, largest, log_z, heat)
        known = drafted & (draft < draft_vocab)
        row_ptr = row_of(draft_logits, batch, column.to(tl.int64))
        logit = tl.load(row_ptr + draft, mask=known, other=float("-inf")).to(tl.float32)
        row_ptr = draft_truncation_ptr + batch * stride_draft_truncation
        tau, largest, draft_log_z = load_truncations(row_ptr, column, drafted)
        q = probability(logit, tau, largest, draft_log_z, heat)
        seed, length = tl.load(seed_ptr + batch), tl.load(length_ptr + batch)
        u = uniform(seed, length + column, column * 0, _ACCEPT)
        accept = tl.where(greedy, accept, (u * q < p) & (p > 0))
    accepted = tl.min(tl.where(accept & drafted, COLUMNS - 1, tl.minimum(column, COLUMNS - 1)), 0)
    if draft_logits is not None:
        tokens = tl.where(column < accepted, draft, tl.where(column == accepted, chosen, 0))
    tl.store(results.tokens + row, tokens, mask=inside)
    tl.store(results.counts + batch, (accepted + 1).to(tl.int64))
    unreadable = (log_z != log_z) & inside & (column <= accepted)
    tl.store(results.broken + batch, tl.max(unreadable.to(tl.int32), 0) > 0)


def verify_coupled(
    target_logits: Tensor,
    drafts: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
    target_truncation: Tensor | None = None,
) -> Verdict:
    """See `hybridgen.kernels.verify.verify_coupled_reference`."""
    draws = Draws(seed, length, TARGET)
    return _verify(logits_of(target_logits), drafts, None, sampling, draws, target_truncation)


def verify_rejection(
    target_logits: Tensor,
    draft_logits: Tensor,
    drafts: Tensor,
    draft_truncation: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
    target_truncation: Tensor | None = None,
) -> Verdict:
    """See `hybridgen.kernels.verify.verify_rejection_reference`."""
    if draft_logits.stride(2) != 1:
        draft_logits = draft_logits.contiguous()
    if draft_truncation.stride()[1:] != (3, 1):
        draft_truncation = draft_truncation.contiguous()
    logits, drafted = logits_of(target_logits), Drafted(draft_logits, draft_truncation)
    draws = Draws(seed, length, TARGET)
    rejecting = drafted if logits.columns > 1 else None
    return _verify(logits, drafts, rejecting, sampling, draws, target_truncation)


def _verify(
    logits: Logits,
    drafts: Tensor,
    drafted: Drafted | None,
    sampling: Tensor,
    draws: Draws,
    target_truncation: Tensor | None,
) -> Verdict:
    """Launches 1 to 5, and 6 and 7 where ``drafted`` is given: by rejection.

    What becomes of ``target_truncation`` [B, K + 1, 3] is launch 3's, which writes it anyway.
    """
    if drafts.stride(1) != 1:
        drafts = drafts.contiguous()
    choices = _choose(logits, sampling, draws, target_truncation)
    results = _results(logits)
    address, draft_truncation, stride_truncation, draft_vocab = None, None, 0, 0
    if drafted is not None:
        address, draft_truncation = address_of(drafted.logits), drafted.truncation
        stride_truncation, draft_vocab = draft_truncation.stride(0), drafted.logits.shape[2]
    count = logits.grid[1]
    judge[(len(drafts),)](
        logits.address,
        address,
        drafts,
        drafts.stride(0),
        draft_truncation,
        stride_truncation,
        sampling,
        sampling.stride(0),
        draws.seed,
        draws.position,
        choices,
        results,
        logits.vocab,
        draft_vocab,
        count,
        COLUMNS=logits.columns,
        WIDTH=triton.next_power_of_2(logits.columns),
        BLOCKS=triton.next_power_of_2(count),
        num_warps=1,
        num_stages=1,
        enable_fp_fusion=False,
        **launch_options(),
    )
    if drafted is not None:
        replace_rejected(
            logits,
            drafted,
            sampling,
            draws,
            choices.truncation,
            results.counts,
            results.tokens,
        )
    return results


def _choose(logits: Logits, sampling: Tensor, draws: Draws, truncation: Tensor | None) -> Choices:
    """Launches 1 to 4."""
    scratch = sweep(logits, sampling, None)
    drawn = Drawn.empty(logits)
    if truncation is not None:
        drawn = Drawn(drawn.token, truncation.view(-1, 3))
    launch_resolve(logits, sampling, scratch, drawn, draws)
    best = launch_draw(logits, sampling, scratch, drawn.truncation, draws)
    return Choices(scratch.record, drawn.truncation, drawn.token, best)


def _results(logits: Logits) -> Results:
    """Empty ones."""
    device, columns = logits.tensor.device, logits.columns
    batch = logits.rows // columns
    return Results(
        torch.empty(batch, columns, dtype=torch.int64, device=device),
        torch.empty(batch, dtype=torch.int64, device=device),
        torch.empty(batch, dtype=torch.bool, device=device),
    )
