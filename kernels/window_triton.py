"""`window.window` in Triton: one program a row copies a few tokens and counts up.

Predicted on an H100: a launch and two dependent reads, 2.5 us for any number of rows.
"""

import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.launch_triton import launch_options, wait_for_previous


@triton.jit
def load_between(tokens_ptr, length, first, column, mask):
    """The tokens at ``first`` + ``column`` of a text of ``length`` tokens, or the nearest."""
    place = tl.maximum(tl.minimum(first + column, length - 1), 0)
    return tl.load(tokens_ptr + place, mask=mask)


@triton.jit(
    do_not_specialize=["stride_ids", "stride_positions", "columns", "places"],
    do_not_specialize_on_alignment=["ids_ptr", "start_ptr"],
)
def copy_window(
    tokens_ptr,
    stride_tokens,
    length_ptr,
    start_ptr,  # None: the last ``columns`` tokens
    ids_ptr,
    stride_ids,
    positions_ptr,
    stride_positions,
    columns,
    places,
    WIDTH: tl.constexpr,  # a power of two >= columns and places
    PDL: tl.constexpr = False,
):
    """A row's tokens and positions. Grid: rows. Reads its length, start and tokens; writes both."""
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(length_ptr + row)
    first = length - columns
    if start_ptr is not None:
        first = tl.load(start_ptr + row)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    text = tokens_ptr + row * stride_tokens
    ids = load_between(text, length, first, column, inside)
    tl.store(ids_ptr + row * stride_ids + column, ids, mask=inside)
    at = positions_ptr + column.to(tl.int64) * stride_positions + row
    tl.store(at, first + column, mask=column < places)


def window(
    tokens: Tensor, length: Tensor, start: Tensor | None, ids: Tensor, positions: Tensor
) -> None:
    """See `hybridgen.kernels.window.window_reference`."""
    columns, places = ids.shape[1], len(positions)
    copy_window[(len(length),)](
        tokens,
        tokens.stride(0),
        length,
        start,
        ids,
        ids.stride(0),
        positions,
        positions.stride(0),
        columns,
        places,
        WIDTH=triton.next_power_of_2(max(columns, places)),
        num_warps=1,
        num_stages=1,
        enable_fp_fusion=False,
        **launch_options(),
    )
