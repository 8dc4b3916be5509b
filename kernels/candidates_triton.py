"""The first two sweeps over the logits: what a row's likely tokens are, without a sort.

1. `chunk_maxima`: the maximum of every chunk of about V / 200 logits.
2. `collect`: the r-th largest of these maxima is a threshold that at least r logits reach. Most
   often not many more do: of N logits in C chunks, in any order, the largest ones that touch r
   chunks number about C log(C / (C - r)). They are listed, and those of a top-k filter or a
   nucleus are among them unless the row is very flat or full of ties, which `count` tells.

Between the two lies the maximum of the row, so the second sweep also adds up integer `weights`:
of the filter where no top-k stands before it, and for the entropy. Sums, minima and slots of the
list are atomic operations on integers: their order is not fixed, and no result depends on it.

Row r of a grid is row r % COLUMNS of batch row r // COLUMNS, whose parameters it uses.

What belongs together is one argument of a kernel, a named tuple with the same fields as on the
host. Triton compiles a binary for each alignment of what is in one, so addresses of single numbers,
whose alignment is of no matter, stay outside. Triton 3.6 cannot ask of a group with a None in it
whether it is None.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.launch_triton import launch_options, wait_for_previous
from hybridgen.kernels.sampling import ENOUGH, MIN_P, TEMPERATURE, TOP_K, TOP_P
from hybridgen.kernels.triton_utils import blocks
from hybridgen.kernels.weights import ONE
from hybridgen.kernels.weights_triton import (
    LOWEST,
    exponents,
    heat_of,
    key_of,
    rate_of,
    scaled_power,
    weights,
)

CAPACITY = 1024
"""Candidates listed of a row."""
SMALL = 128
"""A vocabulary up to this is listed whole."""
MAX_CHUNKS = 256

COUNT = tl.constexpr(0)
MASS = tl.constexpr(1)
LOWEST_KEY = tl.constexpr(2)
ENTROPY_MASS = tl.constexpr(3)
ENTROPY_SUM = tl.constexpr(4)
OPEN = tl.constexpr(5)
FIELDS = tl.constexpr(8)
"""Fields of a row's record, int64:
COUNT         logits that reach the threshold; those beyond `CAPACITY` are not listed
MASS          weight of all logits, or of those that min-p keeps if that is the only filter
LOWEST_KEY    `key_of` the smallest logit that min-p keeps, if that is the only filter
ENTROPY_MASS, ENTROPY_SUM    sums of w and of w * -y, at the temperature of the entropy
OPEN          1 where the token has yet to be drawn from the whole row
"""

_ONE = tl.constexpr(ONE)
_ENOUGH = tl.constexpr(ENOUGH)
_CAPACITY = tl.constexpr(CAPACITY)
_SMALL = tl.constexpr(SMALL)
_MAX_CHUNKS = tl.constexpr(MAX_CHUNKS)
_STEP = tl.constexpr(16)
_TEMPERATURE = tl.constexpr(TEMPERATURE)
_TOP_K = tl.constexpr(TOP_K)
_TOP_P = tl.constexpr(TOP_P)
_MIN_P = tl.constexpr(MIN_P)


class Address(NamedTuple):
    """Where a kernel finds logits [B, COLUMNS, V], the last stride 1."""

    ptr: Tensor
    stride_batch: int
    stride_column: int


class Scratch(NamedTuple):
    """What the sweeps leave for the kernels after them."""

    maxima: Tensor  # float32 [rows, chunks]; +inf for a chunk with a NaN
    record: Tensor  # int64 [rows, FIELDS]
    threshold: Tensor  # float32 [rows]
    candidates: Tensor  # float32 [rows, CAPACITY], in any order
    ids: Tensor  # int32 [rows, CAPACITY], theirs


@triton.jit
def row_of(logits, batch, column):
    """The address of an `Address`' row: pointer to its first logit."""
    return logits.ptr + batch * logits.stride_batch + column * logits.stride_column


@triton.jit
def filter_of(sampling_ptr, vocab):
    """1 / T, how many top-k keeps, the share for top-p, min-p's least weight (int64), greedy.

    1 / T and the share, which is 1 where top-p is off, are float64, as `sampling` is.
    """
    temperature = tl.load(sampling_ptr + _TEMPERATURE)
    greedy = (temperature > 0) == 0
    k = tl.minimum(tl.load(sampling_ptr + _TOP_K), 2.0**30).to(tl.int32)
    k = tl.where(greedy, 1, tl.where((k < 1) | (k > vocab), vocab, k))
    bound = tl.ceil(tl.minimum(tl.load(sampling_ptr + _MIN_P), 1.0) * _ONE)
    heat = heat_of(tl.where(greedy, 1.0, temperature))
    top_p = tl.load(sampling_ptr + _TOP_P)
    share = tl.where(top_p < 1, top_p * _ENOUGH, 1.0)
    return heat, k, share, bound.to(tl.int64), greedy


@triton.jit
def load_logits(row_ptr, i, vocab):
    """float32 logits ``i`` of a row, -inf beyond its ``vocab``."""
    return tl.load(row_ptr + i, mask=i < vocab, other=float("-inf")).to(tl.float32)


