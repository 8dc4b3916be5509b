"""Weights as int8: how far off they are, and the rows that have nothing to scale by."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hybridgen.kernels import quantise as module
from hybridgen.kernels.quantise import LEAST_SCALE, dequantise, quantise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def check(weight: Tensor) -> tuple[Tensor, Tensor]:
    """What `quantise` gives, held to all that it says of it."""
    kept = weight.clone()
    q, scale = quantise(weight)
    assert torch.equal(weight, kept)
    assert (q.dtype, q.shape, scale.dtype) == (torch.int8, weight.shape, torch.float32)
    assert scale.shape == weight.shape[:1] and q.is_contiguous()
    assert scale.isfinite().all() and (scale >= LEAST_SCALE).all()
    assert q.int().abs().max() <= 127
    error = (weight.double() - q.double() * scale.double().unsqueeze(1)).abs().amax(1)
    assert (error <= scale.double() * (0.5 + 2.0**-16)).all()
    largest = weight.double().abs().amax(1)
    usual = (largest / 127).clamp(min=LEAST_SCALE)
    assert ((scale.double() - usual).abs() <= usual * 2.0**-16).all()
    back = dequantise(q, scale)
    assert torch.equal(back.double(), q.double() * scale.double().unsqueeze(1))  # exact
    for ours, again in zip((q, scale), quantise(back), strict=True):
        assert torch.equal(ours, again)
    return q, scale


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Rows of all magnitudes, subnormals included, some of zeros, some with one huge number."""
    outputs, depth = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    weight = torch.randn(outputs, depth, generator=generator, dtype=torch.float64)
    least, most = (-24, 10) if dtype == torch.float16 else (-149, 120)
    for row in weight:
        row *= 2.0 ** draw(st.integers(least, most))
        kind = draw(st.sampled_from(["usual", "zeros", "outlier", "one"]))
        if kind == "zeros":
            row.zero_()
        elif kind == "one":
            row[1:] = 0
        elif kind == "outlier":
            row[draw(st.integers(0, depth - 1))] = draw(st.sampled_from([-1, 1])) * 2.0**most
    return weight.to(dtype)


@given(weight=weights(), block=st.sampled_from([1, 50, 1 << 22]))
def test_int8_is_within_half_a_scale(weight: Tensor, block: int) -> None:
    with patch.object(module, "BLOCK", block):
        check(weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_number_of_a_row_is_127(dtype: torch.dtype) -> None:
    weight = torch.randn(200, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, _ = check(weight)
    assert (q.int().abs().amax(1) == 127).all()
    assert torch.equal(q.int().abs().amax(1), q.gather(1, weight.abs().argmax(1, True))[:, 0].abs())


def test_extreme_rows() -> None:
    largest = torch.finfo(torch.float32).max
    q, scale = check(torch.tensor([[0.0, -0.0], [1e-45, -1e-45], [largest, 1.0], [-1e-38, 1e-38]]))
    assert q[0].tolist() == q[1].tolist() == [0, 0]
    assert scale[:2].tolist() == [LEAST_SCALE] * 2
    assert q[2].tolist() == [127, 0]
    assert not dequantise(q, scale)[:2].any()


def test_rows_of_any_stride() -> None:
    wide = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    for ours, expected in zip(quantise(wide.T), quantise(wide.T.contiguous()), strict=True):
        assert torch.equal(ours, expected) and ours.is_contiguous()
    check(wide.T)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_no_number_is_refused(dtype: torch.dtype, value: float) -> None:
    weight = torch.ones(9, 5, dtype=dtype)
    weight[6, 3] = value
    with patch.object(module, "BLOCK", 20), pytest.raises(ValueError, match="row 6 of the weight"):
        quantise(weight)


def test_no_more_than_a_block_is_float32_at_a_time() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore
            result = op(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dtype == torch.float32:
                largest.append(result.numel())
            return result

    largest: list[int] = []
    with patch.object(module, "BLOCK", 600), Sizes():
        quantise(torch.ones(50, 100, dtype=torch.bfloat16))
    assert 100 < max(largest) <= 600
