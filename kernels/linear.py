"""Matrix products of a few rows, with what stands before and after them fused in.

    norm_linear         rms_norm(x) @ weight.T + bias                            QKV, the head
    norm_gated_linear   silu(g) * u, (g, u) = rms_norm(x) @ weight.T + bias      gate and up
    linear_residual     residual + x @ weight.T + bias                           output, down

x [R, H], R = 1 to 128 rows, rows of any stride; weight [O, H] as torch.nn.Linear keeps it; all of
one dtype, float32, bfloat16 or float16. With so few rows each product costs its weight's bytes: the
floor is O * H * itemsize / bandwidth. Nothing is written in place, results are contiguous.

On a GPU a row's bits are the same whatever the other rows and their number; on a CPU
`row_tile.row_tile` finds the numbers for which they are.

On a CPU products of up to `FEW_ROWS` are compiled where `reads_plain` says so: float32 ones, which
take a weight of bfloat16 too, and those of bfloat16 where the processor has none. They read a
weight as it lies. Others may have a weight `pack`ed: laid out once as oneDNN's
kernels read it, instead of anew in every product.

With a ``scale`` [O], float32, the weight is int8, as `quantise` makes it, and stands for
scale[o] * weight[o, k]: half the bytes of bfloat16. x and its norm are the same as without; weights
are converted to x's dtype, which is exact, and the scale multiplies the sum, before the bias. On a
GPU a result is rounded where it is without a scale. On a CPU torch has a kernel for up to
`INT8_ROWS` rows, where the scale is bfloat16 (see `int8_cpu`); elsewhere the weight is converted
anew in every product, which saves memory and no time, and bfloat16 sums are rounded once more,
ahead of the scale.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridgen.kernels.layers import rms_norm
from hybridgen.kernels.openmp import parallel
from hybridgen.kernels.processor import cpu_has_bfloat16
from hybridgen.kernels.registry import define, has_numba

PACKED_ROWS = 8  # a hint: the layout serves any number of rows
FEW_ROWS = 64  # up to which compiled products are about as fast as the library's, or faster
STEP = 16  # numbers of a row that a compiled product reads at a time: depths are multiples of it
INT8_ROWS = 16  # up to which torch's kernel for int8 weights is used where a scale allows it
WIDENED = 1 << 20  # numbers of a weight that are widened at a time: in fewer a product is slower
SERIAL = 32768  # elements from which torch shares an elementwise op among threads


def reads_plain(dtype: torch.dtype) -> bool:
    """Whether products of a few rows of ``dtype`` are compiled on this CPU: `product_numba.py`."""
    if not has_numba() or parallel() is None:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and not cpu_has_bfloat16())


def suits(weight: Tensor) -> bool:
    """Whether a compiled product takes this CPU ``weight``."""
    return not weight.is_mkldnn and weight.is_contiguous() and weight.shape[1] % STEP == 0


def is_compiled(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of these, on a CPU, is a compiled one."""
    return x.shape[0] <= FEW_ROWS and reads_plain(x.dtype) and suits(weight)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU and this build of torch have packed products of ``dtype``."""
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        zeros = torch.zeros(16, 16, dtype=dtype, device="cpu")
        product(zeros, pack(zeros), None)
    except (AttributeError, RuntimeError):  # the ops are torch's own, for its compiler
        return False
    return True


def pack(weight: Tensor) -> Tensor:
    """An opaque copy of a CPU ``weight`` [O, H] for products of few rows; shape and dtype stay."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
    return packed


