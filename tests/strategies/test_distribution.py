"""The whole loop writes what the LLM alone would: every text of a few tokens, by enumeration.

Each run writes 20,000 rows with different seeds. The seeds are fixed, so a run is deterministic;
with a bound of 1e-4 on the p-value, a correct loop that drew its seeds anew would fail one run in
ten thousand, and a bias of two per cent in one token fails for certain.

Coupled, there is nothing to count: the tokens are those of the LLM alone, whose law is held here.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from table_decoder import (
    TableDecoder,
    enumerate_law,
    filtered,
    loaded,
    p_value,
    random_table,
    sample_law,
    write,
)

from hybridgen.engine.loop import Program, Repeat
from hybridgen.engine.pair import Pair
from hybridgen.engine.rounds import Batch
from hybridgen.kernels import philox
from hybridgen.kernels.verify import SOURCE_LLM
from hybridgen.strategies import drafts
from hybridgen.strategies.drafts import SlmDrafts, speculative_round
from hybridgen.strategies.single import single_round

ROWS = 20_000
COUPLED_ROWS = 2_000  # each token is compared
PROMPT = [1, 0, 1]
DEPTH = 3
BOUND = 1e-4

PLAIN = (1.0, 0, 1.0, 0.0)
SAMPLINGS = {
    "plain": PLAIN,
    "cold": (0.6, 0, 1.0, 0.0),
    "hot": (1.7, 0, 1.0, 0.0),
    "top_k": (1.0, 3, 1.0, 0.0),
    "top_p": (0.9, 0, 0.8, 0.0),
    "min_p": (1.2, 0, 1.0, 0.2),
    "all": (0.8, 4, 0.9, 0.1),
}


def decoders(vocab: int, noise: float = 0.6) -> tuple[TableDecoder, TableDecoder]:
    target = random_table(vocab, seed=0)
    draft = random_table(vocab, seed=1, like=target, noise=noise)
    return TableDecoder(draft), TableDecoder(target)


def start(
    pair: tuple[TableDecoder, TableDecoder],
    sampling: tuple,
    depth: int = DEPTH,
    rows: int = ROWS,
) -> Batch:
    """Rows of the same prompt, each with its own seed, ending after ``depth`` tokens."""
    return loaded(*pair, [PROMPT] * rows, depth, sampling)


def speculation(batch: Batch, num_drafts: int, rejection: bool) -> Program:
    return Repeat(batch.round(speculative_round, SlmDrafts(), num_drafts, rejection))


def alone(batch: Batch) -> Program:
    return Repeat(batch.round(single_round, SOURCE_LLM))


def rejection_p_value(
    num_drafts: int, sampling: tuple, pair: tuple[TableDecoder, TableDecoder], depth: int = DEPTH
) -> float:
    batch = start(pair, sampling, depth)
    program = speculation(batch, num_drafts, rejection=True)
    observed = sample_law(batch, program, PROMPT, depth, pair[1].vocab_size)
    return p_value(observed, enumerate_law(pair[1].table, PROMPT, depth, sampling))


def alone_p_value(sampling: tuple, pair: tuple[TableDecoder, TableDecoder]) -> float:
    batch = start(pair, sampling)
    observed = sample_law(batch, alone(batch), PROMPT, DEPTH, pair[1].vocab_size)
    return p_value(observed, enumerate_law(pair[1].table, PROMPT, DEPTH, sampling))


def assert_coupled_is_alone(
    num_drafts: int,
    sampling: tuple,
    pair: tuple[TableDecoder, TableDecoder],
    depth: int = 8,
    rows: int = COUPLED_ROWS,
) -> None:
    texts = []
    for coupled in (False, True):
        batch = start(pair, sampling, depth, rows)
        write(batch, speculation(batch, num_drafts, False) if coupled else alone(batch))
        texts.append(batch.rows.tokens[:, : len(PROMPT) + depth].clone())
    assert torch.equal(*texts)


@pytest.mark.parametrize("num_drafts", [1, 2, 3, 4, 5])
def test_every_draft_length_writes_the_llms_law(num_drafts: int) -> None:
    assert rejection_p_value(num_drafts, PLAIN, decoders(5)) > BOUND
    assert_coupled_is_alone(num_drafts, PLAIN, decoders(5))


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_every_filter_writes_the_llms_law(sampling: tuple) -> None:
    assert rejection_p_value(3, sampling, decoders(5)) > BOUND
    assert_coupled_is_alone(3, sampling, decoders(5))
    assert alone_p_value(sampling, decoders(5)) > BOUND


@pytest.mark.parametrize("temperature", [1e-8, 1e-7, 1e-5, 1e4])
def test_every_temperature_writes_the_llms_law(temperature: float) -> None:
    """Of two to five equals at the top, and of logits an ulp apart."""
    for level, step in ((30.0, 1.0), (1.0, 2.0**-23)):
        pair = decoders(5)
        for decoder in pair:
            decoder.table = level + decoder.table.round().clamp_max(1) * step
        sampling = (temperature, 0, 1.0, 0.0)
        assert rejection_p_value(3, sampling, pair) > BOUND
        assert_coupled_is_alone(3, sampling, pair)
    assert alone_p_value(sampling, pair) > BOUND  # of the last pair, which has equals too


@pytest.mark.parametrize("vocab, depth", [(2, 6), (3, 4), (8, 3)])
def test_every_vocabulary_writes_the_llms_law(vocab: int, depth: int) -> None:
    assert rejection_p_value(4, PLAIN, decoders(vocab), depth) > BOUND


def test_a_stream_shared_by_draft_and_residual_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "DRAFT", philox.RESIDUAL)
    assert rejection_p_value(3, PLAIN, decoders(5)) < BOUND


def test_a_stream_shared_by_draft_and_acceptance_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drafts, "DRAFT", philox.ACCEPT)
    assert rejection_p_value(3, PLAIN, decoders(5)) < BOUND


def test_a_draft_that_is_always_right_is_always_accepted() -> None:
    target = random_table(5, seed=0)
    batch = start((TableDecoder(target), TableDecoder(target)), PLAIN, depth=6)
    batch.round(speculative_round, SlmDrafts(), 5, True)()
    assert bool((batch.rows.length == len(PROMPT) + 6).all())


def mixture(batch: Batch, counts: Sequence[int], rejection: bool) -> Program:
    """Speculation that drafts another number of tokens in each round."""
    rounds = [batch.round(speculative_round, SlmDrafts(), k, rejection) for k in counts]

    def round_() -> None:
        rounds.append(rounds.pop(0))
        rounds[-1]()

    return Repeat(round_)


def test_coupled_writes_the_llms_own_tokens_for_the_seed() -> None:
    texts = []
    for counts in ((), (5, 1, 3), (1, 15)):
        batch = start(decoders(5), PLAIN, depth=8, rows=COUPLED_ROWS)
        program = mixture(batch, counts, False) if counts else alone(batch)
        write(batch, program)
        texts.append(batch.rows.tokens[:, : len(PROMPT) + 8].clone())
    assert all(torch.equal(text, texts[0]) for text in texts[1:])


def test_a_changing_number_of_drafts_writes_the_llms_law() -> None:
    for counts in ((3, 1), (1, 2, 5)):
        pair = decoders(5)
        batch = start(pair, PLAIN, depth=4)
        observed = sample_law(batch, mixture(batch, counts, True), PROMPT, 4, 5)
        assert p_value(observed, enumerate_law(pair[1].table, PROMPT, 4, PLAIN)) > BOUND


def test_the_rows_hold_the_numbers_given() -> None:
    sampling = (0.7, 16_777_217, 0.8, 0.1)
    rows = loaded(*decoders(5), [PROMPT] * 3, DEPTH, sampling).rows
    assert rows.sampling.unique(dim=0).tolist() == [[*sampling]]


class ShiftDecoder(TableDecoder):
    """The logits after a token are one row, shifted by 37 places for each step of its id."""

    def __call__(self, tokens: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        column = torch.arange(self.vocab_size)
        return self.table[(column + 37 * tokens[..., None]) % self.vocab_size]

    def law(self, sampling: tuple) -> np.ndarray:
        """The laws of the first and of the second token after PROMPT, [2, V]."""
        p = filtered(self.table.double().numpy(), sampling)
        first = np.roll(p, -37 * PROMPT[-1])
        second = sum(first[x] * np.roll(p, -37 * x) for x in np.flatnonzero(first))
        return np.stack([first, second])


@pytest.mark.parametrize("sampling", [(0.9, 50, 0.95, 0.01), (0.3, 0, 0.9, 0.0)], ids=str)
def test_a_vocabulary_of_4096_writes_the_llms_law(sampling: tuple) -> None:
    """The law of the LLM's own draws from as many is in the tests of `sample`."""
    vocab, rows, runs = 4096, 1000, 3
    generator = torch.Generator().manual_seed(0)
    target = 2.0 * torch.randn(vocab, generator=generator)
    llm = ShiftDecoder(target)
    slm = ShiftDecoder(target + 0.7 * torch.randn(vocab, generator=generator))
    batch = Pair(slm, llm, rows, len(PROMPT) + 2).batch(rows)
    counts = np.zeros((2, vocab))
    for i in range(runs):
        seeds = range(i * rows, (i + 1) * rows)
        batch.rows.load([PROMPT] * rows, [len(PROMPT) + 2] * rows, seeds, sampling, [])
        write(batch, speculation(batch, 3, rejection=True))
        for column in (0, 1):
            new = batch.rows.tokens[:, len(PROMPT) + column].numpy()
            counts[column] += np.bincount(new, minlength=vocab)
    for observed, law in zip(counts, llm.law(sampling), strict=True):
        assert p_value(observed, law) > BOUND
    assert_coupled_is_alone(3, sampling, (slm, llm), depth=4, rows=100)
