"""A conversation: what each turn reads, what is kept, and a reply that is stopped."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TinyPair

from hybridgen import HybridGenerator
from hybridgen.chat import Chat
from hybridgen.pair import LLM_PATH
from hybridgen.text import Stopped


@pytest.fixture(scope="module")
def generator(tiny_pair: TinyPair) -> HybridGenerator:
    return HybridGenerator(str(tiny_pair.slm), str(tiny_pair.llm), device="cpu")


def nowhere(piece: str) -> None:
    pass


def rendered(generator: HybridGenerator, messages: list[dict[str, str]]) -> list[int]:
    ids: list[int] = generator.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return ids


def test_each_turn_says_all_that_was_said_and_reads_only_what_is_new(
    generator: HybridGenerator,
) -> None:
    chat, said = Chat(generator, "be brief"), list[str]()
    first = chat.reply("one", said.append, seed=1, max_new_tokens=9)
    assert first is not None
    opening = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
    alone = generator.generate(opening, seed=1, max_new_tokens=9, print_stats=False)
    assert first.tokens == alone.tokens
    assert "".join(said) == first.text
    again = Chat(generator, "be brief")
    again.reply("one", nowhere, seed=1, max_new_tokens=9)
    second = again.reply("two", nowhere, seed=1, max_new_tokens=9)
    assert second is not None
    assert second.stats["reused_tokens"] > len(rendered(generator, opening)) - 2
    told = [*opening, {"role": "assistant", "content": first.text}]
    told.append({"role": "user", "content": "two"})
    assert again.messages == [*told, {"role": "assistant", "content": second.text}]
    assert second.stats["prompt_tokens"] == len(rendered(generator, told))
    again.reset()
    assert again.messages == opening[:1]


def test_a_reply_that_is_stopped_counts_as_said_as_far_as_it_came(
    generator: HybridGenerator,
) -> None:
    def stop(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise Stopped

    chat, pieces = Chat(generator), list[str]()
    assert chat.reply("one", stop, seed=1, ignore_eos=True) is None
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    read = len(rendered(generator, chat.messages[:1]))
    after = chat.reply("two", nowhere, seed=1, max_new_tokens=5)
    assert after is not None
    assert after.stats["reused_tokens"] >= read - 1
    whole = rendered(generator, chat.messages[:-1])
    fresh = generator.generate(whole, seed=1, max_new_tokens=5, print_stats=False)
    assert after.tokens == fresh.tokens


def test_a_reply_ends_where_the_context_does_and_then_there_is_no_more(
    generator: HybridGenerator,
) -> None:
    chat = Chat(generator)
    reply = chat.reply("one", nowhere, seed=1, ignore_eos=True)
    assert reply is not None
    assert reply.stats["prompt_tokens"] + reply.stats["total_tokens"] == 256
    said = list(chat.messages)
    with pytest.raises(ValueError, match="and the generator 256 positions: nothing fits any more"):
        chat.reply("two", nowhere)
    assert chat.messages == said


def test_an_error_leaves_nothing_said(generator: HybridGenerator) -> None:
    chat = Chat(generator)
    with pytest.raises(ValueError, match="top_p must"):
        chat.reply("one", nowhere, top_p=3)
    assert chat.messages == []


def test_a_reply_that_fails_leaves_nothing_read(generator: HybridGenerator) -> None:
    def fail(piece: str) -> None:
        raise OSError("nobody listens")

    chat = Chat(generator)
    with pytest.raises(OSError, match="nobody listens"):
        chat.reply("one", fail, seed=1)
    again = chat.reply("one", nowhere, seed=1, max_new_tokens=5)
    assert again is not None and again.stats["reused_tokens"] == 0


def test_the_template_is_told_what_was_given(generator: HybridGenerator) -> None:
    own = SimpleNamespace(
        chat_template="there is one",
        apply_chat_template=lambda messages, tokenize, **told: [told] if tokenize else "",
    )
    stand_in: Any = SimpleNamespace(tokenizer=own)
    (told,) = Chat(stand_in, kwargs={"enable_thinking": False}).opened_by("one")
    assert told == {
        "add_generation_prompt": True,
        "enable_thinking": False,
        "return_dict": False,
    }


def test_a_model_without_a_chat_template_is_refused() -> None:
    from transformers import AutoTokenizer

    stand_in: Any = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(Path(LLM_PATH)))
    with pytest.raises(ValueError, match="has no chat template"):
        Chat(stand_in)
