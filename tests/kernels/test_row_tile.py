"""The search for row counts whose products agree to the bit, and what it finds."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgen.kernels import linear
from hybridgen.kernels.linear import can_pack, pack, product
from hybridgen.kernels.row_tile import TRIED, cancelling, row_tile

DTYPES = [torch.float32, torch.bfloat16]
# Output and depth of the products of real models, and of the embedded pair.
SHAPES = {
    "embedded pair": [(256, 96), (512, 96), (96, 256), (768, 256), (1536, 256), (256, 768)],
    "SmolLM2-135M": [(960, 576), (576, 576), (3072, 576), (576, 1536)],
    "Qwen2.5-0.5B": [(1152, 896), (896, 896), (896, 4864)],
    "Qwen3-0.6B": [(4096, 1024), (1024, 2048), (1024, 3072)],
    "Llama-3.2-1B": [(2048, 2048), (2048, 8192)],
}


def layer(
    shape: tuple[int, int], dtype: torch.dtype, packed: bool, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    weight = torch.zeros(shape, dtype=dtype)
    bias = torch.zeros(shape[0], dtype=dtype) if with_bias else None
    return pack(weight) if packed else weight, bias


def transposed(weight: Tensor) -> Tensor:
    """The same numbers, laid out as [H, O]."""
    return weight.t().contiguous().t()


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", SHAPES)
def test_rows_have_their_bits_wherever_they_stand(
    model: str, dtype: torch.dtype, packed: bool, with_bias: bool, threads: int
) -> None:
    if packed and not can_pack(dtype):
        pytest.skip(f"this CPU has no packed products of {dtype}")
    tile, block = row_tile(layer(shape, dtype, packed, with_bias) for shape in SHAPES[model])
    for index, (outputs, depth) in enumerate(SHAPES[model]):
        generator = torch.Generator().manual_seed(1 + index)
        # Other numbers than the search's: half of the rows cancel, half are ordinary.
        x, weight = cancelling(64, outputs, depth, dtype)
        x[::2] = torch.randn(32, depth, generator=generator).to(dtype)
        bias = torch.randn(outputs, generator=generator).to(dtype) if with_bias else None
        weight = pack(weight) if packed else weight
        x = x[torch.randperm(64, generator=generator)]
        expected = torch.cat([product(part, weight, bias) for part in x.split(tile)])
        for rows in range(tile, block + 1, tile):
            first = int(torch.randint(65 - rows, (), generator=generator))
            found = product(x[first : first + rows], weight, bias)
            assert torch.equal(found, expected[first : first + rows]), (rows, tile, block)


def test_transposed_weights_and_few_outputs_are_tried_as_they_are() -> None:
    """GPT-2 keeps weights as [H, O]; a router or a gate has but a few outputs."""
    shapes = [(768, 256), (256, 256), (8, 256), (1, 256)]
    weights = [transposed(torch.zeros(shape)) for shape in shapes[:2]]
    weights += [torch.zeros(shape) for shape in shapes[2:]]
    tile, block = row_tile([(weight, None) for weight in weights])
    for shape, kind in zip(shapes, weights, strict=True):
        x, weight = cancelling(64, *shape, torch.float32)
        weight = weight if kind.is_contiguous() else transposed(weight)
        expected = torch.cat([product(part, weight, None) for part in x.split(tile)])
        for rows in range(tile, block + 1, tile):
            assert torch.equal(product(x[-rows:], weight, None), expected[-rows:])


def test_the_layout_of_a_weight_is_part_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose products of transposed weights hold for eight rows alone."""
    plain = F.linear

    def broken(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Row by row, so that what the true library does here does not matter.
        right = torch.cat([plain(row, weight, bias) for row in x.split(1)])
        is_wrong = not weight.is_contiguous() and len(x) != 8
        return right + torch.rand(()) if is_wrong else right

    monkeypatch.setattr(linear.F, "linear", broken)
    weight = torch.zeros(576, 1)[:, [0, 0]]
    assert row_tile([(transposed(weight), None), (weight.contiguous(), None)]) == (8, 8)


Wrong = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[[Wrong], None]:
    """Plants a library: the sum over each row in float64, which no row count changes, and a fault.

    The fault gets the inputs and the right result of each product.
    """

    def plant(fault: Wrong) -> None:
        def broken(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            right = torch.stack([(weight.double() * row).sum(1) for row in x.double()])
            return fault(x, (right + 1).to(x.dtype))

        monkeypatch.setattr(linear.F, "linear", broken)

    return plant


WEIGHT = torch.zeros(40, 3)
"""Few outputs: more rows are tried."""


@pytest.mark.parametrize("tile", [1, 2, 4, 8])
def test_the_smallest_tile_that_holds_is_found(library: Callable[[Wrong], None], tile: int) -> None:
    library(lambda x, right: right if len(x) % tile == 0 else right * 1.000001)
    assert row_tile([(WEIGHT, None)]) == (tile, 64)


@pytest.mark.parametrize("block", [8, 16, 32, 64])
def test_the_largest_block_that_holds_is_found(
    library: Callable[[Wrong], None], block: int
) -> None:
    library(lambda x, right: right if len(x) <= block else right * 1.000001)
    assert row_tile([(WEIGHT, None)]) == (1, block)


def test_where_only_eight_rows_hold_products_have_exactly_eight(
    library: Callable[[Wrong], None],
) -> None:
    library(lambda x, right: right if len(x) == 8 else right + torch.rand(()))
    assert row_tile([(WEIGHT, None)]) == (8, 8)


def test_where_a_row_depends_on_its_place_rows_are_alone(library: Callable[[Wrong], None]) -> None:
    def by_place(x: Tensor, right: Tensor) -> Tensor:
        right[6:16] *= 1.000001
        return right

    library(by_place)
    assert row_tile([(WEIGHT, None)]) == (1, 1)


@pytest.mark.parametrize("rows", [1, 2, 7, 31, 33, 64])
@pytest.mark.parametrize("seed", range(5))
def test_one_wrong_element_in_ten_thousand_is_seen(
    monkeypatch: pytest.MonkeyPatch, rows: int, seed: int
) -> None:
    """Missed with a chance of exp(-TRIED / 10_000), for each number of rows."""
    assert math.exp(-TRIED / 10_000) < 1e-4
    generator, plain = torch.Generator().manual_seed(seed), F.linear

    def rarely_wrong(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = plain(x, weight, bias)
        if len(x) == rows:
            result[torch.rand(result.shape, generator=generator) < 1e-4] += 1
        return result

    monkeypatch.setattr(linear.F, "linear", rarely_wrong)
    # One column of input: the real library underneath has only one order of summing.
    tile, block = row_tile([(torch.zeros(576, 1), None)])
    assert rows not in range(tile, block + 1, tile)


def test_terms_cancel_so_that_only_rounding_is_left() -> None:
    for depth in (576, 1537):
        for dtype in DTYPES:
            x, weight = cancelling(8, 600, depth, dtype)
            assert not (x.double() @ weight.double().T).abs().max() > 1e-9
            assert x.abs().max() > 1 and weight.abs().max() > 1
            # In another order of summing nearly all results are others.
            order = torch.randperm(depth, generator=torch.Generator().manual_seed(1))
            ours, other = x @ weight.T, x[:, order] @ weight[:, order].T
            assert (ours != other).double().mean() > 0.5
