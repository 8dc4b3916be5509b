"""The step between a prompt's QKV product and its attention, both ways, against float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import bits, launch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridgen.kernels.cache_write import cache_write

EPS = 0.1  # large enough that leaving it out shows
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(
    count: int,
    heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
    norm: bool,
    cache_dtype: torch.dtype | None = None,
) -> tuple[Any, ...]:
    """Arguments of a call: rows of qkv are apart, the cache is a part of one of NaN."""
    generator = torch.Generator().manual_seed(count)
    q_heads, kv_heads = heads

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    qkv = torch.full((count, (q_heads + 2 * kv_heads) * dim + 16), torch.nan, dtype=dtype)
    qkv[:, 16:] = random(count, qkv.shape[1] - 16)
    cache = torch.full((2, kv_heads, 3, 40, dim), torch.nan, dtype=cache_dtype or dtype)
    weight = 1 + 0.3 * random(q_heads + kv_heads, dim) if norm else None
    cos, sin = random(2, 50, 1, dim)[:, 7 : 7 + count].unbind()
    weight = None if weight is None else weight.to(cache.dtype)
    return qkv[:, 16:], cache[:, :, 1, 5 : 5 + count], cos, sin, weight, EPS


def expected(qkv: Tensor, cache: Tensor, cos: Tensor, sin: Tensor, norm: Any) -> list[Tensor]:
    """float64 q, k, v [n, heads, D], each with the size of the terms it sums."""
    _, kv_heads, count, dim = cache.shape
    x = qkv.double().view(count, -1, dim)
    qk, v = x[:, :-kv_heads], x[:, -kv_heads:]
    if norm is not None:
        qk = qk / (qk.square().mean(-1, keepdim=True) + EPS).sqrt() * norm.double()
    turned = qk * cos + qk.roll(dim // 2, -1) * sin
    size = (qk * cos).abs() + (qk.roll(dim // 2, -1) * sin).abs()
    heads = qk.shape[1] - kv_heads
    return [turned[:, :heads], size[:, :heads], turned[:, heads:], size[:, heads:], v, v.abs()]


def check(q: Tensor, arguments: tuple[Any, ...], cut: bool) -> None:
    """Rounded once, after sums of D squares and some ten operations in float32."""
    qkv, cache, cos, sin, norm, _ = arguments
    found = q, cache[0].transpose(0, 1), cache[1].transpose(0, 1)
    exact = expected(qkv, cache, cos, sin, norm)
    for ours, value, size in zip(found, exact[::2], exact[1::2], strict=True):
        unit = torch.finfo(ours.dtype).eps / (1 if cut and ours.dtype == torch.bfloat16 else 2)
        bound = (unit + (cache.shape[3] / 2 + 16) * 2.0**-24) * size
        assert ((ours.double() - value).abs() <= bound).all()


@settings(max_examples=30)
@given(
    count=st.integers(1, 35),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    dim=st.sampled_from([2, 12, 32, 80]),
    dtype=st.sampled_from(DTYPES),
    norm=st.booleans(),
)
def test_queries_keys_and_values_are_those_of_the_definition(
    device: torch.device,
    count: int,
    heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
    norm: bool,
) -> None:
    given_ = make(count, heads, dim, dtype, norm)
    whole = given_[1]._base
    assert whole is not None
    before = bits(whole).clone()
    moved = [a.to(device) if isinstance(a, Tensor) and device.type != "cpu" else a for a in given_]
    op = cache_write.launcher() if device.type == "cpu" else cache_write
    q = op(*moved)
    after = (*given_[:1], moved[1].cpu(), *given_[2:])
    check(q.cpu(), after, cut=device.type == "cpu")
    if device.type == "cpu":
        given_[1].fill_(torch.nan)
        assert torch.equal(bits(whole), before)  # nothing else was written


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_keeps_float32_keys(dtype: torch.dtype, norm: bool) -> None:
    arguments = make(7, (4, 2), 16, dtype, norm, torch.float32)
    q = cache_write(*arguments)
    assert q.dtype == dtype and q.is_contiguous()
    check(q, arguments, cut=False)


def test_a_token_depends_on_that_token_alone(device: torch.device) -> None:
    arguments = make(33, (4, 2), 32, torch.bfloat16, True)
    qkv, cache, cos, sin, norm, eps = arguments
    q = launch(cache_write, device, *arguments)
    for i in (0, 15, 16, 32):
        row = slice(i, i + 1)
        alone = qkv[row], cache[:, :, row], cos[row], sin[row], norm, eps
        assert torch.equal(bits(launch(cache_write, device, *alone)), bits(q[row]))


@pytest.mark.parametrize("device_name", ["cpu", "cuda"])
def test_fake_results_look_like_real_ones(device_name: str) -> None:
    arguments = make(7, (4, 2), 16, torch.bfloat16, True)
    q = cache_write(*arguments)
    with FakeTensorMode():
        fakes = [
            torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device=device_name)
            if isinstance(a, Tensor)
            else a
            for a in arguments
        ]
        fake = cache_write(*fakes)
    assert (fake.shape, fake.dtype, fake.device.type) == (q.shape, q.dtype, device_name)
    torch.library.opcheck(
        torch.ops.hybridgen.cache_write.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )
