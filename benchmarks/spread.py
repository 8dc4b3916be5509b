"""Medians of repeats and how far they spread: all that tables and plots say of times."""

from collections.abc import Sequence
from statistics import median, quantiles
from typing import NamedTuple

from hybridgen.benchmarks.lines import Line

QUARTILES_FROM = 5  # repeats; of fewer, the least and the most are told


class Spread(NamedTuple):
    """A median, and the quartiles; of fewer than `QUARTILES_FROM` values the least and the most."""

    middle: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Of the values; None where there are none."""
    if not values:
        return None
    if len(values) < QUARTILES_FROM:
        return Spread(median(values), min(values), max(values))
    low, middle, high = quantiles(values, method="inclusive")
    return Spread(middle, low, high)


def seconds_a_token(line: Line) -> list[float]:
    """Of each repeat; empty where the text is wrong."""
    return [each / line.tokens for each in line.seconds] if line.is_right and line.tokens else []


def speed_ups(line: Line, baseline: Line | None) -> list[float]:
    """How many times as fast as the baseline each repeat is.

    Repeats of a comparison are interleaved, so that the i-th of both saw the machine alike.
    """
    if baseline is None:
        return []
    pairs = zip(seconds_a_token(baseline), seconds_a_token(line), strict=False)
    return [theirs / own for theirs, own in pairs]
