"""`verify.py` in Triton, the end of rejection: the token in the place of the rejected draft.

p and q are never tensors: p(x) = exp((x - max) / T - log Z) where x >= tau, of the numbers in the
row's truncation; q likewise, of those in the draft's.
Launch 6 sweeps the two rows once and keeps the best of log(p - q) + Gumbel beside the best of
log p + Gumbel, the latter for a residual without mass; launch 7 takes the best of the blocks.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.candidates_triton import (
    Logits,
    address_of,
    filter_of,
    load_logits,
    logits_of,
    row_of,
)
from hybridgen.kernels.launch_triton import launch_options, wait_for_previous
from hybridgen.kernels.philox import RESIDUAL
from hybridgen.kernels.philox_triton import gumbel
from hybridgen.kernels.sampling_triton import Draws, best_of
from hybridgen.kernels.triton_utils import blocks
from hybridgen.kernels.truncation_triton import load_truncation

_RESIDUAL = tl.constexpr(RESIDUAL)
_NO_ID = tl.constexpr(0x7FFFFFFF)

# As in sampling_triton.py: addresses of single numbers, whose alignment is of no matter.
SCALARS = ["draft_truncation_ptr", "sampling_ptr", "seed_ptr", "length_ptr"]


class Drafted(NamedTuple):
    """What the drafts were drawn from."""

    logits: Tensor  # [B, K, V'], the last stride 1
    truncation: Tensor  # float32 [B, K, 3], a row contiguous


class Replacements(NamedTuple):
    """The best of each block of a row where a draft was rejected."""

    score: Tensor  # float32 [B, 2, blocks]: of the residual, of p
    ids: Tensor  # int32 [B, 2, blocks]
    unusable: Tensor  # int32 [B, blocks]: 1 where p - q is not a number


@triton.jit
def probability(x, tau, largest, log_z, heat):
    """exp((x - max) / T - log_z) where the logit is kept, else 0; NaN where log_z is. float32."""
    score = (x - largest) * heat.to(tl.float32)
    return tl.where(x < tau, 0.0, tl.exp(score - log_z))


@triton.jit(do_not_specialize=["draft_vocab"], do_not_specialize_on_alignment=SCALARS)
def residual(
    logits,
    draft_logits,
    draft_truncation_ptr,
    stride_draft_truncation,
    sampling_ptr,
    stride_sampling,
    seed_ptr,
    length_ptr,
    truncation_ptr,  # float32 [rows, 3]
    counts_ptr,  # int64 [B], accepted drafts and one
    replacements,  # out
    vocab,
    draft_vocab,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """The best token of a block by p - q, and the best by p, where a draft was rejected.

    Grid: sequences, blocks of BLOCK logits; programs of a sequence without a rejection leave at
    once. Reads both models' logits and truncation of that row, writes ``replacements``.
    """
    wait_for_previous(PDL)
    batch, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rejected = tl.load(counts_ptr + batch) - 1
    heat, _, _, _, greedy = filter_of(sampling_ptr + batch * stride_sampling, vocab)
    if greedy | (rejected == COLUMNS - 1):
        return
    row = batch * COLUMNS + rejected
    place = batch * 2 * tl.num_programs(1) + block
    tau, largest, log_z = load_truncation(truncation_ptr, row)
    score_ptr, ids_ptr = replacements.score + place, replacements.ids + place
    unusable_ptr = replacements.unusable + batch * tl.num_programs(1) + block
    if log_z != log_z:
        for i in tl.static_range(2):
            tl.store(score_ptr + i * tl.num_programs(1), float("-inf"))
            tl.store(ids_ptr + i * tl.num_programs(1), 0)
        tl.store(unusable_ptr, 0)
        return
    i = block * BLOCK + tl.arange(0, BLOCK)
    x = load_logits(row_of(logits, batch, rejected), i, vocab)
    kept = x >= tau
    score = (x - largest) * heat.to(tl.float32)
    p = probability(x, tau, largest, log_z, heat)

    row_ptr = draft_truncation_ptr + batch * stride_draft_truncation
    tau, largest, log_z = load_truncation(row_ptr, rejected)
    y = load_logits(row_of(draft_logits, batch, rejected), i, draft_vocab)
    q = probability(y, tau, largest, log_z, heat)

    difference = tl.where(kept, p - q, 0.0)
    unusable = (difference != difference) | (tl.abs(difference) == float("inf"))
    noise = gumbel(tl.load(seed_ptr + batch), tl.load(length_ptr + batch) + rejected, i, _RESIDUAL)
    left = difference > 0
    from_residual = tl.log(tl.where(left, difference, 1.0)) + noise
    best, best_id = best_of(tl.where(left, from_residual, float("-inf")), i)
    tl.store(score_ptr, best)
    tl.store(ids_ptr, best_id)
    best, best_id = best_of(tl.where(kept, score + noise, float("-inf")), i)
    tl.store(score_ptr + tl.num_programs(1), best)
    tl.store(ids_ptr + tl.num_programs(1), best_id)
    tl.store(unusable_ptr, tl.max(unusable.to(tl.int32), 0))


@triton.jit(do_not_specialize=["vocab", "count"])
def choose(
    sampling_ptr,
    stride_sampling,
    replacements,
    counts_ptr,
    tokens_ptr,  # out: int64 [B, K + 1]
    vocab,
    count,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """Put the best of ``count`` blocks in the place of a rejected draft.

    Grid: sequences. Reads ``replacements`` and the counts, writes that one token.
    """
    wait_for_previous(PDL)
    batch = tl.program_id(0).to(tl.int64)
    rejected = tl.load(counts_ptr + batch) - 1
    _, _, _, _, greedy = filter_of(sampling_ptr + batch * stride_sampling, vocab)
    if greedy | (rejected == COLUMNS - 1):
        return
    block = tl.arange(0, BLOCKS)
    inside = block < count
    place = batch * 2 * count + block
    score = tl.load(replacements.score + place, mask=inside, other=float("-inf"))
    ids = tl.load(replacements.ids + place, mask=inside, other=_NO_ID)
    best, token = best_of(score, ids)
    unusable = tl.load(replacements.unusable + batch * count + block, mask=inside, other=0)
    if (best == float("-inf")) | (tl.max(unusable, 0) > 0):
        score = tl.load(replacements.score + place + count, mask=inside, other=float("-inf"))
        ids = tl.load(replacements.ids + place + count, mask=inside, other=_NO_ID)
        best, token = best_of(score, ids)
    tl.store(tokens_ptr + batch * COLUMNS + rejected, token.to(tl.int64))


def replace_rejected(
    logits: Logits,
    drafted: Drafted,
    sampling: Tensor,
    draws: Draws,
    truncation: Tensor,
    counts: Tensor,
    tokens: Tensor,
) -> None:
    """Launches 6 and 7: overwrite the token after the accepted drafts of every rejected row."""
    device = truncation.device
    batch, columns = tokens.shape
    cut = logits_of(logits.tensor[:, :1])  # one row of each sequence
    block = min(cut.block, 2048)  # of two rows: with more, a multiprocessor may hold one program
    count = blocks(cut.vocab, block)
    replacements = Replacements(
        torch.empty(batch, 2, count, dtype=torch.float32, device=device),
        torch.empty(batch, 2, count, dtype=torch.int32, device=device),
        torch.empty(batch, count, dtype=torch.int32, device=device),
    )
    residual[(batch, count)](
        logits.address,
        address_of(drafted.logits),
        drafted.truncation,
        drafted.truncation.stride(0),
        sampling,
        sampling.stride(0),
        draws.seed,
        draws.position,
        truncation,
        counts,
        replacements,
        logits.vocab,
        drafted.logits.shape[2],
        COLUMNS=columns,
        BLOCK=block,
        num_warps=cut.warps,
        num_stages=1,
        enable_fp_fusion=False,
        **launch_options(),
    )
    choose[(batch,)](
        sampling,
        sampling.stride(0),
        replacements,
        counts,
        tokens,
        logits.vocab,
        count,
        COLUMNS=columns,
        BLOCKS=triton.next_power_of_2(count),
        num_warps=1,
        num_stages=1,
        enable_fp_fusion=False,
        **launch_options(),
    )
