"""Calls of attention, and a plain float64 attention to check what they return and write."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from on_device import bits, move, poisoned
from test_attention import rope_table, rotate
from torch import Tensor

from hybridgen.kernels.attention import attention
from hybridgen.kernels.attention_plan import prepare

NAN = float("nan")
EPS = 0.1  # large enough that leaving it out shows
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """Arguments of one call, on the CPU; ``cache`` is NaN wherever no query may look."""

    qkv: Tensor
    cache: Tensor
    start: tuple[int, ...]
    table: Tensor
    norm: Tensor | None
    window: int = 0
    softcap: float = 0.0
    tokens: int = 1

    @property
    def dim(self) -> int:
        return self.cache.shape[4]

    @property
    def kv_heads(self) -> int:
        return self.cache.shape[1]

    @property
    def q_heads(self) -> int:
        return self.qkv.shape[1] // self.dim - 2 * self.kv_heads

    @property
    def count(self) -> int:
        return len(self.start) * self.tokens

    def position(self, row: int) -> int:
        return max(self.start[row // self.tokens] + row % self.tokens, 0)


def make_case(
    start: tuple[int, ...],
    tokens: int,
    heads: tuple[int, int] = (4, 2),
    dim: int = 32,
    dtype: torch.dtype = torch.float32,
    window: int = 0,
    softcap: float = 0.0,
    norm: bool = True,
    positions: int = 256,
    spare: int = 0,
) -> Case:
    """``spare`` counts padding rows, and rows of the cache beyond the batch."""
    torch.manual_seed(hash((start, tokens, heads, dim, window)) % 2**31)
    q_heads, kv_heads = heads
    width = (q_heads + 2 * kv_heads) * dim
    qkv = torch.full((len(start) * tokens + spare, width), NAN)
    cache = torch.full((2, kv_heads, len(start) + spare, positions, dim), NAN)
    for b, first in enumerate(start):
        row = b * tokens
        qkv[row : row + tokens] = torch.randn(tokens, width)
        qkv[row : row + max(-first, 0) + 1] = qkv[row]  # tokens that share position 0 are equal
        first = max(first, 0)
        lowest = max(first - window + 1, 0) if window else 0
        cache[:, :, b, lowest:first] = torch.randn(2, kv_heads, first - lowest, dim)
    weight = 1 + 0.3 * torch.randn(q_heads + kv_heads, dim) if norm else None
    return Case(
        qkv.to(dtype),
        cache.to(dtype),
        start,
        rope_table(positions, dim),
        None if weight is None else weight.to(dtype),
        window,
        softcap,
        tokens,
    )


def alone(c: Case, row: int, cache: Tensor) -> Case:
    """One token of ``c`` in a call of its own, over what the call of all left in ``cache``."""
    b = row // c.tokens
    return replace(
        c,
        qkv=c.qkv[row : row + 1],
        cache=cache[:, :, b : b + 1],
        start=(c.position(row),),
        tokens=1,
    )


def run(device: torch.device, c: Case) -> tuple[Tensor, Tensor]:
    """Output and written cache, on the CPU; raises where the kernels wrote to anything else."""
    start = torch.tensor(c.start)
    angles = prepare(start, c.tokens, c.table, (c.window,), c.q_heads // c.kv_heads)
    tensors = (c.qkv, c.cache, start, *angles, c.norm)
    given = [None if t is None else move(t, device) for t in tensors]
    arguments: Any = (*given, EPS, c.window, c.softcap)
    with poisoned():
        op = attention.launcher() if device.type == "cpu" else attention
        output = op(*arguments)
    for i, (before, after) in enumerate(zip(tensors, given, strict=True)):
        if before is not None and after is not None and i != 1:
            assert torch.equal(bits(after.cpu()), bits(before)), f"argument {i} was written to"
    return output.cpu(), arguments[1].cpu()


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """Largest relative error: half an ulp, but the interpreter cuts bfloat16 off."""
    eps = torch.finfo(dtype).eps
    return eps if dtype == torch.bfloat16 and device.type == "cpu" else eps / 2


def check_cache(device: torch.device, c: Case, written: Tensor) -> None:
    """New keys and values stand at their positions, and nothing else changed a bit."""
    expected = c.cache.clone()
    heads = c.qkv.view(len(c.qkv), -1, c.dim)
    unit = rounding(c.cache.dtype, device)
    for row in range(c.count):
        b, at = row // c.tokens, c.position(row)
        k, v = heads[row, c.q_heads :].chunk(2)
        exact, size = prepared(c, k, slice(c.q_heads, None), at)
        # Rounded once to the cache's dtype. In float32 before: the mean of D squares is off by at
        # most D half ulps and counts half in its root; some ten operations follow.
        bound = (unit + (c.dim / 2 + 16) * 2.0**-24) * size
        assert ((written[0, :, b, at].double() - exact).abs() <= bound).all(), f"row {row}"
        expected[0, :, b, at] = written[0, :, b, at]
        expected[1, :, b, at] = v.to(c.cache.dtype)
    assert torch.equal(bits(written), bits(expected))


def prepared(c: Case, x: Tensor, heads: slice, position: int) -> tuple[Tensor, Tensor]:
    """``x`` [heads, D] normalised and rotated in float64, and the size of the terms it sums."""
    x = x.double()
    if c.norm is not None:
        x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * c.norm[heads].double()
    cos, sin = c.table[:, position, 0].double().abs()
    return rotate(x, position, c.table), x.abs() * cos + x.roll(c.dim // 2, -1).abs() * sin


def check_output(device: torch.device, c: Case, output: Tensor, cache: Tensor) -> None:
    """Each query's attention over the keys and values as ``cache`` holds them.

    Bounds to first order, in the `rounding` u of the cache's dtype and e of float32. A score is a
    sum of D products, of queries rounded to u after about D/2 + 16 operations: its error is at most

        ds = (u + (3 D / 2 + 16) e) sum |q| |k| / sqrt(D) + 8 e |s|     (and 8 e cap)

    A weight is then off by a factor of 1 + ds, in numerator and denominator, and rounded to u and
    summed over n keys in float32: 2 ds + u + (n + 32) e of the weighted mean of |v|. The output is
    rounded once more, to its own dtype.
    """
    unit, single = rounding(c.cache.dtype, device), 2.0**-24
    heads = c.qkv.view(len(c.qkv), -1, c.dim)
    ours = output.view(len(c.qkv), c.q_heads, c.dim).double()
    assert ours[c.count :].isfinite().all()
    for row in range(c.count):
        b, at = row // c.tokens, c.position(row)
        lowest = max(at - c.window + 1, 0) if c.window else 0
        q, size = prepared(c, heads[row, : c.q_heads], slice(0, c.q_heads), at)
        q, size = (t.view(c.kv_heads, -1, c.dim) for t in (q, size))
        k, v = cache[:, :, b, lowest : at + 1].double()
        scores = q @ k.mT / math.sqrt(c.dim)
        products = size @ k.abs().mT / math.sqrt(c.dim)
        error = (unit + (1.5 * c.dim + 16) * single) * products + 8 * single * scores.abs()
        if c.softcap:
            scores = c.softcap * torch.tanh(scores / c.softcap)
            error = error + 8 * single * c.softcap
        weights = torch.softmax(scores, -1)
        exact = weights @ v
        worst = error.amax(-1, keepdim=True)
        keys = at + 1 - lowest
        bound = (2 * worst + unit + (keys + 32) * single) * (weights @ v.abs())
        bound = bound + rounding(c.qkv.dtype, device) * exact.abs()
        wrong = (ours[row].view_as(exact) - exact).abs() / bound
        assert wrong.max() <= 1, f"row {row}: {wrong.max():.3g} times the bound"
