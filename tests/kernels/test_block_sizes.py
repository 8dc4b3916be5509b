"""The search for sizes of blocks in which a row's bits do not depend on its place."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hybridgen.kernels import block_sizes
from hybridgen.kernels.block_sizes import size_classes
from hybridgen.kernels.linear import can_pack, pack, product
from hybridgen.kernels.row_tile import cancelling

SIZES = (16, 32, 64, 128)
SHAPES = [(96, 256), (768, 256), (256, 768), (576, 1536)]


@pytest.fixture(autouse=True)
def nothing_cached() -> Iterator[None]:
    block_sizes._labels.cache_clear()
    yield
    block_sizes._labels.cache_clear()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_have_their_bits_at_any_place_of_a_block(dtype: torch.dtype, packed: bool) -> None:
    if packed and not can_pack(dtype):
        pytest.skip(f"this CPU has no packed products of {dtype}")
    weights = [torch.zeros(shape, dtype=dtype) for shape in SHAPES]
    layers = [(pack(weight) if packed else weight, None) for weight in weights]
    for sizes in size_classes(layers, SIZES):
        for shape in SHAPES:
            x, weight = cancelling(128, *shape, dtype)
            weight = pack(weight) if packed else weight
            order = torch.randperm(128, generator=torch.Generator().manual_seed(7))
            first = torch.cat([product(part, weight, None) for part in x.split(sizes[0])])
            for size in sizes:
                found = [product(part, weight, None) for part in x[order].split(size)]
                assert torch.equal(torch.cat(found), first[order]), (sizes, size, shape)


Fault = Callable[[Tensor, Tensor], None]


def of_sizes(*sizes: int) -> Fault:
    """Products of so many rows have other last bits."""

    def fault(x: Tensor, result: Tensor) -> None:
        if len(x) in sizes:
            result *= 1.000001

    return fault


def at_place(place: int, size: int) -> Fault:
    """One row of a block has other last bits in one column."""

    def fault(x: Tensor, result: Tensor) -> None:
        if len(x) == size:
            result[place, -1] += 1

    return fault


FAULTS: dict[str, tuple[Fault, list[tuple[int, ...]]]] = {
    "none": (lambda x, result: None, [SIZES]),
    "a size of its own": (of_sizes(32), [(32,), (16, 64, 128)]),
    "two kernels": (of_sizes(16, 32), [(16, 32), (64, 128)]),
    "the largest apart": (of_sizes(128), [(16, 32, 64), (128,)]),
    "the first place": (at_place(0, 64), [(16, 32, 128)]),
    "the last place": (at_place(127, 128), [(16, 32, 64)]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, classes = FAULTS[name]

    def planted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # One term: there is only one order of summing.
        result = x[:, :1] * weight[:, 0] + 3
        fault(x, result)
        return result

    monkeypatch.setattr(block_sizes, "product", planted)
    assert size_classes([(torch.zeros(40, 3), None)], SIZES) == classes


def test_every_kind_of_product_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = x[:, :1] * weight[:, 0] + 3
        of_sizes(16 if bias is None else 128)(x, result)
        return result

    monkeypatch.setattr(block_sizes, "product", planted)
    weight, bias = torch.zeros(40, 3), torch.zeros(40)
    assert size_classes([(weight, None), (weight, bias)], SIZES) == [(16,), (32, 64), (128,)]
