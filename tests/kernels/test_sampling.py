"""Filtering keeps what transformers keeps, whole ties included; a draw is exact and row-local."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampling_oracle import (
    ACCEPTABLE,
    HALVING,
    filtered,
    is_clear_cut,
    kept_groups,
    p_value,
    shares,
)
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hybridgen.kernels import sampling as sampling_module
from hybridgen.kernels.philox import DRAFT, TARGET
from hybridgen.kernels.sampling import LARGEST, LOG_Z, TAU, filter_logits, sample
from hybridgen.kernels.weights import MAX_VOCAB

INF = float("inf")
OFF = (1.0, 0, 1.0, 0.0)
GREEDY = (0.0, 0, 1.0, 0.0)
QWEN = (0.6, 20, 0.95, 0.0)
MIXED = [
    QWEN,
    GREEDY,
    OFF,
    (0.7, 3, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.1),
    (0.9, 50, 0.9, 0.05),
    (2.0, 1000, 0.99, 0.0),
]

temperatures = st.sampled_from([0.3, 0.6, 1.0, 1.7])
top_ks = st.sampled_from([0, 1, 2, 3, 5, 20, 2**30])
top_ps = st.sampled_from([1e-6, 0.1, 0.5, 0.8, 0.95, 0.999, 1.0])
min_ps = st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])
samplings = st.tuples(temperatures, top_ks, top_ps, min_ps)
# In steps of 1/64, far wider than float32's at this size: distinct logits stay so after 1 / T.
steps = st.integers(-1000, 1000)


def rows_of(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def params_of(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def probabilities(logits: Tensor, sampling: Tensor) -> np.ndarray:
    """p [R, V] in float64 as the module defines it, of a truncation; not for greedy rows."""
    tau, largest, log_z = filter_logits(logits, sampling).double().t().unsqueeze(2)
    x = logits.double()
    p = torch.exp((x - largest) / sampling[:, :1] - log_z)
    return ((x >= tau) * p).numpy()


def tau_of(logits: Tensor, sampling: Any) -> Tensor:
    """The lowest kept logit of each row, [R]."""
    return filter_logits(logits, params_of(sampling).expand(len(logits), -1))[:, TAU]


def draws(logits: Tensor, sampling: Any, count: int, stream: int = TARGET) -> np.ndarray:
    """`count` tokens of one row [V], at as many positions of one sequence."""
    rows = logits.expand(count, -1)
    params = params_of(sampling).expand(count, -1)
    seed = torch.full((count,), 77)
    return sample(rows, params, seed, torch.arange(count), stream)[0].numpy()


def bits_of(results: tuple[Tensor, ...]) -> list[list[int]]:
    """Results to the bit, NaN included."""
    return [(r.view(torch.int32) if r.is_floating_point() else r).tolist() for r in results]


# Filtering


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


def test_greedy_tau_is_the_maximum_and_log_z_is_0() -> None:
    token, truncation = sample(
        rows_of([1, 5, 5, 2], [7, 1, 0, 0]),
        params_of(GREEDY, GREEDY),
        torch.tensor([1, 2]),
        torch.tensor([3, 4]),
        TARGET,
    )
    assert (token.tolist(), truncation.tolist()) == ([1, 0], [[5, 5, 0], [7, 7, 0]])
    assert filter_logits(rows_of([1, 5, 5, 2]), params_of(GREEDY)).tolist() == [[5, 5, 0]]


def test_greedy_takes_the_first_of_equals_alone_and_beside_sampled_rows() -> None:
    row, seed, position = [1.0, 5.0, 2.0, 5.0], torch.arange(3), torch.arange(3)
    for params in ((GREEDY, GREEDY, GREEDY), (GREEDY, OFF, GREEDY), (GREEDY, QWEN, GREEDY)):
        token, truncation = sample(
            rows_of(row, row, row), params_of(*params), seed, position, TARGET
        )
        assert token[[0, 2]].tolist() == [1, 1]
        assert truncation[[0, 2]].tolist() == [[5, 5, 0], [5, 5, 0]]


@pytest.mark.parametrize("top_k", [1, 2, 20, 127, 128, 129, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_narrow_and_wide_top_k_agree(top_k: int, top_p: float) -> None:
    """Short lists are selected and long ones sorted: both are the float64 rule."""
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(top_k)) * 2
    sampling = params_of((0.8, top_k, top_p, 0.0), (1.1, top_k, top_p, 0.0))
    for row, values, p in zip(logits, sampling, probabilities(logits, sampling), strict=True):
        # Weights are known to 2**-21 + 13 * 2**-23; log_z is at most log 300, rounded to float32.
        np.testing.assert_allclose(p, filtered(row.tolist(), *values.tolist()), atol=2e-6)


# Traps, by their number in the project's list of bugs seen elsewhere


def test_trap_4_inputs_are_not_written() -> None:
    logits = torch.randn(8, 100)
    logits[2, 3] = INF  # a broken row is replaced, in a copy
    before = logits.clone()
    sampling = params_of(*MIXED)
    seed, position = torch.arange(8), torch.arange(8)
    sample(logits, sampling, seed, position, TARGET)
    assert torch.equal(logits, before) and torch.equal(sampling, params_of(*MIXED))
    assert torch.equal(seed, torch.arange(8)) and torch.equal(position, torch.arange(8))


BROKEN = {
    "all NaN": [float("nan")] * 5,
    "one NaN": [0.0, float("nan"), 1.0, 2.0, 3.0],
    "+inf": [0.0, INF, 1.0, 2.0, 3.0],
    "+inf and NaN": [INF, 0.0, 1.0, float("nan"), 3.0],
    "all -inf": [-INF] * 5,
}


@pytest.mark.parametrize("sampling", MIXED, ids=str)
@pytest.mark.parametrize("row", BROKEN.values(), ids=BROKEN)
def test_traps_5_27_28_broken_rows_are_flagged_alone(row: list[float], sampling: tuple) -> None:
    """log_z is NaN, the token is an id all the same, and the rows beside do not notice."""
    good = [1.0, 0.5, -INF, 2.0, 0.0]
    seed, position = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    with_broken = sample(
        rows_of(good, row, good), params_of(*[sampling] * 3), seed, position, TARGET
    )
    without = sample(rows_of(good, good, good), params_of(*[sampling] * 3), seed, position, TARGET)
    token, truncation = with_broken
    assert truncation[:, LOG_Z].isnan().tolist() == [False, True, False]
    assert truncation[1, [TAU, LARGEST]].tolist() == [0, 0] and token[1] == 0
    for a, b in zip(with_broken, without, strict=True):
        assert a[[0, 2]].tolist() == b[[0, 2]].tolist()
    filtered_alone = filter_logits(rows_of(good, row, good), params_of(*[sampling] * 3))
    assert bits_of((filtered_alone,)) == bits_of((truncation,))


def test_traps_10_and_23_minus_inf_is_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the largest noise there is, and not at temperature 0."""
    logits = rows_of([-INF, 0.0, -INF, 0.5, -INF])
    monkeypatch.setattr(
        sampling_module,
        "gumbel",
        lambda seed, position, token, stream: np.where(np.isin(token, [0, 2, 4]), 44.0, -3.0),
    )
    for sampling in MIXED:
        token, truncation = sample(
            logits, params_of(sampling), torch.tensor([0]), torch.tensor([0]), TARGET
        )
        assert token.item() in (1, 3) and truncation[0, TAU].item() in (0.0, 0.5)


