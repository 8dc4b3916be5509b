"""Filtering and sampling by Triton: the reference's set and tokens exactly, whatever the batch.

Numbers in brackets are those of a list of faults that other samplers had.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from near_ties import settled
from on_device import bits, launch
from sampling_cases import (
    GREEDY,
    INF,
    MIXED,
    OFF,
    QWEN,
    arguments,
    assert_same,
    assert_same_truncation,
    params_of,
    random_logits,
    rows_of,
)
from sampling_oracle import ACCEPTABLE, HALVING, filtered, is_clear_cut, p_value, shares
from torch import Tensor

from hybridgen.kernels import candidates_triton
from hybridgen.kernels.candidates_triton import CAPACITY, COUNT, OPEN, logits_of, sweep
from hybridgen.kernels.filter_triton import PAIRS
from hybridgen.kernels.philox import DRAFT, TARGET
from hybridgen.kernels.sampling import LOG_Z, TAU, filter_logits, sample
from hybridgen.kernels.sampling_triton import Draws, launch_resolve
from hybridgen.kernels.truncation_triton import Drawn
from hybridgen.kernels.weights import MAX_VOCAB

pytestmark = pytest.mark.usefixtures("references")
NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

samplings = st.tuples(
    st.sampled_from([0.0, 0.3, 0.6, 1.0, 1.7]),
    st.sampled_from([0, 1, 2, 5, 20, 150, 2000, 2**30]),
    st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 1e-6, 0.02, 0.5, 1.0]),
)


@pytest.fixture
def few_blocks(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes as long for a small block; no result depends on the cut (see below)."""
    if device.type == "cpu":
        monkeypatch.setattr(candidates_triton, "PROGRAMS", 1)


def draw(device: torch.device, given: tuple) -> tuple:
    """`sample` by Triton; on a GPU, near ties are decided as the reference decides them."""
    token, truncation = launch(sample, device, *given)
    if device.type == "cuda":
        token = settled(token, sample(*given)[0], given)
    return token, truncation


# Against the reference


