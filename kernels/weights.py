"""Softmax weights as integers: the same on every device, in every order of addition.

    weight(x) = floor(2**44 * 2**((x - max) / (T ln 2)))

A filter decides by comparing sums of probabilities: top-p keeps a token while the mass before it is
below an edge. Float sums depend on their order, so a split, a batch size or another device could
move a token over the edge. Integer sums do not: what is kept is decided once and for all.

Every step is one correctly rounded float32 operation (no fused multiply-add, no library exp), so
numpy, Triton and its interpreter agree to the bit:

    y = (x - max) * rate, at least -60        rate = log2(e) / T
    n = y rounded,  f = y - n rounded to a multiple of 2**-20
    2**f = 1 + f * q(f)                       relative minimax fit of degree 6, 2e-9
    weight = floor(2**f * 2**(n + 44))

Neighbouring f are further apart than the polynomial's rounding, so a larger logit never weighs
less. The maximum weighs exactly 2**44, and `MAX_VOCAB` maxima add up to less than 2**63: no row may
be longer. What is 2**44 times less likely weighs nothing. A weight's relative error is below
2**-21 + |y| 2**-23 (f, then the two roundings of y), and 2**-24 more for each bit that the floor
cuts into.

A temperature below 2**-100 counts as that, and one above 2**126 too: 1 / T and the rate are then
float32 numbers that are neither 0 nor infinite, so that a product with a difference of logits may
overflow to -inf, and is never NaN.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

WEIGHT_BITS = 44
ONE = 2.0**WEIGHT_BITS
"""The weight of the maximum."""

MAX_VOCAB = 2 ** (63 - WEIGHT_BITS) - 1
"""The longest row whose weights add up in 64 bits however flat it is: 524,287."""

LOG2_E = 1.4426950408889634
COLDEST, HOTTEST = 2.0**-100, 2.0**126
"""Temperatures beyond count as these."""
UNDERFLOW = -60.0
ROUND = 1.5 * 2.0**23  # x + ROUND - ROUND is x rounded to an integer
ROUND_20 = 12.0  # the same to a multiple of 2**-20, for |x| < 4
POLYNOMIAL = (
    0.00015353361959569156,
    0.0013398873852565885,
    0.00961843691766262,
    0.055503323674201965,
    0.24022647738456726,
    0.6931471824645996,
)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer[Any]]

_ROUND = np.array(ROUND, np.float32)
_ROUND_20 = np.array(ROUND_20, np.float32)
_UNDERFLOW = np.array(UNDERFLOW, np.float32)
_BITS = np.array(WEIGHT_BITS, np.int32)
_ONE = np.array(1, np.float32)
_POLYNOMIAL = [np.array(c, np.float32) for c in POLYNOMIAL]


def rate(temperature: npt.NDArray[Any]) -> Floats:
    """log2(e) / T as the weights use it, in the shape of ``temperature`` (> 0)."""
    exact: Floats = (1 / bounded(temperature) * LOG2_E).astype(np.float32)
    return exact


def bounded(temperature: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``temperature`` (> 0) in float64, from `COLDEST` to `HOTTEST`."""
    return np.clip(temperature.astype(np.float64), COLDEST, HOTTEST)


def weights(x: Floats, largest: Floats, rate: Floats) -> Integers:
    """int64 weights in the shape of the logits ``x``; the others broadcast. 0 for -inf."""
    with np.errstate(over="ignore"):  # -inf is as good as any other number below `UNDERFLOW`
        y = x - largest
        y *= rate
    np.maximum(y, _UNDERFLOW, out=y)
    n = y + _ROUND
    n -= _ROUND
    f = np.subtract(y, n, out=y)
    f += _ROUND_20
    f -= _ROUND_20
    power = f * _POLYNOMIAL[0]
    for coefficient in _POLYNOMIAL[1:]:
        power += coefficient
        power *= f
    power += _ONE
    scaled: Integers = np.ldexp(power, n.astype(np.int32) + _BITS).astype(np.int64)
    return scaled
