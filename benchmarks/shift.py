"""By how much two samples of times differ, and within what bounds, for any kind of noise.

The estimate is Hodges and Lehmann's (1963): the median of all ratios new / old. Its bounds come
from Mann and Whitney's (1947) test: were the new sample the old one times r, every order of the
n + m values would be equally likely, so that U = #{(i, j): new_i / old_j <= r} has a known law,
which `_orders` counts. The k-th lowest ratio exceeds r where U < k, so it is too high a lower bound
with probability P(U < k), whatever the noise, and the k-th highest is too low with the same.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from statistics import median
from typing import NamedTuple


class Shift(NamedTuple):
    """A ratio new / old, bounds, and how often either bound is wrong by chance."""

    ratio: float
    low: float
    high: float
    rate: float


def shift(old: Sequence[float], new: Sequence[float], rate: float) -> Shift:
    """Of two samples of positive numbers, each bound wrong with probability ``rate`` at most.

    Of samples too small for that rate the bounds are the lowest and the highest ratio, and the rate
    is what it then is, 1 / C(n + m, n). ValueError where a sample is empty.
    """
    if not old or not new:
        raise ValueError("a shift is between two samples of one value and more")
    ratios = sorted(each / before for each in new for before in old)
    place, chance = bound(len(old), len(new), rate)
    return Shift(median(ratios), ratios[place - 1], ratios[-place], chance)


@lru_cache
def bound(n: int, m: int, rate: float) -> tuple[int, float]:
    """The largest k with P(U < k) <= rate, but at least 1; and that probability."""
    counts, total = _orders(n, m), comb(n + m, n)
    place, below = 1, counts[0]
    while below + counts[place] <= rate * total:
        below += counts[place]
        place += 1
    return place, below / total


@lru_cache
def _orders(n: int, m: int) -> list[int]:
    """How many of the C(n + m, n) orders of two samples have U = 0, 1, ..., n m.

    They are the coefficients of Gauss's binomial, the product of (1 - q^(m + i)) / (1 - q^i) over
    i from 1 to n.
    """
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for u in range(n * m, m + i - 1, -1):
            counts[u] -= counts[u - m - i]
        for u in range(i, n * m + 1):
            counts[u] += counts[u - i]
    return counts