@settings(max_examples=25)
@given(
    st.sampled_from([2, 17, 100, 1000, 1025, 2600]),
    st.lists(samplings, min_size=1, max_size=2),
    st.sampled_from(DTYPES),
    st.sampled_from([0.01, 1.0, 4.0, 100.0]),
    st.sampled_from([0, 2, 64]),  # ties: logits rounded to so many steps a unit
    st.integers(0, 2**31),
)
def test_keeps_and_draws_what_the_reference_does(
    device: torch.device,
    vocab: int,
    params: list[tuple],
    dtype: torch.dtype,
    scale: float,
    steps: int,
    seed: int,
) -> None:
    logits = random_logits(len(params), vocab, scale, seed)
    logits = (logits * steps).round() / steps if steps else logits
    given = arguments(logits.to(dtype), params)
    assert_same(draw(device, given), sample(*given))
    assert_same_truncation(launch(filter_logits, device, *given[:2]), sample(*given)[1])


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(-12, 12), min_size=9, max_size=9), min_size=1, max_size=4),
    st.lists(samplings, min_size=4, max_size=4),
)
def test_keeps_what_float64_keeps(device: torch.device, rows: list, params: list) -> None:
    """[13, 24, 25, 26, 30] Ties together, filters in order, renormalising, each row its own."""
    logits, sampling = rows_of(*rows) / 4, params_of(*params[: len(rows)])
    truncation = launch(filter_logits, device, logits, sampling)
    for i, (row, values) in enumerate(zip(logits.tolist(), sampling.tolist(), strict=True)):
        if values[0] > 0 and is_clear_cut(row, values, 1e-5):
            law = filtered(row, *values)
            tau, largest, log_z = truncation[i].tolist()
            kept = logits[i] >= tau
            assert kept.tolist() == (law > 0).tolist()
            p = torch.exp((logits[i].double() - largest) / values[0] - log_z) * kept
            # The weights' 2**-21, and log_z, up to log 9, rounded to float32.
            np.testing.assert_allclose(p, law, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("params", [*MIXED, (1.2, 0, 0.6, 0.02)], ids=str)
@pytest.mark.usefixtures("few_blocks")
def test_a_large_vocabulary(device: torch.device, params: tuple, dtype: torch.dtype) -> None:
    """Its likely tokens are at its end, in the last of several blocks."""
    logits = random_logits(1, 9003) + torch.linspace(0, 9, 9003)
    given = arguments(logits.to(dtype), [params])
    assert_same(draw(device, given), sample(*given))


@pytest.mark.usefixtures("few_blocks")
def test_a_flat_row_of_262144_keeps_nine_tenths(device: torch.device) -> None:
    """[31] Sums of many equal numbers: the nucleus ends where float64 says."""
    logits = torch.linspace(0, 1e-3, 262144)[torch.randperm(262144)][None]
    truncation = launch(filter_logits, device, logits, params_of((1.0, 0, 0.9, 0.0)))
    tau, largest, log_z = truncation[0].tolist()
    p = logits[0].double().softmax(0).sort(descending=True).values
    count = int((p.cumsum(0) - p < 0.9).sum())
    # Weights are known to 2**-21 and their sum is exact: at most 0.9 * 2**-21 * 262144 tokens off.
    assert abs(int((logits >= tau).sum()) - count) <= 1
    kept = logits[0].double().sort(descending=True).values[:count]
    # Half an ulp of 12.4, and the weights' 2**-21.
    np.testing.assert_allclose(log_z + largest, kept.logsumexp(0), atol=2.0**-21 + 2.0**-21)


@pytest.mark.usefixtures("few_blocks")
def test_the_longest_flat_row_adds_up(device: torch.device) -> None:
    truncation = launch(filter_logits, device, torch.zeros(1, MAX_VOCAB), params_of(OFF))
    np.testing.assert_allclose(truncation[:, LOG_Z], np.log(MAX_VOCAB), rtol=2.0**-22)


# Which way a row takes


def way_of(logits: Tensor, params: tuple, device: torch.device) -> str:
    rows = logits_of(logits.to(device).unsqueeze(1))
    sampling = params_of(params).to(device)
    scratch = sweep(rows, sampling, None)
    position = torch.zeros(1, dtype=torch.int64, device=device)
    launch_resolve(rows, sampling, scratch, Drawn.empty(rows), Draws(position, position, TARGET))
    count = int(scratch.record[0, COUNT.value])
    if int(scratch.record[0, OPEN.value]):
        return "row"
    return "pairs" if count <= PAIRS.value else "candidates"


WAYS = [
    (QWEN, 3.0, "pairs"),
    (GREEDY, 3.0, "pairs"),
    ((1.0, 200, 0.95, 0.0), 3.0, "candidates"),
    ((0.8, 0, 0.9, 0.0), 4.0, "candidates"),
    ((1.0, 0, 0.99, 0.3), 1.0, "candidates"),
    ((1.0, 0, 0.9, 0.0), 0.1, "row"),
    ((1.0, 5000, 1.0, 0.0), 3.0, "row"),
    (OFF, 3.0, "row"),
]


@pytest.mark.parametrize(("params", "scale", "way"), WAYS, ids=str)
@pytest.mark.usefixtures("few_blocks")
def test_every_way_is_taken_and_right(
    device: torch.device, params: tuple, scale: float, way: str
) -> None:
    logits = random_logits(1, 20000, scale)
    assert way_of(logits, params, device) == way
    given = arguments(logits, [params])
    assert_same(draw(device, given), sample(*given))


@pytest.mark.parametrize("tail", [0, 300, 3000], ids=["pairs", "candidates", "row"])
@pytest.mark.parametrize("top_k", [0, 4])
def test_a_token_at_the_edge_itself_is_out(device: torch.device, tail: int, top_k: int) -> None:
    """[24] Probabilities 1/2, 1/4, 1/8, 1/8 to the bit, and behind them tokens without weight."""
    heat = float(np.float32(1 / np.log(2)))
    logits = torch.tensor([[0.0, -1.0, -2.0, -2.0] + [-100.0] * tail])
    for top_p, kept in ((0.5, 1), (0.5 + 2**-24, 2), (0.75, 2), (0.75 + 2**-24, 4)):
        given = logits, params_of((heat, top_k, top_p, 0.0))
        truncation = launch(filter_logits, device, *given)
        assert int((logits >= truncation[:, TAU]).sum()) == kept
        assert_same_truncation(truncation, filter_logits(*given))


@pytest.mark.parametrize("tail", [0, 300, 3000], ids=["pairs", "candidates", "row"])
@pytest.mark.parametrize("top_k", [0, 120])
def test_a_set_of_exactly_the_decimal_is_enough(
    device: torch.device, tail: int, top_k: int
) -> None:
    """On every way: the double given decides, and no rounding of a product asks for more."""
    decimals = (0.07, 0.14, 0.28, 0.29, 0.55, 0.57, 0.8)
    if tail:  # they are rounded the same way behind a tail
        decimals = (0.07, 0.57)
    rows = []
    for share in decimals:
        part = round(100 * share)
        rows.append(torch.full((200 + tail,), -100.0))
        rows[-1][: 200 - part] = shares(part, 100 - part)
    logits = torch.stack(rows)
    for beyond, groups in ((0.0, 1), (1e-12, 2)):
        params = params_of(*[(HALVING, top_k, share + beyond, 0.0) for share in decimals])
        truncation = launch(filter_logits, device, logits, params)
        assert (truncation[:, TAU] == 1 - groups).all()
        assert_same_truncation(truncation, filter_logits(logits, params))


@pytest.mark.parametrize("min_p", [0.25, np.nextafter(0.25, 0), np.nextafter(0.25, 1)])
def test_min_p_is_decided_on_the_double_given(device: torch.device, min_p: float) -> None:
    logits = shares(1, 1, 1)[None]
    truncation = launch(filter_logits, device, logits, params_of((HALVING, 0, 1.0, min_p)))
    assert truncation[0, TAU] == (-1 if min_p > 0.25 else -2)


@pytest.mark.parametrize("tail", [0, 300, 3000], ids=["pairs", "candidates", "row"])
def test_top_k_counts_exactly(device: torch.device, tail: int) -> None:
    logits = torch.cat([torch.arange(40.0), torch.full((tail,), -100.0)])[None]
    for top_k in (1, 2, 19, 39):
        truncation = launch(filter_logits, device, logits, params_of((1.0, top_k, 1.0, 0.0)))
        assert truncation[0, TAU] == 40 - top_k


@pytest.mark.parametrize("params", [QWEN, GREEDY, OFF, (1.0, 0, 0.5, 0.0)], ids=str)
def test_more_ties_than_candidates(device: torch.device, params: tuple) -> None:
    """[14] All of them are kept, as by the reference, and greedy takes the first."""
    logits = torch.zeros(1, 3000)
    logits[0, ::2] = 1.0
    assert logits.sum() > CAPACITY
    given = arguments(logits, [params])
    assert_same(draw(device, given), sample(*given))


# Rows do not notice each other


# Bits and values of a dtype are read alike by short rows and long ones.
@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [(50, torch.bfloat16), (50, torch.float16), (2600, torch.float32)],
    ids=str,
)
def test_a_row_keeps_its_bits_in_any_batch(
    device: torch.device, vocab: int, dtype: torch.dtype
) -> None:
    """[19, 21, 27, 30] Permuted among rows of NaN, and alone; each row has its own parameters."""
    logits, *rest, stream = arguments(random_logits(8, vocab).to(dtype), MIXED)
    expected = launch(sample, device, logits, *rest, stream)
    order = torch.tensor([0, 3, 0, 7, 5, 1, 0, 6, 2, 4, 0])
    permuted = logits[order]
    permuted[[0, 6]] = NAN  # and once more itself
    whole = [1, 2, 3, 4, 5, 7, 8, 9, 10]
    beside = launch(sample, device, permuted, *(x[order] for x in rest), stream)
    for got, want in zip(beside, expected, strict=True):
        assert torch.equal(bits(got[whole]), bits(want[order[whole]]))
    for i in (0, 4):
        part = (x[i : i + 1] for x in (logits, *rest))
        for got, want in zip(launch(sample, device, *part, stream), expected, strict=True):
            assert torch.equal(bits(got), bits(want[i : i + 1]))


