"""Products of a few rows at the speed of their weights: one kernel for `linear.py`'s three ops.

**Work.** A program makes 16 rows (of more than 16: 32, `MANY_ROWS`, so that half as many read the
weights again) of 16, 32 or 64 outputs (gate and up: 32 of each, so that the [R, 2 I] between them
is never written). It walks the whole depth in tiles of weights [outputs,
depth], which stream through shared memory by cp.async, several tiles ahead. Each of its four warps
takes a quarter of every tile's depth, for all outputs, and the four sums are added in the end, in a
fixed order:

    y[r, o] = sum_w sum_(k in quarter w of each tile) x[r, k] W[o, k]

A product (mma.sync m16n8k16) that adds to the one before waits for it, some 33 cycles. With the
warps side by side over 16 outputs, a depth of 6144 would be 384 in a row, 7 us, as long as its
weights take to come; by quarters it is 96. And a warp reads its own quarter of x instead of all.
The rows are the short side of 16: with weights there, Triton would take wgmma or tcgen05 on some
cards, which bring no byte sooner.

**Norm.** RMSNorm is a scalar of a row times a vector: W (s x g) = s W (x g). x comes by anyway, so
its squares are added up beside the products, x g is what is multiplied, and s = 1 / sqrt(mean(x^2)
+ eps) scales the sum. In float16 x g can overflow where s x g cannot (activations of 10^4 occur):
there, the norm is a launch of its own.

**Bits.** A row is a row of its product whatever else is in it: more rows are more programs, fewer
are zeros, and NaN in one stays there. What orders a row's sums (outputs and depth of a tile, the
quarters) depends on outputs and dtype alone, never on R. A tile of 32 rows is two products of 16
for each of 16: each walks the depth as it would alone. The squares lie over the depth as they do
in 16 rows, and what is laid out otherwise, the quarters of them, is added in a written order.

**Bytes in flight.** The weights cross once, O * H * itemsize bytes; x comes from L2, as much as
R / (outputs of a program) of that again. To keep an H100's 3.35 TB/s busy for the 0.8 us that a
read then takes, 2.7 MB must be under way, 20 KB a multiprocessor. A program has 48 to 64 KB of
weights under way (float32: 40 to 56): 56 programs would do. All that are resident share the
bandwidth evenly, so they need not be a multiple of 132 to finish together. Hence no depth is split
over programs, which would cost a second launch for the partial sums; narrow outputs make narrow
tiles instead: of 64, 32 and 16 outputs a program, the first that leaves `FEWEST_PROGRAMS`. Shared
memory is at most 99 KB, what a block may have on sm_120. Launched ahead of time (`launch.py`), a
program asks for its first weights before it waits for x.

**int8** weights come by the same copies, of 16 a thread, and become x's dtype in registers; the
scale of an output multiplies its sum. Tiles are as deep and more of them are under way, 32 to 56 KB
of a program. What is scarce is instructions. In sm_90's code two numbers become bfloat16 by four (a
permutation, two of logic, a subtraction, all exact), a float16 by a conversion each, and the loops
take 4.7 to 5.4 a weight, where bfloat16 weights take 2.8 to 3.6. At 92 % of the bandwidth that is
one of every two cycles of a scheduler, not one of six: where it has a single warp, as in output and
down below, this may cost more than the bytes do, which nobody has measured. So a depth of whole
tiles has no masks (`WHOLE`: 4.7 for 5.8). A thread takes four neighbours of the depth to a product,
hence other sums than with the same numbers in bfloat16, but the same for any R.

Predicted, bfloat16, R = 1 to 9 rows: bytes at 92 % of 3.35 TB/s, and 2 us for the launch, the first
tile and the last; 3 us where a multiprocessor has one program, and none to overlap these with:

    outputs (of a program) x depth; megabytes, programs, time
    Qwen3-1.7B    down            2048 (16) x  6144     25 MB    128    11 us
                  gate and up    12288 (64) x  2048     50 MB    192    18 us
    Llama-3.2-1B  down            2048 (16) x  8192     34 MB    128    14 us
    Qwen3-8B      QKV             6144 (64) x  4096     50 MB     96    19 us
                  output          4096 (32) x  4096     34 MB    128    14 us
                  gate and up    24576 (64) x  4096    201 MB    384    67 us
                  down            4096 (32) x 12288    101 MB    128    36 us
                  head          151936 (64) x  4096   1245 MB   2374   406 us
    Qwen2.5-0.5B  down             896 (16) x  4864      9 MB     56     6 us
    of int8:
    Qwen3-1.7B    QKV             4096 (32) x  2048      8 MB    128     6 us
                  output          2048 (16) x  2048      4 MB    128     4 us
                  gate and up    12288 (64) x  2048     25 MB    192    10 us
                  down            2048 (16) x  6144     13 MB    128     7 us
                  head          151936 (64) x  2048    311 MB   2374   103 us
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridgen.kernels.launch_triton import launch_options, wait_for_previous
from hybridgen.kernels.layers_triton import rms_norm
from hybridgen.kernels.triton_utils import blocks, interpreted

ROWS = 16
MANY_ROWS = 32
WARPS = 4
FEWEST_PROGRAMS = 96
# Shared memory lets a multiprocessor hold two programs, which might have 255 each. Without a bound
# the assembler saves them, and spills two or three to get below a round number.
REGISTERS, MANY_REGISTERS = 168, 255

# Outputs of a program -> what a warp takes of a tile's depth, and the stages of the pipeline (one
# more than the tiles in shared memory) with `ROWS` and with `MANY_ROWS`.
TILES = {64: (32, 5, 4), 32: (64, 5, 4), 16: (64, 7, 5)}
INT8_STAGES = {64: (8, 6), 32: (7, 5), 16: (9, 5)}  # of half precision x, in tiles as deep
FLOAT32_TILES = {32: (16, 8), 16: (16, 11)}  # these have no tensor cores, but need registers


@triton.jit(do_not_specialize=["rows"])
def _linear(
    x_ptr,  # [rows, depth], rows stride_x apart
    norm_ptr,  # [depth] or None
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
    eps,
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
    if PDL:
        first = tl.program_id(1) * BLOCK_O
        _prefetch(weight_ptr, first, columns, depth, BLOCK_O, GATED)
        if GATED:
            up_ptr = weight_ptr + tl.cast(columns, tl.int64) * depth
            _prefetch(up_ptr, first, columns, depth, BLOCK_O, GATED)
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
    squares = tl.zeros([QUARTERS, BLOCK_R, BLOCK_K], tl.float32)
    if norm_ptr is not None:
        gain = tl.load(norm_ptr + k, mask=k < depth, other=0.0)
    for start in range(0, depth, QUARTERS * BLOCK_K):
        mask_a, mask = in_rows[None, :, None], in_columns[None, None, :]
        if not WHOLE:
            inside = start + k < depth
            mask_a, mask = mask_a & inside[:, None, :], mask & inside[:, :, None]
        a = tl.load(x_ptr + start, mask=mask_a, other=0.0)
        if norm_ptr is not None:
            # Two bytes a thread are too little for cp.async: loaded a tile ahead.
            ahead = start + QUARTERS * BLOCK_K + k
            next_gain = tl.load(norm_ptr + ahead, mask=ahead < depth, other=0.0)
            wide = a.to(tl.float32)
            squares += wide * wide
            a = _product(a, gain[:, None, :], INTERPRETED)
            gain = next_gain
        w = tl.load(weight_ptr + start, mask=mask, other=0.0, eviction_policy="evict_first")
        sums = _dot(a, w, sums, INTERPRETED)
        if GATED:
            w = tl.load(up_ptr + start, mask=mask, other=0.0, eviction_policy="evict_first")
            sums_up = _dot(a, w, sums_up, INTERPRETED)

    y, up = _quarters(sums), _quarters(sums_up)
    if norm_ptr is not None:
        rms = tl.rsqrt(_quarters(tl.sum(squares, 2)) / depth + eps)[:, None]
        y, up = y * rms, up * rms
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
def _prefetch(weight_ptr, first, columns, depth, BLOCK_O: tl.constexpr, GATED: tl.constexpr):
    """Bring what the first tiles of weights are to the L2 cache, while the kernel ahead works.

    As much as the pipeline has under way, 64 KB of a program, by lines of 128 bytes. Nothing is
    read yet: what the kernel ahead may still write goes through the same cache.
    """
    LINES: tl.constexpr = 512 // BLOCK_O // (2 if GATED else 1)
    LINE: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth
    o = tl.minimum(first + tl.arange(0, BLOCK_O), columns - 1).to(tl.int64)
    k = tl.minimum(tl.arange(0, LINES) * LINE, depth - 1)
    lines = weight_ptr + o[:, None] * depth + k[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [lines],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _product(a, b, INTERPRETED: tl.constexpr):
    """a * b, rounded once: in pairs on a GPU, in float32 by the interpreter, which has no other."""
    if INTERPRETED:
        return (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype)
    return a * b


@triton.jit
def _quarters(parts):
    """(0 + 2) + (1 + 3) of the first axis: `tl.sum`'s order would depend on the tile's layout."""
    if len(parts.shape) == 3:
        last = tl.reshape(tl.permute(parts, 1, 2, 0), [parts.shape[1], parts.shape[2], 2, 2])
    else:
        last = tl.reshape(tl.permute(parts, 1, 0), [parts.shape[1], 2, 2])
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
) -> Tile:
    """The tile of a product of ``rows`` rows with ``columns`` outputs.

    aligned  the depth is a multiple of 16, so that all rows begin at a multiple of 16 bytes: others
             come number by number through registers, of which wide tiles would take too many
    int8     ``dtype`` is that of x, and weights are int8
    """
    tiles = FLOAT32_TILES if dtype == torch.float32 else TILES
    fitting = [n for n in tiles if blocks(columns, n) >= FEWEST_PROGRAMS]
    outputs = max(tiles) if gated else max(fitting, default=min(tiles))
    if not aligned:
        outputs = min(n for n in tiles if n > 16 or not gated)
    depth, *stages = tiles[outputs]
    if int8 and dtype != torch.float32:
        stages = list(INT8_STAGES[outputs])
    many = aligned and rows > ROWS and len(stages) > 1
    roomy = many or not aligned or (int8 and dtype == torch.float32)
    return Tile(
        MANY_ROWS if many else ROWS,
        outputs // 2 if gated else outputs,
        depth,
        stages[many],
        MANY_REGISTERS if roomy else REGISTERS,
    )


def _launch(
    x: Tensor,
    norm: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    gated: bool,
) -> Tensor:
    """Any of the three ops, in any dtype that the norm does not overflow in."""
    rows, depth = x.shape
    columns = weight.shape[0] // (2 if gated else 1)
    output = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    block = tile(columns, gated, x.dtype, rows, depth % 16 == 0, scale is not None)
    # The row tiles of the same outputs are neighbours: all but the first read weights from L2.
    _linear[(blocks(rows, block.rows), blocks(columns, block.outputs))](
        x,
        norm,
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
        eps,
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


def _norm_launch(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    gated: bool,
) -> Tensor:
    """`_launch` with a norm, which in float16 is a launch of its own."""
    if x.dtype == torch.float16:
        return _launch(rms_norm(x, norm, eps), None, eps, weight, bias, None, scale, gated)
    return _launch(x, norm, eps, weight, bias, None, scale, gated)


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
    return _norm_launch(x, norm, eps, weight, bias, scale, gated=False)


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
    return _norm_launch(x, norm, eps, weight, bias, scale, gated=True)


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None = None
) -> Tensor:
    """See `hybridgen.kernels.linear.linear_residual_reference`.

    ``weight``, ``bias`` and ``scale`` are contiguous.
    """
    return _launch(x, None, 0.0, weight, bias, residual, scale, gated=False)
