"""Attention of the newest tokens over a static cache, with everything between two products.

For token i of row b, at position p = max(start[b] + i, 0):
    q, k = rope(rms_norm(q), p), rope(rms_norm(k), p)      (the norms only where the model has them)
    cache[:, :, b, p] = k, v
    output = softmax(q . cache_k[0..p] / sqrt(D)) . cache_v[0..p]
Rotary embedding: Su et al. 2021, "RoFormer"; grouped queries: Ainslie et al. 2023, "GQA".

A stale entry beyond p is never seen, so a caller rolls back by forgetting. The bytes to move are
those of the cache up to p, once for all query heads of a key head.

On CPU all of it is float32, the cache too: half precision products of this shape are five times
slower there. A row's bits do not depend on the tokens and rows computed with it: the queries of a
key head (tokens x group) are padded to `QUERY_TILE` rows and keys come in whole chunks of
`KEY_CHUNK`, so a longer batch mate adds only chunks whose weights are exact zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgen.kernels.layers import rms_norm
from hybridgen.kernels.registry import define

KEY_CHUNK = 256
QUERY_TILE = 8


@dataclass(frozen=True)
class Plan:
    """What all layers of one forward share. ``index`` and ``masks`` exist only on CPU.

    start   int64 [B]; position of each row's first token, may be -1 (counts as 0)
    rope    float32 [B * M, 2, D]; cosine and signed sine rows of the tokens' positions
    index   int64 [B * M]; where each token goes among the cache's rows * positions
    masks   window -> float32 [B, 1, queries, keys]; 0 where a query sees a key, else -inf
    """

    start: Tensor
    rope: Tensor
    index: Tensor | None
    masks: dict[int, Tensor | None]


def make_plan(
    start: Tensor,
    tokens: int,
    rope_table: Tensor,
    windows: Sequence[int],
    group: int,
    query_tile: int = QUERY_TILE,
) -> Plan:
    """The plan of a forward over ``tokens`` tokens a row.

    rope_table  float32 [positions, 2, D], as many positions as the cache has
    windows     the distinct window sizes of the layers, 0 for none
    group       query heads per key head
    query_tile  1 gives up independence of the number of tokens for speed

    Never waits for a GPU. On CPU it reads the largest start to leave unwritten chunks of keys out.
    """
    batch = start.shape[0]
    if not start.is_cpu:
        offsets = torch.arange(tokens, device=start.device)
        at = (start.unsqueeze(1) + offsets).clamp_min_(0)
        rope = rope_table.index_select(0, at.view(-1))
        return Plan(start, rope, None, dict.fromkeys(windows))
    positions = rope_table.shape[0]
    keys = -(-max(max(start.tolist()) + tokens, 1) // KEY_CHUNK) * KEY_CHUNK
    keys = min(keys, positions)
    at = (start.unsqueeze(1) + _arange(tokens)).clamp_min_(0)
    rope = rope_table.index_select(0, at.view(-1))
    if batch > 1:
        at.add_(_arange(batch, positions).unsqueeze(1))
    query = _query_tokens(tokens, group, query_tile)
    band_row = (_arange_last(positions) - start.unsqueeze(1) - query).clamp_max_(positions - 1)
    masks: dict[int, Tensor | None] = {}
    for window in windows:
        rows = _bands(positions, keys, window).index_select(0, band_row.view(-1))
        masks[window] = rows.view(batch, 1, -1, keys)
    return Plan(start, rope, at.view(-1), masks)


@lru_cache(maxsize=64)
def _arange(count: int, step: int = 1) -> Tensor:
    return torch.arange(0, count * step, step)


@lru_cache(maxsize=64)
def _arange_last(count: int) -> Tensor:
    return torch.tensor(count - 1)


@lru_cache(maxsize=64)
def _query_tokens(tokens: int, group: int, tile: int) -> Tensor:
    """int64 [queries]: the token of each query row; padding repeats the last token."""
    queries = -(-tokens * group // tile) * tile
    return (torch.arange(queries) // group).clamp_max_(tokens - 1)


@lru_cache(maxsize=64)
def _bands(positions: int, keys: int, window: int) -> Tensor:
    """float32 [positions, keys] view: row ``positions - 1 - p`` is the mask of a query at p.

    All rows are windows into one vector of 2 * positions: 0 (the keys up to p), then -inf.
    """
    vector = torch.zeros(2 * positions)
    vector[positions:] = float("-inf")
    if window:
        vector[: max(positions - window, 0)] = float("-inf")
    return vector.as_strided((positions, keys), (1, 1))


def attention_reference(
    qkv: Tensor,
    cache: Tensor,
    start: Tensor,
    rope: Tensor,
    qk_norm: Tensor | None,
    eps: float,
    window: int,
    index: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """One layer's attention.

    qkv      [R, (q_heads + 2 kv_heads) * D], R >= B * M; rows beyond B * M are padding
    cache    [2 (k, v), kv_heads, rows >= B, positions, D], written in place
    start, rope, index, mask   of the plan
    qk_norm  [q_heads + kv_heads, D] or None; eps is its epsilon
    window   keys a query sees, its own included; 0 for all
    Returns [R, q_heads * D] in qkv's dtype; padding rows are 0.
    """
    _, kv_heads, rows, positions, dim = cache.shape
    batch, count = start.shape[0], rope.shape[0]
    tokens = count // batch
    heads = qkv.shape[1] // dim
    q_heads = heads - 2 * kv_heads
    group = q_heads // kv_heads
    if index is None or mask is None:
        filler = torch.zeros(positions, 1, 1)
        plan = make_plan(start, tokens, filler, (window,), group)
        index, mask = plan.index, plan.masks[window]
        assert index is not None and mask is not None
    queries, keys = mask.shape[2], mask.shape[3]

    x = qkv[:count].float().view(count, heads, dim)
    qk = x[:, : q_heads + kv_heads]
    if qk_norm is not None:
        qk = rms_norm(qk, qk_norm, eps)
    cos, sin = rope[:, :1], rope[:, 1:]
    qk = torch.addcmul(qk * cos, qk.roll(dim // 2, -1), sin)

    flat = cache.view(2, kv_heads, rows * positions, dim)
    flat[0].index_copy_(1, index, qk[:, q_heads:].transpose(0, 1))
    flat[1].index_copy_(1, index, x[:, q_heads + kv_heads :].transpose(0, 1))

    # A key head's queries, tokens x group, stand together: its keys are read once for all.
    q = qk[:, :q_heads].view(batch, tokens, kv_heads, group, dim).transpose(1, 2)
    if queries == tokens * group:
        q = q.reshape(batch, kv_heads, queries, dim)
    else:
        padded = q.new_zeros(batch, kv_heads, queries, dim)
        padded[:, :, : tokens * group].view(q.shape).copy_(q)
        q = padded
    k, v = cache[:, :, :batch, :keys].transpose(1, 2)
    seen = F.scaled_dot_product_attention(q, k, v, mask, scale=dim**-0.5)
    seen = seen[:, :, : tokens * group].unflatten(2, (tokens, group)).transpose(1, 2)

    if count == qkv.shape[0]:
        return seen.reshape(count, q_heads * dim).to(qkv.dtype)
    output = qkv.new_zeros(qkv.shape[0], q_heads * dim)
    output[:count].view(seen.shape).copy_(seen)
    return output


def _attention_fake(
    qkv: Tensor,
    cache: Tensor,
    start: Tensor,
    rope: Tensor,
    qk_norm: Tensor | None,
    eps: float,
    window: int,
    index: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * cache.shape[1] * cache.shape[4])


attention = define(
    "attention(Tensor qkv, Tensor(a!) cache, Tensor start, Tensor rope, Tensor? qk_norm, "
    "float eps, int window, Tensor? index, Tensor? mask) -> Tensor",
    attention_reference,
    _attention_fake,
)
