"""In which numbers of rows prompts can be read together without one changing another's bits.

A prompt's tokens stand anywhere in a block, beside those of other prompts, so a row's bits must not
depend on its place nor on the other rows. Libraries choose a kernel, and with it the order of the
sums, by the number of rows: within blocks of one fixed number that usually holds, and some numbers
share a kernel. As in `row_tile.py` it is tried out, with products whose terms cancel, so that a
result is nothing but what rounding left of its sum and another order changes most of them.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hybridgen.kernels.linear import FEW_ROWS, product
from hybridgen.kernels.row_tile import TRIED, Kind, Layer, cancelling, kind, tried


def size_classes(
    layers: Iterable[Layer], sizes: Sequence[int], dtype: torch.dtype | None = None
) -> list[tuple[int, ...]]:
    """Those of ``sizes`` that a block may have, those whose rows have equal bits together.

    layers  the weights [O, H], packed or not, with their biases [O], int8 ones with their scales
            [O] too; one of each kind is tried, on its device and the current number of threads,
            with values of its own
    sizes   numbers of rows, ascending, all of them divisors of the last
    dtype   of x, where it is not the weights'

    A size is left out where a row's bits depend on its place. Sizes ascend in a class, and classes
    by their largest one; there may be none.
    """
    threads = torch.get_num_threads()
    kinds = {(kind(layer, dtype), layer[0].device) for layer in layers}
    found = [_labels(*one, tuple(sizes), threads) for one in kinds]
    classes: dict[tuple[int, ...], list[int]] = {}
    for size, labels in zip(sizes, zip(*found, strict=True), strict=True):
        if min(labels) > 0:
            classes.setdefault(labels, []).append(size)
    return sorted((tuple(members) for members in classes.values()), key=max)


@lru_cache(maxsize=256)
def _labels(
    one: Kind, device: torch.device, sizes: tuple[int, ...], threads: int
) -> tuple[int, ...]:
    """For each size the first one whose rows have its bits, 0 where those depend on the place."""
    few = tuple(size for size in sizes if size <= FEW_ROWS and one.is_compiled)
    return few[:1] * len(few) + _tried_labels(one, device, sizes[len(few) :], threads)


def _tried_labels(
    one: Kind, device: torch.device, sizes: tuple[int, ...], threads: int
) -> tuple[int, ...]:
    if not sizes:
        return ()
    outputs, depth = one.shape
    rows = -(-max(sizes[-1], -(-TRIED // outputs)) // sizes[-1]) * sizes[-1]
    x, plain = (t.to(device) for t in cancelling(rows, outputs, depth, one.dtype, one.kept))
    layer = tried(one, plain)
    shuffle = torch.Generator(device="cpu").manual_seed(1)
    order = torch.randperm(rows, generator=shuffle, dtype=torch.int64, device="cpu").to(device)
    elsewhere = x[order]

    def products(x: Tensor, size: int) -> Tensor:
        return torch.cat([product(part, *layer) for part in x.split(size)])

    labels, distinct = [], dict[int, Tensor]()
    for size in sizes:
        found = products(x, size)
        if not torch.equal(products(elsewhere, size), found[order]):
            labels.append(0)
            continue
        same = (first for first, other in distinct.items() if torch.equal(other, found))
        label = next(same, size)
        distinct.setdefault(label, found)
        labels.append(label)
    return tuple(labels)
