"""More prompts than rows: each is written as if it were alone, and told in its place."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TinyPair

from hybridgen import GenerationStrategy, HybridGenerator

WIDTH = 3
SAMPLED = {"temperature": 0.9, "top_k": 30}
# Texts of 1 to 30 tokens: several ids end them.
ENDS = {"max_new_tokens": 30, "eos_token_id": [*range(20, 384, 24)]}
PROMPTS = [
    "x", "def area(radius):\n    return 3.14159 * radius", "the quick", "for item in items:",
    "Ελλάδα", "a", "print(item)\n" * 5, "日本語", "and the other dog", "0", "größe straße",
]  # fmt: skip
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"num_drafts": 4, "temperature": 0.0},
    "coupled": {"verification": "coupled", "num_drafts": 4, **SAMPLED},
    "rejection": {"verification": "rejection", "num_drafts": 3, **SAMPLED},
    "llm": {"strategy": "llm", **SAMPLED},
    "slm": {"strategy": "slm", **SAMPLED},
    "entropy": {"strategy": "entropy", "threshold": 2.0, **SAMPLED},
    "a share": {
        "strategy": "uncertainty",
        "llm_fraction": 0.3,
        "llm_consecutive_tokens": 3,
        **SAMPLED,
    },
}


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    # float32 of this size has the same bits in every row of a product; see docs/exactness.md.
    return HybridGenerator(
        *tiny_pair, device="cpu", dtype=torch.float32, max_batch_size=WIDTH, max_seq_len=200
    )


def write(generator: HybridGenerator, prompt: Any, **options: Any) -> Any:
    return generator.generate(prompt, print_stats=False, **{"seed": 50, **ENDS, **options})


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_text_does_not_depend_on_when_or_beside_what_it_ran(
    generator: HybridGenerator, name: str
) -> None:
    options = STRATEGIES[name]
    together = write(generator, PROMPTS, **options)
    lengths = {len(tokens) for tokens in together.tokens}
    assert len(lengths) > 3, "texts that all end together refill nothing"
    backwards = write(
        generator, PROMPTS[::-1], **{**options, "seed": [*range(50 + len(PROMPTS) - 1, 49, -1)]}
    )
    for row, prompt in enumerate(PROMPTS):
        alone = write(generator, prompt, **{**options, "seed": 50 + row})
        assert together.tokens[row] == alone.tokens == backwards.tokens[-1 - row]
        assert together.text[row] == alone.text
        assert together.full_text[row] == alone.full_text
        own = {k: v for k, v in together.stats["rows"][row].items() if k != "elapsed_time"}
        for name_, value in alone.stats.items():
            if name_ not in ("elapsed_time", "tokens_per_second"):
                # A moving threshold is a number of the SLM's, whose last bits nobody promises.
                expected = pytest.approx(value, rel=1e-5) if name_ == "threshold" else value
                assert own[name_] == expected, name_


def test_statistics_are_of_all_prompts(generator: HybridGenerator) -> None:
    result = write(generator, PROMPTS, **STRATEGIES["coupled"])
    stats, rows = result.stats, result.stats["rows"]
    assert len(rows) == len(PROMPTS)
    assert stats["total_tokens"] == sum(len(tokens) for tokens in result.tokens)
    assert stats["seed"] == [*range(50, 50 + len(PROMPTS))]
    # Rows that ran one after the other take longer together than any of them.
    assert stats["elapsed_time"] > max(row["elapsed_time"] for row in rows)
    assert stats["tokens_per_second"] == stats["total_tokens"] / stats["elapsed_time"]
    for row in rows:
        assert row["tokens_per_second"] == row["total_tokens"] / row["elapsed_time"]


@pytest.mark.parametrize("name", ["coupled", "entropy"])
def test_a_stream_is_told_the_row(generator: HybridGenerator, name: str) -> None:
    pieces: dict[int, list[str]] = {}
    result = write(
        generator,
        PROMPTS,
        stream=lambda row, piece: pieces.setdefault(row, []).append(piece),
        **STRATEGIES[name],
    )
    assert ["".join(pieces.get(row, [])) for row in range(len(PROMPTS))] == result.text


def test_a_list_of_one_is_a_list(generator: HybridGenerator) -> None:
    told: list[tuple[int, str]] = []
    result = write(generator, ["x"], stream=lambda *piece: told.append(piece), temperature=0.0)
    assert [row for row, _ in told] == [0] * len(told)
    assert "".join(piece for _, piece in told) == result.text[0]


@pytest.mark.parametrize("name", ["greedy", "rejection", "entropy"])
def test_stop_strings_end_each_text_by_itself(generator: HybridGenerator, name: str) -> None:
    options = {**STRATEGIES[name], "ignore_eos": True, "stop": ["e", "t", " "]}
    together = write(generator, PROMPTS, **options)
    for row, prompt in enumerate(PROMPTS):
        alone = write(generator, prompt, **{**options, "seed": 50 + row})
        assert (together.text[row], together.tokens[row]) == (alone.text, alone.tokens)
    assert len({len(tokens) for tokens in together.tokens}) > 2


def test_prompts_that_fill_the_cache_leave_nothing_to_the_next(
    generator: HybridGenerator,
) -> None:
    """A row's cache holds the longest text, then the shortest; each as if the other never was."""
    long = [[5 + i % 200 for i in range(start, start + 190)] for start in range(4)]
    short = [[7 + i] for i in range(4)]
    mixed = [prompt for pair in zip(long, short, strict=True) for prompt in pair]
    options = {**STRATEGIES["coupled"], "ignore_eos": True, "max_new_tokens": 10}
    together = write(generator, mixed, **options)
    for row, prompt in enumerate(mixed):
        alone = write(generator, prompt, **{**options, "seed": 50 + row})
        assert together.tokens[row] == alone.tokens


