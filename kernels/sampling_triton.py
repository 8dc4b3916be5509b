"""`sampling.py` in Triton: filter and draw, without sorting the vocabulary.

Five launches, whatever the parameters, each row with its own:

1, 2  `sweep` (candidates_triton.py): maxima, then candidates and, without top-k, the mass
3     `resolve`, a program a row: the truncation (filter_triton.py); the token too,
      if all kept logits are among the candidates. Else the row stays open.
4     `draw`, blocks of every open row: the best of log-weight plus Gumbel noise
5     `finish`: the best of the blocks

A closed row's programs of 4 and 5 return at once. With top-k 20, as with top-p 0.95 of a trained
model, every row is closed; without any filter none is, and launch 3 has nothing to search.

A row's result does not depend on the other rows, nor on how it was cut into blocks: the filter is
integer sums and comparisons, the noise belongs to the token id, and of equal scores the smallest id
wins. All arithmetic on scores is elementwise float32; a score is known to an ulp or two.

Predicted on an H100 (3.35 TB/s, 50 MB of L2, 1.3 us a launch within a graph): bytes are read from
memory once, by launch 1, and from L2 by launch 2 as long as they fit there.

    1 row of 151936 float32, top-k 20, top-p 0.95: 0.6 MB, 149 programs, one wave
        2.5 + 3 + 3 + 1.3 + 1.3 = 11 us, all of it latency
    64 rows: 39 MB, 13 us from memory, 10 from L2, 5 for the three others: 28 us
    1 row without a filter: 2.5 + 3.5 + 2 + 4 + 2 = 14 us
    1 row so flat that the nucleus has more than 1024 tokens: one program bisects, 32 rounds of
        0.6 MB at the 0.1 TB/s of one multiprocessor: about 0.2 ms
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.candidates_triton import (
    CAPACITY,
    COUNT,
    FIELDS,
    LOWEST_KEY,
    MASS,
    OPEN,
    Logits,
    Scratch,
    filter_of,
    is_broken,
    load_logits,
    load_maxima,
    logits_of,
    row_of,
    sweep,
)
from hybridgen.kernels.filter_triton import PAIRS, filter_pairs, filter_search
from hybridgen.kernels.launch_triton import launch_options, wait_for_previous
from hybridgen.kernels.philox_triton import gumbel
from hybridgen.kernels.truncation_triton import Drawn, load_truncation, store_truncation
from hybridgen.kernels.weights import WEIGHT_BITS
from hybridgen.kernels.weights_triton import logit_of, rate_of, weights

_CAPACITY = tl.constexpr(CAPACITY)
_UNIT = tl.constexpr(2.0**-WEIGHT_BITS)
_NO_ID = tl.constexpr(0x7FFFFFFF)

# Read number by number: an address that 16 does not divide needs no binary of its own.
SCALARS = ["sampling_ptr", "seed_ptr", "position_ptr", "token_ptr", "truncation_ptr"]
STRIDES = ["stride_token", "stride_truncation"]

# Left alone, ptxas saves registers, and spills some, for an occupancy that a program a row has no
# use for.
ONE_PROGRAM_A_ROW = {"num_warps": 8, "maxnreg": 128, "num_stages": 1, "enable_fp_fusion": False}


class Draws(NamedTuple):
    """Whose noise a draw adds."""

    seed: Tensor  # int64 [B]
    position: Tensor  # int64 [B], of the first column
    stream: int


class Best(NamedTuple):
    """The best of each block of the open rows, [rows, blocks]."""

    score: Tensor  # float32
    ids: Tensor  # int32


@triton.jit
def best_of(score, ids):
    """The largest score and the smallest id that has it."""
    largest = tl.max(score, 0)
    return largest, tl.min(tl.where(score == largest, ids, _NO_ID), 0)


@triton.jit
def scores(x, ids, kept, largest, heat, greedy, seed, position, stream):
    """(x - max) / T + Gumbel noise of the kept, -inf of the others; greedy: 0 of the kept."""
    noisy = (x - largest) * heat.to(tl.float32) + gumbel(seed, position, ids, stream)
    return tl.where(kept, tl.where(greedy, 0.0, noisy), float("-inf"))


@triton.jit(do_not_specialize=["chunks", *STRIDES], do_not_specialize_on_alignment=SCALARS)
def resolve(
    logits,
    sampling_ptr,
    stride_sampling,
    seed_ptr,  # int64 [B]; as position_ptr None where nothing is drawn
    position_ptr,
    scratch,
    token_ptr,  # out: int64 [rows]
    stride_token,
    truncation_ptr,  # out: float32 [rows, 3]
    stride_truncation,
    vocab,
    chunks,
    COLUMNS: tl.constexpr,
    DRAW: tl.constexpr,
    STREAM: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """The truncation of a row, and, with DRAW, the token of a closed one.

    Grid: rows. Reads what the sweeps left, and the row of ``logits`` where its candidates do not
    suffice; writes token and truncation, and whether the row is still open into its record.
    """
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    batch, column = row // COLUMNS, row % COLUMNS
    largest = tl.max(load_maxima(scratch.maxima, row, chunks), 0)
    token_ptr += row * stride_token
    truncation_ptr += row * stride_truncation
    if is_broken(largest):
        store_truncation(truncation_ptr, 0.0, 0.0, float("nan"))
        if DRAW:
            tl.store(token_ptr, 0)
        return
    row_ptr = row_of(logits, batch, column)
    record_ptr = scratch.record + row * FIELDS
    values_ptr = scratch.candidates + row * _CAPACITY
    ids_ptr = scratch.ids + row * _CAPACITY
    heat, k, top_p, bound, greedy = filter_of(sampling_ptr + batch * stride_sampling, vocab)
    rate = rate_of(heat)
    count = tl.load(record_ptr + COUNT).to(tl.int32)
    threshold = tl.load(scratch.threshold + row)
    everything = threshold == float("-inf")
    closed = count <= _CAPACITY
    tau = logit_of(tl.load(record_ptr + LOWEST_KEY).to(tl.int32))
    mass = tl.load(record_ptr + MASS)
    slot = tl.arange(0, PAIRS)
    x = tl.load(values_ptr + slot, mask=slot < count, other=float("-inf"))
    has_k = k < vocab
    if has_k:
        closed = closed & (everything | (count >= k))
    elif top_p < 1:
        listed = _listed_mass(values_ptr, count, largest, rate)
        edge = top_p * mass.to(tl.float64)
        beyond = weights(threshold, largest, rate) < bound
        closed = closed & (everything | beyond | (listed.to(tl.float64) >= edge))
    else:
        closed = closed & (everything | (tau >= threshold))
    if has_k | (top_p < 1):
        if closed & (count <= PAIRS):
            tau, mass = filter_pairs(
                values_ptr, count, x, largest, has_k, k, mass, top_p, rate, bound
            )
        elif closed:
            tau, mass = filter_search(
                values_ptr, count, largest, has_k, k, mass, top_p, rate, bound, SHIFT, _CAPACITY
            )
        else:
            tau, mass = filter_search(
                row_ptr, vocab, largest, has_k, k, mass, top_p, rate, bound, SHIFT, BLOCK
            )
    log_z = tl.log(mass.to(tl.float64) * _UNIT).to(tl.float32)
    store_truncation(truncation_ptr, tau, largest, tl.where(greedy, 0.0, log_z))
    if DRAW:
        tl.store(record_ptr + OPEN, tl.where(closed, 0, 1).to(tl.int64))
        if closed:
            seed, position = tl.load(seed_ptr + batch), tl.load(position_ptr + batch) + column
            best = float("-inf")
            token = _NO_ID
            for first in range(0, count, PAIRS):
                i = first + slot
                x = tl.load(values_ptr + i, mask=i < count, other=float("-inf"))
                ids = tl.load(ids_ptr + i, mask=i < count, other=_NO_ID)
                score = scores(x, ids, x >= tau, largest, heat, greedy, seed, position, STREAM)
                leader, leader_id = best_of(score, ids)
                wins = (leader > best) | ((leader == best) & (leader_id < token))
                best, token = tl.where(wins, leader, best), tl.where(wins, leader_id, token)
            tl.store(token_ptr, token.to(tl.int64))


@triton.jit
def _listed_mass(values_ptr, count, largest, rate):
    """The weight of a row's ``count`` candidates."""
    slot = tl.arange(0, _CAPACITY)
    x = tl.load(values_ptr + slot, mask=slot < count, other=float("-inf"))
    return tl.sum(weights(x, largest, rate), 0)


