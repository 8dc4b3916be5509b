"""`verify.py` in Triton: all rows and positions in one set of launches, nothing on the host.

1 to 4  filter every row of the target and draw the LLM's own token of it (sampling_triton.py)
5       `judge`, a program a sequence: accept the leading drafts, coupled or by rejection
6, 7    rejection only: `residual`, blocks of the one row where a draft was rejected, and `choose`

p and q are never tensors: p(x) = exp((x - max) / T - log Z) where x >= tau, of the numbers in the
row's truncation; q likewise, of those in the draft's.
Launch 6 sweeps the two rows once and keeps the best of log(p - q) + Gumbel beside the best of
log p + Gumbel, the latter for a residual without mass. All noise is keyed by position and token,
so a verdict does not depend on the rest of the batch.

Predicted on an H100, K = 4, one row of 151936: the five rows are 3 MB, so 3 us for each of the two
sweeps, then 3 + 1.3 + 2.5 (judge) = 13 us coupled; 3 and 1.5 more for the residual = 17 us.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.candidates_triton import (
    FIELDS,
    OPEN,
    Logits,
    filter_of,
    load_logits,
    logits_of,
    sweep,
)
from hybridgen.kernels.philox import ACCEPT, RESIDUAL, TARGET
from hybridgen.kernels.philox_triton import gumbel, uniform
from hybridgen.kernels.sampling_triton import (
    best_block,
    best_of,
    launch_draw,
    launch_resolve,
    load_truncation,
    load_truncations,
)
from hybridgen.kernels.triton_utils import blocks
from hybridgen.kernels.verify import Verdict

_ACCEPT = tl.constexpr(ACCEPT)
_RESIDUAL = tl.constexpr(RESIDUAL)
_NO_ID = tl.constexpr(0x7FFFFFFF)

# As in sampling_triton.py: addresses of single numbers, whose alignment is of no matter.
SCALARS = [
    "drafts_ptr",
    "draft_truncation_ptr",
    "sampling_ptr",
    "seed_ptr",
    "length_ptr",
]


@triton.jit
def _probability(x, tau, largest, log_z, heat):
    """exp((x - max) / T - log_z) where the logit is kept, else 0; NaN where log_z is. float32."""
    score = (x - largest) * heat.to(tl.float32)
    return tl.where(x < tau, 0.0, tl.exp(score - log_z))


@triton.jit(
    do_not_specialize=["vocab", "draft_vocab", "count"], do_not_specialize_on_alignment=SCALARS
)
def judge(
    logits_ptr,
    stride_batch,
    stride_column,
    draft_logits_ptr,  # [B, K, draft_vocab]; None: coupled
    stride_draft_batch,
    stride_draft_column,
    drafts_ptr,  # int64 [B, K]
    stride_drafts,
    draft_truncation_ptr,  # float32 [B, K, 3], contiguous
    sampling_ptr,
    stride_sampling,
    seed_ptr,
    length_ptr,
    record_ptr,
    token_ptr,  # int64 [rows], the LLM's own choices of closed rows
    truncation_ptr,
    best_ptr,  # [rows, count], of open ones
    best_id_ptr,
    tokens_ptr,  # out: int64 [B, K + 1]
    count_ptr,  # out: int64 [B]
    broken_ptr,  # out: bool [B]
    vocab,
    draft_vocab,
    count,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of two >= COLUMNS
    BLOCKS: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    row = batch * COLUMNS + column
    inside, drafted = column < COLUMNS, column < COLUMNS - 1
    chosen = tl.load(token_ptr + row, mask=inside, other=0)
    for i in range(COLUMNS):
        if tl.load(record_ptr + (batch * COLUMNS + i) * FIELDS + OPEN) == 1:
            token = best_block(best_ptr, best_id_ptr, batch * COLUMNS + i, count, BLOCKS)
            chosen = tl.where(column == i, token, chosen)
    draft = tl.load(drafts_ptr + batch * stride_drafts + column, mask=drafted, other=-1)
    tau, largest, log_z = load_truncations(truncation_ptr, row, inside)
    accept = draft == chosen
    tokens = chosen
    if draft_logits_ptr is not None:
        heat, _, _, _, greedy = filter_of(sampling_ptr + batch * stride_sampling, vocab)
        known = drafted & (draft < vocab)
        row_ptr = logits_ptr + batch * stride_batch + column.to(tl.int64) * stride_column
        logit = tl.load(row_ptr + draft, mask=known, other=float("-inf")).to(tl.float32)
        p = _probability(logit, tau, largest, log_z, heat)
        known = drafted & (draft < draft_vocab)
        row_ptr = draft_logits_ptr + batch * stride_draft_batch
        row_ptr += column.to(tl.int64) * stride_draft_column
        logit = tl.load(row_ptr + draft, mask=known, other=float("-inf")).to(tl.float32)
        place = batch * (COLUMNS - 1) + column
        tau, largest, draft_log_z = load_truncations(draft_truncation_ptr, place, drafted)
        q = _probability(logit, tau, largest, draft_log_z, heat)
        seed, length = tl.load(seed_ptr + batch), tl.load(length_ptr + batch)
        u = uniform(seed, length + column, column * 0, _ACCEPT)
        accept = tl.where(greedy, accept, (u * q < p) & (p > 0))
    accepted = tl.min(tl.where(accept & drafted, COLUMNS - 1, tl.minimum(column, COLUMNS - 1)), 0)
    if draft_logits_ptr is not None:
        tokens = tl.where(column < accepted, draft, tl.where(column == accepted, chosen, 0))
    tl.store(tokens_ptr + row, tokens, mask=inside)
    tl.store(count_ptr + batch, (accepted + 1).to(tl.int64))
    unreadable = (log_z != log_z) & inside & (column <= accepted)
    tl.store(broken_ptr + batch, tl.max(unreadable.to(tl.int32), 0) > 0)


@triton.jit(do_not_specialize=["draft_vocab"], do_not_specialize_on_alignment=SCALARS)
def residual(
    logits_ptr,
    stride_batch,
    stride_column,
    draft_logits_ptr,
    stride_draft_batch,
    stride_draft_column,
    draft_truncation_ptr,
    sampling_ptr,
    stride_sampling,
    seed_ptr,
    length_ptr,
    truncation_ptr,
    count_ptr,
    score_ptr,  # out: float32 [B, 2, blocks]: of the residual, of p
    id_ptr,  # out: int32 [B, 2, blocks]
    unusable_ptr,  # out: int32 [B, blocks]: 1 where p - q is not a number
    vocab,
    draft_vocab,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rejected = tl.load(count_ptr + batch) - 1
    heat, _, _, _, greedy = filter_of(sampling_ptr + batch * stride_sampling, vocab)
    if greedy | (rejected == COLUMNS - 1):
        return
    row = batch * COLUMNS + rejected
    place = batch * 2 * tl.num_programs(1) + block
    tau, largest, log_z = load_truncation(truncation_ptr, row)
    if log_z != log_z:
        for i in tl.static_range(2):
            tl.store(score_ptr + place + i * tl.num_programs(1), float("-inf"))
            tl.store(id_ptr + place + i * tl.num_programs(1), 0)
        tl.store(unusable_ptr + batch * tl.num_programs(1) + block, 0)
        return
    i = block * BLOCK + tl.arange(0, BLOCK)
    x = load_logits(logits_ptr + batch * stride_batch + rejected * stride_column, i, vocab)
    kept = x >= tau
    score = (x - largest) * heat.to(tl.float32)
    p = _probability(x, tau, largest, log_z, heat)

    draft_row = batch * (COLUMNS - 1) + rejected
    tau, largest, log_z = load_truncation(draft_truncation_ptr, draft_row)
    row_ptr = draft_logits_ptr + batch * stride_draft_batch + rejected * stride_draft_column
    y = load_logits(row_ptr, i, draft_vocab)
    q = _probability(y, tau, largest, log_z, heat)

    difference = tl.where(kept, p - q, 0.0)
    unusable = (difference != difference) | (tl.abs(difference) == float("inf"))
    noise = gumbel(tl.load(seed_ptr + batch), tl.load(length_ptr + batch) + rejected, i, _RESIDUAL)
    left = difference > 0
    from_residual = tl.log(tl.where(left, difference, 1.0)) + noise
    best, best_id = best_of(tl.where(left, from_residual, float("-inf")), i)
    tl.store(score_ptr + place, best)
    tl.store(id_ptr + place, best_id)
    best, best_id = best_of(tl.where(kept, score + noise, float("-inf")), i)
    tl.store(score_ptr + place + tl.num_programs(1), best)
    tl.store(id_ptr + place + tl.num_programs(1), best_id)
    any_unusable = tl.max(unusable.to(tl.int32), 0)
    tl.store(unusable_ptr + batch * tl.num_programs(1) + block, any_unusable)


@triton.jit(do_not_specialize=["vocab", "count"])
def choose(
    sampling_ptr,
    stride_sampling,
    score_ptr,
    id_ptr,
    unusable_ptr,
    count_ptr,
    tokens_ptr,
    vocab,
    count,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    rejected = tl.load(count_ptr + batch) - 1
    _, _, _, _, greedy = filter_of(sampling_ptr + batch * stride_sampling, vocab)
    if greedy | (rejected == COLUMNS - 1):
        return
    block = tl.arange(0, BLOCKS)
    inside = block < count
    place = batch * 2 * count + block
    score = tl.load(score_ptr + place, mask=inside, other=float("-inf"))
    best, token = best_of(score, tl.load(id_ptr + place, mask=inside, other=_NO_ID))
    unusable = tl.load(unusable_ptr + batch * count + block, mask=inside, other=0)
    if (best == float("-inf")) | (tl.max(unusable, 0) > 0):
        score = tl.load(score_ptr + place + count, mask=inside, other=float("-inf"))
        best, token = best_of(score, tl.load(id_ptr + place + count, mask=inside, other=_NO_ID))
    tl.store(tokens_ptr + batch * COLUMNS + rejected, token.to(tl.int64))


def verify_coupled(
    target_logits: Tensor, drafts: Tensor, sampling: Tensor, seed: Tensor, length: Tensor
) -> Verdict:
    return _verify(logits_of(target_logits), drafts, None, sampling, seed, length)


def verify_rejection(
    target_logits: Tensor,
    draft_logits: Tensor,
    drafts: Tensor,
    draft_truncation: Tensor,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
) -> Verdict:
    logits = logits_of(target_logits)
    if draft_logits.stride(2) != 1:
        draft_logits = draft_logits.contiguous()
    draft = (draft_logits, draft_truncation.contiguous())
    return _verify(logits, drafts, draft if logits.columns > 1 else None, sampling, seed, length)


def _verify(
    logits: Logits,
    drafts: Tensor,
    draft: tuple[Tensor, Tensor] | None,
    sampling: Tensor,
    seed: Tensor,
    length: Tensor,
) -> Verdict:
    """Launches 1 to 5, and 6 and 7 with a ``draft``: its logits and truncation."""
    device, columns = logits.tensor.device, logits.columns
    batch = logits.rows // columns
    if drafts.stride(1) != 1:
        drafts = drafts.contiguous()
    scratch = sweep(logits, sampling, None)
    draws = (seed, length, TARGET)
    token, truncation = launch_resolve(logits, sampling, scratch, draws)
    best, best_id = launch_draw(logits, sampling, scratch, truncation, draws)
    tokens = torch.empty(batch, columns, dtype=torch.int64, device=device)
    count = torch.empty(batch, dtype=torch.int64, device=device)
    broken = torch.empty(batch, dtype=torch.bool, device=device)
    draft_logits, draft_truncation = draft or (None, None)
    draft_vocab = 0 if draft_logits is None else draft_logits.shape[2]
    draft_strides = (0, 0) if draft_logits is None else draft_logits.stride()[:2]
    judge[(batch,)](
        *logits.address,
        draft_logits,
        *draft_strides,
        drafts,
        drafts.stride(0),
        draft_truncation,
        sampling,
        sampling.stride(0),
        seed,
        length,
        scratch.record,
        token,
        truncation,
        best,
        best_id,
        tokens,
        count,
        broken,
        logits.vocab,
        draft_vocab,
        best.shape[1],
        COLUMNS=columns,
        WIDTH=triton.next_power_of_2(columns),
        BLOCKS=triton.next_power_of_2(best.shape[1]),
        num_warps=1,
        num_stages=1,
        enable_fp_fusion=False,
    )
    if draft_logits is not None:
        _replace_rejected(
            logits,
            (draft_logits, draft_strides, draft_truncation),
            (sampling, seed, length),
            truncation,
            count,
            tokens,
        )
    return tokens, count, broken


def _replace_rejected(
    logits: Logits,
    draft: tuple[Tensor, tuple[int, ...], Tensor | None],
    parameters: tuple[Tensor, Tensor, Tensor],
    truncation: Tensor,
    count: Tensor,
    tokens: Tensor,
) -> None:
    """Launches 6 and 7: overwrite the token after the accepted drafts of every rejected row."""
    draft_logits, draft_strides, draft_truncation = draft
    sampling, seed, length = parameters
    batch, columns = tokens.shape
    cut = logits_of(logits.tensor[:, :1])  # one row of each sequence
    block = min(cut.block, 2048)  # of two rows: with more, a multiprocessor may hold one program
    parts = blocks(cut.vocab, block)
    score = torch.empty(batch, 2, parts, dtype=torch.float32, device=tokens.device)
    best_id = torch.empty(batch, 2, parts, dtype=torch.int32, device=tokens.device)
    unusable = torch.empty(batch, parts, dtype=torch.int32, device=tokens.device)
    residual[(batch, parts)](
        *logits.address,
        draft_logits,
        *draft_strides,
        draft_truncation,
        sampling,
        sampling.stride(0),
        seed,
        length,
        truncation,
        count,
        score,
        best_id,
        unusable,
        logits.vocab,
        draft_logits.shape[2],
        COLUMNS=columns,
        BLOCK=block,
        num_warps=cut.warps,
        num_stages=1,
        enable_fp_fusion=False,
    )
    choose[(batch,)](
        sampling,
        sampling.stride(0),
        score,
        best_id,
        unusable,
        count,
        tokens,
        logits.vocab,
        parts,
        COLUMNS=columns,
        BLOCKS=triton.next_power_of_2(parts),
        num_warps=1,
        num_stages=1,
        enable_fp_fusion=False,
    )
