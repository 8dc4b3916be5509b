"""`philox.py` compiled for a CPU: the same bits; the same noise, but for an ulp or two of its
logarithms.

A token's noise has the same bits alone and among others: every step is one correctly rounded
operation on it alone, so that it does not matter whether the compiler makes vectors of them.
"""

import numpy as np
from numba import njit

from hybridgen.kernels.numba_utils import as_bits, as_float

_MASK, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLY_0, _MULTIPLY_2 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_SMALLEST, _LARGEST = np.float32(2.0**-64), np.float32(1 - 2.0**-24)
_ONE, _HALF = np.float32(1), np.float32(0.5)

# log(1 + x), 1 + x from sqrt(1/2) to sqrt(2): Cephes' logf. ln 2 comes in two parts.
_L8, _L7, _L6 = np.float32(0.070376836292), np.float32(-0.11514610310), np.float32(0.11676998740)
_L5, _L4, _L3 = np.float32(-0.12420140846), np.float32(0.14249322787), np.float32(-0.16668057665)
_L2, _L1, _L0 = np.float32(0.20000714765), np.float32(-0.24999993993), np.float32(0.33333331174)
_LN_2, _LN_2_REST = np.float32(0.693359375), np.float32(-2.12194440e-4)
_SQRT_HALF, _MANTISSA = np.int32(0x3F3504F3), np.int32(23)


@njit(error_model="numpy", inline="always")
def random_bits(seed, position, token, stream):
    """64 random bits of four integers: the first two words of Philox-4x32-10."""
    word_0, word_1 = np.uint64(token) & _MASK, np.uint64(position) & _MASK
    word_2, word_3 = np.uint64(stream), np.uint64(0)
    key_0, key_1 = np.uint64(seed) & _MASK, np.uint64(seed) >> _32
    for _ in range(10):
        product_0, product_2 = word_0 * _MULTIPLY_0, word_2 * _MULTIPLY_2
        word_0 = (product_2 >> _32) ^ word_1 ^ key_0
        word_2 = (product_0 >> _32) ^ word_3 ^ key_1
        word_1, word_3 = product_2 & _MASK, product_0 & _MASK
        key_0, key_1 = (key_0 + _WEYL_0) & _MASK, (key_1 + _WEYL_1) & _MASK
    return word_0 | (word_1 << _32)


@njit(error_model="numpy", inline="always")
def uniform(seed, position, token, stream):
    """Uniform float32 in [2**-64, 1 - 2**-24]."""
    bits = random_bits(seed, position, token, stream)
    return min(max(np.float32(bits) * _SMALLEST, _SMALLEST), _LARGEST)


@njit(error_model="numpy")
def gumbel(seed, position, token, stream):
    """Standard Gumbel float32, between -2.9 and 44.4, of one token by itself."""
    return gumbel_of(uniform(seed, position, token, stream))


@njit(error_model="numpy", inline="always")
def gumbel_of(u):
    """-log(-log(1 - u))."""
    return -_log(_exponential_of(u))


@njit(error_model="numpy", inline="always")
def _exponential_of(u):
    """-log(1 - u), to an ulp of it also where u is small (Kahan)."""
    rest = _ONE - u
    return u if rest == _ONE else -_log(rest) * u / (_ONE - rest)


@njit(error_model="numpy", inline="always")
def _log(x):
    """log x of a normal float32 x > 0."""
    bits = as_bits(x)
    exponent = (bits - _SQRT_HALF) >> _MANTISSA
    y = as_float(bits - (exponent << _MANTISSA)) - _ONE
    power = ((((_L8 * y + _L7) * y + _L6) * y + _L5) * y + _L4) * y + _L3
    power = ((power * y + _L2) * y + _L1) * y + _L0
    square, n = y * y, np.float32(exponent)
    return (power * y * square + _LN_2_REST * n - _HALF * square) + y + _LN_2 * n
