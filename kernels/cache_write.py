"""Between the QKV product and the attention of a prompt: norms, rotary embedding, cache write.

For each token i of a piece of a prompt
    q, k = rope(rms_norm(q)), rope(rms_norm(k))            (the norms only where the model has them)
    cache[:, :, i] = k, v
In a decode `attention.py` does all of it in its own launch. A prompt's attention is the library's
(`prompt_attention.py`), and this op is what stands before it. It reads qkv once and writes as much,
which is its floor.
"""

from torch import Tensor

from hybridgen.kernels.layers import rms_norm
from hybridgen.kernels.registry import define


def cache_write_reference(
    qkv: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, qk_norm: Tensor | None, eps: float
) -> Tensor:
    """Write the keys and values of n tokens, and return their queries.

    qkv      [n, (q_heads + 2 kv_heads) * D], any row stride
    cache    [2 (k, v), kv_heads, n, D], the tokens' places in it; the last two axes contiguous
    cos, sin float32 [n, 1, D], contiguous; the tokens' rows of the rotary table
    qk_norm  [q_heads + kv_heads, D] or None; eps is its epsilon
    Returns [n, q_heads, D] in qkv's dtype, contiguous.
    """
    _, kv_heads, count, dim = cache.shape
    half = dim // 2
    x = qkv.view(count, -1, dim)
    heads = x.shape[1] - 2 * kv_heads
    qk, v = x.split((heads + kv_heads, kv_heads), 1)
    cache[1].copy_(v.transpose(0, 1))
    qk = qk.float()
    if qk_norm is not None:
        qk = rms_norm(qk, qk_norm, eps)
    turned = qk * cos
    turned[..., :half].addcmul_(qk[..., half:], sin[..., :half])
    turned[..., half:].addcmul_(qk[..., :half], sin[..., half:])
    q, k = turned.split((heads, kv_heads), 1)
    cache[0].copy_(k.transpose(0, 1))
    queries: Tensor = q.to(qkv.dtype)
    return queries.contiguous()


def _cache_write_fake(
    qkv: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, qk_norm: Tensor | None, eps: float
) -> Tensor:
    _, kv_heads, count, dim = cache.shape
    return qkv.new_empty(count, qkv.shape[1] // dim - 2 * kv_heads, dim)


cache_write = define(
    "cache_write(Tensor qkv, Tensor(a!) cache, Tensor cos, Tensor sin, Tensor? qk_norm, "
    "float eps) -> Tensor",
    cache_write_reference,
    _cache_write_fake,
    "cache_write_triton:cache_write",
)
