"""Products of a few rows at the speed of their weights: one kernel for `linear.py`'s three ops.

**Work.** A program makes 16 rows of 16 or 32 outputs (gate and up: 16 of each, so that the
[R, 2 I] between them is never written). It walks the whole depth in tiles of weights [outputs,
depth], which stream through shared memory by cp.async, several tiles ahead. Each of its four warps
takes a quarter of every tile's depth, for all outputs, and the four sums are added in the end, in a
fixed order:

    y[r, o] = sum_w sum_(k in quarter w of each tile) x[r, k] W[o, k]

A product (mma.sync m16n8k16) that adds to the one before waits for it, some 33 cycles. With the
warps side by side over 16 outputs, a depth of 6144 would be 384 in a row, 7 us, as long as its
weights take to come; by quarters it is 96. And a warp reads its own quarter of x instead of all.
The rows are the short side of 16: with weights there, Triton would take wgmma or tcgen05 on some
cards, which bring no byte sooner. Of more than 16 rows a program makes 32 (`MANY_ROWS`), and of 32
outputs 64: so half as many read the weights again, or x.

**Norm.** RMSNorm is a launch of its own before the product. As a prologue, gains multiplied into x
and squares summed in the loop, it made the loop wait: on an H200 the gate and up of Qwen3-8B took
57 us so in the fastest of all tiles tried, and QKV 21; without it 51 and 15, and 2 for the norm.

**Bits.** A row is a row of its product whatever else is in it: more rows are more programs, fewer
are zeros, and NaN in one stays there. What orders a row's sums (the depth of a tile, the quarters)
depends on outputs and dtype alone, never on R. A tile of 32 rows is two products of 16 for each of
16: each walks the depth as it would alone.

**Bytes in flight.** The weights cross once, O * H * itemsize bytes; x comes from L2, as much as
R / (outputs of a program) of that again. To keep an H100's 3.35 TB/s busy for the 0.8 us that a
read then takes, 2.7 MB must be under way, 20 KB a multiprocessor. A program has 48 KB of weights
under way, or more (float32: 40). No depth is split over programs, which would cost a second launch
for the partial sums; narrow outputs make narrow tiles instead: of 32 and 16 outputs a program, the
first that leaves `FEWEST_PROGRAMS`. Shared memory is at most 99 KB, what a block may have on
sm_120, but for the following.

**Programs.** Where there are more than multiprocessors, three fit on each (four stages): the gate
and up of Qwen3-8B take an H200 51 us so, and took 63 in tiles of 64 outputs of which two fit.
Where there are not, each is to have one for itself. Launched ahead of time (`launch.py`), those of
the next product would else begin beside those of this one, two on some multiprocessors and none on
others: a step of Qwen3-1.7B then takes 10 % longer. So the tiles under way take more than half of
the shared memory, on cards that have so much (`ROOMY`).

**int8** weights come by the same copies, of 16 a thread, and become x's dtype in registers; the
scale of an output multiplies its sum. What is scarce is instructions. In sm_90's code two numbers
become bfloat16 by four (a permutation, two of logic, a subtraction, all exact), a float16 by a
conversion each, and the loops take 4.7 to 5.4 a weight, where bfloat16 weights take 2.8 to 3.6. A
depth of whole tiles has no masks (`WHOLE`: 4.7 for 5.8). A thread takes four neighbours of the
depth to a product, hence other sums than with the same numbers in bfloat16, but the same for any R.
On an H200 a step of Qwen3-1.7B took 1.14 ms with int8 weights, and 1.31 with bfloat16 ones. Eight
warps a program took longer, and so did tiles of 8 rows with bfloat16 weights.

Measured on an H200, of which a torch sum reads 4.1 TB/s, bfloat16, 1 row (1.7B) and 5 (8B), in a
graph; what another card does is in `benchmarks/results`:

    outputs (of a program) x depth; megabytes, programs, time, F.linear's
    Qwen3-1.7B    QKV             4096 (32) x  2048     17 MB    128    6.4 us     7.4
                  output          2048 (16) x  2048      8 MB    128    4.9        6.1
                  gate and up    12288 (32) x  2048     50 MB    384   14.5       15.4
                  down            2048 (16) x  6144     25 MB    128    8.7       11.7
                  head          151936 (32) x  2048    622 MB   4748    141        150
    Qwen3-8B      QKV             6144 (32) x  4096     50 MB    192   14.8       15.7
                  output          4096 (32) x  4096     34 MB    128   11.3       13.1
                  gate and up    24576 (32) x  4096    201 MB    768   51.0       49.7
                  down            4096 (32) x 12288    101 MB    128   26.3       30.7
                  head          151936 (32) x  4096   1245 MB   4748    283        300
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.launch_triton import launch_options, wait_for_previous
from hybridgen.kernels.layers_triton import rms_norm
from hybridgen.kernels.triton_utils import (
    architecture,
    blocks,
    interpreted,
    multiprocessors,
)

ROWS = 16
MANY_ROWS = 32
WARPS = 4
FEWEST_PROGRAMS = 96
ROOMY = (90, 100)  # sm_90, sm_100: 227 KB of shared memory a program, where others have 163 or 99
# Shared memory lets a multiprocessor hold three programs, of 168 each at most; of many rows two.
# Without a bound the assembler saves them, and spills two or three to get below a round number.
REGISTERS, MANY_REGISTERS = 168, 255

# Outputs of a program -> what a warp takes of a tile's depth, and the stages of the pipeline (one
# more than the tiles in shared memory) where programs share a multiprocessor, and where each has
# one for itself: there a second would not fit, see "Programs".
TILES = {32: (64, 4, 6), 16: (64, 7, 9)}
INT8_STAGES = {32: (5, 9), 16: (9, 11)}  # of half precision x, in tiles as deep
FLOAT32_TILES = {32: (16, 8, 8), 16: (16, 11, 11)}  # no tensor cores, but they need registers
# Of a product with more than `ROWS` rows, whose tiles are as deep: outputs, and stages.
MANY_TILES = {32: (64, 3), 16: (16, 5)}
MANY_INT8_STAGES = {32: 4, 16: 5}


@triton.jit(do_not_specialize=["rows"])
def _linear(
    x_ptr,  # [rows, depth], rows stride_x apart
    weight_ptr,  # [columns, depth]; GATED: [2 columns, depth], gate over up
    scale_ptr,  # float32 [columns] or [2 columns], the weight int8, or None
    bias_ptr,  # [columns] or [2 columns], or None
    residual_ptr,  # [rows, columns], rows stride_residual apart, or None
    output_ptr,  # [rows, columns]
    rows,
    columns,
    depth,
    stride_x,
    stride_residual,
    GATED: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    QUARTERS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
    PDL: tl.constexpr = False,
):
    """BLOCK_R rows of BLOCK_O outputs, with all that is fused to them.

    WHOLE: no tile reaches over the depth's end, so none is masked along it.
    Grid: blocks of rows, blocks of outputs. Reads its rows of x whole, its rows of the weight, and
    its outputs' bias and residual; writes its outputs.
    """
    wait_for_previous(PDL)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    k = tl.arange(0, QUARTERS)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    in_rows, in_columns = r < rows, o < columns
    r, o = r.to(tl.int64), o.to(tl.int64)
    x_ptr += r[None, :, None] * stride_x + k[:, None, :]
    weight_ptr += o[None, None, :] * depth + k[:, :, None]
    up_ptr = weight_ptr + tl.cast(columns, tl.int64) * depth

    sums = tl.zeros([QUARTERS, BLOCK_R, BLOCK_O], tl.float32)
    sums_up = tl.zeros([QUARTERS, BLOCK_R, BLOCK_O], tl.float32)
    for start in range(0, depth, QUARTERS * BLOCK_K):
        mask = in_rows[None, :, None]
        if not WHOLE:
            inside = start + k < depth
            mask = mask & inside[:, None, :]
        a = tl.load(x_ptr + start, mask=mask, other=0.0)
        mask = in_columns[None, None, :]
        if not WHOLE:
            mask = mask & inside[:, :, None]
        w = tl.load(weight_ptr + start, mask=mask, other=0.0, eviction_policy="evict_first")
        sums = _dot(a, w, sums, INTERPRETED)
        if GATED:
            w = tl.load(up_ptr + start, mask=mask, other=0.0, eviction_policy="evict_first")
            sums_up = _dot(a, w, sums_up, INTERPRETED)

    y, up = _quarters(sums), _quarters(sums_up)
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + o, mask=in_columns, other=0.0)[None, :]
        if GATED:
            scale_ptr += columns
            up *= tl.load(scale_ptr + o, mask=in_columns, other=0.0)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + o, mask=in_columns, other=0.0).to(tl.float32)[None, :]
        if GATED:
            bias_ptr += columns
            up += tl.load(bias_ptr + o, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    if GATED:
        y = y / (1 + tl.exp(-y)) * up
    mask = in_rows[:, None] & in_columns[None, :]
    if residual_ptr is not None:
        at = r[:, None] * stride_residual + o[None, :]
        y += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(output_ptr + r[:, None] * columns + o[None, :], y, mask=mask)


@triton.jit
def _quarters(parts):
    """(0 + 2) + (1 + 3) of the first axis: `tl.sum`'s order would depend on the tile's layout."""
    last = tl.reshape(tl.permute(parts, 1, 2, 0), [parts.shape[1], parts.shape[2], 2, 2])
    even, odd = tl.split(last)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return (first + third) + (second + fourth)


@triton.jit
def _dot(a, b, sums, INTERPRETED: tl.constexpr):
    """sums + a @ b, b of a's dtype or int8; the interpreter's bfloat16 products are wrong."""
    if INTERPRETED:
        a = a.to(tl.float32)
    return tl.dot(a, b.to(a.dtype), sums, input_precision="ieee")


class Tile(NamedTuple):
    """What a program computes at a time, and with what."""

    rows: int
    outputs: int
    depth: int  # of each quarter
    stages: int
    registers: int  # at most


def tile(
    columns: int,
    gated: bool,
    dtype: torch.dtype,
    rows: int = 1,
    aligned: bool = True,
    int8: bool = False,
    alone: int = 0,
) -> Tile:
    """The tile of a product of ``rows`` rows with ``columns`` outputs.

    aligned  the depth is a multiple of 16, so that all rows begin at a multiple of 16 bytes: others
             come number by number through registers, of which wide tiles would take too many
    int8     ``dtype`` is that of x, and weights are int8
    alone    so many programs, at most, have a multiprocessor each for themselves
    """
    tiles = FLOAT32_TILES if dtype == torch.float32 else TILES
    fitting = [n for n in tiles if blocks(columns, n) >= FEWEST_PROGRAMS]
    outputs = max(tiles) if gated else max(fitting, default=min(tiles))
    if not aligned:
        outputs = min(n for n in tiles if n > 16 or not gated)
    depth, *stages = tiles[outputs]
    narrow = int8 and dtype != torch.float32
    if narrow:
        stages = list(INT8_STAGES[outputs])
    chosen = stages[blocks(columns, outputs // (2 if gated else 1)) <= alone]
    many = aligned and rows > ROWS and dtype != torch.float32
    if many:
        chosen = MANY_INT8_STAGES[outputs] if narrow else MANY_TILES[outputs][1]
        outputs = MANY_TILES[outputs][0]
    roomy = many or not aligned or (int8 and dtype == torch.float32)
    return Tile(
        MANY_ROWS if many else ROWS,
        outputs // 2 if gated else outputs,
        depth,
        chosen,
        MANY_REGISTERS if roomy else REGISTERS,
    )


def _alone(device: torch.device) -> int:
    """How many programs get a multiprocessor each; 0 where two stages more do not fit."""
    return multiprocessors(device) if architecture() in ROOMY else 0


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    gated: bool,
) -> Tensor:
    """Any of the three ops, but for the norm."""
    rows, depth = x.shape
    columns = weight.shape[0] // (2 if gated else 1)
    output = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    aligned, alone = depth % 16 == 0, _alone(x.device)
    block = tile(columns, gated, x.dtype, rows, aligned, scale is not None, alone)
    # The row tiles of the same outputs are neighbours: all but the first read weights from L2.
    _linear[(blocks(rows, block.rows), blocks(columns, block.outputs))](
        x,
        weight,
        scale,
        bias,
        residual,
        output,
        rows,
        columns,
        depth,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        GATED=gated,
        INTERPRETED=interpreted(),
        BLOCK_R=block.rows,
        BLOCK_O=block.outputs,
        QUARTERS=WARPS,
        BLOCK_K=block.depth,
        WHOLE=scale is not None and depth % (WARPS * block.depth) == 0,
        num_warps=WARPS,
        num_stages=block.stages,
        maxnreg=block.registers,
        enable_fp_fusion=True,
        **launch_options(),
    )
    return output


def norm_linear(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor:
    """See `hybridgen.kernels.linear.norm_linear_reference`.

    ``norm``, ``weight``, ``bias`` and ``scale`` are contiguous.
    """
    return _launch(rms_norm(x, norm, eps), weight, bias, None, scale, gated=False)


def norm_gated_linear(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor:
    """See `hybridgen.kernels.linear.norm_gated_linear_reference`.

    ``norm``, ``weight``, ``bias`` and ``scale`` are contiguous.
    """
    return _launch(rms_norm(x, norm, eps), weight, bias, None, scale, gated=True)


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None = None
) -> Tensor:
    """See `hybridgen.kernels.linear.linear_residual_reference`.

    ``weight``, ``bias`` and ``scale`` are contiguous.
    """
    return _launch(x, weight, bias, residual, scale, gated=False)
