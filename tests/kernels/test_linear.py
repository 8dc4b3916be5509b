"""The fused products against their formulas in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgen.kernels.linear import (
    can_pack,
    linear_residual,
    norm_gated_linear,
    norm_linear,
    pack,
    product,
)
from hybridgen.kernels.quantise import dequantise, quantise

EPS = 1e-5
# Relative to the largest output: float32 sums of 96 terms, bfloat16 with 8 bits of mantissa and
# three roundings on the way.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled where numba is has tests of its own."""
    for op in (norm_linear, norm_gated_linear, linear_residual):
        monkeypatch.setattr(op, "on_cpu", op.reference)


def close(ours: Tensor, truth: Tensor) -> bool:
    limit = TOLERANCE.get(ours.dtype, 4e-3) * truth.abs().max()
    return bool((ours.double() - truth).abs().max() <= limit)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms(x: Tensor, norm: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * norm.double()


def linear64(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


cases = pytest.mark.parametrize(
    ("dtype", "rows", "with_bias"),
    [(d, r, b) for d in TOLERANCE for r in (1, 5, 17) for b in (False, True)],
)


@cases
def test_norm_linear(dtype: torch.dtype, rows: int, with_bias: bool) -> None:
    x, norm = 3 * random(rows, 96, dtype=dtype), random(96, dtype=dtype, seed=1)
    weight = random(40, 96, dtype=dtype, seed=2)
    bias = random(40, dtype=dtype, seed=3) if with_bias else None
    ours = norm_linear(x, norm, EPS, weight, bias)
    assert ours.dtype == dtype
    assert close(ours, linear64(rms(x, norm), weight, bias))


@cases
def test_norm_gated_linear(dtype: torch.dtype, rows: int, with_bias: bool) -> None:
    x, norm = 3 * random(rows, 96, dtype=dtype), random(96, dtype=dtype, seed=1)
    weight = random(80, 96, dtype=dtype, seed=2) / 10
    bias = random(80, dtype=dtype, seed=3) if with_bias else None
    gate, up = linear64(rms(x, norm), weight, bias).chunk(2, -1)
    assert close(norm_gated_linear(x, norm, EPS, weight, bias), F.silu(gate) * up)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gates_of_many_rows_have_the_bits_of_one_row(dtype: torch.dtype) -> None:
    inner, before = 1004, torch.get_num_threads()
    norm, weight = random(8, dtype=dtype, seed=1), random(2 * inner, 8, dtype=dtype, seed=2)
    torch.set_num_threads(2)  # an odd number of rows: shares would end inside one
    try:
        for seed in range(12):
            x = random(63, 8, dtype=dtype, seed=seed)
            both = norm_linear(x, norm, EPS, weight, None)
            expected = [F.silu(row[:, :inner]) * row[:, inner:] for row in both.split(1)]
            ours = norm_gated_linear(x, norm, EPS, weight, None)
            assert torch.equal(ours, torch.cat(expected))
    finally:
        torch.set_num_threads(before)


@cases
def test_linear_residual(dtype: torch.dtype, rows: int, with_bias: bool) -> None:
    x, weight = random(rows, 96, dtype=dtype), random(40, 96, dtype=dtype, seed=2)
    residual = random(rows, 40, dtype=dtype, seed=4)
    bias = random(40, dtype=dtype, seed=3) if with_bias else None
    kept = residual.clone()
    assert close(linear_residual(x, weight, bias, residual), linear64(x, weight, bias) + kept)
    assert torch.equal(residual, kept)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_bias", [False, True])
def test_schemas_and_fake_shapes_hold(dtype: torch.dtype, with_bias: bool) -> None:
    x, norm = random(3, 96, dtype=dtype), random(96, dtype=dtype)
    weight = random(80, 96, dtype=dtype)
    bias = random(80, dtype=dtype) if with_bias else None
    q, scale = quantise(weight)
    ops, residual = torch.ops.hybridgen, random(3, 80, dtype=dtype)
    for op, arguments in (
        (ops.norm_linear, (x, norm, EPS, weight, bias)),
        (ops.norm_linear, (x, norm, EPS, q, bias, scale)),
        (ops.norm_gated_linear, (x, norm, EPS, weight, bias)),
        (ops.norm_gated_linear, (x, norm, EPS, q, bias, scale)),
        (ops.linear_residual, (x, weight, bias, residual)),
        (ops.linear_residual, (x, q, bias, residual, scale)),
    ):
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(op.default, arguments, test_utils=tests)


# --- int8 weights ---


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float16], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("op", ["norm", "gated", "residual"])
def test_int8_weights_with_their_scales(dtype: torch.dtype, with_bias: bool, op: str) -> None:
    x, norm = 3 * random(5, 96, dtype=dtype), random(96, dtype=dtype, seed=1)
    q, scale = quantise(random(80, 96, dtype=dtype, seed=2) / 10)
    bias = random(80, dtype=dtype, seed=3) if with_bias else None
    residual = random(5, 80, dtype=dtype, seed=4)
    weight = dequantise(q, scale)
    if op == "residual":
        ours = linear_residual(x, q, bias, residual, scale)
        truth = linear64(x, weight, bias) + residual
    elif op == "norm":
        ours, truth = (
            norm_linear(x, norm, EPS, q, bias, scale),
            linear64(rms(x, norm), weight, bias),
        )
    else:
        gate, up = linear64(rms(x, norm), weight, bias).chunk(2, -1)
        ours, truth = norm_gated_linear(x, norm, EPS, q, bias, scale), F.silu(gate) * up
    assert ours.dtype == dtype
    assert close(ours, truth)


def test_int8_sums_that_float16_cannot_hold() -> None:
    """Before the scale a sum may be 127 times its terms' number: here 1.3 million."""
    x, q = torch.ones(2, 1000, dtype=torch.float16), torch.full((3, 1000), 127, dtype=torch.int8)
    scale = torch.full((3,), 0.01)
    residual = torch.zeros(2, 3, dtype=torch.float16)
    assert (linear_residual(10 * x, q, None, residual, scale) - 12700).abs().max() <= 4


# --- packed weights ---


@pytest.fixture(params=TOLERANCE, ids=str)
def packable(request: pytest.FixtureRequest) -> torch.dtype:
    if not can_pack(request.param):
        pytest.skip(f"this CPU has no packed products of {request.param}")
    return request.param


@pytest.mark.parametrize("rows", [1, 5, 17, 64])
@pytest.mark.parametrize("shape", [(512, 256), (256, 768), (130, 33)], ids=str)
def test_a_packed_product_is_the_product(
    packable: torch.dtype, shape: tuple[int, int], rows: int
) -> None:
    weight, x = random(*shape, dtype=packable), random(rows, shape[1], dtype=packable, seed=1)
    bias = random(shape[0], dtype=packable, seed=2)
    packed = pack(weight)
    assert (packed.shape, packed.dtype) == (weight.shape, packable)
    for b in (None, bias):
        assert close(product(x, packed, b), linear64(x, weight, b))


def test_no_packing_where_the_library_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_pack(torch.float16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(torch.float32)
