"""The two doors of a round: where a model is read, and where tokens are committed."""

import ast
from pathlib import Path

import pytest
import torch
from conftest import random_model

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.pair import Pair
from hybridgen.engine.rounds import Batch
from hybridgen.engine.steps import feed, read

ROOT = Path(__file__).parent.parent.parent
PROMPTS = [[5, 6, 7], [8, 9]]
GREEDY = (0.0, 0, 1.0, 0.0)


def pair(slm_vocab: int = 384, llm_vocab: int = 384) -> Pair:
    slm, llm = random_model(slm_vocab, 1, 32, seed=1), random_model(llm_vocab, 2, 64, seed=2)
    return Pair(Decoder.from_model(slm), Decoder.from_model(llm), 3, 200)


def start(made: Pair, new_tokens: int = 20) -> Batch:
    batch = made.batch(2)
    limits = [len(prompt) + new_tokens for prompt in PROMPTS]
    batch.rows.load(PROMPTS, limits, [1, 2], GREEDY, [])
    batch.routing.load(batch.rows, 1e9, 0.0)
    for model in (made.slm, made.llm):
        model.prefill(batch.rows.tokens, [len(prompt) - 1 for prompt in PROMPTS])
    return batch


@pytest.mark.parametrize("slm_vocab, llm_vocab", [(384, 400), (400, 384), (384, 384)])
def test_logits_end_with_the_llms_vocabulary_and_ids_with_the_models(
    slm_vocab: int, llm_vocab: int
) -> None:
    made = pair(slm_vocab, llm_vocab)
    batch = start(made)
    assert made.vocab_size == batch.rows.vocab_size == llm_vocab
    largest, at = torch.full((2, 1), llm_vocab - 1), torch.tensor([2, 1])
    for model in (made.slm, made.llm):
        expected = model(largest.clamp_max(model.vocab_size - 1), at)[:, :, :llm_vocab]
        assert torch.equal(read(batch.rows, model, largest, at), expected)


def calls_of(*names: str) -> list[tuple[str, str]]:
    """Module and code of each call of a function or object so named, in whatever rounds are of."""
    files = [*(ROOT / "hybridgen" / "strategies").glob("*.py")]
    files += [ROOT / "hybridgen" / "engine" / f"{name}.py" for name in ("rounds", "steps", "loop")]
    return [
        (file.stem, ast.unparse(node.func))
        for file in sorted(files)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in names
    ]


def test_a_round_calls_a_model_in_one_place_and_commits_in_one() -> None:
    assert calls_of("slm", "llm", "model") == [("steps", "model")]
    assert calls_of("commit") == [("steps", "commit")]


def test_feed_reads_each_row_from_a_place_of_its_own() -> None:
    made = pair()
    batch = start(made)
    length, tokens = batch.rows.length, batch.rows.tokens
    found = feed(batch.rows, made.llm, 2, length - 2)
    fed = torch.stack([tokens[0, 1:3], tokens[1, 0:2]])
    assert torch.equal(found, made.llm(fed, torch.tensor([1, 0])))
    assert torch.equal(feed(batch.rows, made.llm, 1, length - 1)[:, 0], found[:, 1])
