"""int8 products on a CPU: torch's kernel computes what the reference does, row by row."""

import pytest
import torch

from hybridgen.kernels import linear
from hybridgen.kernels.block_sizes import size_classes
from hybridgen.kernels.int8_cpu import quantise_for_cpu
from hybridgen.kernels.linear import INT8_ROWS as ROWS
from hybridgen.kernels.linear import product
from hybridgen.kernels.row_tile import cancelling, kind, row_tile, tried

SHAPES = [(960, 576), (576, 1536), (97, 48), (40, 16)]


@pytest.fixture(autouse=True)
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not numba would compile products on this processor."""
    monkeypatch.setattr(linear, "has_numba", lambda: False)


def layer(outputs: int, depth: int, dtype: torch.dtype = torch.bfloat16) -> tuple:
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, depth, generator=generator).to(dtype)
    q, scale = quantise_for_cpu(weight, dtype)
    return q, torch.randn(outputs, generator=generator).to(dtype), scale


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, ROWS, ROWS + 1, 40])
@pytest.mark.parametrize(("outputs", "depth"), SHAPES)
def test_a_product_is_the_exact_one_but_for_its_roundings(
    outputs: int, depth: int, rows: int
) -> None:
    """To bfloat16 after the scale and after the bias; of many rows before the scale too."""
    q, bias, scale = layer(outputs, depth)
    x = torch.randn(rows, depth, generator=torch.Generator().manual_seed(rows)).bfloat16()
    scaled = (x.double() @ q.double().T) * scale.double()
    exact, sums = scaled + bias, (x.double().abs() @ q.double().abs().T) * scale.double()
    roundings = 1 if rows <= ROWS else 2
    bound = 2.0**-8 * 1.02 * (roundings * scaled.abs() + exact.abs()) + 2.0**-23 * depth * sums
    assert ((product(x, q, bias, scale).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize(("outputs", "depth"), SHAPES)
def test_rows_have_their_bits_in_any_company(outputs: int, depth: int, threads: int) -> None:
    one = layer(outputs, depth)
    tile, block = row_tile([one], torch.bfloat16)
    assert block >= ROWS
    x, plain = cancelling(2 * ROWS, outputs, depth, torch.bfloat16)
    made = tried(kind(one, torch.bfloat16), plain)
    expected = torch.cat([product(part, *made) for part in x.split(tile)])
    for rows in range(tile, ROWS + 1, tile):
        for first in (0, 3, ROWS):
            part = slice(first, first + rows)
            if first % tile == 0:
                assert torch.equal(product(x[part], *made), expected[part]), (rows, first)


def test_a_prompts_blocks_are_tried_with_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows get other bits only of int8 weights."""
    plain = linear.scaled_product

    def broken(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return plain(x, *rest) * torch.linspace(1, 1.1, len(x)).unsqueeze(1)

    monkeypatch.setattr(linear, "scaled_product", broken)
    one = layer(96, 32, torch.float32)
    assert size_classes([one], (16, 32), torch.float32) == []
    assert size_classes([(torch.ones(96, 32), one[1])], (16, 32), torch.float32) != []
    assert row_tile([one], torch.float32) == (1, 1)


def test_the_kernel_is_not_used_where_it_would_read_past_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*given: torch.Tensor) -> torch.Tensor:
        raise AssertionError("torch's kernel was called")

    monkeypatch.setattr(linear.torch, "_weight_int8pack_mm", never)
    for depth, dtype in ((40, torch.bfloat16), (48, torch.float32), (48, torch.float16)):
        q, bias, scale = layer(12, depth, dtype)
        x = torch.ones(2, depth, dtype=dtype)
        assert scale.dtype == torch.float32
        assert torch.equal(product(x, q, bias, scale), linear.scaled_product(x, q, bias, scale))
    with pytest.raises(AssertionError, match="was called"):
        product(torch.ones(2, 48).bfloat16(), *layer(12, 48))


def test_strided_rows_are_read_right() -> None:
    q, bias, scale = layer(64, 48)
    wide = torch.randn(3, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = product(wide[:, :48].contiguous(), q, bias, scale)
    assert torch.equal(product(wide[:, :48], q, bias, scale), expected)
