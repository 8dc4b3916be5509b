"""Logits processors of `generate`: by every strategy, at every token, drafts or not."""

from typing import Any

import pytest
import torch
from conftest import TinyPair
from torch import Tensor

from hybridgen import GenerationStrategy, HybridGenerator

PROMPTS = ["def area(radius):\n", "the quick brown fox jumps over the", "x"]
ENDS = [*range(3, 12), *range(60, 63), 131, 269, 303, 280]  # some of which would come early
ASKED: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "min_new_tokens": {"min_new_tokens": 12, "eos_token_id": ENDS},
    "suppress_tokens": {"suppress_tokens": [*range(20, 380, 2)]},
    "bad_words_ids": {"bad_words_ids": [[i, j] for i in range(30, 90) for j in range(30, 90)]},
    "several": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
}
EXACT: list[dict[str, Any]] = [
    {"num_drafts": 1, "verification": "coupled"},
    {"num_drafts": 6, "verification": "coupled"},
    {},
]


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32, max_batch_size=2)


def write(generator: HybridGenerator, prompt: Any = PROMPTS, **options: Any) -> Any:
    given = {"max_new_tokens": 20, "seed": 5, "print_stats": False, **options}
    return generator.generate(prompt, **given)


def nothing_twice(tokens: list[int], prompt: list[int], n: int) -> bool:
    text = [*prompt, *tokens]
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    new = grams[max(len(prompt) - n + 1, 0) :]
    return all(grams.count(gram) == 1 for gram in new)


@pytest.mark.parametrize("temperature", [0, 0.9])
@pytest.mark.parametrize("name", ASKED)
def test_speculation_writes_what_the_llm_writes_with_them(
    generator: HybridGenerator, name: str, temperature: float
) -> None:
    given = {**ASKED[name], "temperature": temperature}
    expected = write(generator, strategy="llm", **given)
    plain = {"temperature": temperature, "eos_token_id": given.get("eos_token_id")}
    assert expected.tokens != write(generator, strategy="llm", **plain).tokens
    for how in EXACT:
        assert write(generator, **given, **how).tokens == expected.tokens, how


@pytest.mark.parametrize("strategy", ["speculative", "llm", "slm", "entropy", "uncertainty"])
def test_every_strategy_keeps_to_them(generator: HybridGenerator, strategy: str) -> None:
    ids = [generator.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    asked = {"no_repeat_ngram_size": 2, "suppress_tokens": [*range(40, 60)], "min_new_tokens": 6}
    result = write(generator, strategy=strategy, **asked)
    for prompt, tokens in zip(ids, result.tokens, strict=True):
        assert nothing_twice(tokens, prompt, 2)
        assert not set(tokens) & {*range(40, 60)}
        assert len(tokens) >= 6
    assert not all(nothing_twice(t, [], 1) for t in write(generator, strategy=strategy).tokens)


@pytest.mark.parametrize("options", [*EXACT, {"strategy": "llm"}, {"strategy": "entropy"}])
def test_a_function_sees_every_text_as_it_will_be(
    generator: HybridGenerator, options: dict[str, Any]
) -> None:
    """Each token that stands was asked about with all that is before it, the drafts included."""
    seen: list[tuple[int, ...]] = []

    def processor(ids: Tensor, scores: Tensor) -> Tensor:
        assert ids.shape[0] == scores.shape[0] == 1 and scores.dtype == torch.float32
        seen.append(tuple(ids[0].tolist()))
        return scores

    result = write(generator, **options, logits_processor=processor)
    assert result.tokens == write(generator, **options).tokens
    for prompt, tokens in zip(PROMPTS, result.tokens, strict=True):
        text = generator.tokenizer(prompt)["input_ids"]
        for token in tokens:
            assert tuple(text) in seen
            text = [*text, token]
        assert tuple(text) not in seen or options.get("strategy") != "llm"


def test_what_a_function_returns_is_drawn_from(generator: HybridGenerator) -> None:
    def only(ids: Tensor, scores: Tensor) -> Tensor:
        kept = torch.full_like(scores, -torch.inf)
        kept[:, (ids[0, -1] + 1) % 300] = 0
        return kept

    for strategy in generator.strategies:
        tokens = write(generator, "x", strategy=strategy, logits_processor=[only]).tokens
        assert tokens == [*range(tokens[0], tokens[0] + 20)]


@pytest.mark.parametrize("wrong", [lambda ids, scores: None, lambda ids, scores: scores[:, :5]])
def test_a_function_that_returns_something_else_is_named(
    generator: HybridGenerator, wrong: Any
) -> None:
    with pytest.raises(TypeError, match=r"^logits_processor must return the scores"):
        write(generator, logits_processor=wrong)
    assert write(generator).tokens


def test_what_the_llm_recommends_is_applied_and_an_argument_wins(tiny_pair: TinyPair) -> None:
    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    plain, penalised = write(generator).tokens, write(generator, repetition_penalty=1.4).tokens
    generator.llm.generation_config.repetition_penalty = 1.4
    assert write(generator).tokens == penalised != plain
    assert write(generator, repetition_penalty=1.0).tokens == plain


def test_a_custom_strategy_refuses_them(tiny_pair: TinyPair) -> None:
    class Own(GenerationStrategy):
        def generate(self, **arguments: Any) -> Any:
            return "text", {}

    generator = HybridGenerator(*tiny_pair, device="cpu", dtype=torch.float32)
    generator.strategies["own"] = Own()
    assert write(generator, "x", strategy="own").text == "text"
    with pytest.raises(ValueError, match=r"^no_repeat_ngram_size must not be given with strategy="):
        write(generator, "x", strategy="own", no_repeat_ngram_size=2)
