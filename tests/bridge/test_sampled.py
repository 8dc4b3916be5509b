"""Sampled text follows transformers' law, with every processor: the whole call, enumerated.

A vocabulary of five and three tokens make few enough texts to know the probability of each, from
transformers' own processors. A chi-square of 1,500 texts sees two probabilities of 0.1 that are off
by 0.03; seeds are fixed, and a right sampler fails one case in 10,000.
"""

from functools import lru_cache
from typing import Any

import pytest
import torch
from contract import PenaliseLast, allowed
from tiny_models import random_model
from torch import Tensor
from transformers import PreTrainedModel, WatermarkingConfig

from hybridgen.bridge import accelerate

VOCAB, NEW, TEXTS, EOS = 5, 3, 1500, 0
PROMPT = torch.tensor([[3, 1, 4, 1]])
KEEPS_COUNT = {"guidance_scale"}  # its processor remembers what it was asked
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 1.7},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "all four": {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    "typical_p": {"typical_p": 0.7},
    "epsilon_cutoff": {"epsilon_cutoff": 0.15},
    "eta_cutoff": {"eta_cutoff": 0.3},
    "top_h": {"top_h": 0.6},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 2},
    "suppress_tokens": {"suppress_tokens": [2, 4]},
    "bad_words_ids": {"bad_words_ids": [[2], [1, 3]]},
    "sequence_bias": {"sequence_bias": [[[2], 1.5], [[4, 3], 3.0]]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [1, 2]},
    "exponential_decay": {"exponential_decay_length_penalty": (1, 1.5)},
    "forced_eos_token_id": {"forced_eos_token_id": 0},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda batch_id, ids: [i % 5 for i in allowed(0, ids)][:3]
    },
    "guidance_scale": {"guidance_scale": 1.5},
    "watermarking_config": {
        "watermarking_config": WatermarkingConfig(bias=2.0, greenlist_ratio=0.5)
    },
    "renormalize_logits": {"renormalize_logits": True, "top_k": 4},
    "logits_processor": {"logits_processor": [PenaliseLast()]},
    "penalty, custom, top-k": {
        "repetition_penalty": 1.5,
        "logits_processor": [PenaliseLast()],
        "top_k": 4,
    },
}
MODES: list[dict[str, Any]] = [
    {"num_drafts": 2, "verification": "rejection"},
    {"num_drafts": 2, "verification": "coupled"},
]


@lru_cache(maxsize=1)
def models() -> tuple[PreTrainedModel, Any]:
    large = random_model("qwen3", vocab_size=VOCAB)
    small = random_model("qwen3", vocab_size=VOCAB, num_hidden_layers=1)
    return large, accelerate(large, small, max_batch_size=64)


def law(large: PreTrainedModel, given: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """The probability of every text, by transformers' own processors and plain forwards."""
    prepared: list[Any] = []

    def spy(model: Any, input_ids: Tensor, logits_processor: Any, **rest: Any) -> Tensor:
        prepared.append(logits_processor)
        return input_ids

    def following(text: tuple[int, ...]) -> list[float]:
        """The probabilities of the token after ``text``, which is processed anew."""
        if not prepared or KEEPS_COUNT & set(given):
            large.generate(PROMPT, custom_generate=spy, **given)
        for count in range(0 if KEEPS_COUNT & set(given) else len(text), len(text) + 1):
            ids = torch.cat([PROMPT, torch.tensor([text[:count]], dtype=torch.int64)], dim=1)
            with torch.no_grad():
                scores = prepared[-1](ids, said(text[:count]).clone())
        return list(scores.double().softmax(-1)[0].tolist())

    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NEW):
        for text in [text for text in texts if EOS not in text]:
            before = texts.pop(text)
            for token, probability in enumerate(following(text)):
                texts[(*text, token)] = before * probability
    return texts


@lru_cache(maxsize=VOCAB**NEW)
def said(text: tuple[int, ...]) -> Tensor:
    """The large model's logits after the prompt and ``text``."""
    ids = torch.cat([PROMPT, torch.tensor([text], dtype=torch.int64).view(1, -1)], dim=1)
    with torch.no_grad():
        return models()[0](ids).logits[:, -1].float()


def chi_square(counts: dict[tuple[int, ...], int], expected: dict[tuple[int, ...], float]) -> float:
    """The chance of so large a chi-square, the rare texts together; normal beyond few degrees."""
    total = sum(counts.values())
    rare = {text for text, p in expected.items() if p * total < 8}
    pairs = [(counts.get(t, 0), p * total) for t, p in expected.items() if t not in rare]
    pairs.append((sum(counts.get(t, 0) for t in rare), sum(expected[t] for t in rare) * total))
    pairs = [(found, wanted) for found, wanted in pairs if wanted > 0]
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in pairs)
    half = torch.tensor([max(len(pairs) - 1, 1) / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor([statistic / 2], dtype=torch.float64)))


# Coupled, what is drawn is the LLM's own: the processors are the same, and a few will do.
TRIED = [(name, MODES[0]) for name in CASES]
TRIED += [(name, MODES[1]) for name in ("plain", "all four", "penalty, custom, top-k")]


@pytest.mark.parametrize(
    ("name", "mode"),
    TRIED,
    ids=lambda part: part if isinstance(part, str) else part["verification"],
)
def test_sampled_texts_follow_transformers_law(name: str, mode: dict[str, Any]) -> None:
    large, fast = models()
    chosen = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW, "eos_token_id": EOS}
    given = {**chosen, "pad_token_id": 0, **CASES[name]}
    expected = law(large, given)
    assert abs(sum(expected.values()) - 1) < 1e-6
    found = fast.generate(PROMPT, num_return_sequences=TEXTS, seed=11, **given, **mode)
    counts: dict[tuple[int, ...], int] = {}
    for row in found[:, PROMPT.shape[1] :].tolist():
        text = tuple(row[: row.index(EOS) + 1] if EOS in row else row)
        counts[text] = counts.get(text, 0) + 1
    assert {text for text in counts if expected[text] == 0} == set(), "what cannot be was written"
    assert chi_square(counts, expected) > 1e-4


def test_the_chi_square_would_see_a_small_difference() -> None:
    expected = {(i,): 0.1 for i in range(10)}
    counts = {(i,): 150 for i in range(10)}
    assert chi_square(counts, expected) > 0.99
    counts[(0,)], counts[(1,)] = 195, 105
    assert chi_square(counts, expected) < 1e-2
    counts[(0,)], counts[(1,)] = 205, 95
    assert chi_square(counts, expected) < 1e-4
