"""Entropy and LogTokU equal their formulas in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hybridgen.kernels.uncertainty import EVIDENCE, LOGITS, PROBS, entropy, logtoku

INF, NAN = float("inf"), float("nan")
BROKEN = ([NAN] * 4, [0.0, NAN, 1.0, 2.0], [0.0, INF, 1.0, 2.0], [-INF] * 4)

# A sum of V float32 terms, taken pairwise, is off by log2(V) roundings at most (12 for V = 4096);
# x of up to 100 in size carries one rounding of its own, 100 * 2**-24 = 6e-6.
SUMMED = 2e-5


def random_rows(rows: int, vocab: int, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab)) * scale


def plain_entropy(row: Tensor, temperature: float) -> float:
    p = (row.double() / temperature).softmax(0)
    return float(-(p[p > 0] * p[p > 0].log()).sum())


def plain_digamma(x: float) -> float:
    """psi by recurrence to x >= 20 and three terms of its asymptotic series: 1e-12."""
    shift = 0.0
    while x < 20:
        shift -= 1 / x
        x += 1
    return shift + math.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4) - 1 / (252 * x**6)


def plain_logtoku(row: Tensor, k: int, evidence: int) -> tuple[float, float]:
    """The formulas in Python floats: the paper's, and with probabilities over its maximum."""
    logits = sorted(row.double().tolist(), reverse=True)[:k]
    positive = [max(x, 0.0) for x in logits]
    probs = sorted(row.double().softmax(0).tolist(), reverse=True)[:k]
    alpha = [p / sum(probs) for p in probs] if evidence == PROBS else positive
    total = sum(alpha)
    au = 0.0
    for a in alpha if total > 0 else []:
        au -= a / total * (plain_digamma(a + 1) - plain_digamma(total + 1))
    if evidence == PROBS:
        au = au / (plain_digamma(2) - plain_digamma(1 + 1 / len(alpha))) if k > 1 else 0.0
    return au, len(positive) / (sum(positive) + len(positive))


def test_the_digamma_twin_knows_its_values() -> None:
    """psi(1) = -gamma and psi(1/2) = -gamma - 2 log 2."""
    gamma = 0.5772156649015329
    assert math.isclose(plain_digamma(1), -gamma, abs_tol=1e-11)
    assert math.isclose(plain_digamma(0.5), -gamma - 2 * math.log(2), abs_tol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [2, 50, 4096])
def test_entropy_is_the_formula(vocab: int, dtype: torch.dtype) -> None:
    logits = random_rows(4, vocab).to(dtype)
    temperature = torch.tensor([0.3, 0.6, 1.0, 2.0])
    expected = [
        plain_entropy(row, t)
        for row, t in zip(logits.float(), temperature.double().tolist(), strict=True)
    ]
    np.testing.assert_allclose(entropy(logits, temperature), expected, atol=SUMMED)


def test_entropy_of_known_distributions() -> None:
    rows = torch.zeros(3, 262_144)
    rows[1, 2:] = -INF
    rows[2, 0] = 1000.0
    expected = [math.log(262_144), math.log(2), 0]
    np.testing.assert_allclose(entropy(rows, torch.ones(3)), expected, atol=SUMMED)


def test_entropy_at_temperature_0_is_0() -> None:
    assert entropy(random_rows(2, 9), torch.tensor([0.0, 0.0])).tolist() == [0, 0]


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30))
def test_entropy_is_between_0_and_the_logarithm_of_the_vocabulary(row: list[float]) -> None:
    value = entropy(torch.tensor([row]), torch.ones(1)).item()
    assert -SUMMED <= value <= math.log(len(row)) + SUMMED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("evidence", [PROBS, LOGITS])
