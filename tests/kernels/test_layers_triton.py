"""The embedding and norm kernels against loops in plain Python and float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import bits, launch
from torch import Tensor

from hybridgen.kernels.layers import embed, normalize

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VOCAB, POSITIONS = 11, 9


def tables(width: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An embedding and a rotary table, each the middle of a larger NaN tensor."""
    embedding = torch.full((VOCAB + 2, width), torch.nan, dtype=dtype)
    embedding[1:-1] = torch.randn(VOCAB, width, generator=torch.Generator().manual_seed(width))
    rope = torch.full((4, POSITIONS, 1, dim), torch.nan)
    rope[1:-1] = torch.randn(2, POSITIONS, 1, dim, generator=torch.Generator().manual_seed(dim))
    return embedding[1:-1], rope[1:-1]


def embed_naive(tokens: Tensor, start: Tensor, embedding: Tensor, rope: Tensor) -> list[Tensor]:
    x, cos, sin = [], [], []
    for row, first in zip(tokens.tolist(), start.tolist(), strict=True):
        for i, token in enumerate(row):
            at = min(max(first + i, 0), POSITIONS - 1)
            x.append(embedding[min(max(token, 0), VOCAB - 1)])
            cos.append(rope[0, at])
            sin.append(rope[1, at])
    return [torch.stack(x), torch.stack(cos), torch.stack(sin)]


def check_embed(device: torch.device, *arguments: Any) -> None:
    results = launch(embed, device, *arguments)
    for result, expected in zip(results, embed_naive(*arguments), strict=True):
        assert result.dtype == expected.dtype and result.shape == expected.shape
        assert torch.equal(bits(result), bits(expected))


@given(data=st.data())
@settings(max_examples=100)
def test_rows_of_the_embedding_and_of_the_rotary_table(
    device: torch.device, data: st.DataObject
) -> None:
    """Tokens of any strides; ids and positions far out of bounds count as the nearest in them."""
    batch, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    spare = data.draw(st.integers(0, 2))
    wild = st.one_of(st.integers(-2, VOCAB + 2), st.sampled_from([-(2**63), 2**63 - 1]))
    ids = st.lists(wild, min_size=batch * (count + spare), max_size=batch * (count + spare))
    tokens = torch.tensor(data.draw(ids)).view(batch, count + spare)[:, spare:]
    if data.draw(st.booleans()):
        tokens = tokens.t().contiguous().t()
    starts = st.lists(st.integers(-6, POSITIONS + 6), min_size=2 * batch, max_size=2 * batch)
    start = torch.tensor(data.draw(starts))[:: data.draw(st.sampled_from([1, 2]))][:batch]
    width, dim = data.draw(st.integers(1, 70)), data.draw(st.sampled_from([2, 8, 12, 32]))
    check_embed(device, tokens, start, *tables(width, dim, data.draw(st.sampled_from(DTYPES))))


@pytest.mark.parametrize("width", [96, 896, 3584, 4096, 8192])
def test_rows_as_wide_as_models_are(device: torch.device, width: int) -> None:
    tokens, start = torch.tensor([[3, 10], [0, 1]]), torch.tensor([-1, 5])
    check_embed(device, tokens, start, *tables(width, 128, torch.bfloat16))


# --- the norm ---


def norm_bound(x: Tensor, weight: Tensor, eps: float, unit: float) -> tuple[Tensor, Tensor]:
    """The formula in float64, and how far off a right kernel may be.

    Half of a float32 sum's n roundings, and a few; two roundings to the dtype by ``unit``, of which
    the first may cut off at the least subnormal number and the weight then multiplies that.
    """
    least = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    x, weight = x.double(), weight.double()
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    relative = (x.shape[-1] / 2 + 8) * 2.0**-24 + 2 * unit
    return y, relative * (1 + unit) * y.abs() + least * (1 + weight.abs())


@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 5),
    width=st.one_of(st.integers(1, 300), st.sampled_from([512, 896, 1024, 4096])),
    apart=st.integers(0, 20),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    eps=st.sampled_from([1e-6, 1e-2]),
)
@settings(max_examples=60)
def test_the_norm(
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    width: int,
    apart: int,
    scale: float,
    eps: float,
) -> None:
    """Rows of any stride, with NaN between them."""
    generator = torch.Generator().manual_seed(width)
    wide = torch.full((rows, width + apart), torch.nan, dtype=dtype)
    x = wide[:, :width].copy_(torch.randn(rows, width, generator=generator) * scale)
    weight = torch.randn(width, generator=generator).to(dtype)
    result = launch(normalize, device, x, weight, eps)
    # Half a unit in the last place; the interpreter cuts to bfloat16, which costs a whole one.
    unit = torch.finfo(dtype).eps / 2
    unit *= 2 if dtype == torch.bfloat16 and device.type == "cpu" else 1
    expected, bound = norm_bound(x, weight, eps, unit)
    assert result.dtype == dtype and result.shape == x.shape and result.is_contiguous()
    assert ((result.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_the_norm_depends_on_that_row_alone(
    device: torch.device, dtype: torch.dtype
) -> None:
    """Traps 19 and 27: in any order, with any number of others, some of them NaN."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(33, 600, generator=generator).to(dtype)
    weight = torch.randn(600, generator=generator).to(dtype)
    together = bits(launch(normalize, device, x, weight, 1e-6))
    order = torch.randperm(33, generator=generator)
    assert torch.equal(bits(launch(normalize, device, x[order], weight, 1e-6)), together[order])
    for rows in range(1, 33):
        assert torch.equal(bits(launch(normalize, device, x[:rows], weight, 1e-6)), together[:rows])
    x[::2] = torch.nan
    broken = launch(normalize, device, x, weight, 1e-6)
    assert torch.equal(bits(broken)[1::2], together[1::2])
    assert broken[::2].isnan().all()


def test_a_norm_of_zeros_is_zero(device: torch.device) -> None:
    x, weight = torch.zeros(2, 40), torch.ones(40)
    assert not launch(normalize, device, x, weight, 1e-6).any()
