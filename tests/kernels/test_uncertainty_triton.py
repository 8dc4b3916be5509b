"""Entropy, LogTokU and the measured draw by Triton, against float64 and whatever the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import bits, launch
from torch import Tensor

from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.sampling import LARGEST, LOG_Z, sample
from hybridgen.kernels.uncertainty import (
    ALEATORIC,
    ENTROPY,
    EPISTEMIC,
    FULL_LOGPROB,
    LOGITS,
    LOGPROB,
    PROBS,
    entropy,
    logtoku,
    sample_measured,
)

pytestmark = pytest.mark.usefixtures("references")

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PARAMS = [(0.6, 20, 0.95, 0.0), (0.0, 0, 1.0, 0.0), (1.3, 0, 1.0, 0.0), (0.9, 0, 0.8, 0.05)]

vocabularies = st.sampled_from([2, 5, 60, 1000, 1100, 2600])
scales = st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0])


def random_logits(rows: int, vocab: int, scale: float, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=generator) * scale).to(dtype)


def plain_entropy(logits: Tensor, temperature: Tensor) -> np.ndarray:
    x = logits.double() / torch.where(temperature > 0, temperature, 1).double()[:, None]
    log_p = x.log_softmax(1)
    spread = -(log_p.exp() * log_p.clamp_min(-1e4)).sum(1)
    return torch.where(temperature > 0, spread, 0).numpy()


def plain_logtoku(logits: Tensor, k: int, evidence: int) -> tuple[np.ndarray, np.ndarray]:
    x = logits.double()
    top = x.sort(1, descending=True).values[:, :k]
    alpha = x.softmax(1).sort(1, descending=True).values[:, :k]
    strength = top.clamp_min(0).sum(1)
    alpha = alpha / alpha.sum(1, keepdim=True) if evidence == PROBS else top.clamp_min(0)
    total = alpha.sum(1, keepdim=True)
    share = alpha / torch.where(total > 0, total, 1)
    au = -(share * (torch.digamma(alpha + 1) - torch.digamma(total + 1))).sum(1)
    if evidence == PROBS:
        candidates = torch.tensor(top.shape[1], dtype=torch.float64)
        most = torch.digamma(torch.tensor(2.0).double()) - torch.digamma(1 + 1 / candidates)
        au = au / most if top.shape[1] > 1 else 0 * au
    return au.numpy(), (top.shape[1] / (strength + top.shape[1])).numpy()


# What a GPU's steps may be off, relative, in units of 2**-22: a division 1 (div.full, 2 ulp), an
# exponential 1 (ex2.approx), a sum or product 1/4; a logarithm 1.5 where it is lg2.approx, times a
# rounded constant (libdevice's, which Triton 3.8 takes, is off by 1/2).

# An entropy is a sum of p * x with weights known to 2**-21 and x up to 12 where p counts; their
# quotient and its product with log 2 are off by 1.5 units of it, and the logarithm by as much: by
# 12 * 2**-21 and another half of it.
ENTROPY_ERROR = {"atol": 18 * 2.0**-21, "rtol": 2.0**-22}
# LOGITS, up to 40 of them, S up to 5000. digamma(S + 1): a logarithm of up to 8.5, 1.5 for itself
# and 0.75 for the three differences it is the largest term of: 19; S, a sum of 6 levels, and S + 7,
# rounded: 2. digamma(alpha + 1): at alpha = 0, six quotients of 2.5 in all and their five sums, 2.5
# each: 6, and a logarithm of 1.9: 5; at alpha = 140 a logarithm of 5: 12. Their difference, of up
# to 8.5: 2. Shares, 1 + 1.5 + 0.25, times an AU of up to 3.7: 10; the sum of the products, 6 levels
# of 0.25 times 3.7: 6. Together 51.
# PROBS. The weight of a token d nats below the maximum: 1 + 0.625 d (a difference, a product and a
# constant in the exponent). Its share: as much again for the sum, as the average of d counts, 0.25
# for each of log2 k levels, and 1. Nobody's share counts more than once in the sum of shares times
# polynomials. These are off by 0.9, their products and sum by 0.25 + 0.25 log2 k, of the AU; the
# quotient by 1, and its divisor by 0.9 and what 1 / k is off. The average of d is 0.28 at most for
# k = 2, 1.1 for 10, 2 for 40, the maximum of the AU 0.39, 0.85 and 0.96: together 13.8, 10.4, 11.7.
# A tenth and more is to spare: the sums above are of first order.
LOGTOKU_ERROR = {LOGITS: {"atol": 58 * 2.0**-22}, PROBS: {"atol": 16 * 2.0**-22}}
# EU is a quotient, 1, of k by a float32 sum of up to 40 terms, 1.5, and of k, 0.25.
EPISTEMIC_ERROR = {"rtol": 2.0**-20}


@settings(max_examples=15)
@given(vocabularies, scales, st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_entropy(
    device: torch.device, vocab: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    logits = random_logits(3, vocab, scale, seed, dtype)
    temperature = torch.tensor([0.7, 0.0, 2.0])
    actual = launch(entropy, device, logits, temperature)
    np.testing.assert_allclose(actual, plain_entropy(logits, temperature), **ENTROPY_ERROR)


def test_entropy_at_any_temperature(device: torch.device) -> None:
    """Of two equals, one token below and one that cannot be; then numbers beyond float32."""
    logits = torch.tensor([[3.0, 3.0, 1.0, -INF]]).expand(4, -1)
    temperature = torch.tensor([1e-60, 1e-38, 3e38, 1e60], dtype=torch.float64)
    expected = np.log([2, 2, 3, 3])
    for actual in (launch(entropy, device, logits, temperature), entropy(logits, temperature)):
        np.testing.assert_allclose(actual, expected, **ENTROPY_ERROR)


@settings(max_examples=20)
@given(
    vocabularies,
    scales,
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2, 10, 16, 40]),
    st.sampled_from([PROBS, LOGITS]),
    st.integers(0, 2**31),
)
def test_logtoku(
    device: torch.device,
    vocab: int,
    scale: float,
    dtype: torch.dtype,
    k: int,
    evidence: int,
    seed: int,
) -> None:
    logits = random_logits(1, vocab, scale, seed, dtype)
    au, eu = launch(logtoku, device, logits, k, evidence)
    plain_au, plain_eu = plain_logtoku(logits, k, evidence)
    np.testing.assert_allclose(au, plain_au, **LOGTOKU_ERROR[evidence])
    np.testing.assert_allclose(eu, plain_eu, **EPISTEMIC_ERROR)


@pytest.mark.parametrize("evidence", [PROBS, LOGITS])
@pytest.mark.parametrize("distinct", [1, 3, 12])
def test_equal_logits_each_count(device: torch.device, distinct: int, evidence: int) -> None:
    """More equals than there are candidates, or than k: the row itself is searched."""
    logits = (torch.arange(2600) % distinct).float()[None] + 1
    au, eu = launch(logtoku, device, logits, 10, evidence)
    plain_au, plain_eu = plain_logtoku(logits, 10, evidence)
    np.testing.assert_allclose(au, plain_au, **LOGTOKU_ERROR[evidence])
    np.testing.assert_allclose(eu, plain_eu, **EPISTEMIC_ERROR)


@settings(max_examples=20)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32) | st.just(-INF), min_size=2, max_size=20),
    st.sampled_from([1, 2, 3, 10, 40]),
)
def test_doubt_is_between_0_and_1(device: torch.device, row: list[float], k: int) -> None:
    """After every rounding."""
    au = launch(logtoku, device, torch.tensor([[0.0, *row]]), k, PROBS)[0]
    assert 0 <= au.item() <= 1


# k about a short vocabulary, and where a long one is searched.
@pytest.mark.parametrize(
    ("vocab", "k"),
    [*((vocab, k) for vocab in (2, 10) for k in (1, 2, 7, 10, 40)), (1100, 1), (1100, 10)],
)
def test_a_flat_row_is_all_doubt_and_a_one_hot_row_none(
    device: torch.device, vocab: int, k: int
) -> None:
    """One candidate alone is none either; of a sure token nothing is left to rounding."""
    logits = torch.full((2, vocab), -3.0)
    logits[1, 1] = 1000.0
    flat, hot = launch(logtoku, device, logits, k, PROBS)[0].tolist()
    assert hot == 0
    if k == 1:
        assert flat == 0
    else:
        np.testing.assert_allclose(flat, 1, **LOGTOKU_ERROR[PROBS])


def test_the_tail_below_the_candidates_does_not_matter(device: torch.device) -> None:
    """Not a bit, in mass or in length."""
    row = torch.linspace(4, 1, 10)
    tails = ([], [-INF] * 90, [0.5] * 90, [1.0] * 90, [0.9] * 1190)
    results = [
        launch(logtoku, device, torch.cat([row, torch.tensor(tail)])[None], 10, PROBS)[0]
        for tail in tails
    ]
    assert all(torch.equal(bits(result), bits(results[0])) for result in results)


@pytest.mark.parametrize("k", [150, 1000], ids=["candidates", "more than there are candidates"])
def test_many_of_the_largest(device: torch.device, k: int) -> None:
    """Several blocks of them, each value some times over."""
    logits = random_logits(2, 2600, 3.0, 6, torch.float32).mul(8).round().div(8)
    for evidence in (PROBS, LOGITS):
        au, eu = launch(logtoku, device, logits, k, evidence)
        plain_au, plain_eu = plain_logtoku(logits, k, evidence)
        # As above, of 1000 and an AU of up to 7: S, now of 10 levels, 3; shares, 3.75 each, 26; the
        # sum of the products 17.5; with what is the same, 80 and a tenth.
        np.testing.assert_allclose(au, plain_au, atol=90 * 2.0**-22)
        np.testing.assert_allclose(eu, plain_eu, rtol=2.0**-19)


# What is read of a dtype's logits and what is measured of them have nothing to do with each other.
@pytest.mark.parametrize(
    ("dtype", "vocab", "k"),
    [
        (torch.float32, 60, 0),
        (torch.float32, 2600, 10),
        (torch.bfloat16, 60, 10),
        (torch.bfloat16, 2600, 0),
        (torch.float16, 60, 10),
        (torch.float16, 2600, 10),
    ],
    ids=str,
)
def test_a_measured_draw_is_the_draw_and_its_measures(
    device: torch.device, dtype: torch.dtype, vocab: int, k: int
) -> None:
    logits = random_logits(4, vocab, 3.0, 1, dtype)
    sampling, row = torch.tensor(PARAMS, dtype=torch.float64), torch.arange(4)
    draw = (logits, sampling, 5 + row, 9 * row, TARGET)
    token, truncation, measures = launch(sample_measured, device, *draw, k, PROBS)
    for got, want in zip((token, truncation), launch(sample, device, *draw), strict=True):
        assert torch.equal(bits(got), bits(want))
    x, heat = logits.double(), sampling[:, 0]
    logprob = (x[row, token] - truncation[:, LARGEST]) / heat - truncation[:, LOG_Z].double()
    logprob[1] = 0  # greedy
    np.testing.assert_allclose(measures[:, LOGPROB], logprob, rtol=2.0**-23, atol=2.0**-24)
    full = x.log_softmax(1)[row, token]
    # In 2**-24: x - max, log Z and their difference, 24 each, are rounded, and the logarithm, of up
    # to 8, is off by 6 of its size at most.
    np.testing.assert_allclose(measures[:, FULL_LOGPROB], full, atol=(3 * 24 + 6 * 8) * 2.0**-24)
    one = torch.ones(4)
    np.testing.assert_allclose(measures[:, ENTROPY], plain_entropy(logits, one), **ENTROPY_ERROR)
    if k == 0:
        assert measures[:, [ALEATORIC, EPISTEMIC]].isnan().all()
    else:
        au, eu = plain_logtoku(logits, k, PROBS)
        np.testing.assert_allclose(measures[:, ALEATORIC], au, **LOGTOKU_ERROR[PROBS])
        np.testing.assert_allclose(measures[:, EPISTEMIC], eu, **EPISTEMIC_ERROR)


def test_the_reference_measures_the_same() -> None:
    logits = random_logits(4, 500, 3.0, 2, torch.float32)
    logits[3, 7] = NAN
    sampling, row = torch.tensor(PARAMS, dtype=torch.float64), torch.arange(4)
    draw = (logits, sampling, 5 + row, 9 * row, TARGET)
    token, truncation, measures = sample_measured(*draw, 10, LOGITS)
    for got, want in zip((token, truncation), sample(*draw), strict=True):
        assert torch.equal(bits(got), bits(want))
    whole = logits[:3]
    np.testing.assert_array_equal(measures[:, ENTROPY], entropy(logits, torch.ones(4)))
    au, eu = logtoku(logits, 10, LOGITS)
    np.testing.assert_array_equal(measures[:, ALEATORIC], au)
    np.testing.assert_array_equal(measures[:, EPISTEMIC], eu)
    full = whole.double().log_softmax(1)[row[:3], token[:3]]
    np.testing.assert_allclose(measures[:3, FULL_LOGPROB], full, atol=1e-5)
    assert measures[1, LOGPROB] == 0 and measures[3].isnan().all()


@pytest.mark.parametrize("vocab", [60, 2600])
def test_a_broken_row_is_nan_and_alone(device: torch.device, vocab: int) -> None:
    """Each of four kinds, between rows that are whole."""
    whole = random_logits(2, vocab, 3.0, 3, torch.float32)
    logits = whole[[0, 0, 1, 0, 0, 1]]
    for row, bad in ((0, [NAN]), (1, [INF]), (3, [INF, NAN])):
        logits[row, 3 : 3 + len(bad)] = torch.tensor(bad)
    logits[4] = -INF
    results = []
    for rows in (whole, logits):
        h = launch(entropy, device, rows, torch.ones(len(rows)))
        results.append((h, *launch(logtoku, device, rows, 10, PROBS)))
    for want, got in zip(*results, strict=True):
        assert got[[0, 1, 3, 4]].isnan().all()
        assert torch.equal(bits(got[[2, 5]]), bits(want[[1, 1]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_keeps_its_bits_in_any_batch_and_stride(
    device: torch.device, dtype: torch.dtype
) -> None:
    logits = random_logits(4, 2600, 3.0, 4, dtype)
    temperature = torch.tensor([0.5, 1.0, 2.0, 0.0])
    h = launch(entropy, device, logits, temperature)
    au, eu = launch(logtoku, device, logits, 10, PROBS)
    order = torch.tensor([2, 0, 3, 1])
    wide = torch.full((8, 2650), NAN, dtype=dtype)
    wide[::2, 5:2605] = logits[order]
    moved = wide[::2, 5:2605]
    assert torch.equal(bits(launch(entropy, device, moved, temperature[order])), bits(h[order]))
    for got, want in zip(launch(logtoku, device, moved, 10, PROBS), (au, eu), strict=True):
        assert torch.equal(bits(got), bits(want[order]))
    alone = launch(entropy, device, logits[2:3], temperature[2:3])
    assert torch.equal(bits(alone), bits(h[2:3]))