def test_trap_12_a_sole_survivor_wins_with_the_least_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "gumbel", lambda s, p, token, t: np.full(len(token), -2.9))
    logits = rows_of([-INF, -INF, -1e30, -INF])
    for sampling in MIXED:
        token = sample(logits, params_of(sampling), torch.tensor([0]), torch.tensor([0]), TARGET)[0]
        assert token.tolist() == [2]


def test_trap_13_ties_at_the_kth_place_are_kept_together() -> None:
    """As transformers does, and unlike an order by index, which would keep one of the two .3."""
    logits = rows_of([0.4, 0.3, 0.3, 0.0]).log()
    p = probabilities(logits, params_of((1.0, 2, 1.0, 0.0)))
    np.testing.assert_allclose(p[0], [0.4, 0.3, 0.3, 0], atol=1e-6)  # float32 logarithms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traps_14_19_30_a_row_is_the_same_in_any_batch_and_order(dtype: torch.dtype) -> None:
    """Alone, among others with other filters, and permuted: equal to the bit.

    In bfloat16 ties are common, so some rows have equals outside the k-th and others none.
    """
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(64, 1000, generator=generator) * 3).to(dtype)
    logits[5, 10:] = -INF  # a grammar's row: fewer finite logits than k
    sampling = params_of(*[MIXED[i * 5 % 8] for i in range(64)])
    seed, position = torch.arange(64) % 7, torch.arange(64) % 11
    together = sample(logits, sampling, seed, position, DRAFT)
    for i in range(64):
        row = slice(i, i + 1)
        alone = sample(logits[row], sampling[row], seed[row], position[row], DRAFT)
        assert bits_of(alone) == bits_of(tuple(x[row] for x in together)), i
        assert bits_of((filter_logits(logits[row], sampling[row]),)) == bits_of(alone[1:])
    order = torch.randperm(64, generator=generator)
    permuted = sample(logits[order], sampling[order], seed[order], position[order], DRAFT)
    assert bits_of(permuted) == bits_of(tuple(x[order] for x in together))


