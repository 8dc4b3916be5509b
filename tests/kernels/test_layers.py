"""RMSNorm against its formula in float64, row by row the same bits."""

import pytest
import torch

from hybridgen.kernels.layers import rms_norm

# float32: a few ulp. bfloat16: two roundings of 2**-8 each, relative.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7 * 1.01}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [8, 33, 96, 256, 576, 4096])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_the_formula(dtype: torch.dtype, width: int, scale: float, eps: float) -> None:
    generator = torch.Generator().manual_seed(width)
    x = (torch.randn(7, width, generator=generator) * scale).to(dtype)
    weight = torch.randn(width, generator=generator).to(dtype)
    wide = x.double()
    truth = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    ours = rms_norm(x, weight, eps)
    assert ours.dtype == dtype
    assert ((ours.double() - truth).abs() <= TOLERANCE[dtype] * truth.abs()).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_row_of_zeros_stays_zero(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 16, dtype=dtype)
    assert not rms_norm(x, torch.ones(16, dtype=dtype), 1e-6).any()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [33, 96, 256, 576])
def test_bits_do_not_depend_on_other_rows(dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(64, width, generator=generator).to(dtype)
    weight = torch.randn(width, generator=generator).to(dtype)
    together = rms_norm(x, weight, 1e-6)
    for first, rows in ((0, 1), (5, 1), (3, 2), (7, 5), (1, 16), (0, 63)):
        alone = rms_norm(x[first : first + rows].clone(), weight, 1e-6)
        assert torch.equal(alone, together[first : first + rows])


def test_a_weight_for_each_head() -> None:
    x, weight = torch.randn(3, 4, 16), torch.randn(4, 16)
    ours = rms_norm(x, weight, 1e-6)
    for head in range(4):
        assert torch.equal(ours[:, head], rms_norm(x[:, head].contiguous(), weight[head], 1e-6))
