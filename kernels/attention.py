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

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgen.kernels.layers import rms_norm
from hybridgen.kernels.query_tile import KEYS, attend, query_tile
from hybridgen.kernels.registry import define

KEY_CHUNK = KEYS
MASKED = -1e30  # finite, so that a chunk without a visible key has a weight of 0 and not 0 / 0


@dataclass(frozen=True)
class Plan:
    """What all layers of one forward share. ``index`` and ``masks`` exist only on CPU.

    start     int64 [B]; position of each row's first token, may be -1 (counts as 0)
    cos, sin  float32 [B * M, 1, D]; the tokens' rows of the rotary table
    index     int64 [B * M]; where each token goes among the cache's rows * positions
    masks     window -> float32 [chunks, B, 1, queries, keys of a chunk]; 0 where a query sees a
              key, else `MASKED`
    """

    start: Tensor
    cos: Tensor
    sin: Tensor
    index: Tensor | None
    masks: dict[int, Tensor | None]


def make_plan(
    start: Tensor,
    tokens: int,
    rope: Tensor,
    windows: Sequence[int],
    group: int,
    batch_invariant: bool = True,
) -> Plan:
    """The plan of a forward on CPU, over ``tokens`` tokens a row.

    rope             float32 [2, positions, 1, D], the table of cosines and signed sines, as many
                     positions as the cache has
    windows          the distinct window sizes of the layers, 0 for none
    group            query heads per key head
    batch_invariant  False: bits may depend on other tokens and rows; queries are then not padded,
                     and all keys are one chunk

    It reads the largest start, to leave unwritten chunks of keys out. On a GPU, where that would
    be a wait, cosines and sines come from `layers.embed` and the kernels need nothing else.
    """
    column = start.unsqueeze(1)
    at = (column + _arange(tokens)).clamp_min_(0)
    cos, sin = rope.index_select(1, at.view(-1)).unbind()
    batch, positions = len(start), rope.shape[1]
    longest = max(max(start.tolist()) + tokens, 1)
    keys = min(-(-longest // KEY_CHUNK) * KEY_CHUNK, positions)
    if batch > 1:
        at.add_(_arange(batch, positions).unsqueeze(1))
    tile, chunk = 1, keys
    if batch_invariant:
        tile, chunk = query_tile(rope.shape[3], torch.get_num_threads())[0], KEY_CHUNK
    reversed_query = _reversed_queries(tokens, group, tile, positions)
    band = (reversed_query - column).clamp_max_(positions - 1).view(-1)
    masks: dict[int, Tensor | None] = {}
    for window in windows:
        mask = _bands(positions, keys, window).index_select(0, band)
        masks[window] = mask.view(batch, 1, -1, keys // chunk, chunk).movedim(3, 0)
    return Plan(start, cos, sin, at.view(-1), masks)


@lru_cache(maxsize=64)
def _arange(count: int, step: int = 1) -> Tensor:
    return torch.arange(0, count * step, step, dtype=torch.int64, device="cpu")


@lru_cache(maxsize=64)
def _reversed_queries(tokens: int, group: int, tile: int, positions: int) -> Tensor:
    """int64 [queries]: positions - 1 - token of each query row; padding repeats the last token."""
    queries = -(-tokens * group // tile) * tile
    token = (_arange(queries) // group).clamp_max_(tokens - 1)
    return positions - 1 - token


@lru_cache(maxsize=64)
def _bands(positions: int, keys: int, window: int) -> Tensor:
    """float32 [positions, keys] view: row ``positions - 1 - p`` is the mask of a query at p.

    All rows are windows into one vector of 2 * positions: 0 (the keys up to p), then `MASKED`.
    """
    vector = torch.zeros(2 * positions, dtype=torch.float32, device="cpu")
    vector[positions:] = MASKED
    if window:
        vector[: max(positions - window, 0)] = MASKED
    return vector.as_strided((positions, keys), (1, 1))


@lru_cache(maxsize=64)
def _to_queries(batch: int, tokens: int, kv_heads: int, group: int, queries: int) -> Tensor:
    """int64 [batch * kv_heads * queries]: the (token, head) of each query row, of all heads.

    A key head's queries, tokens x group, stand together so that its keys are read once for all.
    """
    heads = (group + 2) * kv_heads
    row = _arange(queries).clamp_max(tokens * group - 1)
    head = _arange(kv_heads).unsqueeze(1) * group + row % group
    first = _arange(batch).view(batch, 1, 1) * tokens
    return ((first + row // group) * heads + head).view(-1)


@lru_cache(maxsize=64)
def _to_tokens(
    batch: int, tokens: int, kv_heads: int, group: int, queries: int, rows: int
) -> Tensor:
    """int64 [rows * q_heads]: where each (token, head) stands in [batch, queries, kv_heads]."""
    row = _arange(rows).clamp_max(batch * tokens - 1).unsqueeze(1)
    head = _arange(kv_heads * group)
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
    index: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """One layer's attention.

    qkv      [R, (q_heads + 2 kv_heads) * D], any row stride; rows beyond B * M are padding
    cache    [2 (k, v), kv_heads, rows >= B, positions, D], written in place; positions a multiple
             of `KEY_CHUNK` that has room for every new token, the last two axes contiguous
    qk_norm  [q_heads + kv_heads, D] or None; eps is its epsilon
    window   keys a query sees, its own included; 0 for all
    softcap  scores s become softcap * tanh(s / softcap) before the softmax; 0 for none
    start, cos, sin, index, mask   of the plan; it is made here where index and mask are None
    Returns [R, q_heads * D] in qkv's dtype; padding rows are finite.
    """
    _, kv_heads, cache_rows, positions, dim = cache.shape
    rows, width = qkv.shape
    heads = width // dim
    q_heads = heads - 2 * kv_heads
    group = q_heads // kv_heads
    if index is None or mask is None:
        tokens = cos.shape[0] // start.shape[0]
        rope = cos.new_zeros(1).expand(2, positions, 1, dim)
        plan = make_plan(start, tokens, rope, (window,), group)
        index, mask = plan.index, plan.masks[window]
        assert index is not None and mask is not None
    chunks, batch, _, queries, chunk = mask.shape
    count = index.shape[0]

    x = (qkv.clone() if qkv.dtype == torch.float32 else qkv.float()).view(rows, heads, dim)
    if rows > count:
        x = x.narrow(0, 0, count)
    qk = x.narrow(1, 0, q_heads + kv_heads)
    normed = qk if qk_norm is None else rms_norm(qk, qk_norm, eps)
    torch.addcmul(normed * cos, normed.roll(dim // 2, -1), sin, out=qk)
    new = x.narrow(1, q_heads, 2 * kv_heads).transpose(0, 1)
    cache.view(2 * kv_heads, cache_rows * positions, dim).index_copy_(1, index, new)

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
    index: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * cache.shape[1] * cache.shape[4])


attention = define(
    "attention(Tensor qkv, Tensor(a!) cache, Tensor start, Tensor cos, Tensor sin, "
    "Tensor? qk_norm, float eps, int window, float softcap, Tensor? index, Tensor? mask) -> Tensor",
    attention_reference,
    _attention_fake,
    "attention_triton:attention",
)
