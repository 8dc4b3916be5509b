"""`philox.py` in Triton: the same words, the same uniforms to the bit, and Gumbel noise from them.

There is no log1p that all back ends have, and log(1 - u) has lost the small u, those that win. So

    E = -log1p(-u) = -log(w) * u / (1 - w),    w = 1 - u as rounded;    E = u where w is 1

in which the rounding of w cancels (Higham 2002, "Accuracy and stability of numerical algorithms",
1.14.1). tl.log is accurate to about an ulp of its result, near 1 too, so E has a relative error of
a few 2**-24, and G = -log(E) an absolute one of as much and an ulp: 2**-20 for a G of 8 to 16.
"""

import triton
import triton.language as tl

_LOW_BITS = tl.constexpr(0xFFFFFFFF)
_SMALLEST = tl.constexpr(2.0**-64)
_LARGEST = tl.constexpr(1 - 2.0**-24)


@triton.jit
def uniform(seed, position, token, stream):
    """Uniform float32 in [2**-64, 1 - 2**-24], in the common shape of ``position`` and ``token``.

    seed  int64 scalar; position  int64; token  int32; stream  an integer scalar
    """
    zero = position * 0 + token * 0
    word_0, word_1, _, _ = tl.philox(
        seed.to(tl.uint64),
        ((zero + token) & _LOW_BITS).to(tl.uint32),
        ((zero + position) & _LOW_BITS).to(tl.uint32),
        (zero + stream).to(tl.uint32),
        zero.to(tl.uint32),
    )
    bits = word_0.to(tl.uint64) | (word_1.to(tl.uint64) << 32)
    return tl.minimum(tl.maximum(bits.to(tl.float32) * _SMALLEST, _SMALLEST), _LARGEST)


@triton.jit
def exponential(u):
    """-log(1 - u), float32, of uniforms ``u``."""
    w = 1.0 - u
    return tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def gumbel(seed, position, token, stream):
    """Standard Gumbel float32, arguments as of `uniform`."""
    return -tl.log(exponential(uniform(seed, position, token, stream)))