@pytest.mark.parametrize("k", [1, 2, 10, 50])
def test_logtoku_is_the_formula(k: int, evidence: int, dtype: torch.dtype) -> None:
    """Rows of positive, mixed and negative logits."""
    logits = (random_rows(6, 300) + torch.linspace(-20, 20, 6)[:, None]).to(dtype)
    au, eu = logtoku(logits, k, evidence)
    expected = [plain_logtoku(row, k, evidence) for row in logits.float()]
    np.testing.assert_allclose(au, [a for a, _ in expected], atol=SUMMED)
    np.testing.assert_allclose(eu, [e for _, e in expected], rtol=1e-6)


def test_logtoku_without_any_evidence() -> None:
    """No logit above 0: AU is its limit 0, EU is 1; probabilities are evidence all the same."""
    logits = torch.tensor([[-3.0, -1.0, -2.0, -INF]])
    au, eu = logtoku(logits, 3, LOGITS)
    assert (au.tolist(), eu.tolist()) == ([0.0], [1.0])
    au, eu = logtoku(logits, 3, PROBS)
    assert au.item() > 0.1 and eu.tolist() == [1.0]


def test_logtoku_of_known_evidence() -> None:
    """Two of ten equal: psi(2) - psi(1.5) of the most there is. Ten equal logits of 9: psi(91) -
    psi(10), and EU 1 / 10."""
    two = torch.full((1, 10), -1000.0)
    two[0, 3:5] = 1000.0
    expected = (plain_digamma(2) - plain_digamma(1.5)) / (plain_digamma(2) - plain_digamma(1.1))
    np.testing.assert_allclose(logtoku(two, 10, PROBS)[0], expected, rtol=1e-6)
    equal = torch.full((1, 10), 9.0)
    au, eu = logtoku(equal, 10, LOGITS)
    np.testing.assert_allclose(au, plain_digamma(91) - plain_digamma(10), rtol=1e-6)
    np.testing.assert_allclose(eu, 0.1, rtol=1e-6)


# Doubt: what the default AU promises


@pytest.mark.parametrize("vocab", [2, 3, 10, 100, 151_936])
@pytest.mark.parametrize("k", [2, 10, 40])
def test_any_flat_row_is_all_doubt(vocab: int, k: int) -> None:
    """1 whatever the vocabulary and the level: the candidates are equal."""
    for level in (-1e4, 0.0, 3e4):
        assert logtoku(torch.full((1, vocab), level), k, PROBS)[0].tolist() == [1]


def test_one_hot_rows_are_no_doubt() -> None:
    """So is a row of one candidate: k = 1, a vocabulary of 1, everything else at -inf."""
    hot = torch.full((2, 50), -1000.0)
    hot[:, 4] = 1000.0
    hot[1, torch.arange(50) != 4] = -INF
    assert logtoku(hot, 10, PROBS)[0].tolist() == [0, 0]
    assert logtoku(torch.zeros(1, 50), 1, PROBS)[0].tolist() == [0]
    assert logtoku(torch.zeros(1, 1), 10, PROBS)[0].tolist() == [0]


def moved(probs: list[float], source: int, target: int, share: float) -> list[float]:
    """``probs`` with mass moved from the likelier ``source`` to ``target``, their order kept."""
    least = probs[source + 1] if source + 1 < len(probs) else 0.0
    room = min(probs[source] - least, probs[target - 1] - probs[target])
    if target == source + 1:
        room /= 2  # both sides close the same gap
    after = list(probs)
    after[source] -= share * room
    after[target] += share * room
    return after


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=15),
    st.sampled_from([2, 3, 10]),
    st.data(),
)
def test_doubt_grows_as_mass_moves_to_the_tail(
    values: list[float], k: int, data: st.DataObject
) -> None:
    """At a fixed order, among the candidates; float32 logarithms know a probability to 1e-6."""
    probs = sorted((v / sum(values) for v in values), reverse=True)
    last = min(k, len(probs)) - 1
    source = data.draw(st.integers(0, last - 1))
    after = moved(
        probs, source, data.draw(st.integers(source + 1, last)), data.draw(st.floats(0, 1))
    )
    assert sorted(after, reverse=True) == pytest.approx(after, abs=1e-12)
    rows = torch.tensor([probs, after], dtype=torch.float64).log().float()
    before, now = logtoku(rows, k, PROBS)[0].tolist()
    assert now >= before - 1e-6