def product(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
    """``x [R, H] @ weight [O, H].T + bias [O]``, the weight packed or not, or int8 with a scale.

    On a CPU the weight may be bfloat16 where x is float32.
    """
    if x.is_cpu:
        if is_compiled(x, weight):
            return _compiled()(x, weight, bias, scale)
        if weight.dtype == torch.bfloat16 and reads_plain(x.dtype):
            return widened_product(x, weight, bias)
    if scale is not None:
        if scale.dtype == torch.bfloat16 and len(x) <= INT8_ROWS:  # see `int8_cpu`
            y: Tensor = torch._weight_int8pack_mm(x.contiguous(), weight, scale)
            return y if bias is None else y.add_(bias)
        return scaled_product(x, weight, bias, scale)
    if weight.is_mkldnn:
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return packed
    return F.linear(x, weight, bias)


@cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = import_module("hybridgen.kernels.product_numba").product
    return compiled


def widened_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of many rows of x, float32 or bfloat16, and a weight of bfloat16: summed in float32.

    The weight becomes float32 by parts that are still in a cache when they are read again.
    """
    wide, outputs = x.float(), max(WIDENED // x.shape[1], 1)
    y = wide.new_empty(len(x), len(weight))
    for part, target in zip(weight.split(outputs), y.split(outputs, 1), strict=True):
        torch.mm(wide, part.float().t(), out=target)
    return (y if bias is None else y.add_(bias)).to(x.dtype)


def scaled_product(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
    """``scale [O] * (x [R, H] @ weight [O, H].T) + bias [O]``, the weight int8, the scale float32.

    Of a bfloat16 x the library rounds the sums to bfloat16; of float16, where those overflow, x and
    weight are taken to float32. Scale and bias are float32 steps, after which all is rounded to x's
    dtype.
    """
    wide = torch.float32 if x.dtype == torch.float16 else x.dtype
    y = F.linear(x.to(wide), weight.to(wide)).float().mul_(scale)
    return (y if bias is None else y.add_(bias)).to(x.dtype)


def norm_linear_reference(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor:
    """``rms_norm(x [R, H], norm [H]) @ weight [O, H].T + bias [O]`` -> [R, O]."""
    return product(rms_norm(x, norm, eps), weight, bias, scale)


def norm_gated_linear_reference(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor:
    """``silu(gate) * up`` of ``rms_norm(x [R, H])`` -> [R, I]; weight [2 I, H] is gate over up."""
    return gated(product(rms_norm(x, norm, eps), weight, bias, scale))


def gated(both: Tensor) -> Tensor:
    """``silu(gate) * up`` [R, I] of ``both`` [R, 2 I], gate beside up; overwrites the gate."""
    gate, up = both.chunk(2, -1)
    rows, inner = gate.shape
    if rows * inner < SERIAL or not both.is_cpu:
        return F.silu(gate).mul_(up)
    # A thread's share may end inside a row, where the last few exponentials come from another
    # routine with other last bits: smaller pieces have one thread each.
    for piece in gate.split(max((SERIAL - 1) // inner, 1)):
        F.silu(piece, inplace=True)
    return gate * up


def linear_residual_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None = None
) -> Tensor:
    """``residual [R, O] + x [R, H] @ weight [O, H].T + bias [O]`` -> [R, O]."""
    return product(x, weight, bias, scale).add_(residual)


def _norm_linear_fake(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _norm_gated_linear_fake(
    x: Tensor,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2)


def _linear_residual_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None = None
) -> Tensor:
    return residual.new_empty(residual.shape)


norm_linear = define(
    "norm_linear(Tensor x, Tensor norm, float eps, Tensor weight, Tensor? bias, "
    "Tensor? scale=None) -> Tensor",
    norm_linear_reference,
    _norm_linear_fake,
    "linear_triton:norm_linear",
    "linear_numba:norm_linear",
)
norm_gated_linear = define(
    "norm_gated_linear(Tensor x, Tensor norm, float eps, Tensor weight, Tensor? bias, "
    "Tensor? scale=None) -> Tensor",
    norm_gated_linear_reference,
    _norm_gated_linear_fake,
    "linear_triton:norm_gated_linear",
    "linear_numba:norm_gated_linear",
)
linear_residual = define(
    "linear_residual(Tensor x, Tensor weight, Tensor? bias, Tensor residual, "
    "Tensor? scale=None) -> Tensor",
    linear_residual_reference,
    _linear_residual_fake,
    "linear_triton:linear_residual",
    "linear_numba:linear_residual",
)
