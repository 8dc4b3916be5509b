"""Prompt lookup: the longest match of the text's end, its latest place, and what followed there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybridgen.kernels.lookup import MAX_NGRAM, lookup

GARBAGE = 9  # beyond the text, as rounds before have left it


def oracle(text: list[int], drafts: int) -> tuple[list[int], int]:
    """By the words of the contract: every n from the largest, every place from the latest."""
    for n in range(min(MAX_NGRAM, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, n - 1, -1):
            if text[end - n : end] == text[-n:]:
                followed = list(text)
                for i in range(drafts):
                    followed.append(followed[end + i])
                return followed[len(text) :], n
    return [text[-1]] * drafts, 0


def batch(texts: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    tokens = torch.full((len(texts), width), GARBAGE)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    return tokens, torch.tensor([len(text) for text in texts])


def found(text: list[int], drafts: int = 4) -> tuple[list[int], int]:
    tokens, length = batch([text], len(text) + 3)
    proposed = torch.full((1, drafts), -7)
    matched = lookup(tokens, length, proposed)
    return proposed[0].tolist(), int(matched)


def test_what_followed_the_longest_match_at_its_latest_place() -> None:
    assert found([1, 2, 3, 5, 6, 7, 8, 2, 3]) == ([5, 6, 7, 8], 2)  # not [1] of the nearer 3
    assert found([1, 2, 7, 7, 1, 2, 8, 8, 8, 8, 1, 2]) == ([8, 8, 8, 8], 2)
    assert found([4, 3, 8, 8, 8, 3, 5, 6, 7, 7, 1, 3]) == ([5, 6, 7, 7], 1)


def test_no_more_tokens_are_compared_than_max_ngram() -> None:
    """Beyond that the latest place counts: here it is 6, where the earlier one is longer."""
    assert MAX_NGRAM == 4
    assert found([0, 1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 6, 0, 1, 2, 3, 4], 1) == ([6], 4)


def test_a_text_that_repeats_goes_on() -> None:
    assert found([5, 5], 3) == ([5, 5, 5], 1)
    assert found([1, 2, 3, 1, 2, 3, 1], 8) == ([2, 3, 1, 2, 3, 1, 2, 3], 4)


@pytest.mark.parametrize("text", [[3], [1, 3], [1, 2, 4, 5, 3]], ids=str)
def test_where_nothing_matches_the_drafts_are_the_last_token(text: list[int]) -> None:
    """`GARBAGE` beyond the text is no match, and nothing is before its first token."""
    assert found(text) == ([3] * 4, 0)
    assert found([*text[:-1], GARBAGE]) == ([GARBAGE] * 4, 0)


texts = st.integers(1, 3).flatmap(
    lambda largest: st.lists(st.integers(0, largest), min_size=1, max_size=40)
)


@settings(max_examples=200)
@given(st.lists(texts, min_size=1, max_size=4), st.integers(0, 15))
def test_follows_the_contract(many: list[list[int]], drafts: int) -> None:
    tokens, length = batch(many, 45)
    whole = torch.full((len(many), 17), -7)
    matched = lookup(tokens, length, whole[:, 1 : drafts + 1])
    assert list(zip(whole[:, 1 : drafts + 1].tolist(), matched.tolist(), strict=True)) == [
        oracle(text, drafts) for text in many
    ]
    assert bool((whole[:, 0] == -7).all()) and bool((whole[:, drafts + 1 :] == -7).all())