def test_doubt_grows_all_the_way_from_sure_to_flat() -> None:
    """By mass that leaves the first for all others, seen in 151,936 tokens too."""
    for vocab in (10, 151_936):
        rows = torch.zeros(40, vocab)
        rows[:, 0] = torch.linspace(30, 0, 40)
        doubt = logtoku(rows, 10, PROBS)[0]
        assert (doubt.diff() > 0).all() and doubt[0] < 1e-10 and doubt[-1] == 1


@pytest.mark.parametrize("evidence", [PROBS, LOGITS])
def test_the_tail_below_the_candidates_does_not_matter(evidence: int) -> None:
    """Not its mass, nor its length: what is below the k-th may be anything."""
    row = torch.linspace(4, 1, 10)
    tails = ([], [-INF] * 90, [0.5] * 90, [1.0] * 90, [0.9] * 100_000)
    results = [
        [x.item() for x in logtoku(torch.cat([row, torch.tensor(tail)])[None], 10, evidence)]
        for tail in tails
    ]
    assert all(result == results[0] for result in results)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32) | st.just(-INF), min_size=1, max_size=30),
    st.integers(1, 40),
)
def test_doubt_is_between_0_and_1(row: list[float], k: int) -> None:
    value = logtoku(torch.tensor([[0.0, *row]]), k, PROBS)[0].item()
    assert 0 <= value <= 1


def test_k_beyond_the_vocabulary_takes_all_of_it() -> None:
    logits = random_rows(2, 5)
    for wide, narrow in zip(logtoku(logits, 10, PROBS), logtoku(logits, 5, PROBS), strict=True):
        assert torch.equal(wide, narrow)


@pytest.mark.parametrize("row", BROKEN, ids=str)
def test_broken_rows_are_nan_and_alone(row: list[float]) -> None:
    good = [1.0, 0.5, -INF, 2.0]
    logits, clean = torch.tensor([good, row, good]), torch.tensor([good, good, good])
    t = torch.tensor([0.5, 0.5, 0.0])
    pairs = [(entropy(logits, t), entropy(clean, t))]
    for evidence in EVIDENCE.values():
        pairs += zip(logtoku(logits, 3, evidence), logtoku(clean, 3, evidence), strict=True)
    for damaged, whole in pairs:
        assert damaged.isnan().tolist() == [False, True, False]
        assert damaged[[0, 2]].tolist() == whole[[0, 2]].tolist()


def test_rows_with_any_stride_and_inputs_unchanged() -> None:
    block = torch.full((4, 3, 64), NAN)
    block[:, 1, :50] = random_rows(4, 50)
    block[2, 1, 7] = INF
    before, view, t = block.clone(), block[:, 1, :50], torch.ones(4)
    results = (entropy(view, t), *logtoku(view, 10, PROBS), *logtoku(view, 10, LOGITS))
    dense = view.contiguous()
    expected = (entropy(dense, t), *logtoku(dense, 10, PROBS), *logtoku(dense, 10, LOGITS))
    for a, b in zip(results, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(block, before)


def test_a_row_is_the_same_in_any_batch() -> None:
    logits, t = random_rows(7, 1000), torch.linspace(0, 2, 7)
    together = (entropy(logits, t), *logtoku(logits, 10, PROBS), *logtoku(logits, 10, LOGITS))
    for i in range(7):
        row = logits[i : i + 1]
        alone = (entropy(row, t[i : i + 1]), *logtoku(row, 10, PROBS), *logtoku(row, 10, LOGITS))
        assert [x.item() for x in alone] == [x[i].item() for x in together]
