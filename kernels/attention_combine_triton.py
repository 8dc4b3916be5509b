"""The second kernel of `attention_triton.py`: what the chunks of a query's keys add up to."""

import triton
import triton.language as tl

from hybridgen.kernels.launch_triton import wait_for_previous

PARTS = 64
"""Chunks that are merged in one step."""
COLUMNS = 32
"""Columns of a head in a program."""

_PARTS = tl.constexpr(PARTS)
_COLUMNS = tl.constexpr(COLUMNS)


@triton.jit(
    do_not_specialize=["tokens", "count", "chunks"], do_not_specialize_on_alignment=["start_ptr"]
)
def _combine(
    stats_ptr,
    sums_ptr,
    start_ptr,
    output_ptr,
    tokens,
    count,
    chunks,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """Merge the chunks of a query.

    Grid: rows of the output [R, q_heads * D], query heads, `COLUMNS` columns of a head. Reads the
    stats and sums of the chunks that the query sees; writes zeros from row ``count`` on.
    """
    wait_for_previous(PDL)
    row = tl.program_id(0)
    head = tl.program_id(1)
    d = tl.program_id(2) * _COLUMNS + tl.arange(0, _COLUMNS)
    in_head = d < DIM
    output_ptr += (row.to(tl.int64) * (KV_HEADS * GROUP) + head) * DIM + d
    if row >= count:
        tl.store(output_ptr, tl.zeros([_COLUMNS], output_ptr.dtype.element_ty), mask=in_head)
        return

    batch = row // tokens
    i = row % tokens
    position = tl.maximum(tl.load(start_ptr + batch).to(tl.int32) + i, 0)
    last = position // KEYS
    lowest = 0 if WINDOW == 0 else tl.maximum(position - WINDOW + 1, 0) // KEYS
    pair = (batch * KV_HEADS + head // GROUP).to(tl.int64)
    place = ((pair * tokens + i) * GROUP + head % GROUP) * chunks

    highest = -float("inf")
    total = 0.0
    acc = tl.zeros([_COLUMNS], tl.float32)
    for part in tl.range(lowest // _PARTS, last // _PARTS + 1, num_stages=3):
        chunk = part * _PARTS + tl.arange(0, _PARTS)
        seen = (chunk >= lowest) & (chunk <= last)
        at = place + chunk
        m = tl.load(stats_ptr + 2 * at, mask=seen, other=-float("inf"))
        mass = tl.load(stats_ptr + 2 * at + 1, mask=seen, other=0.0)
        mask = seen[:, None] & in_head[None, :]
        o = tl.load(sums_ptr + at[:, None] * DIM + d[None, :], mask=mask, other=0.0)
        higher = tl.maximum(highest, tl.max(m, 0))
        kept = tl.exp2(highest - higher)
        weight = tl.exp2(m - higher)
        total = total * kept + tl.sum(weight * mass, 0)
        acc = acc * kept + tl.sum(weight[:, None] * o, 0)
        highest = higher
    tl.store(output_ptr, (acc / total).to(output_ptr.dtype.element_ty), mask=in_head)
