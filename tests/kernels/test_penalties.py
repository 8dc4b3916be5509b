"""Penalties and biases: transformers' own processors, to the bit, and what these do not see."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import bits
from penalty_cases import DTYPES, NGRAMS, Case, cases, cut, random_case
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from hybridgen.kernels.penalties import penalize

INF, NAN = float("inf"), float("nan")
BIASES, BAD, SUPPRESSED, EOS = {(2,): 1.5, (3,): -2.25, (7,): 0.5}, [[5], [11]], [3, 6], [1, 8]


def by_transformers(case: Case, row: int, column: int) -> Tensor:
    """The processors of `generate`, in its order, on one text: [V]."""
    text = torch.tensor([case.text(row, column)], dtype=torch.int64)
    # of a prompt of no tokens, so that all of the text but its padding is new
    skipped = int(case.padding[row, 0])
    chain = LogitsProcessorList([SequenceBiasLogitsProcessor(BIASES)])
    if case.repetition is not None:
        ignored = max(int(case.padding[row, 2]) + int(case.padding[row, 0]), 0)
        chain.append(RepetitionPenaltyLogitsProcessor(float(case.repetition), ignored))
    if case.ngram is not None:
        chain.append(NoRepeatNGramLogitsProcessor(int(case.ngram)))
    chain.append(NoBadWordsLogitsProcessor(BAD))
    chain.append(MinNewTokensLengthLogitsProcessor(skipped, int(case.minimum[row]), EOS))
    chain.append(SuppressTokensLogitsProcessor(SUPPRESSED))
    return chain(text, case.logits[row, column].float().unsqueeze(0))[0]


def as_transformers_has_them(case: Case) -> Case:
    """With the biases that `by_transformers` makes of its lists."""
    bias, early = torch.zeros(case.logits.shape[2]), torch.zeros(case.logits.shape[2])
    for (token,), value in BIASES.items():
        bias[token] = value
    bias[torch.tensor(BAD).flatten()] = -INF
    bias[SUPPRESSED] = -INF
    early[EOS] = -INF
    return case._replace(bias=bias, early=early, minimum=case.minimum.clamp(min=0))


@settings(max_examples=200)
@given(st.data())
def test_transformers_processors_to_the_bit(data: st.DataObject) -> None:
    rows, columns, width = (data.draw(st.integers(1, most)) for most in (3, 5, 30))
    starts = st.integers(-1, max(width - columns, -1))
    case = random_case(
        rows,
        columns,
        data.draw(st.integers(12, 40)),
        data.draw(st.lists(starts, min_size=rows, max_size=rows)),
        width=max(width, columns),
        ids=data.draw(st.integers(1, 12)),
        dtype=data.draw(st.sampled_from(DTYPES)),
        repetition=data.draw(st.sampled_from([None, 1.3, 0.7])),
        ngram=data.draw(st.sampled_from([None, *NGRAMS])),
        seed=data.draw(st.integers(0, 9999)),
    )
    case = as_transformers_has_them(case)
    scores = penalize(*case)
    assert scores.dtype == torch.float32 and scores.is_contiguous()
    for row in range(rows):
        for column in range(columns):
            expected = by_transformers(case, row, column)
            assert torch.equal(bits(scores[row, column]), bits(expected)), (row, column)


@settings(max_examples=100)
@given(cases(), st.integers(1, 40))
def test_ids_without_a_logit_are_skipped(case: Case, vocab: int) -> None:
    """What an id scores depends on no other id's logit, nor on there being one."""
    vocab = min(vocab, case.logits.shape[2])
    expected = penalize(*case)[..., :vocab].contiguous()
    assert torch.equal(bits(penalize(*cut(case, vocab))), bits(expected))


def scores_of(
    text: list[int],
    logits: list[float],
    *,
    pads: int = 0,
    pad: int = 0,
    counted: int = -99,
    start: int | None = None,
    repetition: float | None = None,
    ngram: int | None = None,
) -> list[float]:
    """Of one row and column without biases."""
    count = len(logits)
    scores = penalize(
        torch.tensor([[logits]]),
        torch.tensor([text], dtype=torch.int64),
        torch.tensor([len(text) - 1 if start is None else start]),
        torch.tensor([[pads, pad, counted]]),
        torch.zeros(count),
        torch.zeros(count),
        torch.tensor([0]),
        None if repetition is None else torch.tensor([repetition]),
        None if ngram is None else torch.tensor([ngram]),
    )
    return scores.flatten().tolist()


