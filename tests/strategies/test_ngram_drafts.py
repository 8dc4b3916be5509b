"""Drafts from the text itself: the text is the LLM's, and sooner there where it repeats itself."""

import pytest
import torch
from table_decoder import (
    TableDecoder,
    enumerate_law,
    loaded,
    p_value,
    random_table,
    sample_law,
    write,
)

from hybridgen.engine.loop import Program, Repeat
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.verify import SOURCE_LLM
from hybridgen.strategies.drafts import speculative_round
from hybridgen.strategies.lookup import NgramDrafts
from hybridgen.strategies.single import single_round

GREEDY, PLAIN = (0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0)


def start(table: torch.Tensor, prompts: list[list[int]], depth: int, sampling: tuple) -> Batch:
    return loaded(None, TableDecoder(table), prompts, depth, sampling)


def drafting(batch: Batch, num_drafts: int) -> Program:
    return Repeat(batch.round(speculative_round, NgramDrafts(), num_drafts, False))


@pytest.mark.parametrize("sampling", [PLAIN, (0.9, 0, 0.9, 0.0), (1.2, 3, 1.0, 0.05)], ids=str)
@pytest.mark.parametrize("num_drafts", [1, 3, 15])
def test_the_law_is_the_llms(num_drafts: int, sampling: tuple) -> None:
    prompt, depth, table = [1, 0, 1], 3, random_table(5, seed=0)
    batch = start(table, [prompt] * 20_000, depth, sampling)
    observed = sample_law(batch, drafting(batch, num_drafts), prompt, depth, 5)
    assert p_value(observed, enumerate_law(table, prompt, depth, sampling)) > 1e-4


@pytest.mark.parametrize("sampling", [GREEDY, PLAIN], ids=["greedy", "sampled"])
def test_the_tokens_are_those_of_the_llm_alone(sampling: tuple) -> None:
    """From prompts of any length, until the rows are full."""
    prompts, depth = [[3, 1], [1, 0, 1, 0], [4] * 9, list(range(5)) * 4], 30
    table, texts = random_table(5, seed=2), []
    for num_drafts in (0, 1, 4, 15):
        batch = start(table, prompts, depth, sampling)
        alone = Repeat(batch.round(single_round, SOURCE_LLM))
        write(batch, drafting(batch, num_drafts) if num_drafts else alone)
        assert batch.rows.length.tolist() == [len(prompt) + depth for prompt in prompts]
        texts.append(
            [row[: len(p) + depth] for row, p in zip(batch.rows.tokens, prompts, strict=True)]
        )
    for text in texts[1:]:
        assert all(torch.equal(a, b) for a, b in zip(text, texts[0], strict=True))


def test_every_draft_of_a_text_that_repeats_is_accepted() -> None:
    """Each token follows the one below it, around the vocabulary."""
    successor = torch.eye(5).roll(1, 1).expand(5, 5, 5) * 9
    batch = start(successor, [[0, 1, 2, 3, 4, 0]], 40, GREEDY)
    for length in (11, 16, 21):
        drafting(batch, 4).round()
        assert int(batch.rows.length) == length
    assert batch.rows.tokens[0, :21].tolist() == [i % 5 for i in range(21)]