@triton.jit(
    do_not_specialize=["stride_truncation"],
    do_not_specialize_on_alignment=SCALARS[:3] + SCALARS[4:],
)
def draw(
    logits,
    sampling_ptr,
    stride_sampling,
    seed_ptr,
    position_ptr,
    record_ptr,
    truncation_ptr,
    stride_truncation,
    best,  # out
    vocab,
    COLUMNS: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """The best of log-weight plus noise of a block, of open rows.

    Grid: rows, blocks of BLOCK logits. Reads ``logits``, the parameters, record and truncation of
    the row; writes ``best``.
    """
    wait_for_previous(PDL)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(record_ptr + row * FIELDS + OPEN) == 0:
        return
    batch, column = row // COLUMNS, row % COLUMNS
    tau, largest, _ = load_truncation(truncation_ptr + row * stride_truncation, 0)
    heat, _, _, _, greedy = filter_of(sampling_ptr + batch * stride_sampling, vocab)
    seed, position = tl.load(seed_ptr + batch), tl.load(position_ptr + batch) + column
    i = block * BLOCK + tl.arange(0, BLOCK)
    x = load_logits(row_of(logits, batch, column), i, vocab)
    score = scores(x, i, x >= tau, largest, heat, greedy, seed, position, STREAM)
    leader, leader_id = best_of(score, i)
    place = row * tl.num_programs(1) + block
    tl.store(best.score + place, leader)
    tl.store(best.ids + place, leader_id)


@triton.jit
def best_block(best, row, count, BLOCKS: tl.constexpr):
    """The token of the best of a row's ``count`` blocks."""
    block = tl.arange(0, BLOCKS)
    place = row * count + block
    score = tl.load(best.score + place, mask=block < count, other=float("-inf"))
    _, token = best_of(score, tl.load(best.ids + place, mask=block < count, other=_NO_ID))
    return token.to(tl.int64)


@triton.jit(
    do_not_specialize=["stride_token", "count"], do_not_specialize_on_alignment=["token_ptr"]
)
def finish(
    record_ptr,
    best,
    token_ptr,
    stride_token,
    count,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """The token of an open row: the best of its ``count`` blocks.

    Grid: rows. Reads record and ``best``, writes the token.
    """
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    if tl.load(record_ptr + row * FIELDS + OPEN) == 1:
        tl.store(token_ptr + row * stride_token, best_block(best, row, count, BLOCKS))


def launch_resolve(
    logits: Logits,
    sampling: Tensor,
    scratch: Scratch,
    drawn: Drawn,
    draws: Draws | None = None,
) -> None:
    """Launch 3; without draws it leaves the tokens."""
    seed, position, stream = draws or (None, None, 0)
    token, truncation = drawn
    resolve[(logits.rows,)](
        logits.address,
        sampling,
        sampling.stride(0),
        seed,
        position,
        scratch,
        token,
        token.stride(0),
        truncation,
        truncation.stride(0),
        logits.vocab,
        logits.chunks,
        COLUMNS=logits.columns,
        DRAW=draws is not None,
        STREAM=stream,
        SHIFT=logits.shift,
        BLOCK=2048,
        **ONE_PROGRAM_A_ROW,
        **launch_options(),
    )


def launch_draw(
    logits: Logits,
    sampling: Tensor,
    scratch: Scratch,
    truncation: Tensor,
    draws: Draws,
) -> Best:
    """Launch 4."""
    seed, position, stream = draws
    device = truncation.device
    best = Best(
        torch.empty(logits.grid, dtype=torch.float32, device=device),
        torch.empty(logits.grid, dtype=torch.int32, device=device),
    )
    draw[logits.grid](
        logits.address,
        sampling,
        sampling.stride(0),
        seed,
        position,
        scratch.record,
        truncation,
        truncation.stride(0),
        best,
        logits.vocab,
        COLUMNS=logits.columns,
        STREAM=stream,
        BLOCK=logits.block,
        num_warps=logits.warps,
        num_stages=1,
        enable_fp_fusion=False,
        **launch_options(),
    )
    return best


def sample_rows(
    logits: Logits, sampling: Tensor, scratch: Scratch, drawn: Drawn, draws: Draws
) -> None:
    """Launches 3 to 5: token and truncation of every row."""
    launch_resolve(logits, sampling, scratch, drawn, draws)
    best = launch_draw(logits, sampling, scratch, drawn.truncation, draws)
    finish[(logits.rows,)](
        scratch.record,
        best,
        drawn.token,
        drawn.token.stride(0),
        logits.grid[1],
        BLOCKS=triton.next_power_of_2(logits.grid[1]),
        num_warps=1,
        num_stages=1,
        enable_fp_fusion=False,
        **launch_options(),
    )


def sample(
    logits: Tensor, sampling: Tensor, seed: Tensor, position: Tensor, stream: int
) -> tuple[Tensor, Tensor]:
    """See `hybridgen.kernels.sampling.sample_reference`."""
    rows = logits_of(logits.unsqueeze(1))
    drawn = Drawn.empty(rows)
    scratch = sweep(rows, sampling, None)
    sample_rows(rows, sampling, scratch, drawn, Draws(seed, position, stream))
    return drawn


def sample_into(
    logits: Tensor,
    sampling: Tensor,
    seed: Tensor,
    position: Tensor,
    stream: int,
    token: Tensor,
    truncation: Tensor,
    kept: Tensor | None,
) -> None:
    """See `hybridgen.kernels.sampling.sample_into_reference`."""
    rows = logits_of(logits.unsqueeze(1))
    scratch = sweep(rows, sampling, None, kept=kept)
    drawn = Drawn(token, truncation)
    sample_rows(rows, sampling, scratch, drawn, Draws(seed, position, stream))


def filter_logits(logits: Tensor, sampling: Tensor) -> Tensor:
    """See `hybridgen.kernels.sampling.filter_logits_reference`."""
    rows = logits_of(logits.unsqueeze(1))
    drawn = Drawn.empty(rows)
    launch_resolve(rows, sampling, sweep(rows, sampling, None), drawn)
    return drawn.truncation
