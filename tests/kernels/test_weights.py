"""Integer weights are exponentials, never decrease with the logit, and are the same everywhere."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridgen.kernels.weights import ONE, UNDERFLOW, rate, weights
from hybridgen.kernels.weights_triton import heat_of, key_of, logit_of, rate_of
from hybridgen.kernels.weights_triton import weights as triton_weights

INF = float("inf")
temperatures = st.floats(2.0**-20, 2.0**20, width=32) | st.floats(
    min_value=0, exclude_min=True, allow_infinity=False, width=32
)
logits = st.floats(-(2.0**100), 2.0**100, width=32)


@triton.jit
def weights_kernel(x_ptr, temperature_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    rate = rate_of(heat_of(tl.load(temperature_ptr)))
    tl.store(out_ptr + i, triton_weights(x, tl.max(x, 0), rate))


@triton.jit
def keys_kernel(x_ptr, key_ptr, back_ptr, SHIFT: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(key_ptr + i, key_of(x, SHIFT))
    tl.store(back_ptr + i, logit_of(key_of(x, 0)))


def on_device(x: np.ndarray, temperature: float, device: torch.device) -> np.ndarray:
    """Weights of one row of a power of two logits, by Triton."""
    out = torch.empty(len(x), dtype=torch.int64, device=device)
    weights_kernel[(1,)](
        torch.from_numpy(x).to(device),
        torch.tensor([temperature], device=device),
        out,
        N=len(x),
        enable_fp_fusion=False,
    )
    return out.cpu().numpy()


def of_row(x: np.ndarray, temperature: float) -> np.ndarray:
    return weights(x, x.max(), rate(np.float32([temperature])))


@settings(max_examples=60)
@given(st.lists(logits | st.just(-INF), min_size=15, max_size=15), logits, temperatures)
def test_triton_and_numpy_agree_to_the_bit(
    device: torch.device, row: list[float], last: float, temperature: float
) -> None:
    x = np.array([*row, last], np.float32)
    np.testing.assert_array_equal(on_device(x, temperature, device), of_row(x, temperature))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_triton_and_numpy_agree_on_ordinary_rows(device: torch.device, temperature: float) -> None:
    x = np.random.default_rng(0).normal(0, 6, 4096).astype(np.float32)
    np.testing.assert_array_equal(on_device(x, temperature, device), of_row(x, temperature))


@given(st.lists(st.floats(-30, 0, width=32), min_size=1, max_size=40), st.floats(0.25, 3, width=32))
def test_a_weight_is_its_exponential(row: list[float], temperature: float) -> None:
    x = np.array([0, *row], np.float32)
    exact = np.exp(x.astype(np.float64) / np.float32(temperature)) * ONE
    y = np.abs(x / np.float32(temperature)) / np.log(2)
    # f is rounded to 2**-20, y twice to 2**-24 of its size, and the floor cuts off less than 1.
    error = exact * (2.0**-21 + y * 2.0**-23) + 1
    assert (np.abs(of_row(x, temperature) - exact) <= error)[y < -UNDERFLOW].all()


def test_the_maximum_weighs_one_and_minus_infinity_nothing() -> None:
    x = np.array([3.0, -INF, 3.0, -1e30], np.float32)
    assert of_row(x, 0.7).tolist() == [ONE, 0, ONE, 0]


def test_a_larger_logit_never_weighs_less() -> None:
    """Every f there is, across three powers of two: the steps are wider than the rounding."""
    x = -np.arange(3 * 2**20, dtype=np.float32)[::-1] * np.float32(2.0**-20)
    w = weights(x, np.float32(0), np.float32(1))
    assert (np.diff(w) >= 0).all()
    assert (np.diff(w) > 0).mean() > 0.999  # it is not that they are all the same


@pytest.mark.parametrize(
    ("dtype", "shift"), [(torch.float32, 0), (torch.bfloat16, 16), (torch.float16, 13)]
)
def test_keys_are_in_the_order_of_the_logits(
    device: torch.device, dtype: torch.dtype, shift: int
) -> None:
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0)) * 1e-3
    x[:8] = torch.tensor([0.0, -0.0, -INF, 1e30, -1e30, 1e-7, -1e-7, 1e-42])
    x = x.to(dtype).float()  # whose lowest bits are those that the key drops
    key, back = (torch.empty(1024, dtype=d, device=device) for d in (torch.int32, torch.float32))
    keys_kernel[(1,)](x.to(device), key, back, SHIFT=shift, N=1024, enable_fp_fusion=False)
    assert torch.equal(back.cpu(), x)
    order = key.cpu()
    assert torch.equal(order[:, None] < order, x[:, None] < x)
