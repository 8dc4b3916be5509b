"""The measurement agrees with speculation carried out for real."""

import numpy as np
import pytest
import torch

from hybridgen.pair import evaluate
from hybridgen.pair.completions import parses


def test_certain_drafts_fill_every_round() -> None:
    result = evaluate.speculate(np.ones((3, 101)), drafts=4, seed=0)
    assert result.tau == 5.0
    assert result.acceptance_rate == result.agreement == 1.0


def test_hopeless_drafts_leave_one_token_a_round() -> None:
    result = evaluate.speculate(np.zeros((3, 101)), drafts=4, seed=0)
    assert result.tau == 1.0
    assert result.accepted_per_position == [0.0] * 4


def test_rounds_are_cut_where_a_draft_fails() -> None:
    chances = np.array([[1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1.0]])
    result = evaluate.speculate(chances, drafts=4, seed=0, repeats=1)
    assert result.accepted_per_position == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3])
    assert result.tau == pytest.approx(1 + 2 + 1 / 3)


def test_constant_chance_gives_the_geometric_series() -> None:
    result = evaluate.speculate(np.full((64, 400), 0.7), drafts=4, seed=1)
    assert result.tau == pytest.approx(sum(0.7**i for i in range(5)), abs=0.02)


def test_acceptance_given_the_outcome_matches_rejection_sampling() -> None:
    """Given x ~ p, min(1, q/p) averages to sum min(p, q): what rejection sampling accepts."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(32, generator=generator).double().softmax(-1)
    q = torch.randn(32, generator=generator).double().softmax(-1)
    given = torch.minimum(q / p, torch.ones(())) * p
    assert given.sum().item() == pytest.approx(torch.minimum(p, q).sum().item())


def test_repetition_sees_a_loop() -> None:
    prompt = torch.zeros(1, evaluate.PROMPT_LENGTH, dtype=torch.int64)
    fresh = torch.arange(40)[None]
    assert evaluate.repetition(torch.cat([prompt, fresh], 1)) == 0.0
    looping = torch.arange(4).repeat(10)[None]
    assert evaluate.repetition(torch.cat([prompt, looping], 1)) > 0.8


@pytest.mark.parametrize(
    ("text", "whole", "fine"),
    [
        ("def f(x):\n    return x\n", True, True),
        ("def f(x):\n    return x\n\nprint(f(", False, True),
        ("def f(x):\n    return x\n\nprint(f(", True, False),
        ("def f(x): return x x\n", True, False),
        ("def f(x):", False, False),
        ("x = 1\n", True, False),
    ],
)
def test_a_completion_parses_apart_from_its_cut_off_tail(
    text: str, whole: bool, fine: bool
) -> None:
    assert parses(text, whole) is fine
