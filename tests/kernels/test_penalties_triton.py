"""Penalties by Triton: the reference's bits, whatever the texts, their lengths and the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from on_device import bits, launch
from penalty_cases import DTYPES, Case, cases, random_case
from torch import Tensor

from hybridgen.kernels import penalties_triton
from hybridgen.kernels.penalties import penalize
from hybridgen.kernels.penalties_triton import BLOCK, TEXT_BLOCK

INF, NAN = float("inf"), float("nan")


def compare(device: torch.device, case: Case) -> Tensor:
    """The kernels' bits are the reference's; NaN of any kind is the same. Returns the scores."""
    expected, scores = penalize(*case), launch(penalize, device, *case)
    assert scores.dtype == torch.float32 and scores.shape == case.logits.shape
    assert torch.equal(one_nan(scores), one_nan(expected))
    return expected


def one_nan(scores: Tensor) -> Tensor:
    return bits(torch.where(scores.isnan(), NAN, scores))


@settings(max_examples=150)
@given(cases())
def test_the_references_bits(device: torch.device, case: Case) -> None:
    compare(device, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinities(device: torch.device, dtype: torch.dtype) -> None:
    """In logits and biases, and what overflows."""
    case = random_case(
        2, 3, 20, [11, 4], width=16, ids=20, dtype=dtype, repetition=0.1, ngram=2, seed=5
    )
    case.logits[:, :, ::2] = torch.tensor([NAN, INF, -INF, torch.finfo(dtype).max, -0.0] * 2)
    case.bias[1::5] = torch.tensor([INF, NAN, -INF, 3e38])
    with np.errstate(all="ignore"):  # the interpreter is numpy's
        assert compare(device, case).isnan().any()


@pytest.mark.parametrize("vocab", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 17])
def test_every_block_of_the_vocabulary(device: torch.device, vocab: int) -> None:
    case = random_case(2, 2, vocab, [20, 3], width=40, ids=vocab, repetition=1.2, ngram=1)
    compare(device, case)


def unbiased(case: Case) -> Case:
    """Without padding either, so that the text's tokens alone change a logit."""
    zeros = (torch.zeros_like(x) for x in (case.padding, case.bias, case.early))
    return case._replace(**dict(zip(("padding", "bias", "early"), zeros, strict=True)))


LENGTHS = [TEXT_BLOCK - 2, TEXT_BLOCK - 1, TEXT_BLOCK, TEXT_BLOCK + 1, 2 * TEXT_BLOCK + 3]


@pytest.mark.parametrize("length", LENGTHS)
def test_the_last_token_of_every_length(device: torch.device, length: int) -> None:
    """Every token of the text counts, each once, and none beyond it; here it fills the buffer."""
    case = random_case(1, 2, length + 9, [length - 1], width=length + 1, ids=1, repetition=1.5)
    case = unbiased(case)
    case.tokens[0, : length + 1] = torch.arange(length + 1)
    scores = compare(device, case)
    changed = scores != case.logits
    assert changed[0, 0].nonzero().flatten().tolist() == list(range(length))
    assert changed[0, 1].nonzero().flatten().tolist() == list(range(length + 1))


@pytest.mark.parametrize("length", LENGTHS)
def test_ngrams_across_the_edges_of_blocks(device: torch.device, length: int) -> None:
    """One n-gram at each of some places, the first token and the last one among them."""
    n, vocab = 4, length + 20
    ends = [n - 1, TEXT_BLOCK - 3, TEXT_BLOCK - 2, TEXT_BLOCK - 1, TEXT_BLOCK, TEXT_BLOCK + 2]
    ends = [end for end in ends if end < length - n] + [length - n]
    case = random_case(len(ends), 1, vocab, [length - 1] * len(ends), width=vocab, ids=1, ngram=n)
    case = unbiased(case)
    for row, end in enumerate(ends):
        case.tokens[row, :length] = torch.arange(length)
        case.tokens[row, length - n + 1 : length] = torch.arange(end - n + 1, end)
    banned = compare(device, case).isneginf().nonzero()
    assert banned.tolist() == [[row, 0, end] for row, end in enumerate(ends)]


@pytest.mark.parametrize("pads", [0, 1, 2, 3, 4, 700])
@pytest.mark.parametrize("ngram", [1, 3])
def test_ngrams_of_the_padding(device: torch.device, pads: int, ngram: int) -> None:
    """The text's last tokens are padding themselves, or it has no tokens."""
    case = random_case(2, 1, 9, [2, -1], width=5, ids=1, repetition=1.2, ngram=ngram)
    case.tokens[0, :3] = torch.tensor([1, 4, 4])
    case.padding[:] = torch.tensor([pads, 4, -pads])
    compare(device, case)


def test_rows_do_not_depend_on_the_batch(device: torch.device) -> None:
    case = random_case(4, 3, 30, [9, 0, 30, 17], width=40, ids=6, repetition=1.3, ngram=2)
    whole = launch(penalize, device, *case)
    for row in range(4):
        rows = slice(row, row + 1)
        alone = case._replace(
            logits=case.logits[rows],
            tokens=case.tokens[rows],
            start=case.start[rows].clone(),
            padding=case.padding[rows].clone(),
            minimum=case.minimum[rows].clone(),
        )
        assert torch.equal(bits(launch(penalize, device, *alone)), bits(whole[rows]))


def test_no_launch_without_a_penalty(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(1, 2, 30, [20], width=40, ids=4, repetition=1.3, ngram=2)
    monkeypatch.setattr(penalties_triton, "repeated", None)
    compare(device, case._replace(repetition=None))
    monkeypatch.undo()
    monkeypatch.setattr(penalties_triton, "completed", None)
    compare(device, case._replace(ngram=None))
