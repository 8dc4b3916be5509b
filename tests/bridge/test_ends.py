"""Texts that end inside a block of accepted drafts, and what must be cut there with them."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from bridge_models import VOCAB
from tiny_models import random_model
from torch import Tensor
from transformers import TextIteratorStreamer
from transformers.generation import StoppingCriteria

from hybridgen.bridge import accelerate

PROMPT = torch.tensor([[5, 17, 40, 23]])
NEW = 12
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0}


class Recorder:
    """A streamer that remembers what it is given."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        assert not self.ended
        self.given.append(value)

    def end(self) -> None:
        self.ended += 1


class EndsAfter(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length, self.asked = length, []

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.asked.append(ids.shape[1])
        return torch.full((len(ids),), ids.shape[1] >= self.length)


@lru_cache(maxsize=1)
def models() -> tuple[Any, Any]:
    """The small model is the large one: every draft is accepted."""
    large = random_model("qwen3")
    return large, accelerate(large, random_model("qwen3"), max_batch_size=2)


@lru_cache(maxsize=1)
def text() -> list[int]:
    return models()[0].generate(PROMPT, **GREEDY)[0, PROMPT.shape[1] :].tolist()


@pytest.mark.parametrize("num_drafts", [*range(1, 9), "auto"])
@pytest.mark.parametrize("how", ["eos", "criterion"])
def test_a_text_ends_at_every_offset(num_drafts: Any, how: str) -> None:
    large, fast = models()
    assert len(set(text())) > 3, "a text without variety has no offsets"
    for offset in range(NEW):
        given = dict(GREEDY)
        if how == "eos":
            given["eos_token_id"] = text()[offset]
        else:
            given["stopping_criteria"] = [EndsAfter(PROMPT.shape[1] + offset + 1)]
        told = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        expected = large.generate(PROMPT, **given, **told)
        streamer = Recorder()
        found = fast.generate(PROMPT, **given, **told, num_drafts=num_drafts, streamer=streamer)
        assert torch.equal(found.sequences, expected.sequences)
        new = expected.sequences.shape[1] - PROMPT.shape[1]
        assert len(found.scores) == len(found.logits) == len(expected.scores) == new
        for one, other in zip(
            found.scores + found.logits, expected.scores + expected.logits, strict=True
        ):
            assert one.shape == other.shape == (1, VOCAB) and one.dtype == other.dtype
            assert torch.allclose(one, other, atol=1e-4)
        assert torch.equal(streamer.given[0], PROMPT)
        assert [int(token) for token in streamer.given[1:]] == found.sequences[0, 4:].tolist()
        assert all(token.shape == (1,) for token in streamer.given[1:])
        assert streamer.ended == 1


def test_criteria_see_the_prompt_and_every_token_once() -> None:
    criterion = EndsAfter(PROMPT.shape[1] + 7)
    models()[1].generate(PROMPT, **GREEDY, stopping_criteria=[criterion], num_drafts=5)
    assert criterion.asked == [*range(PROMPT.shape[1] + 1, PROMPT.shape[1] + 8)]


def test_rows_without_an_eos_go_on_until_each_has_stopped() -> None:
    """As transformers does: without an eos there is no padding."""
    large, fast = models()
    batch = torch.cat([PROMPT, PROMPT.flip(1)])

    class Ends(StoppingCriteria):
        def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return (ids[:, 0] == 5) & (ids.shape[1] == 7) | (ids.shape[1] == 10)

    given = {**GREEDY, "stopping_criteria": [Ends()]}
    assert torch.equal(fast.generate(batch, **given), large.generate(batch, **given))


def test_a_streamer_is_ended_once_when_generation_fails() -> None:
    def fails(ids: Tensor, scores: Tensor) -> Tensor:
        raise KeyError("on purpose")

    streamer = Recorder()
    with pytest.raises(KeyError, match="on purpose"):
        models()[1].generate(PROMPT, **GREEDY, logits_processor=[fails], streamer=streamer)
    assert streamer.ended == 1
    streamer = Recorder()
    with pytest.raises(ValueError, match="num_beams"):
        models()[1].generate(PROMPT, **GREEDY, num_beams=2, streamer=streamer)
    assert streamer.ended == 1
    assert models()[1].generate(PROMPT, **GREEDY)[0, 4:].tolist() == text(), "still usable"


def test_arguments_by_position_are_those_by_name() -> None:
    streamer, fast = Recorder(), models()[1]
    by_position = (None, None, None, None, None, streamer)  # behind the config, as transformers
    found = fast.generate(PROMPT, None, *by_position, **GREEDY)
    assert torch.equal(torch.cat(streamer.given[1:]), found[0, 4:]) and streamer.ended == 1


def test_stop_strings_end_where_transformers_ends(tiny_pair: Any, tiny_tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM as Auto

    large = Auto.from_pretrained(tiny_pair.llm, dtype=torch.float32)
    small = Auto.from_pretrained(tiny_pair.slm, dtype=torch.float32)
    fast = accelerate(large, small, tokenizer=tiny_tokenizer)
    inputs = tiny_tokenizer("def area(radius):", return_tensors="pt")
    given = {**inputs, "do_sample": False, "max_new_tokens": 40, "eos_token_id": None}
    whole = tiny_tokenizer.decode(large.generate(**given)[0, inputs["input_ids"].shape[1] :])
    for start in range(0, min(len(whole) - 3, 30), 3):
        stop = {"stop_strings": whole[start : start + 3]}
        expected = large.generate(**given, **stop, tokenizer=tiny_tokenizer)
        for num_drafts in (1, 4, 7):
            found = fast.generate(**given, **stop, num_drafts=num_drafts)
            assert torch.equal(found, expected), (stop, num_drafts)
    assert torch.equal(fast.generate(**given, **stop, tokenizer=tiny_tokenizer), expected)
    with pytest.raises(ValueError, match=r"^stop_strings='x' needs tokenizer="):
        accelerate(large, small).generate(**given, stop_strings="x")


def test_text_is_streamed_to_a_thread(tiny_pair: Any, tiny_tokenizer: Any) -> None:
    from threading import Thread

    from transformers import AutoModelForCausalLM as Auto

    fast = accelerate(Auto.from_pretrained(tiny_pair.llm), Auto.from_pretrained(tiny_pair.slm))
    inputs = tiny_tokenizer("the quick brown", return_tensors="pt")
    streamer = TextIteratorStreamer(tiny_tokenizer, skip_prompt=True, timeout=60)
    given = {**inputs, "do_sample": False, "max_new_tokens": 30, "streamer": streamer}
    thread = Thread(target=fast.generate, kwargs=given)
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    del given["streamer"]
    new = fast.generate(**given)[0, inputs["input_ids"].shape[1] :]
    assert streamed == tiny_tokenizer.decode(new)