@triton.jit(do_not_specialize=["chunks"])
def chunk_maxima(
    logits,
    maxima_ptr,
    record_ptr,
    kept_ptr,  # [rows, vocab]: a copy of the logits; None for none
    stride_kept,
    vocab,
    chunks,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """The maximum of each chunk of CHUNK logits; and an empty record of the row.

    Grid: rows, blocks of BLOCK logits. Reads ``logits``, writes `Scratch`' maxima and record, and
    the copy.
    """
    wait_for_previous(PDL)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row_ptr = row_of(logits, row // COLUMNS, row % COLUMNS)
    chunk = block * (BLOCK // CHUNK) + tl.arange(0, BLOCK // CHUNK)
    i = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    x = load_logits(row_ptr, i, vocab)
    if kept_ptr is not None:
        tl.store(kept_ptr + row * stride_kept + i, x, mask=i < vocab)
    largest = tl.max(tl.where(x == x, x, float("inf")), 1)
    tl.store(maxima_ptr + row * chunks + chunk, largest, mask=chunk < chunks)
    if block == 0:
        field = tl.arange(0, FIELDS)
        empty = tl.where(field == LOWEST_KEY, 0x7FFFFFFF, 0).to(tl.int64)
        tl.store(record_ptr + row * FIELDS + field, empty)


@triton.jit
def load_maxima(maxima_ptr, row, chunks):
    """The maxima of a row's chunks, [MAX_CHUNKS] padded with -inf."""
    chunk = tl.arange(0, _MAX_CHUNKS)
    return tl.load(maxima_ptr + row * chunks + chunk, mask=chunk < chunks, other=float("-inf"))


@triton.jit
def _add(field_ptr, value):
    """Add to a field and return what it was. No fence: the next launch reads the sums."""
    return tl.atomic_add(field_ptr, value, sem="relaxed")


@triton.jit
def is_broken(largest):
    """Of the largest of a row's maxima: a NaN, +inf, or nothing but -inf."""
    return (largest == float("inf")) | (largest == float("-inf"))


@triton.jit(do_not_specialize=["chunks"], do_not_specialize_on_alignment=["sampling_ptr"])
def collect(
    logits,
    sampling_ptr,
    stride_sampling,
    temperature_ptr,  # [rows], of the entropy; None for temperature 1
    scratch,
    vocab,
    chunks,
    COLUMNS: tl.constexpr,
    FILTER: tl.constexpr,  # whether `sampling` is used
    LEAST: tl.constexpr,  # candidates wanted whatever the filter; 0 and no filter lists none
    ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """List the logits that reach the row's threshold, and add up what its record holds.

    Grid: rows, blocks of BLOCK logits; a broken row's programs leave at once. Reads ``logits``,
    the parameters and the maxima, writes the rest of ``scratch``.
    """
    wait_for_previous(PDL)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    maxima = load_maxima(scratch.maxima, row, chunks)
    largest = tl.max(maxima, 0)
    if is_broken(largest):
        return
    record_ptr = scratch.record + row * FIELDS
    row_ptr = row_of(logits, row // COLUMNS, row % COLUMNS)
    i = block * BLOCK + tl.arange(0, BLOCK)
    x = load_logits(row_ptr, i, vocab)
    finite = x >= LOWEST
    rank = LEAST
    if FILTER:
        heat, k, top_p, bound, _ = filter_of(sampling_ptr + row // COLUMNS * stride_sampling, vocab)
        rank = tl.where(k < vocab, tl.maximum(k, LEAST), _MAX_CHUNKS)
        if k == vocab:
            weight = weights(x, largest, rate_of(heat))
            kept = finite & (weight >= tl.where(top_p < 1, 0, bound))
            _add(record_ptr + MASS, tl.sum(tl.where(kept, weight, 0), 0))
            lowest = tl.min(tl.where(kept, key_of(x, 0), 0x7FFFFFFF), 0)
            tl.atomic_min(record_ptr + LOWEST_KEY, lowest.to(tl.int64), sem="relaxed")
    if ENTROPY:
        metric_heat = tl.full([], 1.0, tl.float64)
        if temperature_ptr is not None:
            temperature = tl.load(temperature_ptr + row)
            metric_heat = heat_of(tl.where(temperature > 0, temperature, 1.0))
        y = exponents(x, largest, rate_of(metric_heat))
        power = scaled_power(y)
        mass = tl.sum(tl.where(finite, power.to(tl.int64), 0), 0)
        _add(record_ptr + ENTROPY_MASS, mass)
        spread = tl.sum(tl.where(finite, (power * -y).to(tl.int64), 0), 0)
        _add(record_ptr + ENTROPY_SUM, spread)
    if FILTER or LEAST > 0:
        threshold = _threshold(maxima, scratch.maxima, row, rank, chunks, vocab)
        if block == 0:
            tl.store(scratch.threshold + row, threshold)
        _list(x, i, finite & (x >= threshold), row, scratch)


@triton.jit
def _threshold(maxima, maxima_ptr, row, rank, chunks, vocab):
    """The rank-th largest of the maxima, at most 7 in 8 of them; -inf for a small vocabulary."""
    rank = tl.maximum(tl.minimum(rank, chunks * 7 // 8), 1)
    reaching = tl.zeros([_MAX_CHUNKS], tl.int32)  # how many maxima are at least this one
    for first in range(0, chunks, _STEP):
        j = first + tl.arange(0, _STEP)
        other = tl.load(maxima_ptr + row * chunks + j, mask=j < chunks, other=float("-inf"))
        # Summed over the axis that a thread has to itself: along the other it would take shuffles.
        reaching += tl.sum((other[:, None] >= maxima[None, :]).to(tl.int32), 0)
    threshold = tl.max(tl.where(reaching >= rank, maxima, float("-inf")), 0)
    return tl.where(vocab <= _SMALL, float("-inf"), threshold)


@triton.jit
def _list(x, i, chosen, row, scratch):
    """Append the chosen logits and their ids to the row's candidates."""
    count = tl.sum(chosen.to(tl.int32), 0)
    if count > 0:
        first = _add(scratch.record + row * FIELDS + COUNT, count.to(tl.int64))
        slot = first + tl.cumsum(chosen.to(tl.int32), 0) - 1
        chosen = chosen & (slot < _CAPACITY)
        tl.store(scratch.candidates + row * _CAPACITY + slot, x, mask=chosen)
        tl.store(scratch.ids + row * _CAPACITY + slot, i, mask=chosen)


class Logits(NamedTuple):
    """Rows of logits and how they are cut up: what the launches of one call share."""

    tensor: Tensor  # [B, COLUMNS, V], the last stride 1
    address: Address  # its own
    rows: int  # B * COLUMNS
    chunk: int
    chunks: int
    block: int
    warps: int

    @property
    def columns(self) -> int:
        return self.tensor.shape[1]

    @property
    def vocab(self) -> int:
        return self.tensor.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, blocks(self.vocab, self.block)

    @property
    def shift(self) -> int:
        """Low bits of a float32 that no logit of this dtype has."""
        return {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}[self.tensor.dtype]


PROGRAMS = 512
"""About how many programs fill a large GPU: four on each of its multiprocessors."""


def address_of(tensor: Tensor) -> Address:
    """Of logits [B, M, V] whose last stride is 1."""
    return Address(tensor, tensor.stride(0), tensor.stride(1))


def logits_of(tensor: Tensor) -> Logits:
    """``tensor`` [B, M, V] cut into at most `MAX_CHUNKS` chunks a row and blocks of some chunks.

    Few rows get small blocks, so that many programs share each; no result depends on the cut.
    """
    if tensor.stride(2) != 1:
        tensor = tensor.contiguous()
    batch, columns, vocab = tensor.shape
    rows = batch * columns
    chunk = max(triton.next_power_of_2(blocks(vocab, MAX_CHUNKS)), 8)
    block = max(chunk, CAPACITY)
    while block < 4096 and rows * blocks(vocab, 2 * block) >= PROGRAMS:
        block *= 2
    warps = 4 if block == CAPACITY else 8
    return Logits(tensor, address_of(tensor), rows, chunk, blocks(vocab, chunk), block, warps)


def sweep(
    logits: Logits,
    sampling: Tensor | None,
    temperature: Tensor | None,
    least: int = 0,
    entropy: bool = False,
    kept: Tensor | None = None,
) -> Scratch:
    """Both sweeps. sampling [B, 4] filters; temperature [B] is the entropy's, None for 1.

    kept    [rows, V]: the logits are copied there
    """
    device, rows = logits.tensor.device, logits.rows
    f32, i64 = torch.float32, torch.int64
    lists = sampling is not None or least > 0
    capacity = CAPACITY if lists else 1
    scratch = Scratch(
        torch.empty(rows, logits.chunks, dtype=f32, device=device),
        torch.empty(rows, FIELDS.value, dtype=i64, device=device),
        torch.empty(rows, dtype=f32, device=device),
        torch.empty(rows, capacity, dtype=f32, device=device),
        torch.empty(rows, capacity, dtype=torch.int32, device=device),
    )
    options = {"num_warps": logits.warps, "num_stages": 1, "enable_fp_fusion": False}
    options |= launch_options()
    chunk_maxima[logits.grid](
        logits.address,
        scratch.maxima,
        scratch.record,
        kept,
        0 if kept is None else kept.stride(0),
        logits.vocab,
        logits.chunks,
        COLUMNS=logits.columns,
        CHUNK=logits.chunk,
        BLOCK=logits.block,
        **options,
    )
    collect[logits.grid](
        logits.address,
        sampling,
        0 if sampling is None else sampling.stride(0),
        temperature,
        scratch,
        logits.vocab,
        logits.chunks,
        COLUMNS=logits.columns,
        FILTER=sampling is not None,
        LEAST=least,
        ENTROPY=entropy,
        BLOCK=logits.block,
        **options,
    )
    return scratch
