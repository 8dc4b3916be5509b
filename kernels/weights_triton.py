"""`weights.py` in Triton, and the order of logits as integers.

Launch what uses `weights` with ``enable_fp_fusion=False``: a fused multiply-add rounds once where
numpy rounds twice.
"""

import triton
import triton.language as tl

from hybridgen.kernels import weights as definition

_LOG2_E = tl.constexpr(definition.LOG2_E)
_COLDEST = tl.constexpr(definition.COLDEST)
_HOTTEST = tl.constexpr(definition.HOTTEST)
_UNDERFLOW = tl.constexpr(definition.UNDERFLOW)
_ROUND = tl.constexpr(definition.ROUND)
_ROUND_20 = tl.constexpr(definition.ROUND_20)
_EXPONENT = tl.constexpr(definition.WEIGHT_BITS + 127)
_C6 = tl.constexpr(definition.POLYNOMIAL[0])
_C5 = tl.constexpr(definition.POLYNOMIAL[1])
_C4 = tl.constexpr(definition.POLYNOMIAL[2])
_C3 = tl.constexpr(definition.POLYNOMIAL[3])
_C2 = tl.constexpr(definition.POLYNOMIAL[4])
_C1 = tl.constexpr(definition.POLYNOMIAL[5])

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The smallest finite logit."""


@triton.jit
def heat_of(temperature):
    """1 / T, float64, of a temperature > 0 within its bounds."""
    return 1.0 / tl.minimum(tl.maximum(temperature.to(tl.float64), _COLDEST), _HOTTEST)


@triton.jit
def rate_of(heat):
    """log2(e) / T as the weights use it, of `heat_of` T."""
    return (heat * _LOG2_E).to(tl.float32)


@triton.jit
def exponents(x, largest, rate):
    """y = (x - max) log2(e) / T, at least -60, float32."""
    return tl.maximum((x - largest) * rate, _UNDERFLOW)


@triton.jit
def scaled_power(y):
    """2**44 * 2**y of exponents ``y``, float32; what lies behind the point is not a weight's."""
    n = (y + _ROUND) - _ROUND
    f = ((y - n) + _ROUND_20) - _ROUND_20
    power = f * _C6
    power = (power + _C5) * f
    power = (power + _C4) * f
    power = (power + _C3) * f
    power = (power + _C2) * f
    power = (power + _C1) * f
    return (power + 1.0) * ((n.to(tl.int32) + _EXPONENT) << 23).to(tl.float32, bitcast=True)


@triton.jit
def weights(x, largest, rate):
    """int64 weights of the float32 logits ``x``; 0 for -inf."""
    return scaled_power(exponents(x, largest, rate)).to(tl.int64)


@triton.jit
def key_of(x, SHIFT: tl.constexpr):
    """int32 keys in the order of the float32 logits ``x``, without NaN.

    SHIFT drops low bits that are the same in all of them: 16 for what was bfloat16, 13 for float16.
    """
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)  # -0 equals 0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def logit_of(key):
    """The float32 logit whose key of SHIFT 0 is ``key``."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
