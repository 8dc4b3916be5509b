"""What is compiled around a CPU's products, against float64, and bit by bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from on_device import bits, poisoned
from torch import Tensor

from hybridgen.kernels import linear, linear_numba, numba_utils
from hybridgen.kernels.linear_numba import gated, rms_norm
from hybridgen.kernels.numba_utils import exp, rounded, wide
from hybridgen.kernels.quantise import quantise

DTYPES = (torch.float32, torch.bfloat16)


def ulps(found: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """The largest relative error, in units of the dtype's half ulp."""
    scale = exact.abs().clamp_min(1e-30)
    return float(((found.double() - exact) / scale).abs().max() / (torch.finfo(dtype).eps / 2))


@njit
def _exp_of(x, y):
    for i in range(len(x)):
        y[i] = exp(x[i])


@njit
def _copied(x, y):
    for i in range(len(x)):
        y[i] = rounded(wide(x[i]), y)


def array(tensor: Tensor) -> np.ndarray:
    """Of bfloat16 the bits, as uint16."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def test_the_exponential() -> None:
    x = -np.abs(np.concatenate([np.random.default_rng(0).exponential(5, 100_000), [0, 80, 1e30]]))
    x = x.astype(np.float32)
    y = np.empty_like(x)
    _exp_of(x, y)
    exact = np.exp(np.maximum(x.astype(np.float64), -126 * np.log(2)))
    # x log2(e) is rounded once: an error of |y| 2**-24 in the exponent, at most 2**-17.5 there.
    error = np.abs(y / exact - 1)
    assert (error < 2.0**-21 + np.abs(x) * 2.0**-23).all()
    assert y[-3] == 1 and (y > 0).all()


@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_numbers_are_converted_as_torch_converts_them(target: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    near = torch.cat([every.float() * (1 + d * 2.0**-9) for d in (-1.01, -1, -0.5, 0, 0.5, 1)])
    for source in (every, near):
        found = torch.empty(len(source), dtype=target)
        _copied(array(source), array(found))
        expected = source.to(target)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.floats(-20, 20), st.integers(0, 2**31))
def test_the_norm(dtype: torch.dtype, rows: int, width: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=generator) * 2.0**size).to(dtype)
    weight = (1 + 0.3 * torch.randn(width, generator=generator)).to(dtype)
    with poisoned():
        y = rms_norm(x, weight, 1e-5)
    wide_x = x.double()
    exact = wide_x / (wide_x.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    # Rounded after the norm and after the weight; in float32 the mean of H squares is off by at
    # most H half ulps, half of that in its root, and four operations follow.
    bound = 2.01 if dtype == torch.bfloat16 else width / 2 + 6
    assert ulps(y, exact, dtype) <= bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), st.floats(0, 6), st.integers(0, 2**31))
def test_the_gate(dtype: torch.dtype, rows: int, inner: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    both = (torch.randn(rows, 2 * inner, generator=generator) * 2.0**size).to(dtype)
    with poisoned():
        y = gated(both)
    gate, up = both.double().chunk(2, 1)
    exact = torch.nn.functional.silu(gate) * up
    near_zero = gate.abs() > 80  # e**-|x| is cut at 2**-126
    error = ((y.double() - exact).abs() / exact.abs().clamp_min(1e-30))[~near_zero]
    bound = 2.01 * torch.finfo(dtype).eps / 2 + (2.0**-20 + 80 * 2.0**-23)
    assert (error <= bound).all()
    assert (y.double() - exact)[near_zero].abs().le(1e-30 + bound * exact[near_zero].abs()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_computed_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, both = torch.randn(7, 45).to(dtype), torch.randn(7, 90).to(dtype)
    weight = torch.randn(45).to(dtype)
    x[3], both[3] = torch.nan, torch.nan
    normed, inner = rms_norm(x, weight, 1e-5), gated(both)
    assert normed[3].isnan().all() and inner[3].isnan().all()
    for row in range(7):
        if row != 3:
            assert torch.equal(bits(rms_norm(x[row : row + 1], weight, 1e-5)[0]), bits(normed[row]))
            assert torch.equal(bits(gated(both[row : row + 1])[0]), bits(inner[row]))
    assert torch.equal(bits(rms_norm(x.repeat(1, 2)[:, :45], weight, 1e-5)[:3]), bits(normed[:3]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("int8", [False, True])
def test_the_ops_are_those_of_linear(dtype: torch.dtype, int8: bool) -> None:
    torch.manual_seed(1)
    x, norm = torch.randn(3, 32).to(dtype), (1 + 0.1 * torch.randn(32)).to(dtype)
    weight, bias = torch.randn(24, 32).to(dtype), torch.randn(24).to(dtype)
    weight, scale = quantise(weight) if int8 else (weight, None)
    # A norm that is rounded the other way moves a sum of 32 by some ulps of its terms.
    tolerance = 0.1 if dtype == torch.bfloat16 else 2e-5
    for found, reference in (
        (linear_numba.norm_linear, linear.norm_linear_reference),
        (linear_numba.norm_gated_linear, linear.norm_gated_linear_reference),
    ):
        y = found(x, norm, 1e-5, weight, bias, scale)
        expected = reference(x, norm, 1e-5, weight, bias, scale)
        assert y.dtype == dtype
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


def test_without_a_place_for_the_cache_it_is_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def nowhere(**options: object) -> object:
        asked.append("cache" in options)
        if asked[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba_utils, "njit", nowhere)

    def twice(x: int) -> int:
        return 2 * x

    assert numba_utils.compiled(twice)(3) == 6
    assert asked == [True, False]
