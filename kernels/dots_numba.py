"""Dot products of a few rows of x with a few of a weight, as one loop over vectors of eight.

Written as LLVM's instructions, because the order of a sum must not depend on how many rows or
weights are taken together, which is what a compiler would choose it by. Every sum has two vectors
of eight partial sums, for even and odd steps of the depth, which are added and then halved:

    p[j][i] = sum_n x[16 n + 8 j + i] w[16 n + 8 j + i]         j < 2, i < 8

The weight's numbers become float32 in registers: of bfloat16 by a shift, of int8 by conversion.
"""

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hybridgen.kernels.linear import STEP

LANES, CHAINS = 8, STEP // 8
AHEAD = 1024  # bytes: weights come from memory in one stream, which is asked for this much earlier

_I8, _I16, _I32, _I64, _FLOAT = (*map(ir.IntType, (8, 16, 32, 64)), ir.FloatType())
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_I32, LANES)
_KEPT = {types.float32: _FLOAT, types.uint16: _I16, types.int8: _I8}
_FUSED = ("contract",)


@intrinsic
def dots(
    typing_context: Any,
    x: Any,  # address of float32 [R, steps * STEP]
    x_stride: Any,  # bytes, as all strides
    weight: Any,  # address of [O, steps * STEP] numbers like element
    weight_stride: Any,
    y: Any,  # address of float32 [R, O]
    y_stride: Any,
    steps: Any,
    rows: Any,  # a tuple of R numbers
    outputs: Any,  # a tuple of O numbers
    element: Any,  # float32, uint16 for bfloat16, int8
) -> Any:
    """``y[r, o] = x[r] . weight[o]``; R * O * `CHAINS` sums are in registers: AVX2 has 16."""
    num_rows, num_outputs, kept = len(rows), len(outputs), _KEPT[element]
    size = kept.width // 8 if kept is not _FLOAT else 4
    signature = types.void(
        *[types.int64] * 7,
        rows,
        outputs,
        element,  # typed as called: addresses are int64
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, x_stride, weight, weight_stride, y, y_stride, steps = arguments[:7]
        zeros = ir.Constant(_FLOATS, [0.0] * LANES)
        sums = {
            (r, o, j): cgutils.alloca_once_value(builder, zeros)
            for r in range(num_rows)
            for o in range(num_outputs)
            for j in range(CHAINS)
        }
        x_rows = [_at(builder, x, x_stride, r) for r in range(num_rows)]
        weights = [_at(builder, weight, weight_stride, o) for o in range(num_outputs)]
        with cgutils.for_range(builder, steps) as loop:
            for j in range(CHAINS):
                step = builder.add(builder.mul(loop.index, _I64(CHAINS)), _I64(j))
                numbers = []
                for start in weights:
                    at = builder.add(start, builder.mul(step, _I64(LANES * size)))
                    if j == 0:
                        _prefetch(builder, builder.add(at, _I64(AHEAD)))
                    numbers.append(_wide(builder, at, kept))
                for r in range(num_rows):
                    at = builder.add(x_rows[r], builder.mul(step, _I64(LANES * 4)))
                    row = _vector(builder, at, _FLOAT)
                    for o in range(num_outputs):
                        product = builder.fmul(row, numbers[o], flags=_FUSED)
                        total = builder.load(sums[r, o, j])
                        builder.store(builder.fadd(total, product, flags=_FUSED), sums[r, o, j])
        for r in range(num_rows):
            for o in range(num_outputs):
                parts = [builder.load(sums[r, o, j]) for j in range(CHAINS)]
                total = _sum(builder, builder.fadd(*parts))
                at = builder.add(_at(builder, y, y_stride, r), _I64(4 * o))
                builder.store(total, builder.inttoptr(at, _FLOAT.as_pointer()))
        return context.get_dummy_value()

    return signature, generate


def _at(builder: Any, start: Any, stride: Any, count: int) -> Any:
    return builder.add(start, builder.mul(stride, _I64(count)))


def _vector(builder: Any, at: Any, kind: Any) -> Any:
    """Eight numbers beside each other, which need not be aligned to more than one of them."""
    place = builder.inttoptr(at, ir.VectorType(kind, LANES).as_pointer())
    return builder.load(place, align=4 if kind is _FLOAT else kind.width // 8)


def _wide(builder: Any, at: Any, kind: Any) -> Any:
    """Eight weights as float32."""
    numbers = _vector(builder, at, kind)
    if kind is _I16:
        bits = builder.shl(builder.zext(numbers, _INTS), ir.Constant(_INTS, [16] * LANES))
        return builder.bitcast(bits, _FLOATS)
    if kind is _I8:
        return builder.sitofp(builder.sext(numbers, _INTS), _FLOATS)
    return numbers


def _prefetch(builder: Any, at: Any) -> None:
    """Into the second cache: read, soon, data."""
    pointer = _I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer], fnty=kind)
    builder.call(prefetch, [builder.inttoptr(at, pointer), _I32(0), _I32(3), _I32(1)])


def _sum(builder: Any, vector: Any) -> Any:
    """Of a vector's numbers: the halves are added until one is left."""
    count = LANES
    while count > 1:
        count //= 2
        halves = [
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(_I32, count), list(range(at, at + count)))
            )
            for at in (0, count)
        ]
        vector = builder.fadd(*halves)
    return builder.extract_element(vector, _I32(0))
