"""An accelerated real model against transformers' own `generate`: chats, streams, stop strings."""

import os
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

from hybridgen import accelerate

pytestmark = pytest.mark.real

CHATS = [
    "What is the capital of Norway?",
    "Write a haiku about rain.",
    "Explain recursion to a child.",
    "List three uses of a paper clip.",
    "Translate 'good morning' into French.",
    "What is 12 times 12?",
    "Write a Python function that reverses a string.",
    "Name a book by Jules Verne and say what it is about.",
    "Why is the sky blue?",
    "Give me a short recipe with eggs.",
]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 32}


@lru_cache(maxsize=1)
def models() -> tuple[Any, Any, Any]:
    """transformers' model, the accelerated one and the tokenizer, in float32."""
    folder = Path(os.environ["HYBRIDGEN_SMOLLM2"])
    large, small = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        for name in ("llm", "slm")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "llm", padding_side="left")
    return large, accelerate(large, small, tokenizer=tokenizer, max_seq_len=512), tokenizer


def chat(*questions: str) -> dict[str, Any]:
    """Rendered by the model's template, and padded."""
    messages = [[{"role": "user", "content": question}] for question in questions]
    given = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    return dict(models()[2].apply_chat_template(messages, padding=True, **given))


@pytest.mark.parametrize("question", CHATS)
def test_a_chat_is_what_transformers_writes(question: str) -> None:
    large, fast, _ = models()
    inputs = chat(question)
    expected = large.generate(**inputs, **GREEDY)
    for options in ({}, {"num_drafts": 4}):
        assert torch.equal(fast.generate(**inputs, **GREEDY, **options), expected)


@pytest.mark.parametrize(
    "asked", [{}, {"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 3, "min_new_tokens": 30}]
)
def test_a_padded_batch_of_chats(asked: dict[str, Any]) -> None:
    large, fast, _ = models()
    inputs = chat(*CHATS[:4])
    given = {**inputs, **GREEDY, "max_new_tokens": 24, **asked}
    assert torch.equal(fast.generate(**given, num_drafts=3), large.generate(**given))


def test_a_stream_and_stop_strings() -> None:
    large, fast, tokenizer = models()
    inputs = {**chat(CHATS[4]), **GREEDY}
    stop = {"stop_strings": [".", "\n"]}
    expected = large.generate(**inputs, **stop, tokenizer=tokenizer)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=300)
    found: list[Any] = []

    def run() -> None:
        found.append(fast.generate(**inputs, **stop, streamer=streamer))

    thread = Thread(target=run)
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert torch.equal(found[0], expected)
    new = expected[0, inputs["input_ids"].shape[1] :]
    assert streamed == tokenizer.decode(new)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_turns_that_are_reused(dtype: torch.dtype) -> None:
    """Whoever drafts, a conversation is the LLM's own; in float32 it is transformers' too."""
    large, fast, tokenizer = models()
    if dtype != torch.float32:
        folder = Path(os.environ["HYBRIDGEN_SMOLLM2"])
        large, small = (
            AutoModelForCausalLM.from_pretrained(folder / name, dtype=dtype)
            for name in ("llm", "slm")
        )
        fast = accelerate(large, small, max_seq_len=512)
    found: dict[str, list[list[int]]] = {}
    ways: dict[str, dict[str, Any]] = {
        "llm": {"strategy": "llm"},
        "speculative": {"num_drafts": 4},
        "auto": {"num_drafts": "auto"},
    }
    for name, options in ways.items():
        talk: list[dict[str, str]] = []
        found[name] = []
        for question in CHATS[:3]:
            talk.append({"role": "user", "content": question})
            given = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
            inputs = dict(tokenizer.apply_chat_template(talk, **given))
            ids = fast.generate(**inputs, **GREEDY, **options, reuse=len(talk) > 1)
            if dtype == torch.float32:
                assert torch.equal(ids, large.generate(**inputs, **GREEDY))
            found[name].append(ids[0].tolist())
            reply = ids[0, inputs["input_ids"].shape[1] :]
            talk.append({"role": "assistant", "content": tokenizer.decode(reply, True)})
    assert found["speculative"] == found["auto"] == found["llm"]
