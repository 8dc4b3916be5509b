"""Attention of one or five new tokens over a static cache, 32 query and 8 key heads of 128.

The op also normalises, rotates, and writes the new keys and values to the cache; its baselines
only attend, over a cache that holds them already.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from harness import Case, Target, close, copies
from peers import installed
from shapes import normal
from torch import Tensor

from hybridgen.kernels.attention import attention

HEADS, KV_HEADS, DIM = 32, 8, 128
TARGETS = {
    (1024, 1): Target(microseconds=7),
    (32768, 1): Target(bandwidth=0.8),
    (32768, 5): Target(bandwidth=0.8),
}


def reference(qkv: Tensor, cache: Tensor, *rest: Any) -> Any:
    """On a CPU the cache is float32, as attention is."""
    return attention.reference(qkv, cache.float(), *rest)


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("keys", [1024, 4096, 32768])
def bench_attention(run: Run, device: torch.device, keys: int, queries: int) -> None:
    """``keys`` in all, those of the new tokens included."""
    angles = torch.arange(keys - queries, keys, device=device).view(-1, 1, 1) / 100
    angles = angles.expand(queries, 1, DIM)
    start = torch.tensor([keys - queries], device=device)
    # In float32 on a CPU, where attention computes in it.
    cache_dtype = torch.float32 if device.type == "cpu" else torch.bfloat16

    def make(seed: int) -> tuple[Any, ...]:
        qkv = normal(seed, queries, (HEADS + 2 * KV_HEADS) * DIM, device=device)
        cache = normal(seed + 1000, 2, KV_HEADS, 1, keys, DIM, device=device).to(cache_dtype)
        norm = torch.ones(HEADS + KV_HEADS, DIM, dtype=cache_dtype, device=device)
        cos, sin = angles.cos(), angles.sin()
        return qkv, cache, start, cos, sin, norm, 1e-6, 0, 0.0

    inputs = copies(make, device)
    mask = torch.arange(keys, device=device) <= torch.arange(
        keys - queries, keys, device=device
    ).unsqueeze(1)

    def sdpa(i: int) -> Tensor:
        q = inputs[i][0][:, : HEADS * DIM].view(1, queries, HEADS, DIM).transpose(1, 2)
        k, v = (half.transpose(0, 1) for half in inputs[i][1])
        return F.scaled_dot_product_attention(q.to(k.dtype), k, v, mask, enable_gqa=True)

    run(
        Case(
            f"attention, {keys} keys, queries: {queries}",
            attention,
            inputs,
            nbytes=inputs[0][1].nbytes,
            agree=close,
            reference=reference,
            baselines={"SDPA": sdpa, **others(inputs, keys, queries, device)},
            target=TARGETS.get((keys, queries)),
        )
    )


def others(
    inputs: list[tuple[Any, ...]], keys: int, queries: int, device: torch.device
) -> dict[str, Any]:
    """flash-attn and FlashInfer, whose caches have positions before heads."""
    flash, flashinfer = (installed(name, device) for name in ("flash_attn", "flashinfer"))
    if flash is None and flashinfer is None:
        return {"flash-attn": None, "FlashInfer": None}
    caches = [arguments[1].permute(0, 2, 3, 1, 4).contiguous() for arguments in inputs]
    lengths = torch.tensor([keys], dtype=torch.int32, device=device)
    q = [arguments[0][:, : HEADS * DIM].view(queries, HEADS, DIM) for arguments in inputs]

    def by_flash(i: int) -> Any:
        k, v = caches[i]
        return flash.flash_attn_with_kvcache(
            q[i].unsqueeze(0), k, v, cache_seqlens=lengths, causal=True
        )

    def by_flashinfer(i: int) -> Any:
        k, v = caches[i][:, 0]
        if queries == 1:
            return flashinfer.single_decode_with_kv_cache(q[i][0], k, v)
        return flashinfer.single_prefill_with_kv_cache(q[i], k, v, causal=True)

    return {
        "flash-attn": by_flash if flash else None,
        "FlashInfer": by_flashinfer if flashinfer else None,
    }
