"""Compiled products of a few rows: exact where sums are, row by row, by any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from on_device import bits, poisoned
from torch import Tensor

from hybridgen.kernels import linear, product_numba
from hybridgen.kernels.linear import FEW_ROWS, STEP, product, reads_plain, widened_product
from hybridgen.kernels.quantise import quantise
from hybridgen.kernels.row_tile import cancelling

KEPT = (torch.float32, torch.bfloat16, torch.int8)
COMPUTED = (torch.float32, torch.bfloat16)


def whole(generator: torch.Generator, *shape: int) -> Tensor:
    """Whole numbers, up to 7 in size: products and sums of a thousand are exact in float32."""
    return torch.randint(-7, 8, shape, generator=generator).float()


@pytest.mark.parametrize("kept", KEPT, ids=str)
@given(
    rows=st.integers(1, FEW_ROWS),
    outputs=st.integers(1, 70),
    steps=st.integers(1, 20),
    has=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 2**31),
)
def test_of_whole_numbers_it_is_exact(
    kept: torch.dtype, rows: int, outputs: int, steps: int, has: tuple[bool, ...], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = whole(generator, rows, STEP * steps), whole(generator, outputs, STEP * steps)
    shapes = (outputs,), (outputs,), (rows, outputs)
    scale, bias, residual = (
        whole(generator, *shape) if there else None
        for shape, there in zip(shapes, has, strict=True)
    )
    expected = x.double() @ weight.double().T
    expected = expected if scale is None else expected * scale
    for summand in (bias, residual):
        expected = expected if summand is None else expected + summand
    with poisoned():
        y = product_numba.product(x, weight.to(kept), bias, scale, residual)
    assert torch.equal(y.double(), expected)
    assert y.is_contiguous()


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("computed", COMPUTED, ids=str)
@given(rows=st.integers(1, FEW_ROWS), steps=st.integers(1, 100), seed=st.integers(0, 2**31))
def test_it_is_the_exact_product_but_for_its_roundings(
    computed: torch.dtype, kept: torch.dtype, rows: int, steps: int, seed: int
) -> None:
    """A sum of n terms by 16 chains, which 4 halvings join, is off by at most n / 16 + 5 half ulps
    of the sum of sizes; scale and bias round once more each, bfloat16 at the end."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, STEP * steps, generator=generator).to(computed)
    weight, scale = torch.randn(9, STEP * steps, generator=generator).to(torch.bfloat16), None
    bias = torch.randn(9, generator=generator).to(computed)
    weight, scale = quantise(weight) if kept == torch.int8 else (weight.to(kept), None)
    times = torch.ones(9).double() if scale is None else scale.double()
    exact = (x.double() @ weight.double().T) * times + bias.double()
    sizes = (x.double().abs() @ weight.double().abs().T) * times + bias.double().abs()
    bound = 2.0**-24 * (steps + 7) * sizes + torch.finfo(computed).eps / 2 * exact.abs()
    y = product_numba.product(x, weight, bias, scale)
    assert y.dtype == computed
    assert ((y.double() - exact).abs() <= 1.01 * bound).all()


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("outputs, depth", [(1111, 96), (70, 1536)])
def test_a_rows_bits_are_its_own(
    outputs: int, depth: int, kept: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of rows, its place, and who computes it: all terms cancel, so that what
    is left of a sum is rounding, which another order changes in most of them."""
    monkeypatch.setattr(product_numba, "SHARED", 1)
    x, weight = cancelling(FEW_ROWS, outputs, depth, torch.float32, torch.bfloat16)
    scale = None
    if kept == torch.int8:
        weight, scale = quantise(weight)
    weight = weight.to(kept)
    ones = [product_numba.product(row, weight, None, scale) for row in x.split(1)]
    alone = torch.cat(ones)
    assert (alone != 0).float().mean() > 0.5
    for rows in range(2, FEW_ROWS + 1):
        first = FEW_ROWS - rows
        y = product_numba.product(x[first:], weight, None, scale)
        assert torch.equal(bits(y), bits(alone[first:])), rows
    wide = torch.cat([x, x], 1)[:, :depth]
    assert torch.equal(bits(product_numba.product(wide[:7], weight, None, scale)), bits(alone[:7]))


def test_broken_rows_break_no_other() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(9, 64), torch.randn(33, 64).bfloat16()
    y = product_numba.product(x, weight, None)
    x[4], x[6] = torch.nan, torch.inf
    broken = product_numba.product(x, weight, None)
    assert broken[4].isnan().all() and not broken[6].isfinite().any()
    sound = [0, 1, 2, 3, 5, 7, 8]
    assert torch.equal(bits(broken[sound]), bits(y[sound]))


def test_several_threads_of_python_at_once() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2000, 128).bfloat16()
    inputs = [torch.randn(1 + i % 7, 128) for i in range(200)]
    expected = [product_numba.product(x, weight, None) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: product_numba.product(x, weight, None), inputs))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


# --- which products they are ---


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 200])
@pytest.mark.parametrize("depth", [64, 72])
def test_a_weight_of_bfloat16_is_the_same_as_one_of_float32(rows: int, depth: int) -> None:
    """Of many rows and of a depth that the compiled ones do not take, too."""
    assert reads_plain(torch.float32)
    torch.manual_seed(0)
    x, weight, bias = whole(torch.Generator(), rows, depth), torch.ones(5, depth), torch.ones(5)
    weight[1:] = whole(torch.Generator(), 4, depth)
    expected = x.double() @ weight.double().T + 1
    assert torch.equal(product(x, weight.bfloat16(), bias).double(), expected)


def test_wide_weights_are_widened_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "WIDENED", 64 * 7)
    generator = torch.Generator().manual_seed(0)
    x, weight = whole(generator, 90, 64), whole(generator, 40, 64)
    bias = whole(generator, 40)
    for dtype in COMPUTED:
        y = widened_product(x.to(dtype), weight.bfloat16(), bias.to(dtype))
        assert torch.equal(y, (x @ weight.T + bias).to(dtype))


def test_without_numba_or_openmp_none_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reads_plain(torch.float32) and not reads_plain(torch.float16)
    monkeypatch.setattr(linear, "cpu_has_bfloat16", lambda: False)
    assert reads_plain(torch.bfloat16)
    monkeypatch.setattr(linear, "cpu_has_bfloat16", lambda: True)
    assert not reads_plain(torch.bfloat16)
    monkeypatch.setattr(linear, "parallel", lambda: None)
    assert not reads_plain(torch.float32)
    monkeypatch.undo()
    monkeypatch.setattr(linear, "has_numba", lambda: False)
    assert not reads_plain(torch.float32)
