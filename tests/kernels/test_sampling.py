"""A draw is exact and row-local: its law, the greedy token, broken rows, and bits in any batch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampling_cases import GREEDY, INF, MIXED, OFF, QWEN, params_of, rows_of, tau_of
from sampling_oracle import ACCEPTABLE, filtered, p_value
from torch import Tensor

from hybridgen.kernels import sampling as sampling_module
from hybridgen.kernels.philox import DRAFT, TARGET
from hybridgen.kernels.sampling import LARGEST, LOG_Z, TAU, filter_logits, sample


def draws(logits: Tensor, sampling: Any, count: int, stream: int = TARGET) -> np.ndarray:
    """`count` tokens of one row [V], at as many positions of one sequence."""
    rows = logits.expand(count, -1)
    params = params_of(sampling).expand(count, -1)
    seed = torch.full((count,), 77)
    return sample(rows, params, seed, torch.arange(count), stream)[0].numpy()


def bits_of(results: tuple[Tensor, ...]) -> list[list[int]]:
    """Results to the bit, NaN included."""
    return [(r.view(torch.int32) if r.is_floating_point() else r).tolist() for r in results]


# Single rows


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


@pytest.mark.usefixtures("with_references")
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


@pytest.mark.usefixtures("with_references")
def test_trap_12_a_sole_survivor_wins_with_the_least_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "gumbel", lambda s, p, token, t: np.full(len(token), -2.9))
    logits = rows_of([-INF, -INF, -1e30, -INF])
    for sampling in MIXED:
        token = sample(logits, params_of(sampling), torch.tensor([0]), torch.tensor([0]), TARGET)[0]
        assert token.tolist() == [2]


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


# The law


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
