"""Several turns of a conversation: what the models have read they need not read again."""

import gc
from typing import Any

import pytest
import torch
from bridge_models import PROMPTS, VOCAB, pair
from torch import Tensor
from transformers import DynamicCache

from hybridgen.bridge import accelerate, hybrid_generate
from hybridgen.bridge.engines import engine_of
from hybridgen.bridge.outputs import CACHE

OPTIONS: list[dict[str, Any]] = [
    {"num_drafts": 3},
    {"num_drafts": "auto"},
    {"strategy": "llm"},
    {"strategy": "entropy", "threshold": 3.0, "llm_consecutive_tokens": 2},
]
NAMES = sorted({CACHE, "past_key_values"})  # of the argument; newer versions take both


class Conversation:
    """Left-padded texts of a growing conversation, and the arguments of its next turn."""

    def __init__(self, rows: int) -> None:
        self.ids, self.mask = PROMPTS[rows]
        self.generator = torch.Generator().manual_seed(rows)

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "max_new_tokens": 11,
            "do_sample": False,
            "pad_token_id": 0,
            "eos_token_id": None,
        }

    def goes_on(self, sequences: Tensor) -> None:
        """With what was written, and three tokens by the user."""
        user = torch.randint(1, VOCAB, (len(sequences), 3), generator=self.generator)
        self.ids = torch.cat([sequences, user], dim=1)
        new = self.ids.shape[1] - self.mask.shape[1]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(sequences), new)], dim=1)


class Read:
    """Counts the tokens of prompts that a model reads."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens, self.prefill = 0, model.prefill
        monkeypatch.setattr(model, "prefill", self)

    def __call__(self, tokens: Tensor, lengths: Any, rows: Any = None, starts: Any = None) -> None:
        self.tokens += sum(lengths) - sum(starts or [0])
        self.prefill(tokens, lengths, rows, starts)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("door", ["reuse", "custom_generate", *NAMES])
def test_turns_equal_those_of_fresh_calls(
    door: str, options: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = pair("qwen3")
    fast, fresh = accelerate(large, small), accelerate(large, small, max_batch_size=5)
    llm = Read(engine_of(large, small, 4, None).pair.llm, monkeypatch)
    talk, more, read = Conversation(rows), {}, []
    for _ in range(4):
        arguments, before = {**talk.arguments, **options}, llm.tokens
        if door == "custom_generate":
            more |= {"custom_generate": hybrid_generate, "slm": small}
        model: Any = large if door == "custom_generate" else fast
        found = model.generate(**arguments, **more, return_dict_in_generate=True)
        read.append(llm.tokens - before)
        assert torch.equal(found.sequences, fresh.generate(**arguments))
        more = {door: found[CACHE]} if door in NAMES else {"reuse": True}
        talk.goes_on(found.sequences)
    # A turn reads the user's three tokens but the last, and what no model has read of its own: of
    # routing the LLM reads what the SLM has written since it was asked last.
    assert max(read[1:]) <= rows * (14 if "strategy" in options and "threshold" in options else 3)
    assert read[0] == int(PROMPTS[rows][1].sum()) - rows


def test_an_edited_conversation_is_read_from_the_edit_on(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = pair("llama")
    fast = accelerate(large, small, num_drafts=3, reuse=True)
    llm = Read(engine_of(large, small, 4, None).pair.llm, monkeypatch)
    talk = Conversation(4)
    talk.goes_on(fast.generate(**talk.arguments))
    talk.ids[:, -6] = (talk.ids[:, -6] + 1) % VOCAB
    llm.tokens = 0
    found = fast.generate(**talk.arguments)
    assert llm.tokens == 4 * 5
    assert torch.equal(found, large.generate(**talk.arguments))


def test_a_cache_that_is_not_the_last_calls_is_refused() -> None:
    small, large = pair("qwen3")
    fast, other = accelerate(large, small), accelerate(large)
    arguments = Conversation(1).arguments
    returned = other.generate(**arguments, return_dict_in_generate=True)[CACHE]
    assert returned.get_seq_length() == 9 + 11 - 1
    with pytest.raises(ValueError, match=f"^{CACHE} was returned by other models"):
        fast.generate(**arguments, **{CACHE: returned})
    filled = DynamicCache()
    large(arguments["input_ids"], **{CACHE: filled})
    with pytest.raises(ValueError, match=rf"^{CACHE} must be what the last call returned.*Dynamic"):
        fast.generate(**arguments, **{CACHE: filled})
    empty = fast.generate(**arguments, **{CACHE: DynamicCache()})
    assert torch.equal(empty, large.generate(**arguments))
    with pytest.raises(TypeError, match=r"^reuse must be True or False, got 1"):
        fast.generate(**arguments, reuse=1)


def test_what_is_kept_goes_with_the_model() -> None:
    """What outputs hold of the engine does not keep it."""
    small, large = pair("qwen3")
    fast: Any = accelerate(large, small)
    returned = fast.generate(**Conversation(1).arguments, return_dict_in_generate=True)[CACHE]
    assert returned.engine() is not None
    del fast, large, small
    gc.collect()
    assert returned.engine() is None
