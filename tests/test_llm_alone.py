"""A generator of the LLM alone: drafts are looked up in the text, which is the LLM's own."""

from typing import Any

import pytest
import torch
from conftest import TinyPair, random_model

from hybridgen import HybridGenerator, verify_exactness
from hybridgen.cli import main
from hybridgen.pair import LLM_PATH
from hybridgen.result import GenerationResult
from hybridgen.strategies.custom import GenerationStrategy

PROMPT = "for item in items:\n    print(item)\nfor item in"
GREEDY, SAMPLED = {"temperature": 0.0}, {"temperature": 0.9, "seed": 1}
MODES = pytest.mark.parametrize("mode", [GREEDY, SAMPLED], ids=["greedy", "sampled"])


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(llm_model_id=tiny_pair.llm, device="cpu", dtype=torch.float32)


def write(generator: HybridGenerator, prompt: Any = PROMPT, **options: Any) -> GenerationResult:
    settings = {"max_new_tokens": 40, "ignore_eos": True, "print_stats": False}
    return generator.generate(prompt, **{**settings, **options})


@MODES
@pytest.mark.parametrize("num_drafts", [1, 4, 15])
def test_the_tokens_are_the_llms(
    generator: HybridGenerator, num_drafts: int, mode: dict[str, Any]
) -> None:
    """Of a batch too, with either verification."""
    for prompt in (PROMPT, [PROMPT, "x", "def area(radius):\n"]):
        alone = write(generator, prompt, strategy="llm", **mode)
        for verification in ("rejection", "coupled"):
            options = {"num_drafts": num_drafts, "verification": verification}
            found = write(generator, prompt, **options, **mode)
            assert found.tokens == alone.tokens
            assert found.stats["verification"] == "coupled"


@MODES
def test_the_embedded_llm_drafts_for_itself(mode: dict[str, Any]) -> None:
    generator = HybridGenerator(llm_model_id=str(LLM_PATH), device="cpu")
    prompt = "def area(radius):\n    return 3.14 * radius ** 2\n\n\ndef volume(radius):\n"
    options = {"max_new_tokens": 100, **mode}
    alone, found = (write(generator, prompt, strategy=s, **options) for s in ("llm", "speculative"))
    assert found.tokens == alone.tokens
    assert found.stats["decode_steps"] < alone.stats["decode_steps"] == 100
    assert verify_exactness(generator, [prompt], max_new_tokens=20)


def test_statistics_tell_what_was_looked_up(generator: HybridGenerator) -> None:
    for prompt in (PROMPT, [PROMPT, "x"]):
        result = write(generator, prompt, num_drafts=4, **GREEDY)
        stats = result.stats
        assert stats["slm_tokens"] == 0
        assert stats["lookup_tokens"] + stats["llm_tokens"] == stats["total_tokens"]
        assert stats["lookup_tokens"] == stats["draft_accepted"] > 0
        assert f"\nLookup tokens: {stats['lookup_tokens']}\n" in result.summary
    assert "lookup_tokens" not in write(generator, strategy="llm", **GREEDY).stats


@MODES
def test_a_stop_string_anywhere_in_the_drafts_ends_the_text(
    generator: HybridGenerator, mode: dict[str, Any]
) -> None:
    text = write(generator, **mode).text
    for start in range(0, len(text) - 6, 3):
        stop = text[start : start + 6]
        if "\N{REPLACEMENT CHARACTER}" in stop:
            continue
        alone, found = (
            write(generator, strategy=s, stop=stop, **mode) for s in ("llm", "speculative")
        )
        assert (found.text, found.tokens) == (alone.text, alone.tokens)
        assert found.text == text[: text.index(stop)]


def test_a_prompt_that_fills_the_context(generator: HybridGenerator) -> None:
    positions = generator.pair.positions
    for new in (1, 3, 20):
        prompt = ([7, 8, 9] * positions)[: positions - new]
        options = {"max_new_tokens": new, "num_drafts": 15, **GREEDY}
        alone, found = (
            write(generator, prompt, strategy=s, **options) for s in ("llm", "speculative")
        )
        assert found.tokens == alone.tokens
        assert len(found.tokens) == new


def test_the_arena_holds_one_cache(generator: HybridGenerator) -> None:
    assert generator.slm is None
    assert [layout.layers for layout in generator.pair.arena.layouts] == [2]


def test_a_loaded_model_is_taken_too(tiny_tokenizer: Any) -> None:
    llm = random_model(384, 2, 64, seed=2)
    generator = HybridGenerator(llm_model_id=llm, tokenizer=tiny_tokenizer, device="cpu")
    alone, found = (write(generator, strategy=s, **SAMPLED) for s in ("llm", "speculative"))
    assert found.tokens == alone.tokens


@pytest.mark.parametrize("strategy", ["slm", "uncertainty", "entropy"])
def test_strategies_that_run_an_slm_are_refused(generator: HybridGenerator, strategy: str) -> None:
    with pytest.raises(ValueError, match=rf"^strategy='{strategy}' runs an SLM, .* slm_model_id"):
        write(generator, strategy=strategy)
    assert write(generator, strategy="llm", **GREEDY).tokens


def test_a_strategy_of_ones_own_is_told(generator: HybridGenerator) -> None:
    class Own(GenerationStrategy):
        def generate(self, slm: Any, llm: Any, **rest: Any) -> Any:  # type: ignore[override]
            return f"{slm is None}, {llm is None}", {}

    generator.strategies["own"] = Own()
    assert write(generator, strategy="own").text == "True, False"


def test_an_slm_alone_is_refused(tiny_pair: TinyPair) -> None:
    with pytest.raises(ValueError, match=r"^llm_model_id is None but slm_model_id is not"):
        HybridGenerator(tiny_pair.slm)


def test_the_command_takes_one_model(
    tiny_pair: TinyPair, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--llm", str(tiny_pair.llm), "--device", "cpu", "--max-new-tokens", "12"]
    assert main([PROMPT, *models, "--seed", "1", "--no-stream"]) == 0
    found = capsys.readouterr()
    assert "Lookup tokens: " in found.err
    assert main([PROMPT, *models, "--seed", "1", "--strategy", "llm", "--no-stream"]) == 0
    assert capsys.readouterr().out == found.out
    assert main([PROMPT, *models, "--strategy", "slm"]) == 1
    assert "runs an SLM" in capsys.readouterr().err
    assert main([PROMPT, "--slm", str(tiny_pair.slm)]) == 1
    assert "name the LLM too" in capsys.readouterr().err