def test_an_id_is_penalised_once_however_often_it_occurs() -> None:
    assert scores_of([0, 1, 0, 0, 1], [8.0, -8.0, 8.0], repetition=2.0) == [4, -16, 8]
    assert scores_of([0], [8.0, 8.0], pads=3, pad=1, repetition=2.0) == [4, 4]


def test_repetition_counts_from_a_position_on() -> None:
    def penalised(counted: int) -> list[int]:
        scores = scores_of([0, 1, 2], [8.0] * 5, pads=3, pad=4, counted=counted, repetition=2.0)
        return [token for token, score in enumerate(scores) if score == 4]

    assert [penalised(counted) for counted in (-9, -3, -1)] == [[0, 1, 2, 4]] * 3
    assert [penalised(counted) for counted in (0, 1, 2, 3, 9)] == [[0, 1, 2], [1, 2], [2], [], []]


@pytest.mark.parametrize("start", [-1, -2, -100])
def test_before_the_first_position_there_is_padding_alone(start: int) -> None:
    assert scores_of([0, 0], [8.0, 8.0, 8.0], start=start, repetition=2.0) == [8, 8, 8]
    padded = scores_of([0, 0], [8.0] * 3, pads=2, pad=1, start=start, repetition=2.0, ngram=2)
    assert padded == [8, -INF, 8]


@pytest.mark.parametrize("start", [2, 3, 100])
def test_the_text_ends_with_the_last_position(start: int) -> None:
    whole = torch.tensor([[0, 1, 0, 2, 2]])[:, :3]
    scores = penalize(
        torch.full((1, 1, 4), 8.0),
        whole,
        torch.tensor([start]),
        torch.tensor([[0, 3, 0]]),
        torch.zeros(4),
        torch.zeros(4),
        torch.tensor([0]),
        torch.tensor([2.0]),
        torch.tensor([2]),
    )
    assert scores.flatten().tolist() == [4, -INF, 8, 8]


def banned(text: list[int], ngram: int, pads: int = 0, pad: int = 0) -> list[int]:
    scores = scores_of(text, [1.0] * 5, pads=pads, pad=pad, ngram=ngram)
    return [token for token, score in enumerate(scores) if score == -INF]


def test_ids_that_complete_an_ngram_of_the_text() -> None:
    assert banned([0, 1, 2, 0, 1], 3) == [2]
    assert banned([0, 1, 2, 0, 1, 3, 0, 1], 3) == [2, 3]
    assert banned([0, 1, 2, 3, 1], 3) == []  # (3, 1) is new, if 1 is not
    assert banned([0, 1, 2, 3, 1], 2) == [2]
    assert banned([2, 2], 2) == [2]
    assert banned([2, 2], 3) == []
    assert banned([0, 3, 0], 1) == [0, 3]
    assert banned([], 1) == []


def test_ngrams_begin_in_the_padding() -> None:
    """Also those that end there, and the text's last tokens may be padding themselves."""
    assert banned([1, 4, 4], 3, pads=2, pad=4) == [1]
    assert banned([1, 4, 4], 3, pads=1, pad=4) == []
    assert banned([1, 4, 4], 3, pads=3, pad=4) == [1, 4]
    assert banned([], 3, pads=3, pad=4) == [4]
    assert banned([], 3, pads=2, pad=4) == []
    assert banned([1], 1, pads=1, pad=4) == [1, 4]


def test_early_is_added_below_the_minimum() -> None:
    """Column i scores position start + i + 1."""
    given = torch.zeros(1, 4, 2), torch.zeros(1, 20, dtype=torch.int64), torch.tensor([9])
    early = torch.tensor([0.0, -1.0])
    scores = penalize(
        *given, torch.zeros(1, 3).long(), torch.zeros(2), early, torch.tensor([12]), None, None
    )
    assert scores[0, :, 1].tolist() == [-1, -1, 0, 0]  # positions 10 to 13


def test_nan_and_infinities_pass_through() -> None:
    logits = [NAN, INF, -INF, 3e38, -3e38]
    scores = scores_of([0, 1, 2, 3, 4], logits, repetition=0.1)
    assert scores[0] != scores[0]
    assert scores[1:4] == [INF, -INF, INF] and -4e37 < scores[4] < -2e37
    assert scores_of([0, 1], logits, ngram=1)[:2] == [-INF, -INF]
