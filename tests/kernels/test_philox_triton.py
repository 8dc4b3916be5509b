"""Triton draws the bits of `philox.py`, and noise whose tails are where they belong."""

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridgen.kernels import philox
from hybridgen.kernels.philox_triton import exponential, gumbel, uniform

COUNT = 1024
LOW = 0xFFFFFFFF
integers = st.integers(-(2**63), 2**63 - 1)
streams = st.sampled_from([philox.TARGET, philox.DRAFT, philox.ACCEPT, philox.RESIDUAL])


@triton.jit
def draws_kernel(
    seed_ptr, position_ptr, u_ptr, e_ptr, g_ptr, first, STREAM: tl.constexpr, N: tl.constexpr
):
    token = first + tl.arange(0, N)
    seed, position = tl.load(seed_ptr), tl.load(position_ptr)
    u = uniform(seed, position, token, STREAM)
    tl.store(u_ptr + tl.arange(0, N), u)
    tl.store(e_ptr + tl.arange(0, N), exponential(u))
    tl.store(g_ptr + tl.arange(0, N), gumbel(seed, position, token, STREAM))


@triton.jit
def noise_kernel(u_ptr, e_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(e_ptr + i, exponential(tl.load(u_ptr + i)))


def draws(seed: int, position: int, first: int, stream: int, device: torch.device) -> list[Any]:
    u, e, g = (torch.empty(COUNT, device=device) for _ in range(3))
    numbers = (torch.tensor([x], device=device) for x in (seed, position))
    draws_kernel[(1,)](*numbers, u, e, g, first, STREAM=stream, N=COUNT, enable_fp_fusion=False)
    return [x.cpu().numpy() for x in (u, e, g)]


def torch_uniform(seed: int, position: int, token: Tensor, stream: int) -> Tensor:
    """The definition once more, in 64-bit integers of torch."""
    c0, c2 = token & LOW, torch.full_like(token, stream)
    c1, c3 = torch.full_like(token, position & LOW), torch.zeros_like(token)
    k0, k1 = seed & LOW, seed >> 32 & LOW

    def product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
        low = (a & 0xFFFF) * b  # below 2**48: no sign bit is reached
        high = (a >> 16) * b + (low >> 16)
        return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF

    # The words are (token, position, stream, 0).
    for _ in range(10):
        high0, low0 = product(0xD2511F53, c0)
        high2, low2 = product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9 & LOW, k1 + 0xBB67AE85 & LOW
    exact = c1.numpy().astype(np.uint64) << np.uint64(32) | c0.numpy().astype(np.uint64)
    return torch.from_numpy(exact.astype(np.float32)) * 2.0**-64


@settings(max_examples=30)
@given(integers, integers, st.integers(0, 2**31 - 1 - COUNT), streams)
def test_uniforms_are_the_same_bits_in_triton_numpy_and_torch(
    device: torch.device, seed: int, position: int, first: int, stream: int
) -> None:
    u, _, _ = draws(seed, position, first, stream, device)
    token = np.arange(first, first + COUNT)
    expected = philox.uniform(np.int64(seed), np.int64(position), token, stream)
    np.testing.assert_array_equal(u, expected)
    plain = torch_uniform(seed, position, torch.from_numpy(token), stream)
    np.testing.assert_array_equal(u, plain.clamp(2.0**-64, 1 - 2.0**-24).numpy())


@pytest.mark.parametrize("stream", range(4))
def test_noise_is_that_of_numpy_up_to_the_last_bits(device: torch.device, stream: int) -> None:
    u, e, g = draws(12345, 678, 0, stream, device)
    exact = -np.log1p(-u.astype(np.float64))
    # In 2**-24: the logarithm 2, one ulp; a GPU's quotient 4, two ulp of div.full; the product 1.
    np.testing.assert_allclose(e, exact, rtol=8 * 2.0**-24)
    # As much again from E, and half an ulp of at most 44.4.
    np.testing.assert_allclose(g, -np.log(exact), atol=8 * 2.0**-24 + 2.0**-19, rtol=2.0**-23)


def test_small_uniforms_keep_their_noise(device: torch.device) -> None:
    """Traps 8, 9, 11 and 12: no draw is 0 or 1, and the smallest u, which win, are not cut off."""
    u = torch.tensor([2.0**-e for e in range(1, 65)] + [1 - 2.0**-e for e in range(1, 25)])
    u = torch.cat([u, torch.full((128 - len(u),), 0.5)])
    e = torch.empty_like(u, device=device)
    noise_kernel[(1,)](u.to(device), e, N=128, enable_fp_fusion=False)
    exact = -np.log1p(-u.double().numpy())
    np.testing.assert_allclose(e.cpu(), exact, rtol=8 * 2.0**-24)
    g = -np.log(e.cpu().double().numpy())
    assert np.isfinite(g).all() and g.max() > 44


def test_streams_draw_different_numbers(device: torch.device) -> None:
    """Traps 1 and 2: draft, acceptance and residual never share a number."""
    drawn = [draws(7, 9, 0, stream, device)[0] for stream in range(4)]
    for i in range(4):
        for j in range(i):
            assert not (drawn[i] == drawn[j]).any()
            # Of independent draws the correlation is 0, give or take 1 / sqrt(1024).
            assert abs(np.corrcoef(drawn[i], drawn[j])[0, 1]) < 4 / np.sqrt(COUNT)
