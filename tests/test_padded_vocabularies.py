"""Models of one tokenizer whose vocabularies are padded differently, as Qwen2.5's 0.5B and 7B are.

Logits of the SLM are then fewer or more than the LLM's. Whatever is done to logits before a token
is drawn must not mind.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import random_model, save
from transformers import PreTrainedTokenizerFast

from hybridgen import HybridGenerator

PADDED = 32
PROMPT = "the dog sees the cat\nthe dog"
EXACT = [
    {"strategy": "speculative", "num_drafts": 3, "verification": "coupled"},
    {"strategy": "speculative"},
    {"strategy": "uncertainty", "threshold": 0.0},
    {"strategy": "entropy", "threshold": 0.0, "llm_consecutive_tokens": 3},
]
OTHERS = [
    {"strategy": "speculative", "num_drafts": 3, "verification": "rejection"},
    {"strategy": "uncertainty"},
    {"strategy": "entropy"},
    {"strategy": "slm"},
]


def unchanged(ids: Any, scores: Any) -> Any:
    return scores


ADJUSTMENTS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": [5, 300]},
    {"bad_words_ids": [[7], [301]]},
    {"min_new_tokens": 8},
    {"logits_processor": unchanged},
    {"repetition_penalty": 1.1, "logits_processor": unchanged, "min_new_tokens": 3},
]


@pytest.fixture(scope="module", params=[0, 2 * PADDED], ids=["fewer", "more"])
def generator(
    request: Any, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Iterator[HybridGenerator]:
    """The SLM has fewer logits than the LLM, or more."""
    folder: Path = tmp_path_factory.mktemp("padded")
    size = len(tiny_tokenizer)
    slm = save(random_model(size + request.param, 1, 32, seed=1), tiny_tokenizer, folder / "slm")
    llm = save(random_model(size + PADDED, 2, 64, seed=2), tiny_tokenizer, folder / "llm")
    yield HybridGenerator(str(slm), str(llm), max_seq_len=128)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 20}])
def test_every_strategy_with_every_adjustment(
    generator: HybridGenerator, sampling: dict[str, float]
) -> None:
    common: dict[str, Any] = {"max_new_tokens": 16, "seed": 3, "print_stats": False} | sampling
    for adjustment in ADJUSTMENTS:
        expected = generator.generate(PROMPT, strategy="llm", **common, **adjustment).tokens
        for strategy in EXACT:
            result = generator.generate(PROMPT, **common, **adjustment, **strategy)
            assert result.tokens == expected, (adjustment, strategy)
        for strategy in OTHERS:
            result = generator.generate(PROMPT, **common, **adjustment, **strategy)
            assert 0 < len(result.tokens) <= 16, (adjustment, strategy)


@pytest.mark.parametrize("strategy", [*EXACT, *OTHERS], ids=str)
def test_profiles_of_adjusted_texts(generator: HybridGenerator, strategy: dict[str, Any]) -> None:
    common: dict[str, Any] = {"max_new_tokens": 16, "seed": 3, "repetition_penalty": 1.3}
    text = generator.generate(PROMPT, **common, **strategy, print_stats=False)
    profile = generator.generate_with_profile(PROMPT, **common, **strategy)
    assert [token.token_id for token in profile.tokens] == text.tokens
