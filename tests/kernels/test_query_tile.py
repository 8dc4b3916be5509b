"""The search for query counts whose attention agrees to the bit, and what it finds."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hybridgen.kernels import query_tile as module
from hybridgen.kernels.query_tile import KEYS, UNLIMITED, attend, query_tile

DIMS = [12, 16, 32, 64, 80, 128, 256]


@pytest.fixture(autouse=True)
def nothing_cached() -> Iterator[None]:
    query_tile.cache_clear()
    yield
    query_tile.cache_clear()


@pytest.mark.parametrize("dim", DIMS)
def test_queries_have_their_bits_wherever_they_stand(dim: int) -> None:
    tile, block = query_tile(dim, torch.get_num_threads())
    for heads, count in ((1, 1), (3, 2), (2, 5)):
        count = min(count * tile, block)
        generator = torch.Generator().manual_seed(count)
        q = torch.randn(2, heads, count, dim, generator=generator)
        k, v = torch.randn(2, 2, heads, KEYS, dim, generator=generator).unbind()
        mask = torch.zeros(2, 1, count, KEYS)
        mask[..., -50:] = -1e30
        together = attend(q, k, v, mask)[0]
        for row in range(count):
            # Alone with copies of another query, at any place of a tile.
            place = (row * 5 + 3) % tile
            few = q[1:, :, :1].repeat(1, 1, tile, 1)
            few[:, :, place] = q[1:, :, row]
            alone = attend(few, k[1:], v[1:], mask[1:, :, :tile])[0]
            assert torch.equal(alone[0, :, place], together[1, :, row]), (row, tile, block)


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Tensor], Tensor]) -> None:
    """A library whose sums are right to the bit, but for a fault in an output [..., queries, D]."""

    def planted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows = [
            module_attend(q[:, :, i : i + 1].contiguous(), k, v, mask[:, :, :1])
            for i in range(q.shape[2])
        ]
        output, logsumexp = (torch.cat(parts, 2) for parts in zip(*rows, strict=True))
        return fault(output), logsumexp

    module_attend = module.attend
    monkeypatch.setattr(module, "attend", planted)


def from_row(first: int) -> Callable[[Tensor], Tensor]:
    def fault(output: Tensor) -> Tensor:
        output[:, :, first:] *= 1.000001
        return output

    return fault


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int]]] = {
    "none": (lambda output: output, (8, UNLIMITED)),
    "rows beyond the 16th": (from_row(16), (16, 16)),
    "other numbers of rows than 16": (
        lambda output: from_row(1)(output) if output.shape[2] != 16 else output,
        (16, 16),
    ),
    "rows beyond the 4th": (from_row(4), (4, 4)),
    "rows beyond the first": (from_row(1), (1, 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_tile_that_holds_is_found(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    planted, expected = FAULTS[fault]
    plant(monkeypatch, planted)
    assert query_tile(16, torch.get_num_threads()) == expected
