"""Which numbers of rows a CPU's products can have so that a row's bits do not depend on the rest.

Libraries switch kernels with the number of rows, and with it the order of the sums: the same row
then has other bits in a product of 1 row than of 5, or of 40. Which numbers go together depends on
the processor, the library, the number of threads, the shape, the layout and the bias, so `row_tile`
tries it out. Of compiled products (`product_numba.py`) a row's bits depend on nothing but the row:
there is nothing to try.

The trial has power. Of ordinary numbers another order of summing changes a bfloat16 result only
where it lies at the edge between two roundings, about one in 10,000. The terms of the products
tried here cancel, so that a result is nothing but what rounding left of its sum: another order
changes most of them. And for each number of rows `TRIED` results are compared: a difference in one
of 10,000 would go unseen in one of 20,000 trials.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hybridgen.kernels.linear import FEW_ROWS, STEP, pack, product, reads_plain
from hybridgen.kernels.quantise import quantise

MAX_ROWS = FEW_ROWS
REFERENCE_ROWS = 8
SHIFT = 3  # a row's place in the products compared differs by this, modulo the reference's rows
TRIED = 100_000
DISTINCT_OUTPUTS = 512
MOST_TRIED_ROWS = 8192  # of products with a few outputs, such as a router's


Layer = tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor | None]
"""Weight [O, H], bias [O] or None, and, where the weight is int8, its scale [O]."""


class Kind(NamedTuple):
    """What a library may choose a product's kernel by, beside the number of rows.

    dtype   of x
    kept    of the weight; of an int8 one, what it is made of
    scale   the dtype of an int8 weight's
    """

    shape: torch.Size
    dtype: torch.dtype
    kept: torch.dtype
    packed: bool
    transposed: bool
    bias: bool
    scale: torch.dtype | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether its products of up to `FEW_ROWS` rows are compiled."""
        plain = not self.packed and not self.transposed and self.shape[1] % STEP == 0
        return plain and reads_plain(self.dtype)


def row_tile(
    layers: Iterable[Layer],
    dtype: torch.dtype | None = None,
    multiply: Callable[..., Tensor] = product,
) -> tuple[int, int]:
    """Row counts at which a product's rows have the same bits, whatever their number and place.

    layers    the weights [O, H], packed or not, or transposed views of [H, O], with their biases
              [O]; one of each kind is tried, on the current number of threads, with values of its
              own; int8 ones with their scales [O] too
    dtype     of x, where it is not the weights'
    multiply  how the products are computed: as `linear.product`, or as ``F.linear``

    Returns ``(tile, block)``: pad to a multiple of ``tile`` rows and never go beyond ``block``. The
    last resort is (1, 1), a row at a time.
    """
    kinds = {kind(layer, dtype) for layer in layers}
    tried = kinds if multiply is not product else {one for one in kinds if not one.is_compiled}
    trials = [_Trial(one, multiply) for one in tried]
    for tile in (1, 2, 4, REFERENCE_ROWS):
        for block in (MAX_ROWS, 32, 16, REFERENCE_ROWS):
            counts = range(tile, block + 1, tile)
            if all(trial.agrees(rows) for trial in trials for rows in counts):
                return tile, block
    return 1, 1


def kind(layer: Layer, dtype: torch.dtype | None = None) -> Kind:
    """Of a product of ``dtype``, or else the weight's, with such a weight."""
    weight, bias, scale = layer if len(layer) == 3 else (*layer, None)
    of_x = dtype or weight.dtype
    return Kind(
        weight.shape,
        of_x,
        weight.dtype if scale is None else of_x,
        weight.is_mkldnn,
        not weight.is_mkldnn and not weight.is_contiguous(),
        bias is not None,
        None if scale is None else scale.dtype,
    )


def tried(one: Kind, plain: Tensor) -> Layer:
    """A layer of that kind, made of ``plain`` [O, H], with a bias of zeros; on its device."""
    bias = plain.new_zeros(one.shape[0], dtype=one.dtype) if one.bias else None
    if one.scale is not None:
        weight, scale = quantise(plain)
        return weight, bias, scale.to(one.scale)
    if one.transposed:
        plain = plain.t().contiguous().t()
    return pack(plain) if one.packed else plain, bias


class _Trial:
    """Products with one kind of weight, each number of rows tried at most once."""

    def __init__(self, one: Kind, multiply: Callable[..., Tensor]) -> None:
        self.multiply = multiply
        outputs = one.shape[0]
        least = max(min(-(-TRIED // outputs), MOST_TRIED_ROWS), MAX_ROWS) + REFERENCE_ROWS
        rows = -(-least // REFERENCE_ROWS) * REFERENCE_ROWS
        self.x, plain = cancelling(rows, outputs, one.shape[1], one.dtype, one.kept)
        self.outputs, self.layer = outputs, tried(one, plain)
        parts = self.x.split(REFERENCE_ROWS)
        self.expected = torch.cat([multiply(part, *self.layer) for part in parts])
        self._agrees: dict[int, bool] = {}

    def agrees(self, rows: int) -> bool:
        """Whether products of so many ``rows`` have the bits of the reference."""
        if rows not in self._agrees:
            self._agrees[rows] = self._try(rows)
        return self._agrees[rows]

    def _try(self, rows: int) -> bool:
        wanted = -(-TRIED // self.outputs)
        for first in range(SHIFT, min(SHIFT + wanted, len(self.x) - rows + 1), rows):
            part = slice(first, first + rows)
            found = self.multiply(self.x[part], *self.layer)
            if not torch.equal(found, self.expected[part]):
                return False
        return True


def cancelling(
    rows: int, outputs: int, depth: int, dtype: torch.dtype, kept: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """x [rows, depth] and weight [outputs, depth] whose product is 0 but for rounding.

    x is of ``dtype`` and the weight of ``kept``, if that is another.

    The second half of each sum has the terms of the first, negated, in another order.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)

    def random(count: int, dtype: torch.dtype) -> Tensor:
        shape = count, depth // 2
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)

    order = torch.randperm(depth // 2, generator=generator, dtype=torch.int64, device="cpu")
    half, few = random(rows, dtype), random(min(outputs, DISTINCT_OUTPUTS), kept or dtype)
    rest = depth % 2
    x = torch.cat([half, half[:, order], half.new_zeros(rows, rest)], 1)
    distinct = torch.cat([few, -few[:, order], few.new_zeros(len(few), rest)], 1)
    return x, distinct.repeat(-(-outputs // len(few)), 1)[:outputs].contiguous()
