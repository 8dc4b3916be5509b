"""A request is checked once, and every refusal names the argument, its value and what is right."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hybridgen.request import Request, make_request, sampling_defaults, tokenize_prompt

VOCAB = 100
CONTEXT = 64
STRATEGIES = ("speculative", "uncertainty", "entropy", "llm", "slm")


def request(**changes: Any) -> Request:
    arguments = {
        "prompt_ids": [[1, 2, 3]],
        "vocab_size": VOCAB,
        "max_positions": CONTEXT,
        "max_batch_size": 4,
        "default_eos": (0,),
        "strategies": STRATEGIES,
        "max_new_tokens": 10,
    }
    return make_request(**{**arguments, **changes})


def test_the_defaults_are_valid_and_the_request_is_immutable() -> None:
    made = request()
    assert made.prompt_ids == ((1, 2, 3),)
    assert (made.strategy, made.num_drafts, made.verification) == ("speculative", 4, "rejection")
    assert (made.temperature, made.top_k, made.top_p, made.min_p) == (1.0, 0, 1.0, 0.0)
    assert (made.threshold, made.llm_fraction, made.llm_consecutive_tokens) == (None, None, 1)
    assert made.evidence == "probs"
    with pytest.raises(AttributeError):
        made.__setattr__("top_k", 5)


IN_RANGE = [
    ("max_new_tokens", 1),
    ("max_new_tokens", CONTEXT - 3),
    ("temperature", 0),
    ("temperature", 1e-6),
    ("temperature", 100.0),
    ("top_k", 1),
    ("top_p", 1e-9),
    ("top_p", 1),
    ("min_p", 0),
    ("min_p", 1.0),
    ("num_drafts", 1),
    ("num_drafts", 15),
    ("threshold", 0),
    ("threshold", 12.5),
    ("llm_fraction", 0),
    ("llm_fraction", 1),
    ("llm_consecutive_tokens", 16),
    ("verification", "coupled"),
    ("evidence", "logits"),
    ("strategy", "slm"),
    ("ignore_eos", True),
]


@pytest.mark.parametrize(("name", "value"), IN_RANGE)
def test_values_in_range_are_kept(name: str, value: object) -> None:
    assert getattr(request(**{name: value}), name) == value


NUMPY_NUMBERS = [
    ("max_new_tokens", np.int64(3)),
    ("top_k", np.uint8(3)),
    ("temperature", np.float32(0.5)),
    ("top_p", np.float64(0.5)),
    ("seed", np.int32(7)),
    ("ignore_eos", np.bool_(True)),
]


@pytest.mark.parametrize(("name", "value"), NUMPY_NUMBERS)
def test_numpy_scalars_become_python_numbers(name: str, value: Any) -> None:
    kept = getattr(request(**{name: value}), name)
    kept = kept[0] if name == "seed" else kept
    assert kept == value
    assert type(kept) in (int, float, bool)


WRONG_TYPE = [
    (name, value)
    for name in (
        "max_new_tokens",
        "top_k",
        "num_drafts",
        "llm_consecutive_tokens",
    )
    for value in (True, 2.0, "2", None, [2], torch.tensor(2), float("nan"))
] + [
    (name, value)
    for name in ("temperature", "top_p", "min_p", "threshold", "llm_fraction")
    for value in (True, "0.5", [0.5], torch.tensor(0.5), 1j, np.bool_(True))
]
WRONG_TYPE += [
    ("seed", True),
    ("seed", 1.0),
    ("seed", "1"),
    ("seed", [1.0]),
    ("seed", torch.tensor(1)),
    ("eos_token_id", "eos"),
    ("eos_token_id", True),
    ("eos_token_id", [1, 2.0]),
    ("stop", 5),
    ("stop", b"end"),
    ("stop", ["end", 5]),
    ("stop", {"end"}),
    ("ignore_eos", 1),
    ("ignore_eos", None),
    ("stream", "stdout"),
    ("stream", 1),
    ("stream", SimpleNamespace(put=print)),
    ("stream", list),
    ("strategy", None),
    ("strategy", 3),
    ("verification", None),
    ("evidence", 0),
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPE)
def test_a_wrong_type_is_a_type_error_that_names_the_argument(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(name)}") as caught:
        request(**{name: value})
    culprits = [value, *value] if isinstance(value, (list, set)) else [value]
    assert any(f"({type(culprit).__name__})" in str(caught.value) for culprit in culprits)


OUT_OF_RANGE = [
    ("max_new_tokens", 0, ">= 1"),
    ("max_new_tokens", -5, ">= 1"),
    ("temperature", -0.1, ">= 0"),
    ("temperature", float("inf"), "finite"),
    ("temperature", float("nan"), "finite"),
    ("top_k", -1, ">= 0"),
    ("top_p", 0.0, "above 0 and at most 1"),
    ("top_p", 1.0001, "above 0 and at most 1"),
    ("top_p", float("nan"), "above 0 and at most 1"),
    ("min_p", -0.1, "from 0"),
    ("min_p", 1.1, "to 1"),
    ("num_drafts", 0, "from 1 to 15"),
    ("num_drafts", 16, "from 1 to 15"),
    ("threshold", -0.1, ">= 0"),
    ("threshold", float("inf"), "finite"),
    ("llm_fraction", 1.1, "from 0 to 1"),
    ("llm_fraction", -0.1, "from 0 to 1"),
    ("llm_consecutive_tokens", 0, "from 1 to 16"),
    ("llm_consecutive_tokens", 17, "from 1 to 16"),
    ("seed", -1, "from 0"),
    ("seed", 2**63, "from 0"),
    ("seed", [2**63], "from 0"),
    ("seed", [1, 2], "one integer a row"),
    ("seed", [], "one integer a row"),
    ("eos_token_id", -1, "from 0 to 99"),
    ("eos_token_id", VOCAB, "from 0 to 99"),
    ("eos_token_id", [1, VOCAB], "from 0 to 99"),
    ("eos_token_id", list(range(17)), "at most 16"),
    ("stop", "", "empty string"),
    ("stop", ["end", ""], "empty string"),
    ("verification", "exact", "'rejection', 'coupled'"),
    ("evidence", "prob", "'probs', 'logits'"),
]


@pytest.mark.parametrize(("name", "value", "accepted"), OUT_OF_RANGE)
def test_out_of_range_is_a_value_error_that_says_what_is_accepted(
    name: str, value: object, accepted: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(name)}") as caught:
        request(**{name: value})
    assert accepted in str(caught.value)


def test_an_unknown_strategy_lists_the_known_and_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'speculative'") as caught:
        request(strategy="speculativ")
    assert all(name in str(caught.value) for name in STRATEGIES)


def test_threshold_and_llm_fraction_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"threshold=0\.5 and llm_fraction=0\.2"):
        request(threshold=0.5, llm_fraction=0.2)


def test_top_k_of_the_whole_vocabulary_is_off() -> None:
    assert request(top_k=VOCAB - 1).top_k == VOCAB - 1
    assert request(top_k=VOCAB).top_k == 0
    assert request(top_k=10**12).top_k == 0


def test_a_seed_gives_row_r_the_seed_plus_r() -> None:
    three = [[1], [2], [3]]
    assert request(prompt_ids=three, seed=7).seed == (7, 8, 9)
    assert request(prompt_ids=three, seed=[5, 5, 2]).seed == (5, 5, 2)
    assert request(prompt_ids=three, seed=np.array([1, 2, 3])).seed == (1, 2, 3)
    assert request(seed=2**63 - 1).seed == (2**63 - 1,)
    with pytest.raises(ValueError, match="seed"):
        request(prompt_ids=three, seed=2**63 - 2)


def test_no_seed_draws_a_new_one_each_time() -> None:
    drawn = {request().seed for _ in range(20)}
    # Twenty draws of 32 bits: some pair is equal once in 2**32 / 190, 23 million runs.
    assert len(drawn) == 20


def test_eos_ids_default_to_the_checkpoints_and_can_be_ignored() -> None:
    assert request().eos_token_id == request().end_ids == (0,)
    assert request(eos_token_id=5).end_ids == (5,)
    assert request(eos_token_id=[5, 6, 5]).end_ids == (5, 6)
    assert request(eos_token_id=[]).end_ids == ()
    assert request(ignore_eos=True).end_ids == ()


def test_stop_is_one_string_or_several() -> None:
    assert request().stop == ()
    assert request(stop="end").stop == ("end",)
    assert request(stop=["a", "b", "a"]).stop == ("a", "b")


def test_a_stream_is_a_callable_or_a_streamer_and_takes_one_row() -> None:
    streamer = SimpleNamespace(put=print, end=print)
    assert request(stream=print).stream is print
    assert request(stream=streamer).stream is streamer
    with pytest.raises(ValueError, match="stream works with one prompt, got 2"):
        request(prompt_ids=[[1], [2]], stream=print)


def test_prompts_must_have_tokens_of_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        request(prompt_ids=[[]])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        request(prompt_ids=[[1], []])
    with pytest.raises(ValueError, match="at least one prompt"):
        request(prompt_ids=[])
    for wrong in (-1, VOCAB):
        with pytest.raises(ValueError, match=f"token id {wrong}; ids must be from 0 to 99"):
            request(prompt_ids=[[1, wrong]])


def test_more_rows_than_the_cache_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 rows.*max_batch_size=4"):
        request(prompt_ids=[[1]] * 5)


def test_prompt_and_new_tokens_must_fit_and_the_error_gives_all_numbers() -> None:
    assert request(prompt_ids=[[1] * 54], max_new_tokens=10).rows == 1
    with pytest.raises(ValueError) as caught:
        request(prompt_ids=[[1] * 55], max_new_tokens=10)
    assert all(number in str(caught.value) for number in ("55", "10", "65", "64"))


def test_sampling_defaults_come_from_the_generation_config() -> None:
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert sampling_defaults(None) == off
    qwen = SimpleNamespace(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, min_p=None)
    assert sampling_defaults(qwen) == {**off, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert sampling_defaults(qwen, top_k=0, temperature=0) == {
        **off,
        "temperature": 0,
        "top_p": 0.95,
    }
    assert sampling_defaults(SimpleNamespace(do_sample=None, temperature=None)) == off
    greedy = SimpleNamespace(do_sample=False, temperature=1.0)
    assert sampling_defaults(greedy)["temperature"] == 0.0
    assert sampling_defaults(greedy, temperature=0.7)["temperature"] == 0.7


class FakeTokenizer:
    """One id a character; adds bos by itself, as Llama's does."""

    bos_token = "<s>"
    chat_template = "yes"

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        body = text.removeprefix("<s>")
        ids = [ord(character) for character in body]
        bos = add_special_tokens or body != text
        return {"input_ids": [1, *ids] if bos else ids}

    def apply_chat_template(self, messages: Any, **options: Any) -> list[int]:
        assert options == {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        return [9, len(messages)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ([[1, 97, 98]], False)),
        ("<s>ab", ([[1, 97, 98]], False)),
        (["ab", "c"], ([[1, 97, 98], [1, 99]], True)),
        (["ab"], ([[1, 97, 98]], True)),
        ([5, 6], ([[5, 6]], False)),
        ((5, 6), ([[5, 6]], False)),
        ([np.int64(5), 6], ([[5, 6]], False)),
        ([[5, 6], [7]], ([[5, 6], [7]], True)),
        (torch.tensor([5, 6]), ([[5, 6]], False)),
        (torch.tensor([[5, 6], [7, 8]]), ([[5, 6], [7, 8]], True)),
        (np.array([5, 6], dtype=np.int32), ([[5, 6]], False)),
        ([torch.tensor([5, 6]), [7]], ([[5, 6], [7]], True)),
        ([{"role": "user", "content": "hi"}], ([[9, 1]], False)),
        ([[{"role": "user", "content": "hi"}], "ab"], ([[9, 1], [1, 97, 98]], True)),
        ([], ([[]], False)),
    ],
)
def test_every_form_of_prompt(prompt: object, expected: object) -> None:
    assert tokenize_prompt(FakeTokenizer(), prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        5,
        b"bytes",
        {"input_ids": [1]},
        [1.0],
        [True],
        [1, "a"],
        ["a", 1],
        ["a", None],
        [[1, "a"]],
        [[[1]]],
        torch.tensor([1.0]),
        torch.tensor([True]),
        torch.tensor(5),
        torch.ones(1, 1, 1, dtype=torch.int64),
        [{"role": "user", "content": "hi"}, "ab"],
    ],
)
def test_anything_else_is_a_type_error(prompt: object) -> None:
    with pytest.raises(TypeError, match=r"^prompt"):
        tokenize_prompt(FakeTokenizer(), prompt)


def test_chat_errors_say_what_is_missing() -> None:
    tokenizer = FakeTokenizer()
    with pytest.raises(ValueError, match=r"prompt\[0\] has no 'content'"):
        tokenize_prompt(tokenizer, [{"role": "user"}])
    tokenizer.chat_template = ""
    with pytest.raises(ValueError, match="no chat template"):
        tokenize_prompt(tokenizer, [{"role": "user", "content": "hi"}])


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        tokenize_prompt(FakeTokenizer(), "a\ud800")


def test_a_real_tokenizer(tiny_tokenizer: Any) -> None:
    text = "def area(radius):"
    assert tokenize_prompt(tiny_tokenizer, text)[0] == [tiny_tokenizer(text)["input_ids"]]
    chat = [{"role": "user", "content": "hi"}]
    rendered = tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered == "user: hi\nassistant:"
    assert tokenize_prompt(tiny_tokenizer, chat) == tokenize_prompt(tiny_tokenizer, rendered)
