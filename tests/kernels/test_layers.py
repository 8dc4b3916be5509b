"""RMSNorm against its formula in float64, row by row the same bits; the embedding op's contract."""

import pytest
import torch

from hybridgen.kernels.layers import embed, normalize, rms_norm

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


# --- ops ---


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_embed_gathers_rows_and_keeps_within_bounds(dtype: torch.dtype) -> None:
    embedding, rope = torch.randn(5, 6).to(dtype), torch.randn(2, 4, 1, 8)
    tokens, start = torch.tensor([[9, 0, 4], [2, -3, 3]]), torch.tensor([-1, 2])
    x, cos, sin = embed(tokens, start, embedding, rope)
    assert torch.equal(x, embedding[torch.tensor([4, 0, 4, 2, 0, 3])])
    at = torch.tensor([0, 0, 1, 2, 3, 3])
    assert torch.equal(cos, rope[0, at]) and torch.equal(sin, rope[1, at])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_norm_is_an_op_too(dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 50).to(dtype)[:, 1:34], torch.randn(33).to(dtype)
    result = normalize(x, weight, 1e-6)
    assert torch.equal(result, rms_norm(x, weight, 1e-6)) and result.is_contiguous()
    assert torch.equal(torch.ops.hybridgen.rms_norm(x, weight, 1e-6), result)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_schemas_and_fake_shapes_hold(dtype: torch.dtype) -> None:
    tokens, start = torch.ones(2, 3, dtype=torch.int64), torch.tensor([0, 4])
    gather = (tokens, start, torch.randn(5, 6).to(dtype), torch.randn(2, 9, 1, 8))
    ops, tests = torch.ops.hybridgen, ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.embed.default, gather, test_utils=tests)
    norm = (torch.randn(3, 50).to(dtype)[:, :33], torch.ones(33, dtype=dtype), 1e-6)
    torch.library.opcheck(ops.rms_norm.default, norm, test_utils=tests)