CUTS = {1: 4096, 15: 2048, 512: 1024}  # `PROGRAMS` and the block that 5 rows of 4500 get for it


def test_the_cut_into_blocks_changes_nothing(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[18] Not a bit, although each cut adds up in another order."""
    given = arguments(random_logits(5, 4500), [QWEN, OFF, (1.0, 0, 0.9, 0.0), GREEDY, MIXED[5]])
    results = []
    for programs, block in CUTS.items():
        monkeypatch.setattr(candidates_triton, "PROGRAMS", programs)
        assert logits_of(given[0].unsqueeze(1)).block == block
        results.append(launch(sample, device, *given))
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            assert torch.equal(bits(got), bits(want))


def test_repeats_have_the_same_bits(device: torch.device) -> None:
    """[18] The order of the atomic additions may differ from run to run; no result does."""
    repeats, vocab = (1, 2600) if device.type == "cpu" else (50, 9000)
    given = arguments(random_logits(5, vocab), [QWEN, OFF, (1.0, 0, 0.9, 0.0), GREEDY, MIXED[5]])
    expected = launch(sample, device, *given)
    for _ in range(repeats):
        for got, want in zip(launch(sample, device, *given), expected, strict=True):
            assert torch.equal(bits(got), bits(want))


def test_noise_belongs_to_the_token_and_not_to_its_rank(device: torch.device) -> None:
    """[21] Tokens that cannot be drawn change nothing, wherever they stand."""
    logits = random_logits(4, 300)
    padded = torch.cat([logits, torch.full((4, 2000), -INF)], 1)
    token, truncation = launch(sample, device, *arguments(logits, MIXED[2:6]))
    again, padded_truncation = launch(sample, device, *arguments(padded, MIXED[2:6]))
    assert torch.equal(token, again) and torch.equal(truncation, padded_truncation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_row_stride(device: torch.device, dtype: torch.dtype) -> None:
    """[22] Rows of a padded vocabulary, every second row, columns before logits, a transpose."""
    plain = random_logits(3, 1100).to(dtype)
    wide = torch.full((6, 1207), NAN, dtype=dtype)
    wide[::2, 3:1103] = plain
    given = arguments(plain, MIXED)
    expected = launch(sample, device, *given)
    for strided in (wide[::2, 3:1103], plain.t().contiguous().t()):
        assert_same(launch(sample, device, strided, *given[1:]), expected)


# Special rows

BROKEN = {
    "a NaN": [1.0, NAN, 2.0, 0.0],
    "+inf": [1.0, INF, 2.0, 0.0],
    "NaN and +inf": [NAN, INF, 2.0, 0.0],
    "only NaN": [NAN] * 4,
    "only -inf": [-INF] * 4,
}


@pytest.mark.parametrize("vocab", [4, 2600])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_flagged_and_its_token_an_id(
    device: torch.device, name: str, vocab: int
) -> None:
    """[5, 27, 28] Its neighbours' results stay."""
    row = torch.full((vocab,), -INF if "-inf" in name else 0.0)
    row[-4:] = torch.tensor(BROKEN[name])
    good = random_logits(1, vocab)[0]
    given = arguments(torch.stack([good, row, good]), [QWEN, OFF, GREEDY])
    result = draw(device, given)
    assert_same(result, sample(*given))
    assert result[0][1] == 0 and result[1][:, LOG_Z].isnan().tolist() == [0, 1, 0]


@pytest.mark.parametrize("params", MIXED, ids=str)
def test_fewer_finite_logits_than_top_k(device: torch.device, params: tuple) -> None:
    """[10, 23, 28] -inf is never kept nor drawn, at temperature 0 either."""
    logits = torch.full((3, 2600), -INF)
    for i, count in enumerate((1, 2, 7)):
        logits[i, 100 : 100 + count] = torch.arange(count) / 2
    given = arguments(logits, [params])
    token, truncation = draw(device, given)
    assert_same((token, truncation), sample(*given))
    assert (logits[torch.arange(3), token] > -INF).all()


def test_extreme_logits_and_temperatures(device: torch.device) -> None:
    """[15, 23, 28] The search ends, and nothing overflows, at either end of float32."""
    tiny = torch.tensor([1e-45, 2e-45, 0.0, -0.0, -1e-45, 1e-39] * 230)[None]
    huge = torch.tensor([3.3e38, -3.4e38, 0.0, 3.2e38, -3e38, 1.0] * 230)[None]
    near = (1 - torch.arange(12) * 2.0**-24).repeat(115)[None]
    for logits in (tiny, huge, huge / 2, near):
        for temperature in (1e-45, 1e-8, 1e-6, 1e4, 1e38):
            filters = ((0, 1.0, 0.0), (0, 0.4, 0.0), (1100, 0.9, 0.01))
            given = arguments(logits.repeat(3, 1), [(temperature, *each) for each in filters])
            result = draw(device, given)
            assert_same(result, sample(*given))
            assert not result[1].isnan().any()
        given = arguments(logits, [GREEDY])
        assert_same(draw(device, given), sample(*given))


@pytest.mark.parametrize("top_p", [0.0, 1e-30, 1.0])
def test_top_p_of_0_keeps_one_and_of_1_all(device: torch.device, top_p: float) -> None:
    """[24]"""
    logits = random_logits(1, 2600)
    truncation = launch(filter_logits, device, logits, params_of((1.0, 0, top_p, 0.0)))
    assert truncation[0, TAU] == (logits.min() if top_p == 1 else logits.max())


# The law


@pytest.mark.parametrize("params", [OFF, (0.7, 4, 0.9, 0.0), (1.5, 0, 0.8, 0.05)], ids=str)
def test_draws_follow_the_filtered_law(device: torch.device, params: tuple) -> None:
    """[29] Their frequencies, not only the formula.

    Few are interpreted: those are the reference's tokens, whose law `test_sampling` has.
    """
    count = 12 if device.type == "cpu" else 200_000
    row = random_logits(1, 8, 1.0, seed=4)
    sampling, position = params_of(params).expand(count, -1), torch.arange(count)
    logits, seed = row.expand(count, -1), torch.full((count,), 77)
    given = logits, sampling, seed, position, DRAFT
    token = launch(sample, device, *given)[0]
    if device.type == "cpu":
        assert torch.equal(token, sample(*given)[0])
        return
    law = filtered(row[0].tolist(), *sampling[0].tolist())
    assert p_value(np.bincount(token.numpy(), minlength=8), law) > ACCEPTABLE
