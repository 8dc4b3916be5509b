"""Random texts, logits and penalties for `penalize`, and memory around them that would show."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NGRAMS = [1, 2, 3, 4, 5, 6, 500]


class Case(NamedTuple):
    """The arguments of `penalize`."""

    logits: Tensor
    tokens: Tensor
    start: Tensor
    padding: Tensor
    bias: Tensor
    early: Tensor
    minimum: Tensor
    repetition: Tensor | None
    ngram: Tensor | None

    def text(self, row: int, column: int) -> list[int]:
        """By the words of the contract, padding included."""
        end = int(self.start[row]) + column + 1
        pads, pad, _ = self.padding[row].tolist()
        before: list[int] = self.tokens[row, : max(end, 0)].tolist()
        return [pad] * pads + before


def random_case(
    rows: int,
    columns: int,
    vocab: int,
    start: list[int],
    *,
    width: int,
    ids: int,
    dtype: torch.dtype = torch.float32,
    repetition: float | None = None,
    ngram: int | None = None,
    seed: int = 0,
) -> Case:
    """Texts of the ids below ``ids``, and one that none holds behind them and around the buffer.

    That one, vocab - 1, would be penalised if it were read, and banned where the text is followed
    by it. Logits are every other row and the first columns of a wider buffer of NaN.
    """
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    buffer = torch.full((2 * rows, columns + 1, vocab + 3), float("nan"), dtype=dtype)
    logits = buffer[::2, 1:, 2:-1]
    logits.copy_(4 * torch.randn(logits.shape, generator=generator))
    tokens = torch.full((rows, width + 9), vocab - 1)[:, 5:-4]
    for row, first in enumerate(start):
        length = min(max(first + columns, 0), width)
        tokens[row, :length] = integers(0, ids, length)
    bias, early = torch.randn(vocab, generator=generator), torch.zeros(vocab)
    bias[integers(0, vocab, 3)] = -torch.inf
    early[integers(0, vocab, 2)] = -torch.inf
    return Case(
        logits,
        tokens,
        torch.tensor(start),
        padding_of(
            integers(0, 7, rows) * integers(0, 2, rows),
            integers(0, ids, rows),
            integers(-7, width, rows) * integers(0, 2, rows),
        ),
        bias,
        early,
        torch.tensor(start) + integers(-1, columns + 2, rows),
        None if repetition is None else torch.tensor([repetition]),
        None if ngram is None else torch.tensor([ngram]),
    )


def padding_of(pads: Tensor, pad: Tensor, counted: Tensor) -> Tensor:
    """Of each row; what is before its padding does not count either way."""
    return torch.stack([pads, pad, counted.maximum(-pads)], 1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Of every kind; a start may be before the first position, or the text's end beyond the last.

    Few different ids, so that n-grams repeat; some of them without a logit in half of the cases.
    """
    rows, columns, vocab = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 5)),
        draw(st.integers(9, 40)),
    )
    width = draw(st.integers(1, 40))
    ids = draw(st.integers(1, 8))
    case = random_case(
        rows,
        columns,
        vocab,
        draw(st.lists(st.integers(-columns - 1, width + 2), min_size=rows, max_size=rows)),
        width=width,
        ids=ids,
        dtype=draw(st.sampled_from(DTYPES)),
        repetition=draw(st.sampled_from([None, 1.3, 0.7, 1.0])),
        ngram=draw(st.sampled_from([None, *NGRAMS])),
        seed=draw(st.integers(0, 9999)),
    )
    kept = draw(st.sampled_from([vocab, draw(st.integers(1, ids))]))
    return cut(case, kept)


def cut(case: Case, vocab: int) -> Case:
    """The first ``vocab`` logits alone: other ids, of the texts and with biases, have none."""
    return case._replace(logits=case.logits[..., :vocab])