def test_nan_names_the_prompt_and_leaves_the_generator_usable(
    generator: HybridGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token 5 alone is poisoned: prompt 7 has it, beyond the rows of the batch."""
    prompts = [[10 + i] for i in range(9)]
    prompts[7] = [5]
    options = {"temperature": 0.0, "strategy": "llm", "ignore_eos": True, "max_new_tokens": 4}
    before = write(generator, prompts[:7], **options).tokens
    assert not any(5 in tokens for tokens in before)
    embedding = generator.llm.weights.embedding.clone()  # the head may be the same tensor
    embedding[5] = torch.nan
    with monkeypatch.context() as patch:
        patch.setattr(generator.llm, "weights", replace(generator.llm.weights, embedding=embedding))
        generator.llm.bind(generator.llm.cache)  # a step is made of the weights that there are
        with pytest.raises(ValueError, match=r"row\(s\) \[7\] of the prompt"):
            write(generator, prompts, **options)
    generator.llm.bind(generator.llm.cache)
    assert write(generator, prompts[:7], **options).tokens == before


class Echo(GenerationStrategy):
    def generate(self, slm: Any, llm: Any, tokenizer: Any, prompt: Any, *_: Any, **kwargs: Any):
        return ["x"] * len(prompt), {}


def test_a_custom_strategy_gets_no_more_prompts_than_there_are_rows(
    generator: HybridGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generator.strategies, "echo", Echo())
    assert len(write(generator, ["a"] * WIDTH, strategy="echo").text) == WIDTH
    with pytest.raises(ValueError, match=f"max_batch_size={WIDTH}"):
        write(generator, ["a"] * (WIDTH + 1), strategy="echo")


def test_hundreds_of_prompts(generator: HybridGenerator) -> None:
    prompts = [[3 + i % 300] for i in range(200)]
    result = write(generator, prompts, max_new_tokens=2, temperature=0.0, ignore_eos=True)
    few = write(generator, prompts[150:153], max_new_tokens=2, temperature=0.0, ignore_eos=True)
    assert result.tokens[150:153] == few.tokens
    assert all(len(tokens) == 2 for tokens in result.tokens)