def test_trap_18_repeats_are_equal_to_the_bit() -> None:
    logits, sampling = torch.randn(8, 5000), params_of(*MIXED)
    arguments = (logits, sampling, torch.arange(8), torch.arange(8), TARGET)
    assert bits_of(sample(*arguments)) == bits_of(sample(*arguments))


def test_trap_21_noise_belongs_to_the_token_id_not_to_its_rank() -> None:
    """A wider filter or a shuffled rank leaves a token's noise alone: kept winners still win."""
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    seed, position = torch.arange(200), torch.arange(200)

    def drawn(sampling: tuple) -> Tensor:
        return sample(logits, params_of(sampling).expand(200, -1), seed, position, TARGET)[0]

    wide, narrow = drawn((1.0, 0, 1.0, 0.0)), drawn((1.0, 5, 1.0, 0.0))
    tau = tau_of(logits, (1.0, 5, 1.0, 0.0))
    kept = logits.gather(1, wide[:, None])[:, 0] >= tau
    assert 20 < kept.sum() < 200
    assert torch.equal(wide[kept], narrow[kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trap_22_rows_with_any_stride(dtype: torch.dtype) -> None:
    """A padded vocabulary, one step of a block, every second row: what lies between is not read."""
    block = torch.full((8, 5, 64), float("nan"), dtype=dtype)
    block[:, 2, :50] = torch.randn(8, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    view = block[:, 2, :50]
    assert view.stride(0) == 320
    arguments = (params_of(*MIXED), torch.arange(8), torch.arange(8), TARGET)
    assert bits_of(sample(view, *arguments)) == bits_of(sample(view.contiguous(), *arguments))
    assert not sample(view, *arguments)[1].isnan().any()


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


def test_sampling_of_another_dtype_is_refused() -> None:
    """A float32 has lost the decimal already."""
    with pytest.raises(TypeError, match="sampling must be float64"):
        filter_logits(torch.zeros(2, 4), rows_of(OFF, OFF))


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


@pytest.mark.parametrize("sampling", MIXED, ids=str)
def test_two_tokens_are_vocabulary_enough(sampling: tuple) -> None:
    logits = rows_of([0.25, 0.5])
    token, truncation = sample(
        logits, params_of(sampling), torch.tensor([3]), torch.tensor([1]), TARGET
    )
    expected = filtered(logits[0].tolist(), *sampling)
    assert truncation[0, TAU].item() == (0.25 if expected[0] else 0.5)
    assert expected[token] > 0 and not truncation.isnan().any()


def test_extreme_logits_do_not_overflow() -> None:
    """Differences beyond float32's range, and temperatures far from 1: an error if numpy warns."""
    logits = rows_of([3e34, -3.4e38, 0.0, 3.3e34])
    for sampling in (OFF, QWEN, (1e-3, 2, 0.9, 0.01), (100.0, 0, 1.0, 0.0)):
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            token, truncation = sample(
                logits, params_of(sampling), torch.tensor([0]), torch.tensor([0]), TARGET
            )
        assert token.item() == 3 and truncation.isfinite().all()


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


# Drawing


@pytest.mark.parametrize("sampling", [s for s in MIXED if s != GREEDY], ids=str)
@pytest.mark.parametrize("vocab", [8, 4096])
def test_draws_follow_the_filtered_law(vocab: int, sampling: tuple) -> None:
    """Chi-square over positions; a token that was filtered out is never drawn."""
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 2
    logits[3] = -INF
    count = 40_000 if vocab == 8 else 1_000 if sampling[1] in (0, 1000) else 10_000
    tokens = draws(logits, sampling, count)
    law = filtered(logits.tolist(), *params_of(sampling)[0].tolist())
    assert p_value(np.bincount(tokens, minlength=vocab), law) > ACCEPTABLE


def test_the_law_of_draws_over_seeds() -> None:
    logits = torch.randn(8, generator=torch.Generator().manual_seed(5))
    count = 40_000
    token = sample(
        logits.expand(count, -1),
        params_of(QWEN).expand(count, -1),
        torch.arange(count),
        torch.full((count,), 9),
        TARGET,
    )[0]
    law = filtered(logits.tolist(), *params_of(QWEN)[0].tolist())
    assert p_value(np.bincount(token, minlength=8), law) > ACCEPTABLE


def test_positions_and_streams_are_independent() -> None:
    """Pairs of draws at neighbouring positions, and of two streams, have the product law."""
    logits = torch.randn(5, generator=torch.Generator().manual_seed(6))
    a, b = draws(logits, OFF, 40_000), draws(logits, OFF, 40_000, DRAFT)
    p = filtered(logits.tolist(), *OFF)
    for first, second in ((a, b), (a[0::2], a[1::2])):
        pairs = np.bincount(5 * first + second, minlength=25)
        assert p_value(pairs, np.outer(p, p)) > ACCEPTABLE


def test_the_same_noise_couples_similar_rows() -> None:
    """Rows that differ a little mostly draw the same token: what coupled verification lives on.

    At distance d in total variation Gumbel-max couples with probability at least
    (1 - d) / (1 + d) (Daliri, Musco and Suresh 2024).
    """
    generator = torch.Generator().manual_seed(8)
    p_logits = torch.randn(50, generator=generator) * 2
    q_logits = p_logits + torch.randn(50, generator=generator) * 0.3
    same = (draws(p_logits, OFF, 20_000) == draws(q_logits, OFF, 20_000)).mean()
    distance = 0.5 * (p_logits.softmax(0) - q_logits.softmax(0)).abs().sum().item()
    # Four standard deviations of a frequency over 20,000 draws.
    assert same > (1 - distance) / (1 + distance) - 4 * 0.5 / 20_000**0.5


@given(st.lists(st.sampled_from(MIXED), min_size=1, max_size=5), st.integers(0, 2**32))
def test_draws_are_kept_tokens(params: list[tuple], seed: int) -> None:
    rows = len(params)
    logits = torch.randn(rows, 30, generator=torch.Generator().manual_seed(seed))
    token, truncation = sample(
        logits, params_of(*params), torch.arange(rows) + seed, torch.arange(rows), TARGET
    )
    assert (logits.gather(1, token[:, None])[:, 0] >= truncation[:, TAU]).all()
