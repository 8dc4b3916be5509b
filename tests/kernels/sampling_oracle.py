"""The slow, plain twins that the sampling ops are compared with, in float64 and Python loops."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch

ACCEPTABLE = 1e-4
"""Smallest p-value that passes. Seeds are fixed, so a test that passes always passes; drawn anew, a
correct program would fail one comparison in ten thousand."""


def filtered(
    logits: Sequence[float], temperature: float, top_k: float, top_p: float, min_p: float
) -> np.ndarray:
    """The distribution [V] after temperature, top-k, top-p and min-p, ties kept together."""
    x = np.array([float(value) for value in logits])
    if temperature == 0:
        return np.eye(len(x))[x.argmax()]
    p = np.exp((x - x.max()) / temperature)
    p /= p.sum()
    descending = sorted(x, reverse=True)
    if 1 <= top_k < len(x):
        p[x < descending[int(top_k) - 1]] = 0
        p /= p.sum()
    if top_p < 1:
        before = np.array([p[x > value].sum() for value in x])
        p[(before >= top_p) & (x < descending[0])] = 0
        p /= p.sum()
    p[p < min_p * p.max()] = 0
    return p / p.sum()


def is_clear_cut(logits: Sequence[float], sampling: Sequence[float], margin: float) -> bool:
    """Whether moving top_p and min_p by `margin` leaves the kept set as it is."""
    temperature, top_k, top_p, min_p = sampling
    sets = [
        tuple(
            filtered(
                logits,
                temperature,
                top_k,
                top_p if top_p >= 1 else top_p * (1 + sign * margin),
                min(min_p * (1 + sign * margin), 1.0),
            )
            > 0
        )
        for sign in (-1, 1)
    ]
    return sets[0] == sets[1]


HALVING = 1 / np.log(2)
"""The temperature at which a logit less by 1 is half as likely, to the bit of its weight."""


def shares(*numerators: int) -> torch.Tensor:
    """A row [V] of groups of equal logits, whose masses are to each other as ``numerators``.

    Group j has logit -j, so its tokens weigh 2**-j of the first's: at `HALVING`, exactly.
    """
    return torch.cat([torch.full((n * 2**j,), -float(j)) for j, n in enumerate(numerators)])


def kept_groups(numerators: Sequence[int], top_p: Fraction) -> int:
    """How many groups of `shares` top-p keeps, in exact arithmetic."""
    edge = top_p * sum(numerators)
    before = [sum(numerators[:j]) for j in range(len(numerators))]
    return max(1, sum(mass < edge for mass in before))


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Pearson's chi-square: how likely counts this far from `law` are; 0 for an impossible one.

    Outcomes expected fewer than 5 times are pooled.
    """
    counts, law = np.asarray(counts, float).ravel(), np.asarray(law, float).ravel()
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-6)
    if counts[law == 0].any():
        return 0.0
    expected = law * counts.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:  # too rare for the approximation, and then nearly never seen
        if counts[-1] > 40:
            return 0.0
        counts, expected = counts[:-1], expected[:-1]
    if len(counts) == 1:
        return 1.0
    statistic = ((counts - expected) ** 2 / expected).sum()
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
