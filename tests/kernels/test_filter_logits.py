"""Filtering keeps what transformers keeps, whole ties included, and the law of what it kept."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampling_cases import INF, OFF, params_of, probabilities, rows_of, tau_of
from sampling_oracle import HALVING, filtered, is_clear_cut, kept_groups, shares
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hybridgen.kernels.sampling import LOG_Z, filter_logits
from hybridgen.kernels.weights import MAX_VOCAB

temperatures = st.sampled_from([0.3, 0.6, 1.0, 1.7])
top_ks = st.sampled_from([0, 1, 2, 3, 5, 20, 2**30])
top_ps = st.sampled_from([1e-6, 0.1, 0.5, 0.8, 0.95, 0.999, 1.0])
min_ps = st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])
samplings = st.tuples(temperatures, top_ks, top_ps, min_ps)
# In steps of 1/64, far wider than float32's at this size: distinct logits stay so after 1 / T.
steps = st.integers(-1000, 1000)


@given(st.lists(steps, min_size=2, max_size=40, unique=True), samplings)
def test_keeps_what_transformers_keeps(numerators: list[int], sampling: tuple) -> None:
    """Its warpers in its order (trap 26), wherever float32 sums leave no doubt about an edge."""
    logits = rows_of(numerators) / 64
    params = params_of(sampling)
    # Its probabilities are float32: 2**-24 a term, 40 terms, and an exponent of up to 100.
    assume(is_clear_cut(logits[0].tolist(), params[0].tolist(), 1e-5))
    temperature, top_k, top_p, min_p = sampling
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    scores = MinPLogitsWarper(min_p)(None, scores) if min_p else scores

    p = probabilities(logits, params)
    np.testing.assert_array_equal((logits >= tau_of(logits, sampling))[0], scores[0] > -INF)
    # Its scores are up to 52 and rounded to float32: 52 * 2**-24 = 3e-6, and twice that beside T.
    np.testing.assert_allclose(p[0], scores.double().softmax(-1)[0], atol=1e-5)


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(-12, 12), min_size=9, max_size=9), min_size=1, max_size=6),
    st.lists(samplings, min_size=6, max_size=6),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_keeps_ties_together(rows: list[list[int]], params: list[tuple], dtype: Any) -> None:
    """Many equal logits, and another filter in every row (trap 30): as in plain float64."""
    logits = (rows_of(*rows) / 4).to(dtype)
    sampling = params_of(*params[: len(rows)])
    p = probabilities(logits, sampling)
    for row, values, actual in zip(logits.tolist(), sampling.tolist(), p, strict=True):
        if is_clear_cut(row, values, 1e-5):  # a weight is known to 2**-21 + 24 * 2**-23
            # A weight's error, and log_z of at most log 9, rounded to float32.
            np.testing.assert_allclose(actual, filtered(row, *values), atol=1e-6)


def test_a_truncation_is_two_logits_of_the_row_and_the_kept_mass_below_the_larger() -> None:
    logits = rows_of([1.0, 3.0, 2.0, -1.0])
    ((tau, largest, log_z),) = filter_logits(logits, params_of((0.5, 3, 1.0, 0.0))).tolist()
    assert (tau, largest) == (1.0, 3.0)
    expected = np.log(np.exp(-4) + 1 + np.exp(-2))
    np.testing.assert_allclose(log_z, expected, rtol=2.0**-20)  # of weights known to 2**-21


@pytest.mark.parametrize("top_k", [1, 2, 20, 127, 128, 129, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_narrow_and_wide_top_k_agree(top_k: int, top_p: float) -> None:
    """Short lists are selected and long ones sorted: both are the float64 rule."""
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(top_k)) * 2
    sampling = params_of((0.8, top_k, top_p, 0.0), (1.1, top_k, top_p, 0.0))
    for row, values, p in zip(logits, sampling, probabilities(logits, sampling), strict=True):
        # Weights are known to 2**-21 + 13 * 2**-23; log_z is at most log 300, rounded to float32.
        np.testing.assert_allclose(p, filtered(row.tolist(), *values.tolist()), atol=2e-6)


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-8, 1e-6, 1e-5, 1e-3, 1e4, 1e38, 3.4e38])
def test_p_is_the_law_at_every_temperature(temperature: float) -> None:
    """Ties at the top of a high, a low and an ordinary row, and logits an ulp apart."""
    near = [1 - i * 2.0**-24 for i in range(4)]
    rows = rows_of([9, 9, 8, 7], [-3e4, -3e4, -1e5, -INF], [0.5, 0.5, 0.25, 0.5], near, [7e6] * 4)
    exact = np.float32(temperature).astype(np.float64)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        p = probabilities(rows, params_of(*[(temperature, 0, 1.0, 0.0)] * 5))
    for row, law in zip(rows.tolist(), p, strict=True):
        np.testing.assert_allclose(law, filtered(row, exact, 0, 1.0, 0.0), atol=2.0**-20)


def test_sampling_of_another_dtype_is_refused() -> None:
    """A float32 has lost the decimal already."""
    with pytest.raises(TypeError, match="sampling must be float64"):
        filter_logits(torch.zeros(2, 4), rows_of(OFF, OFF))


# What exactly top-p and min-p keep


def groups_kept(numerators: tuple[int, ...], top_p: float, top_k: int = 0) -> int:
    row = shares(*numerators)
    tau = tau_of(row[None], (HALVING, top_k, top_p, 0.0)).item()
    return len(row[row >= tau].unique())


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_a_set_of_exactly_the_decimal_is_enough(digits: int) -> None:
    """0.8 of five fifths is four of them, and so for every decimal: 0.07 * 100 is above 7."""
    whole = 10**digits
    for part in range(1, whole):
        top_p = f"{part / whole:.{digits}f}"
        assert groups_kept((part, whole - part), float(top_p)) == 1, top_p
        assert groups_kept((part, whole - part), float(top_p) + 1e-12) == 2, top_p
        assert groups_kept((part - 1, 1, whole - part), float(top_p) - 1e-12) == 1 + (part > 1)
    assert [groups_kept((1,) * 5, n / 5) for n in (1, 2, 3, 4)] == [1, 2, 3, 4]


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=6),
    st.integers(1, 999),
    st.sampled_from([0, 2**30]),
)
def test_top_p_is_decided_as_in_fractions(
    numerators: list[int], thousandths: int, top_k: int
) -> None:
    """At every edge, and at a decimal anywhere; top-k off, and on but keeping all."""
    total = sum(numerators)
    edges = [Fraction(sum(numerators[:j]), total) for j in range(1, len(numerators))]
    for top_p in (Fraction(thousandths, 1000), *edges):
        expected = kept_groups(numerators, top_p)
        assert groups_kept(tuple(numerators), float(top_p), top_k) == expected


def test_min_p_is_decided_on_the_double_given() -> None:
    """A weight of exactly min_p is kept, and not one that the next double is above."""
    row = shares(1, 1, 1)[None]
    for share, kept in ((0.5, 2), (0.25, 3)):
        for min_p, groups in (
            (np.nextafter(share, 0), kept),
            (share, kept),
            (np.nextafter(share, 1), kept - 1),
        ):
            tau = tau_of(row, (HALVING, 0, 1.0, min_p))
            assert len(row[row >= tau].unique()) == groups


# Traps, by their number in the project's list of bugs seen elsewhere


def test_trap_13_ties_at_the_kth_place_are_kept_together() -> None:
    """As transformers does, and unlike an order by index, which would keep one of the two .3."""
    logits = rows_of([0.4, 0.3, 0.3, 0.0]).log()
    p = probabilities(logits, params_of((1.0, 2, 1.0, 0.0)))
    np.testing.assert_allclose(p[0], [0.4, 0.3, 0.3, 0], atol=1e-6)  # float32 logarithms


def test_trap_24_one_token_always_stays() -> None:
    """With the strictest filters, and with top_p = 0, which no request may ask for."""
    equal, distinct = torch.zeros(1, 4), rows_of([0.0, 3.0, 2.0, 1.0])
    for strict in (
        (1.0, 0, 1e-30, 0.0),
        (1.0, 0, 0.0, 0.0),
        (1.0, 0, 1.0, 1.0),
        (1.0, 1, 1.0, 0.0),
    ):
        assert tau_of(distinct, strict).tolist() == [3.0]
        log_z = filter_logits(equal, params_of(strict))[:, LOG_Z]
        np.testing.assert_allclose(log_z, np.log(4), rtol=2**-23)


def test_trap_24_top_p_keeps_no_token_once_the_mass_is_reached() -> None:
    """The second half of an even pair is kept as a tie, the third once the pair falls short."""
    logits = rows_of([0.0, -1.0, 0.0])
    pair = 2 / (2 + np.exp(-1))
    for top_p, kept in ((0.1, 2), (pair - 1e-6, 2), (pair + 1e-6, 3), (1.0, 3)):
        assert (logits >= tau_of(logits, (1.0, 0, top_p, 0.0))).sum() == kept


def test_trap_25_each_filter_renormalises() -> None:
    """top_p = 0.9 of the two that top-k left, not of the whole row, where it would keep both."""
    logits = rows_of([0.38, 0.02] + [0.006] * 100).log()
    assert (logits >= tau_of(logits, (1.0, 2, 0.9, 0.0))).sum() == 1
    assert filter_logits(logits, params_of((1.0, 2, 0.9, 0.0)))[:, LOG_Z].tolist() == [0]


@pytest.mark.parametrize("top_k", [2**30, 16_777_216, 5, 6])
def test_trap_27_top_k_beyond_the_vocabulary_keeps_all(top_k: int) -> None:
    logits = rows_of([1.0, 4.0, 2.0, 3.0, 0.0])
    assert tau_of(logits, (1.0, top_k, 1.0, 0.0)).tolist() == [0.0]


def test_trap_28_fewer_finite_logits_than_k() -> None:
    logits = rows_of([-INF, 1.0, -INF, 0.0, -INF])
    for top_k in (2, 3, 4, 5):
        p = probabilities(logits, params_of((1.0, top_k, 1.0, 0.0)))
        np.testing.assert_allclose(p[0], filtered(logits[0].tolist(), 1, 0, 1, 0), atol=1e-6)


def test_trap_31_a_flat_wide_row_at_top_p() -> None:
    """262144 nearly equal probabilities of 4e-6: the kept set is float64's, to the token."""
    x = torch.randn(262_144, generator=torch.Generator().manual_seed(2)) * 0.01
    tau, _, log_z = filter_logits(x[None], params_of((1.0, 0, 0.9, 0.0)))[0].tolist()
    ordered = np.sort(x.double().numpy())[::-1]
    mass = np.cumsum(np.exp(ordered))
    kept = 1 + int((mass < 0.9 * mass[-1]).sum())
    assert (x >= tau).sum() == kept
    # Weights are known to 2**-21, and log_z of 12.3 is rounded to float32.
    np.testing.assert_allclose(log_z, np.log(mass[kept - 1]) - ordered[0], atol=2.0**-20)
    flat = torch.zeros(1, 262_144)
    assert (flat >= tau_of(flat, (1.0, 0, 0.9, 0.0))).all()  # one great tie


@pytest.mark.parametrize("sampling", [OFF, (1.0, 0, 0.9, 0.0)], ids=str)
def test_the_longest_flat_row_adds_up(sampling: tuple) -> None:
    log_z = filter_logits(torch.zeros(1, MAX_VOCAB), params_of(sampling))[:, LOG_Z]
    np.testing.assert_allclose(log_z, np.log(MAX_VOCAB), rtol=2**-23)
