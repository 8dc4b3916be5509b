"""`verify.commit` in Triton: one program a sequence appends what was accepted, in place.

A program reads the at most 16 new tokens of its row and compares them with the row's eos ids, all
pairs at once. Nothing but what the contract names is written; a row that was done is not touched.
The report is written in the same launch: it is what the host reads of a round.

Predicted on an H100: one launch of 1.3 us and two dependent reads, 2.5 us for any number of rows.
"""

import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels import verify
from hybridgen.kernels.launch_triton import launch_options, wait_for_previous

_LENGTH, _FLAGS = tl.constexpr(verify.LENGTH), tl.constexpr(verify.FLAGS)
_HEAD, _WINDOW = tl.constexpr(verify.HEAD), tl.constexpr(verify.WINDOW)
_DONE, _BROKEN = tl.constexpr(verify.DONE), tl.constexpr(verify.BROKEN)
_WRITER = tl.constexpr(verify.WRITER)


@triton.jit(
    do_not_specialize=["columns", "ends", "numbers", "stride_truncation"],
    do_not_specialize_on_alignment=["new_ptr", "truncation_ptr"],
)
def append(
    # what a row is: written
    tokens_ptr,
    stride_tokens,
    length_ptr,
    done_ptr,
    report_ptr,  # int64 [B, HEAD + WINDOW]
    stride_report,
    # what is appended
    new_ptr,  # int64 [B, columns]
    stride_new,
    count_ptr,  # int64 or bool; None: all columns
    broken_ptr,  # None: by this no row is
    truncation_ptr,  # float32 [B, numbers]; None: by this no row is
    stride_truncation,
    numbers,
    # where it ends
    limit_ptr,
    eos_ptr,  # int64 [B, ends]
    stride_eos,
    columns,
    ends,
    WRITER: tl.constexpr,
    DRAFTER: tl.constexpr,
    WIDTH: tl.constexpr,  # a power of two >= columns
    ENDS: tl.constexpr,  # a power of two >= ends
    NUMBERS: tl.constexpr,  # a power of two >= numbers
    PDL: tl.constexpr = False,
):
    """Append a row's new tokens up to the first eos or its limit. Grid: rows.

    Reads the row's length, limit, flags, new tokens and eos ids; writes the tokens, the length,
    done, and all of it with the tokens' writers into the report.
    """
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    length, limit = tl.load(length_ptr + row), tl.load(limit_ptr + row)
    count = tl.full([], columns, tl.int64)
    if count_ptr is not None:
        count = tl.load(count_ptr + row).to(tl.int64)
    finished, broken = tl.load(done_ptr + row) != 0, tl.full([], 0, tl.int1)
    if broken_ptr is not None:
        broken = tl.load(broken_ptr + row) != 0
    if truncation_ptr is not None:
        i = tl.arange(0, NUMBERS)
        numbers_ptr = truncation_ptr + row * stride_truncation
        number = tl.load(numbers_ptr + i, mask=i < numbers, other=0.0)
        broken = broken | (tl.max((number != number).to(tl.int32), 0) > 0)
    if finished == 0:
        column, end = tl.arange(0, WIDTH), tl.arange(0, ENDS)
        new = tl.load(new_ptr + row * stride_new + column, mask=column < columns, other=-2)
        eos = tl.load(eos_ptr + row * stride_eos + end, mask=end < ends, other=-1)
        is_end = tl.max((new[:, None] == eos[None, :]).to(tl.int32), 1) > 0
        is_end = is_end & (column < count)
        first = tl.min(tl.where(is_end, column, WIDTH), 0)
        wanted = tl.where(first < WIDTH, (first + 1).to(tl.int64), count)
        emitted = tl.maximum(tl.minimum(wanted, limit - length), 0)
        emitted = tl.where(broken, 0, emitted)
        writes = column < emitted
        place = length + column
        mark = tl.where(column == count - 1, WRITER, DRAFTER).to(tl.int64) * _WRITER
        report = report_ptr + row * stride_report
        tl.store(tokens_ptr + row * stride_tokens + place, new, mask=writes)
        tl.store(report + _HEAD + place % _WINDOW, new + mark, mask=writes)
        ended = (first < WIDTH) | (length + emitted >= limit)
        tl.store(done_ptr + row, broken | ended)
        if broken:
            told = tl.load(report + _FLAGS)
            tl.store(report + _FLAGS, told | _DONE | _BROKEN)
        else:
            tl.store(length_ptr + row, length + emitted)
            tl.store(report + _LENGTH, length + emitted)
            tl.store(report + _FLAGS, ended.to(tl.int64) * _DONE)


def commit(
    tokens: Tensor,
    length: Tensor,
    done: Tensor,
    report: Tensor,
    new_tokens: Tensor,
    count: Tensor | None,
    writer: int,
    drafter: int,
    broken: Tensor | None,
    limit: Tensor,
    eos: Tensor,
    truncation: Tensor | None,
) -> None:
    """See `hybridgen.kernels.verify.commit_reference`."""
    if new_tokens.stride(1) != 1:
        new_tokens = new_tokens.contiguous()
    columns, ends = new_tokens.shape[1], eos.shape[1]
    numbers = 0 if truncation is None else truncation[0].numel()
    append[(len(length),)](
        tokens,
        tokens.stride(0),
        length,
        done,
        report,
        report.stride(0),
        new_tokens,
        new_tokens.stride(0),
        count,
        broken,
        truncation,
        0 if truncation is None else truncation.stride(0),
        numbers,
        limit,
        eos,
        eos.stride(0),
        columns,
        ends,
        WRITER=writer,
        DRAFTER=drafter,
        WIDTH=triton.next_power_of_2(columns),
        ENDS=triton.next_power_of_2(max(ends, 1)),
        NUMBERS=triton.next_power_of_2(max(numbers, 1)),
        num_warps=1,
        num_stages=1,
        enable_fp_fusion=False,
        **launch_options(),
    )
