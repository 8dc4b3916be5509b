"""Prompt lookup by Triton: the reference's drafts, whatever the text's length and the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import move, poisoned
from torch import Tensor

from hybridgen.kernels.lookup import MAX_NGRAM, lookup
from hybridgen.kernels.lookup_triton import BLOCK

UNWRITTEN = -7


def compare(device: torch.device, tokens: Tensor, length: Tensor, num_drafts: int) -> Tensor:
    """The kernel writes what the reference does and nothing else; what matched, by the latter."""
    expected = torch.full((len(length), num_drafts + 2), UNWRITTEN)
    matched = lookup(tokens, length, expected[:, 1 : num_drafts + 1])
    whole = torch.full_like(expected, UNWRITTEN).to(device)
    given = move(tokens, device), move(length, device)
    with poisoned():
        result = lookup.launcher()(*given, whole[:, 1 : num_drafts + 1])
    assert torch.equal(whole.cpu(), expected)
    assert torch.equal(result.cpu(), matched)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(given, (tokens, length), strict=True))
    return matched


def random_texts(rows: int, width: int, largest: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, largest + 1, (rows, width), generator=generator)


@settings(max_examples=40)
@given(st.data())
def test_drafts_as_the_reference_does(device: torch.device, data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 60))
    tokens = random_texts(rows, width, data.draw(st.integers(1, 4)), data.draw(st.integers(0, 999)))
    length = data.draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows))
    compare(device, tokens, torch.tensor(length), data.draw(st.integers(0, 15)))


def test_every_number_of_matched_tokens_occurs(device: torch.device) -> None:
    """So that the comparison above is one of every branch."""
    tokens, length = random_texts(64, 30, 5, seed=0), torch.arange(64) % 30 + 1
    assert set(compare(device, tokens, length, 5).tolist()) == set(range(MAX_NGRAM + 1))


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK + 1])
def test_a_match_is_found_in_every_block(device: torch.device, length: int) -> None:
    """Also one that lies across the edge of two blocks, and at the text's first tokens."""
    ends = [3, 4, BLOCK // 2, BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 2, 2 * BLOCK - 1, length - 2]
    ends = [end for end in ends if end < length - 1]
    tokens = torch.arange(length + 9).repeat(len(ends), 1)
    for row, end in enumerate(ends):
        tokens[row, length - 4 : length] = tokens[row, end - 3 : end + 1].clone()
    compare(device, tokens, torch.full((len(ends),), length), 8)


def test_texts_of_a_wider_state(device: torch.device) -> None:
    """Every other row, and the first columns, of larger buffers."""
    tokens, length = random_texts(6, 80, 2, seed=1), torch.tensor([9, 1, 50, 2, 30, 3])
    compare(device, tokens[::2, :60], length[::2].contiguous(), 4)


def test_the_best_of_several_blocks_is_taken(device: torch.device) -> None:
    """Wherever it is: long texts in which most places match a little."""
    tokens = random_texts(40, 3 * BLOCK, 7, seed=2)
    compare(device, tokens, torch.randint(2 * BLOCK, 3 * BLOCK, (40,)), 4)
