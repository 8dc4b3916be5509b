"""`cache_write.py` in Triton: a program takes one head of `ROWS` tokens.

A head's columns are loaded twice, once as they are and once as the columns that they turn with
(half a head away), so that norm and rotation need no exchange between threads; the second load
comes from the cache. Sums are float32 over a tile as wide as a head: a token's bits depend on that
token alone.

Predicted on an H100 (3.35 TB/s), 256 tokens of (32 + 2 * 8) heads of 128 in bfloat16: 3 MB in, 3 MB
out, 2 us, and a launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.launch_triton import launch_options, wait_for_previous
from hybridgen.kernels.triton_utils import blocks

ROWS = 16
_ROWS = tl.constexpr(ROWS)


@triton.jit(do_not_specialize=["count"])
def _cache_write(
    qkv_ptr,  # [count, (q_heads + 2 KV_HEADS) * DIM]
    cache_ptr,  # [2, KV_HEADS, count, DIM]
    cos_ptr,  # float32 [count, DIM]
    sin_ptr,
    qk_norm_ptr,  # [q_heads + KV_HEADS, DIM] or None
    q_ptr,  # [count, q_heads, DIM]
    count,
    stride_row,
    stride_values,
    stride_heads,
    eps,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """Grid: tiles of tokens; heads of q, k and v. Reads a head, writes it to q or to the cache."""
    wait_for_previous(PDL)
    token = (tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)).to(tl.int64)[:, None]
    head = tl.program_id(1)
    HALF: tl.constexpr = DIM // 2
    d = tl.arange(0, PADDED)[None, :]
    pair = (d + HALF) % DIM  # the column that d turns with
    mask = (token < count) & (d < DIM)
    x_ptr = qkv_ptr + token * stride_row + head * DIM
    a = tl.load(x_ptr + d, mask=mask, other=0.0).to(tl.float32)
    if head < Q_HEADS + KV_HEADS:
        b = tl.load(x_ptr + pair, mask=mask, other=0.0).to(tl.float32)
        if qk_norm_ptr is not None:
            scale = tl.rsqrt(tl.sum(a * a, 1) / DIM + eps)[:, None]
            weight_ptr = qk_norm_ptr + head * DIM
            a *= scale * tl.load(weight_ptr + d, mask=d < DIM, other=0.0).to(tl.float32)
            b *= scale * tl.load(weight_ptr + pair, mask=d < DIM, other=0.0).to(tl.float32)
        a *= tl.load(cos_ptr + token * DIM + d, mask=mask, other=0.0)
        a += b * tl.load(sin_ptr + token * DIM + d, mask=mask, other=0.0)
    if head < Q_HEADS:
        tl.store(q_ptr + (token * Q_HEADS + head) * DIM + d, a, mask=mask)
    else:
        kv = head - Q_HEADS
        to = (kv // KV_HEADS).to(tl.int64) * stride_values
        to += (kv % KV_HEADS).to(tl.int64) * stride_heads
        tl.store(cache_ptr + to + token * DIM + d, a, mask=mask)


def cache_write(
    qkv: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, qk_norm: Tensor | None, eps: float
) -> Tensor:
    """See `hybridgen.kernels.cache_write.cache_write_reference`."""
    _, kv_heads, count, dim = cache.shape
    q_heads = qkv.shape[1] // dim - 2 * kv_heads
    q = torch.empty(count, q_heads, dim, dtype=qkv.dtype, device=qkv.device)
    _cache_write[blocks(count, ROWS), q_heads + 2 * kv_heads](
        qkv,
        cache,
        cos,
        sin,
        qk_norm,
        q,
        count,
        qkv.stride(0),
        cache.stride(0),
        cache.stride(1),
        eps,
        Q_HEADS=q_heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        PADDED=triton.next_power_of_2(dim),
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=True,
        **launch_options(),
    )
    return q
