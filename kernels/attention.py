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
key head (tokens x group) are taken in tiles (`query_tile`), each chunk of `KEY_CHUNK` keys is a
product of its own, and chunks are combined in order by their log-sum-exp (as in Dao 2023,
"Flash-Decoding"): the chunks that a longer batch mate adds have weights of exactly zero.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgen.kernels.attention_plan import arange, plan_of
from hybridgen.kernels.layers import rms_norm
from hybridgen.kernels.query_tile import KEYS, attend, query_tile
from hybridgen.kernels.registry import define

KEY_CHUNK = KEYS


@lru_cache(maxsize=64)
def _to_queries(batch: int, tokens: int, kv_heads: int, group: int, queries: int) -> Tensor:
    """int64 [batch * kv_heads * queries]: the (token, head) of each query row, of all heads.

    A key head's queries, tokens x group, stand together so that its keys are read once for all.
    """
    heads = (group + 2) * kv_heads
    row = arange(queries).clamp_max(tokens * group - 1)
    head = arange(kv_heads).unsqueeze(1) * group + row % group
    first = arange(batch).view(batch, 1, 1) * tokens
    return ((first + row // group) * heads + head).view(-1)


@lru_cache(maxsize=64)
def _to_tokens(
    batch: int, tokens: int, kv_heads: int, group: int, queries: int, rows: int
) -> Tensor:
    """int64 [rows * q_heads]: where each (token, head) stands in [batch, queries, kv_heads]."""
    row = arange(rows).clamp_max(batch * tokens - 1).unsqueeze(1)
    head = arange(kv_heads * group)
    query = row // tokens * queries + row % tokens * group + head % group
    return (query * kv_heads + head // group).view(-1)


def attention_reference(
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
    """One layer's attention.

    qkv      [R, (q_heads + 2 kv_heads) * D], any row stride; rows beyond B * M are padding
    cache    [2 (k, v), kv_heads, rows >= B, positions, D], written in place; positions a multiple
             of `KEY_CHUNK` that has room for every new token, the last two axes contiguous
    start    int64 [B]; position of each row's first token, may be -1 (counts as 0)
    cos, sin float32 [B * M, 1, D]; the tokens' rows of the rotary table, of `prepare`, or on a
             GPU of `layers.embed`; for any others a CPU makes a plan in every call
    qk_norm  [q_heads + kv_heads, D] or None; eps is its epsilon
    window   keys a query sees, its own included; 0 for all
    softcap  scores s become softcap * tanh(s / softcap) before the softmax; 0 for none
    Returns [R, q_heads * D] in qkv's dtype; padding rows are finite.
    """
    _, kv_heads, cache_rows, positions, dim = cache.shape
    rows, width = qkv.shape
    heads = width // dim
    q_heads = heads - 2 * kv_heads
    group = q_heads // kv_heads
    plan = plan_of(cos, start, positions, group, window)
    places, mask = plan.places, plan.masks[window]
    chunks, batch, _, queries, chunk = mask.shape
    count = places.shape[0]

    x = (qkv.clone() if qkv.dtype == torch.float32 else qkv.float()).view(rows, heads, dim)
    if rows > count:
        x = x.narrow(0, 0, count)
    qk = x.narrow(1, 0, q_heads + kv_heads)
    normed = qk if qk_norm is None else rms_norm(qk, qk_norm, eps)
    torch.addcmul(normed * cos, normed.roll(dim // 2, -1), sin, out=qk)
    new = x.narrow(1, q_heads, 2 * kv_heads).transpose(0, 1)
    cache.view(2 * kv_heads, cache_rows * positions, dim).index_copy_(1, places, new)

    if queries == group:  # one token, no padding: its heads already stand by key head
        q = x.narrow(1, 0, q_heads).view(batch, kv_heads, group, dim)
    else:
        to_queries = _to_queries(batch, count // batch, kv_heads, group, queries)
        q = x.view(-1, dim).index_select(0, to_queries).view(batch, kv_heads, queries, dim)
    seen = cache.narrow(3, 0, chunks * chunk)
    if cache_rows > batch:
        seen = seen.narrow(2, 0, batch)
    k, v = seen.transpose(1, 2).unbind()
    output = _attend(q, k, v, mask, softcap)
    if queries == group and rows == count:
        return output.reshape(rows, -1).to(qkv.dtype)
    to_tokens = _to_tokens(batch, count // batch, kv_heads, group, queries, rows)
    output = output.transpose(1, 2).reshape(-1, dim).index_select(0, to_tokens)
    return output.view(rows, -1).to(qkv.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float) -> Tensor:
    """softmax(q k / sqrt(D) + mask) v, float32; mask [chunks, B, 1, queries, keys of a chunk]."""
    _, block = query_tile(q.shape[3], torch.get_num_threads())
    if q.shape[2] <= block:
        return _attend_block(q, k, v, mask, softcap)
    parts = zip(q.split(block, 2), mask.split(block, 3), strict=True)
    return torch.cat([_attend_block(part, k, v, seen, softcap) for part, seen in parts], 2)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float) -> Tensor:
    """`_attend` for as many queries as may be taken together."""
    scale = q.shape[3] ** -0.5
    chunks, chunk = mask.shape[0], mask.shape[4]
    if chunks == 1 and softcap == 0:
        return F.scaled_dot_product_attention(q, k, v, mask[0], scale=scale)
    outputs, logsumexp = [], []
    for i in range(chunks):
        keys, values = k.narrow(2, i * chunk, chunk), v.narrow(2, i * chunk, chunk)
        if softcap == 0:
            output, total = attend(q, keys, values, mask[i])
        else:
            output, total = _capped(q, keys, values, mask[i], scale, softcap)
        outputs.append(output)
        logsumexp.append(total)
    # Along the last axis: elsewhere the exponential of an entry depends on where it stands.
    weights = torch.stack(logsumexp, -1).softmax(-1).split(1, -1)
    combined: Tensor = outputs[0].mul_(weights[0])
    for output, weight in zip(outputs[1:], weights[1:], strict=True):
        combined.addcmul_(output, weight)
    return combined


def _capped(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """One chunk with soft-capped scores: output and log-sum-exp [B, kv_heads, queries].

    Gemma 2's (Gemma Team 2024). One row and tile of queries after the other, so that each product
    has the same shape whatever the number of rows and queries.
    """
    outputs, logsumexp = torch.empty_like(q), q.new_empty(q.shape[:3])
    size, _ = query_tile(q.shape[3], torch.get_num_threads())
    for b in range(q.shape[0]):
        for first in range(0, q.shape[2], size):
            tile = slice(first, first + size)
            scores = torch.matmul(q[b, :, tile], keys[b].mT).mul_(scale / softcap)
            scores = scores.tanh_().mul_(softcap).add_(mask[b, :, tile])
            highest = scores.amax(-1, keepdim=True)
            weights = scores.sub_(highest).exp_()
            total = weights.sum(-1, keepdim=True)
            outputs[b, :, tile] = torch.matmul(weights, values[b]).div_(total)
            logsumexp[b, :, tile] = highest.add_(total.log_()).squeeze(-1)
    return outputs, logsumexp


def _attention_fake(
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
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * cache.shape[1] * cache.shape[4])


attention = define(
    "attention(Tensor qkv, Tensor(a!) cache, Tensor start, Tensor cos, Tensor sin, "
    "Tensor? qk_norm, float eps, int window, float softcap) -> Tensor",
    attention_reference,
    _attention_fake,
    "attention_triton:attention",
    "attention_numba:attention",
)
