"""`attention.py` in Triton: split the keys, then merge the parts ("Flash-Decoding", Dao 2023).

Two kernels. `_partials` cuts the cache into chunks of `KEYS` positions; for each chunk and each
query it leaves, of the scores s (base 2, scaled) of the keys that the query sees,

    m = max s      l = sum 2**(s - m)      o = sum 2**(s - m) v        (float32)

and `_combine` merges the chunks of a query in ascending order:

    output = sum 2**(m_c - max m) o_c / sum 2**(m_c - max m) l_c

**One read of the cache.** The queries of a key head, tokens x group, share its keys: they stand
packed in tiles of `ROWS`, the fewest rows that tensor cores take. A program loads keys and values
of a chunk once, keeps them in shared memory, and sends the tiles through one after the other.

**The write.** The program of the chunk in which a new token's position falls normalises, rotates
and rounds its key first, writes key and value to the cache, and then reads its chunk like any
other. No other program of the launch reads them but those with further tiles of the same chunk
(grid axis 2), which write the same bits themselves. So q, k and v need no launch of their own.

**A row's bits do not depend on its company.** The number of tokens is an ordinary argument that
the compiler does not see, so one binary serves any number of them: a tile is always ROWS x KEYS
whichever query stands in it, chunks have fixed borders, and the combination takes the chunks at
fixed places, those that a query does not see as exact zeros. Who computes a chunk does not matter
either: programs take every n-th one. Their number depends on static shapes and the card, the
lengths are read on the device, and a program whose first chunk lies behind its row's last key ends
there.

**Two launches.** The last program of a key head to arrive could combine, without the 1.3 us of a
launch, but alone, where `_combine` has a program for 32 columns of each query head. Predicted, for
the shapes below: with a fence, a counter and its answer it takes 2.2 us instead of 2.4 at 1K keys,
and 1.5 us more than `_combine` at 4K. And the counters, which would have to be 0 again for the next
replay, would be shared by all streams.

Behind the last position, and before every window, scores are masked after the product and values
in the load: whatever the cache holds there, NaN too, takes part as zero. Of the keys that only some
tokens of a row see, a NaN value would reach the others too (0 * NaN): a broken token breaks its own
row, and no other.

Scratch per layer: (D + 2) * 4 bytes for each query and chunk, for 5 tokens of 8 x 4 heads at 32K
keys 21 MB; it is never initialised.

Predicted on an H100 (3.35 TB/s, of which we hope for 3.0; 132 SMs; 1.3 us a launch inside a graph),
32/8 heads of 128, bfloat16, one row and token. With up to 255 registers and 72 KB of shared memory
two programs of 4 warps fit on an SM: up to 128 KB in flight, where the latency asks for 20.
- 1K keys: 4.2 MB (1.3 us) in 64 programs, so it is a chain of latencies: launch 1.3, start 0.5, the
  new key 0.6, keys and values 0.9, query 0.4, products and store 0.8, together 4.5 us. Combination:
  launch 1.3, start 0.3, loads 0.5, sum and store 0.3, together 2.4 us. In all 6.9 us.
- 32K keys: 134 MB (40 us, at 3.0 TB/s 44.7) in 528 programs of 3 or 4 chunks, two waves; launch and
  tail 2 us; the combination reads 4.3 MB from the L2 cache in 128 programs of four steps, 3.6 us.
  In all 50 us, 80 % of the bandwidth.
- 5 tokens: two tiles instead of one, 0.5 us more a chunk, at 32K keys behind the loads of the other
  program; the partials are five times as large. 7.6 and 55 us.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.attention_combine_triton import COLUMNS, _combine
from hybridgen.kernels.attention_plan import MASKED
from hybridgen.kernels.launch_triton import launch_options, prefetch, wait_for_previous
from hybridgen.kernels.triton_utils import blocks, interpreted, multiprocessors

KEYS = 128
"""Keys of a chunk; fewer where they would take more than `CHUNK_BYTES`."""
CHUNK_BYTES = 1 << 15
ROWS = 16
"""Queries, or new tokens, of a tile."""
TILES = 8
"""Query tiles of a program, at most: beyond (in prefill) further programs share the work."""
PROGRAMS = 4
"""Programs a multiprocessor for `TILES` tiles of all rows, about: two waves of the two that fit. Of
more, most would find that their first chunk lies behind the last key of a row."""
SHARES = 8
"""Programs of a row and key head, at least: of a long row among many short ones."""

_ROWS = tl.constexpr(ROWS)
_TILES = tl.constexpr(TILES)
_LOG2_E = tl.constexpr(1.4426950408889634)
_MASKED = tl.constexpr(MASKED)


def attention(
    qkv: Tensor,
    cache: Tensor,
    start: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_norm: Tensor | None,
    eps: float,
    window: int,
    softcap: float,
) -> Tensor:
    """See `hybridgen.kernels.attention.attention_reference`."""
    _, kv_heads, _, positions, dim = cache.shape
    rows, width = qkv.shape
    batch, count = len(start), len(cos)
    tokens = count // batch
    q_heads = width // dim - 2 * kv_heads
    group = q_heads // kv_heads
    queries = tokens * group
    padded = max(triton.next_power_of_2(dim), 16)
    itemsize = cache.element_size()
    keys = min(KEYS, CHUNK_BYTES // (padded * itemsize))
    chunks = positions // keys
    pairs = batch * kv_heads

    shape = (pairs, queries, chunks)
    stats = torch.empty((*shape, 2), dtype=torch.float32, device=qkv.device)
    sums = torch.empty((*shape, dim), dtype=torch.float32, device=qkv.device)
    output = torch.empty((rows, q_heads * dim), dtype=qkv.dtype, device=qkv.device)
    shares = min(chunks, max(PROGRAMS * multiprocessors(qkv.device) // pairs, SHARES))
    _partials[pairs, shares, blocks(queries, ROWS * TILES)](
        qkv,
        cache,
        start,
        cos,
        sin,
        qk_norm,
        stats,
        sums,
        tokens,
        chunks,
        qkv.stride(0),
        cache.stride(0),
        cache.stride(1),
        cache.stride(2),
        eps,
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        PADDED=padded,
        KEYS=keys,
        WINDOW=window,
        SOFTCAP=softcap,
        INTERPRETED=interpreted(),
        num_warps=8 if itemsize == 4 or padded > 128 else 4,
        num_stages=1,
        enable_fp_fusion=True,
        **launch_options(),
    )
    _combine[rows, q_heads, blocks(dim, COLUMNS)](
        stats,
        sums,
        start,
        output,
        tokens,
        count,
        chunks,
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        KEYS=keys,
        WINDOW=window,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=True,
        **launch_options(),
    )
    return output


@triton.jit(do_not_specialize=["tokens", "chunks"], do_not_specialize_on_alignment=["start_ptr"])
def _partials(
    qkv_ptr,
    cache_ptr,
    start_ptr,
    cos_ptr,
    sin_ptr,
    qk_norm_ptr,
    stats_ptr,
    sums_ptr,
    tokens,
    chunks,
    stride_row,
    stride_values,
    stride_heads,
    stride_batch,
    eps,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    INTERPRETED: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """What each query sees of each chunk: stats (m, l) and sums o.

    Grid: a row and key head; every n-th of its chunks; `TILES` tiles of its queries. Reads the new
    tokens' q, k and v with their angles, and the chunks of the cache that they see; writes stats
    and sums, and the new keys and values that fall into its chunks.
    """
    pair = tl.program_id(0)
    batch = (pair // KV_HEADS).to(tl.int64)
    kv_head = pair % KV_HEADS
    cache_ptr += batch * stride_batch + kv_head.to(tl.int64) * stride_heads
    if PDL:
        _prefetch(
            cache_ptr, start_ptr + batch, chunks * KEYS, stride_values, DIM, PADDED, KEYS, WINDOW
        )
    wait_for_previous(PDL)
    qkv_ptr += batch * tokens * stride_row
    cos_ptr += batch * tokens * DIM
    sin_ptr += batch * tokens * DIM
    queries = tokens * GROUP
    tile_0 = tl.program_id(2) * _TILES
    tile_end = tl.minimum(tile_0 + _TILES, tl.cdiv(queries, _ROWS))

    first = tl.load(start_ptr + batch).to(tl.int32)
    new = tl.maximum(first, 0)  # the first position that this call writes
    last = tl.maximum(first + tokens - 1, 0)
    lowest = 0 if WINDOW == 0 else tl.maximum(new - WINDOW + 1, 0)
    chunk_0 = lowest // KEYS + tl.program_id(1)

    row = tl.arange(0, _ROWS)
    key = tl.arange(0, KEYS)
    d = tl.arange(0, PADDED)[None, :]
    in_head = d < DIM
    for chunk in range(chunk_0, last // KEYS + 1, tl.num_programs(1)):
        position = chunk * KEYS + key
        if (chunk + 1) * KEYS > new:
            head = tl.full([_ROWS], KV_HEADS * GROUP, tl.int32) + kv_head
            for token in range(0, tokens, _ROWS):
                i = token + row
                at = first + i
                # Of several tokens at position 0 the last one writes.
                mine = (i < tokens) & ((at >= 0) | (i == tokens - 1))
                at = tl.maximum(at, 0)
                mine &= at // KEYS == chunk
                x_ptr = qkv_ptr + i.to(tl.int64) * stride_row
                k = _rotated(x_ptr, qk_norm_ptr, cos_ptr, sin_ptr, head, i, mine, eps, DIM, PADDED)
                mask = mine[:, None] & in_head
                x_ptr += (head + KV_HEADS) * DIM
                v = tl.load(x_ptr[:, None] + d, mask=mask, other=0.0)
                to = cache_ptr + at.to(tl.int64)[:, None] * DIM + d
                tl.store(to, k.to(cache_ptr.dtype.element_ty), mask=mask)
                tl.store(to + stride_values, v.to(cache_ptr.dtype.element_ty), mask=mask)
            tl.debug_barrier()  # other threads of this program read what this one wrote

        seen = ((position >= lowest) & (position <= last))[:, None] & in_head
        place = cache_ptr + position.to(tl.int64)[:, None] * DIM + d
        # Of a key that no query sees the score is masked, NaN or not; a mask here costs registers.
        k = tl.load(place) if DIM == PADDED else tl.load(place, mask=in_head, other=0.0)
        v = tl.load(place + stride_values, mask=seen, other=0.0)

        for tile in range(tile_0, tile_end):
            query = tile * _ROWS + row
            inside = query < queries
            i = query // GROUP
            head = kv_head * GROUP + query % GROUP
            x_ptr = qkv_ptr + i.to(tl.int64) * stride_row
            q = _rotated(x_ptr, qk_norm_ptr, cos_ptr, sin_ptr, head, i, inside, eps, DIM, PADDED)
            s = _dot(q.to(k.dtype), tl.trans(k), INTERPRETED)
            s = _base_2(s, DIM, SOFTCAP)
            at = tl.maximum(first + i, 0)[:, None]
            visible = position[None, :] <= at
            if WINDOW > 0:
                visible &= position[None, :] > at - WINDOW
            s = tl.where(visible, s, _MASKED)
            m = tl.max(s, 1)
            weights = tl.exp2(s - m[:, None])
            o = _dot(weights.to(v.dtype), v, INTERPRETED)
            to = (pair.to(tl.int64) * queries + query) * chunks + chunk
            tl.store(stats_ptr + 2 * to, m, mask=inside)
            tl.store(stats_ptr + 2 * to + 1, tl.sum(weights, 1), mask=inside)
            tl.store(sums_ptr + to[:, None] * DIM + d, o, mask=inside[:, None] & in_head)


@triton.jit
def _prefetch(
    cache_ptr,
    start_ptr,
    positions,
    stride_values,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Ask for the program's first chunk of the cache, up to the row's new tokens.

    Ahead of the wait, so where those begin may be any number: a kernel ahead may be about to write
    it. It is read past the L1 cache, which must not keep it.
    """
    LINE: tl.constexpr = 1024 // cache_ptr.dtype.element_ty.primitive_bitwidth
    new = tl.maximum(tl.load(start_ptr, cache_modifier=".cg").to(tl.int32), 0)
    new = tl.minimum(new, positions)
    lowest = 0 if WINDOW == 0 else tl.maximum(new - WINDOW + 1, 0)
    position = (lowest // KEYS + tl.program_id(1)) * KEYS + tl.arange(0, KEYS)
    column = tl.arange(0, PADDED // LINE if PADDED > LINE else 1)[None, :] * LINE
    lines = cache_ptr + position.to(tl.int64)[:, None] * DIM + column
    mask = (position < new)[:, None] & (column < DIM)
    prefetch(lines, mask)
    prefetch(lines + stride_values, mask)


@triton.jit
def _rotated(
    x_ptr,
    qk_norm_ptr,
    cos_ptr,
    sin_ptr,
    head,
    token,
    mask,
    eps,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
):
    """float32 [ROWS, PADDED]: head ``head`` of ``token``, normalised and rotated.

    x_ptr  the tokens' rows of qkv; rows that ``mask`` leaves out are zero, and columns from DIM on
    """
    HALF: tl.constexpr = DIM // 2
    d = tl.arange(0, PADDED)
    pair = (d + HALF) % DIM  # the column that d turns with
    if HALF % 8 == 0:
        pair = tl.max_contiguous(tl.multiple_of(pair, 8), 8)
    mask = mask[:, None] & (d < DIM)[None, :]
    x_ptr = (x_ptr + head * DIM)[:, None]
    a = tl.load(x_ptr + d[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    if qk_norm_ptr is not None:
        scale = tl.rsqrt(tl.sum(a * a, 1) / DIM + eps)[:, None]
        weight = (qk_norm_ptr + head * DIM)[:, None]
        a *= scale * tl.load(weight + d[None, :], mask=mask, other=0.0).to(tl.float32)
        b *= scale * tl.load(weight + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    at = (token * DIM)[:, None] + d[None, :]
    a *= tl.load(cos_ptr + at, mask=mask, other=0.0)
    return a + b * tl.load(sin_ptr + at, mask=mask, other=0.0)


@triton.jit
def _base_2(products, DIM: tl.constexpr, SOFTCAP: tl.constexpr):
    """Scores as powers of two, log2(e) * cap * tanh(products / sqrt(D) / cap); cap 0: no tanh."""
    SCALE: tl.constexpr = DIM**-0.5
    if SOFTCAP > 0:
        # tanh(x) = 2 / (1 + exp(-2 x)) - 1, where an exponential that overflows gives -1
        tanh = 2 * tl.sigmoid(products * (2 * SCALE / SOFTCAP)) - 1
        return tanh * (SOFTCAP * _LOG2_E)
    else:
        return products * (SCALE * _LOG2_E)


@triton.jit
def _dot(a, b, INTERPRETED: tl.constexpr):
    """a @ b in float32; the interpreter's bfloat16 products are wrong."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")
