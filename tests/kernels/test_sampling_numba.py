"""Filtering, sampling, verifying and measuring as compiled for a CPU, against the references.

What is kept is theirs to the bit. Noise is to an ulp or two of another library's logarithm, so that
a token could differ where two scores are equal but for that: of 10,000 tokens drawn here none did.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import (
    INF,
    MIXED,
    arguments,
    assert_same,
    assert_same_truncation,
    params_of,
    random_logits,
)
from test_verify_triton import Block, block
from torch import Tensor

from hybridgen.kernels import philox, philox_numba
from hybridgen.kernels.numba_utils import exactly
from hybridgen.kernels.sampling import filter_logits, sample, sample_into
from hybridgen.kernels.sampling_numba import filter_logits as compiled_filter
from hybridgen.kernels.sampling_numba import sample as compiled_sample
from hybridgen.kernels.sampling_numba import sample_into as compiled_into
from hybridgen.kernels.truncation_numba import MOST_IN_ORDER, in_order
from hybridgen.kernels.uncertainty import sample_measured
from hybridgen.kernels.uncertainty_numba import sample_measured as compiled_measured
from hybridgen.kernels.verify import verify_coupled, verify_rejection
from hybridgen.kernels.verify_numba import verify_coupled as compiled_coupled
from hybridgen.kernels.verify_numba import verify_rejection as compiled_rejection

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEEDS = st.integers(0, 2**31)
VOCABS = [1, 2, 17, 64, 65, 100, 1000, 4096]

samplings = st.tuples(
    st.sampled_from([0.0, 1e-30, 0.3, 0.6, 1.0, 1.7, 1e9]),
    st.sampled_from([0, 1, 2, 5, 20, 150, MOST_IN_ORDER, MOST_IN_ORDER + 1, 999, 2**30]),
    st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 1e-6, 0.02, 0.5, 1.0]),
)


@st.composite
def rows(draw: Any, count: int = 3) -> Tensor:
    """Logits of all scales, with ties, and broken ones among them."""
    vocab, seed = draw(st.sampled_from(VOCABS)), draw(st.integers(0, 2**31))
    logits = random_logits(count, vocab, draw(st.sampled_from([0.01, 1.0, 4.0, 100.0])), seed)
    steps = draw(st.sampled_from([0, 0, 2, 64]))  # ties: rounded to so many steps a unit
    if steps:
        logits = (logits * steps).round() / steps
    for row, value in draw(st.dictionaries(st.integers(0, count - 1), SPECIAL)).items():
        logits[row, slice(None) if value == -INF else seed % vocab] = value
    return logits.to(draw(st.sampled_from(DTYPES)))


SPECIAL = st.sampled_from([NAN, -NAN, INF, -INF])


@exactly
def _noise(
    seed: Any, position: Any, token: Any, stream: Any, bits: Any, u: Any, noise: Any
) -> None:
    for i in range(len(seed)):
        bits[i] = philox_numba.random_bits(seed[i], position[i], token[i], stream[i])
        u[i] = philox_numba.uniform(seed[i], position[i], token[i], stream[i])
        noise[i] = philox_numba.gumbel(seed[i], position[i], token[i], stream[i])


def test_random_numbers_are_those_of_philox() -> None:
    random = np.random.default_rng(0)
    seed = random.integers(-(2**63), 2**63, 100_000)
    position, token = random.integers(0, 2**32, (2, len(seed)))
    given = seed, position, token, random.integers(0, 4, len(seed))
    bits = np.empty(len(seed), np.uint64)
    u, noise = np.empty((2, len(seed)), np.float32)
    _noise(*given, bits, u, noise)
    assert np.array_equal(bits, philox.random_bits(*given))
    assert np.array_equal(u, philox.uniform(*given))
    exact = -np.log(-np.log1p(-u.astype(np.float64)))
    # Each logarithm, the division and the product are within an ulp; an error of the exponential,
    # relative, is one of the noise, absolute.
    assert (np.abs(noise - exact) <= 2.0**-24 * (4 + 2 * np.abs(exact))).all()


@exactly
def _noise_of(u: Any, noise: Any) -> None:
    for i in range(len(u)):
        noise[i] = philox_numba.gumbel_of(u[i])


def test_noise_of_the_smallest_and_the_largest_numbers() -> None:
    small = np.exp2(-np.arange(1, 65, dtype=np.float32))
    u = np.concatenate([small, 1 - small[:24]])
    noise = np.empty_like(u)
    _noise_of(u, noise)
    exact = -np.log(-np.log1p(-u.astype(np.float64)))
    assert (np.abs(noise - exact) <= 2.0**-24 * (4 + 2 * np.abs(exact))).all()


@settings(max_examples=300)
@given(rows(), st.lists(samplings, min_size=1, max_size=3))
def test_keeps_and_draws_what_the_reference_does(logits: Tensor, params: list[tuple]) -> None:
    given = arguments(logits, params)
    assert_same(compiled_sample(*given), sample.reference(*given))
    truncation = compiled_filter(*given[:2])
    assert_same_truncation(truncation, filter_logits.reference(*given[:2]))


@pytest.mark.parametrize("vocab", [50_000, 262_144])
@pytest.mark.parametrize("params", [*MIXED, (1.0, 30_000, 1.0, 0.0)], ids=str)
def test_large_vocabularies(vocab: int, params: tuple) -> None:
    """Flat rows too, whose nucleus is most of it."""
    logits = torch.cat([random_logits(1, vocab), random_logits(1, vocab, 0.1)])
    given = arguments(logits, [params])
    assert_same(compiled_sample(*given), sample.reference(*given))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_written_where_they_are_wanted(dtype: torch.dtype) -> None:
    """Rows of any stride, of logits and of what is written."""
    given = arguments(random_logits(4, 130)[:, :100].to(dtype), MIXED)
    given = given[0], *(torch.stack([x, x], 1)[:, 0] for x in given[1:4]), given[4]
    written = [
        (
            torch.full((4, 3), -7)[:, 1],
            torch.full((4, 5), NAN)[:, 1:4],
            torch.full((4, 120), NAN, dtype=dtype)[:, 10:110],
        )
        for _ in range(2)
    ]
    compiled_into(*given, *written[0])
    sample_into.reference(*given, *written[1])
    assert_same(written[0][:2], written[1][:2])
    assert torch.equal(written[0][2], given[0]) and torch.equal(written[1][2], given[0])


def test_sampling_is_float64() -> None:
    logits, sampling, *rest = arguments(random_logits(1, 10), MIXED)
    with pytest.raises(TypeError, match="sampling must be float64"):
        compiled_sample(logits, sampling.float(), *rest)


def assert_same_verdict(found: tuple, expected: tuple) -> None:
    """Tokens up to the count, counts, and broken rows."""
    assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])
    stands = torch.arange(found[0].shape[1]) < expected[1].unsqueeze(1)
    assert torch.equal(found[0] * stands, expected[0] * stands)


@settings(max_examples=300)
@given(
    st.integers(0, 5),
    st.sampled_from([(1, 1), (2, 2), (100, 100), (100, 99), (99, 130), (700, 700)]),
    st.lists(samplings, min_size=1, max_size=3),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    st.integers(0, 2**31),
    st.sampled_from([None, "target", "draft", "truncation"]),
    SPECIAL,
)
def test_verdicts_are_the_references(
    num_drafts: int,
    vocabs: tuple[int, int],
    params: list[tuple],
    dtype: torch.dtype,
    distance: float,
    seed: int,
    damaged: str | None,
    value: float,
) -> None:
    given = block(3, num_drafts, *vocabs, params, dtype, distance, seed)
    if damaged == "target":
        given.target[seed % 3, seed % (num_drafts + 1), seed % vocabs[0]] = value
    elif damaged == "draft" and num_drafts:
        given.draft[seed % 3, seed % num_drafts, seed % vocabs[1]] = value
    elif damaged == "truncation" and num_drafts:
        given.truncation[seed % 3, seed % num_drafts, seed % 3] = value
    check_verdicts(given)


def check_verdicts(given: Block) -> None:
    """With the truncations told and without."""
    told = [torch.full((*given.target.shape[:2], 3), -7.0) for _ in range(4)]
    coupled = verify_coupled.reference(*given.coupled, told[0])
    assert_same_verdict(compiled_coupled(*given.coupled), coupled)
    assert_same_verdict(compiled_coupled(*given.coupled, told[1]), coupled)
    rejection = verify_rejection.reference(*given, told[2])
    assert_same_verdict(compiled_rejection(*given), rejection)
    assert_same_verdict(compiled_rejection(*given, told[3]), rejection)
    for expected, found in (told[:2], told[2:]):
        assert_same_truncation(found.flatten(0, 1), expected.flatten(0, 1))


def test_verdicts_of_rows_of_any_stride() -> None:
    given = block(4, 3, 120, 120, MIXED)
    check_verdicts(given._replace(target=given.target[..., :90], draft=given.draft[..., :100]))


@settings(max_examples=200)
@given(
    rows(),
    st.lists(samplings, min_size=1, max_size=3),
    st.sampled_from([0, 1, 3, 10, 5000]),
    st.sampled_from([0, 1]),
)
def test_measures_are_the_references(
    logits: Tensor, params: list[tuple], k: int, evidence: int
) -> None:
    given = *arguments(logits, params), k, evidence
    found, expected = compiled_measured(*given), sample_measured.reference(*given)
    assert_same(found[:2], expected[:2])
    # float32 logarithms and sums of up to 4,096 terms, and log-probabilities of any size.
    torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=2e-5, equal_nan=True)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_largest_are_those_of_a_stable_sort(data: st.DataObject) -> None:
    """Of equal numbers, 0.0 and -0.0 among them, the first."""
    vocab = data.draw(st.sampled_from([1, 2, 63, 64, 65, 130, 700, 5000]))
    k = data.draw(st.integers(1, min(vocab, 90)))
    row = random_logits(1, vocab, data.draw(st.sampled_from([0.01, 3.0])), data.draw(SEEDS))[0]
    steps = data.draw(st.sampled_from([0, 0, 1, 4]))
    row = ((row * steps).round() / steps if steps else row) - data.draw(st.sampled_from([0, 9]))
    masked = data.draw(st.integers(0, vocab))
    row[:masked] = data.draw(st.sampled_from([-INF, 0.0, -0.0]))
    top, ids = np.zeros(k, np.float32), np.zeros(k, np.int64)
    in_order(row.numpy(), top, ids)
    expected = np.argsort(-row.numpy(), kind="stable")[:k]
    assert (ids == expected).all() and (top == row.numpy()[expected]).all()


def test_a_row_is_the_same_in_any_company() -> None:
    given = arguments(random_logits(8, 3000), MIXED)
    order = torch.tensor([5, 2, 7, 0])
    whole, some = compiled_sample(*given), compiled_sample(*(x[order] for x in given[:4]), given[4])
    assert all(torch.equal(x[order], y) for x, y in zip(whole, some, strict=True))
    assert torch.equal(compiled_filter(given[0][:1], params_of(MIXED[0])), whole[1][:1])
