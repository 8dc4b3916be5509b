"""The user's utilities: the kernels' numbers, in plain Python where one token is asked for."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import digamma

from hybridgen.utils import calculate_token_entropy, compute_logu, sample_token

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def test_one_token_is_an_int_and_rows_are_a_tensor() -> None:
    assert type(sample_token(LOGITS)) is int
    rows = sample_token(LOGITS.repeat(3, 1))
    assert (rows.shape, rows.dtype) == ((3,), torch.int64)


def test_temperature_zero_takes_the_largest_logit() -> None:
    assert sample_token(LOGITS, temperature=0) == 0
    assert sample_token(torch.stack([LOGITS, LOGITS.flip(0)]), temperature=0).tolist() == [0, 4]


def test_a_seed_and_a_position_decide_the_draw() -> None:
    flat = torch.zeros(10_000)
    assert sample_token(flat, seed=3, position=1) == sample_token(flat, seed=3, position=1)
    # Two independent draws of 10,000 tokens are equal once in 10,000 seeds; these are not.
    assert sample_token(flat, seed=3, position=1) != sample_token(flat, seed=3, position=2)
    assert sample_token(flat, seed=3, position=1) != sample_token(flat, seed=4, position=1)
    rows = sample_token(flat.repeat(2, 1), seed=3)
    assert rows.tolist() == [sample_token(flat, seed=3), sample_token(flat, seed=4)]


def test_draws_follow_the_filtered_distribution() -> None:
    n = 20_000
    drawn = sample_token(LOGITS.repeat(n, 1), temperature=0.8, top_k=3, seed=0)
    counts = torch.bincount(drawn, minlength=5)
    p = torch.softmax(LOGITS[:3] / 0.8, 0)
    chi_square = ((counts[:3] - n * p) ** 2 / (n * p)).sum()
    assert counts[3:].sum() == 0
    # Chi-square with 2 degrees of freedom exceeds 18.4 with probability 1e-4; the seed is fixed.
    assert chi_square < 18.4


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.7}, {0, 1}),  # softmax: 0.61 0.22 0.14 0.03 0.00
        ({"min_p": 0.3}, {0, 1}),
        ({}, {0, 1, 2, 3, 4}),
    ],
)
def test_each_filter_reaches_the_kernel(filters: dict[str, Any], kept: set[int]) -> None:
    assert set(sample_token(LOGITS.repeat(20_000, 1), seed=1, **filters).tolist()) == kept


def test_top_p_is_the_decimal_given() -> None:
    """Five groups of a fifth each: 0.8 keeps four of them, and draws each."""
    row = torch.cat([torch.full((2**j,), -float(j)) for j in range(5)])
    drawn = sample_token(row.repeat(2_000, 1), temperature=1 / math.log(2), top_p=0.8, seed=2)
    assert row[drawn].unique().tolist() == [-3, -2, -1, 0]


def test_entropy_is_in_nats() -> None:
    assert calculate_token_entropy(torch.zeros(8)) == pytest.approx(math.log(8), rel=1e-6)
    p = torch.softmax(LOGITS.double() / 0.7, 0)
    expected = float(-(p * p.log()).sum())
    # The kernel computes in float32: a few roundings of 6e-8 on numbers near 1.
    assert calculate_token_entropy(LOGITS, temperature=0.7) == pytest.approx(expected, rel=1e-6)
    assert calculate_token_entropy(LOGITS, temperature=0) == 0
    two = torch.tensor([3.0, 3.0, 1.0, -math.inf])
    assert calculate_token_entropy(two, temperature=2e-38) == pytest.approx(math.log(2), rel=1e-6)
    assert calculate_token_entropy(two, temperature=3e38) == pytest.approx(math.log(3), rel=1e-6)
    assert calculate_token_entropy(LOGITS.repeat(2, 1)).shape == (2,)


@pytest.mark.parametrize("evidence", ["probs", "logits"])
def test_logu_is_the_papers_formula(evidence: str) -> None:
    """With probabilities, of the three candidates alone and over the most there is."""
    k = 3
    top = LOGITS.double().topk(k).values
    logits = top.clamp_min(0)
    alpha = torch.softmax(top, 0) if evidence == "probs" else logits
    total = float(alpha.sum())
    shares = [float(a) / total for a in alpha]
    aleatoric = -sum(
        share * (digamma(float(a) + 1) - digamma(total + 1))
        for share, a in zip(shares, alpha, strict=True)
    )
    if evidence == "probs":
        aleatoric /= digamma(2) - digamma(1 + 1 / k)
    got = compute_logu(LOGITS, k=k, evidence=evidence)
    assert [type(value) for value in got] == [float, float]
    # float32 results.
    assert got == pytest.approx((aleatoric, k / (float(logits.sum()) + k)), rel=1e-6)


@pytest.mark.parametrize("vocab", [100, 151_936])
def test_uncertainty_goes_from_sure_to_equal_candidates(vocab: int) -> None:
    assert compute_logu(torch.zeros(vocab))[0] == 1
    sure = torch.zeros(vocab)
    sure[7] = 1000
    assert compute_logu(sure)[0] == 0
    assert compute_logu(torch.zeros(vocab), k=1)[0] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_is_taken_and_nothing_is_changed(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    before = logits.clone()
    assert sample_token(logits, temperature=0) == 0
    compute_logu(logits, k=2)
    calculate_token_entropy(logits)
    assert torch.equal(logits, before)


CALLS = [sample_token, lambda x, **kw: compute_logu(x, k=1, **kw), calculate_token_entropy]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("logits", [None, [1.0, 2.0], 3.0, torch.tensor([1, 2])])
def test_logits_of_a_wrong_type_are_a_type_error(call: Any, logits: object) -> None:
    with pytest.raises(TypeError, match="logits must be a floating-point tensor"):
        call(logits)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_logits_without_values_in_memory_are_a_type_error() -> None:
    row = torch.ones(20)
    odd = [
        row.to("meta"),
        row.to_sparse(),
        row[None].to_sparse_csr(),
        torch.nested.nested_tensor([row, row[1:]]),
        torch.nested.nested_tensor([row, row[1:]], layout=torch.jagged),
    ]
    for call in (sample_token, compute_logu, calculate_token_entropy):
        for logits in odd:
            with pytest.raises(TypeError, match=r"^logits must be .*dense"):
                call(logits)


def test_numbers_that_float32_or_python_cannot_write_are_named() -> None:
    row = torch.ones(20)
    for value in (1e39, 10**5000, 1e-40):
        with pytest.raises(ValueError, match=r"^temperature must be .*float32"):
            calculate_token_entropy(row, value)
        with pytest.raises(ValueError, match=r"^temperature must be .*float32"):
            sample_token(row, value)
    for name in ("seed", "position"):
        with pytest.raises(ValueError, match=rf"^{name} must be .*bits"):
            sample_token(row, **{name: 10**5000})
    with pytest.raises(TypeError, match=r"^seed must be .*ndarray"):
        sample_token(row, seed=np.array(3))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (2, 0), (1, 2, 3)])
def test_logits_of_a_wrong_shape_are_a_value_error(call: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="logits must be"):
        call(torch.zeros(shape))


@pytest.mark.parametrize("call", CALLS)
def test_a_vocabulary_beyond_the_limit_is_named(call: Any) -> None:
    """Rather than called NaN; and one at the limit is as good as any."""
    with pytest.raises(ValueError, match=r"at most 524287 columns.* got shape .*600000"):
        call(torch.zeros(600_000))
    call(torch.zeros(524_287))


@pytest.mark.parametrize(
    ("call", "arguments", "error"),
    [
        (sample_token, {"temperature": -1.0}, ValueError),
        (sample_token, {"temperature": "1"}, TypeError),
        (sample_token, {"top_k": 1.5}, TypeError),
        (sample_token, {"top_k": -1}, ValueError),
        (sample_token, {"top_p": 0.0}, ValueError),
        (sample_token, {"top_p": None}, TypeError),
        (sample_token, {"min_p": 2}, ValueError),
        (sample_token, {"seed": "a"}, TypeError),
        (sample_token, {"seed": -1}, ValueError),
        (sample_token, {"position": -1}, ValueError),
        (sample_token, {"position": 1.0}, TypeError),
        (compute_logu, {"k": 0}, ValueError),
        (compute_logu, {"k": 6}, ValueError),
        (compute_logu, {"k": "3"}, TypeError),
        (compute_logu, {"k": 3, "evidence": "both"}, ValueError),
        (compute_logu, {"k": 3, "evidence": 1}, TypeError),
        (calculate_token_entropy, {"temperature": math.nan}, ValueError),
        (calculate_token_entropy, {"temperature": None}, TypeError),
    ],
)
def test_bad_parameters_are_named(
    call: Any, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=list(arguments)[-1]):
        call(LOGITS, **arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_refused_and_only_they(bad: float) -> None:
    broken = LOGITS.clone()
    broken[2] = bad
    with pytest.raises(ValueError, match="NaN"):
        sample_token(broken)
    with pytest.raises(ValueError, match="NaN"):
        sample_token(torch.full((4,), -math.inf))
    masked = LOGITS.clone()
    masked[0] = -math.inf
    assert sample_token(masked, temperature=0) == 1
