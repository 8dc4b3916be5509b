"""Every form of prompt becomes token ids, and what cannot be continued is refused soon."""

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from conftest import train_tokenizer
from tokenizers import AddedToken
from transformers import BatchEncoding

from hybridgen.prompts import Prompt, Room


def tokenize(tokenizer: Any, prompt: object) -> tuple[list[list[int]], bool]:
    made = Prompt(tokenizer, prompt)
    return made.token_ids(), made.is_batch


class FakeTokenizer:
    """One id a character; adds bos by itself, as Llama's does."""

    bos_token = "<s>"
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = 9
    chat_template = "yes"

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        body = text.removeprefix("<s>")
        ids = [ord(character) for character in body]
        bos = add_special_tokens or body != text
        return {"input_ids": [1, *ids] if bos else ids}

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        if not options.pop("tokenize"):
            return "rendered"
        assert options == {"add_generation_prompt": True, "return_dict": False}
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
        (([5, 6], (7,)), ([[5, 6], [7]], True)),
        (("ab", "c"), ([[1, 97, 98], [1, 99]], True)),
        (np.array(["ab", "c"]), ([[1, 97, 98], [1, 99]], True)),
        ({"input_ids": [5, 6]}, ([[5, 6]], False)),
        ({"input_ids": [5, 6], "attention_mask": [0, 1]}, ([[6]], False)),
        ({"input_ids": [[5, 6], [7, 8]], "attention_mask": [[0, 1], [1, 0]]}, ([[6], [7]], True)),
        (
            BatchEncoding(
                {
                    "input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 0]]),
                    "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]),
                }
            ),
            ([[5, 6], [7, 8, 9]], True),
        ),
        (
            UserDict(
                input_ids=np.array([[0, 5]]),
                attention_mask=np.array([[False, True]]),
                token_type_ids=np.array([[0, 0]]),
            ),
            ([[5]], True),
        ),
    ],
)
def test_every_form_of_prompt(prompt: object, expected: object) -> None:
    assert tokenize(FakeTokenizer(), prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        5,
        b"bytes",
        {"role": "user"},
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
        tokenize(FakeTokenizer(), prompt)


def test_chat_errors_say_what_is_missing() -> None:
    tokenizer = FakeTokenizer()
    with pytest.raises(ValueError, match=r"prompt\[1\] has no 'role'"):
        tokenize(tokenizer, [{"role": "user"}, {"content": "hi"}])
    tokenizer.chat_template = ""
    with pytest.raises(ValueError, match="no chat template"):
        tokenize(tokenizer, [{"role": "user", "content": "hi"}])


def test_a_message_needs_a_role_and_the_template_judges_the_rest(tiny_tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    chat = [{"role": "assistant", "tool_calls": [call]}]
    tokenizer = train_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no ' + 'x' * 999) }}"
        "{% endif %}{{ m.role }}{{ m.tool_calls[0].function.name }}{% endfor %}"
    )
    assert tokenize(tokenizer, chat)[0] == [tokenizer("assistantadd")["input_ids"]]
    with pytest.raises(ValueError, match="prompt: the chat template refused") as caught:
        tokenize(tokenizer, [{"role": "bad"}])
    assert len(str(caught.value)) < 400


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="not valid Unicode"):
        tokenize(FakeTokenizer(), "a\ud800")


def test_a_real_tokenizer(tiny_tokenizer: Any) -> None:
    text = "def area(radius):"
    assert tokenize(tiny_tokenizer, text)[0] == [tiny_tokenizer(text)["input_ids"]]
    chat = [{"role": "user", "content": "hi"}]
    rendered = tiny_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered == "user: hi\nassistant:"
    assert tokenize(tiny_tokenizer, chat) == tokenize(tiny_tokenizer, rendered)


# Padding.


@pytest.mark.parametrize(
    ("rows", "edge"),
    [
        ([[9, 5, 6], [5, 6, 7]], "begins"),
        ([[5, 6, 7], [5, 6, 9]], "ends"),
        ([[5, 9, 9]], "ends"),
        ([[9, 9, 9]], "begins"),
        ([5, 6, 9], "ends"),
    ],
)
@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_tensors_that_look_padded_are_refused_with_the_way_out(
    rows: Any, edge: str, kind: Any
) -> None:
    tokenizer = FakeTokenizer()
    for prompt in (kind(rows), {"input_ids": kind(rows)}):
        with pytest.raises(ValueError, match=rf"^prompt.* {edge} with .*pad id 9.*attention_mask"):
            tokenize(tokenizer, prompt)
    assert tokenize(tokenizer, rows)[0] == (rows if isinstance(rows[0], list) else [rows])
    with pytest.raises(ValueError, match="pad id"):
        tokenize(tokenizer, [kind(row) for row in np.atleast_2d(rows)])


@pytest.mark.parametrize("mark", ["bos_token_id", "eos_token_id"])
def test_a_pad_id_that_is_bos_or_eos_too_may_be_at_an_edge_once(mark: str) -> None:
    tokenizer = FakeTokenizer()
    setattr(tokenizer, mark, 9)
    for rows in ([[9]], [[9, 5], [9, 6]], [[5, 9], [6, 9]], [[9, 5, 9]], [[5, 9, 6]]):
        assert tokenize(tokenizer, torch.tensor(rows))[0] == rows
    for rows in ([[9, 5], [5, 6]], [[9, 9, 5], [9, 5, 6]], [[5, 9, 9]], [[5, 6], [5, 9]]):
        with pytest.raises(ValueError, match="pad id"):
            tokenize(tokenizer, torch.tensor(rows))


def test_without_a_pad_token_nothing_looks_padded() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.pad_token_id = None
    assert tokenize(tokenizer, torch.tensor([[9, 9]]))[0] == [[9, 9]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_what_a_real_tokenizer_returns_is_the_prompts_themselves(side: str, kind: Any) -> None:
    tokenizer = train_tokenizer()
    texts = ["def area(radius):", "x", "the quick brown fox"]
    batch = tokenizer(texts, return_tensors=kind, padding=True, padding_side=side)
    assert tokenize(tokenizer, batch) == tokenize(tokenizer, texts)
    assert tokenize(tokenizer, dict(batch)) == tokenize(tokenizer, texts)


@pytest.mark.parametrize(
    ("mask", "error", "reason"),
    [
        ([[1, 0, 1]], ValueError, "0 inside"),
        ([[1, 1]], ValueError, "3 values"),
        ([[1, 1, 1], [1, 1, 1]], ValueError, "a row for each"),
        ([[1, 1, 2]], ValueError, "0 and 1"),
        ([[1, 1, "1"]], ValueError, "0 and 1"),
        ([[1.0, 1.0, 1.0]], ValueError, "0 and 1"),
        (5, TypeError, "attention_mask"),
        ([5], ValueError, "a row for each|3 values"),
    ],
)
def test_a_mask_that_is_none(mask: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(
        error, match=rf"^prompt.*attention_mask.*({reason})|^prompt.*attention_mask"
    ):
        tokenize(FakeTokenizer(), {"input_ids": [[5, 6, 7]], "attention_mask": mask})


def test_an_encoding_with_more_than_ids_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^prompt has 'pixel_values'"):
        tokenize(FakeTokenizer(), {"input_ids": [5], "pixel_values": [1]})


# Cheap limits before dear work.


class SlowTokenizer(FakeTokenizer):
    """Four characters a token; counts what it is given."""

    read = 0

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        self.read += len(text)
        return {"input_ids": [7] * (len(text) // 4)}

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        text = "".join(message["content"] for message in messages)
        return self(text, False, False)["input_ids"] if options["tokenize"] else text


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised() -> None:
    room = Room(positions=100, new_tokens=20)
    for prompt in ("x" * 10**7, [{"role": "user", "content": "x" * 10**7}]):
        tokenizer = SlowTokenizer()
        with pytest.raises(ValueError, match=r"^prompt has more than \d+ tokens.*=20.*has 100"):
            Prompt(tokenizer, prompt).token_ids(room)
        assert tokenizer.read < 10**5


def test_a_text_of_few_long_tokens_is_never_refused_by_its_length() -> None:
    class Spaces(SlowTokenizer):
        """One token a million spaces."""

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [7] * (1 + len(text) // 10**6)}

    assert Prompt(Spaces(), "x" * 5_000_000).token_ids(Room(20, 10)) == [[7] * 6]


def test_spaces_are_counted_unless_a_token_after_them_swallows_them() -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    room, many = Room(20, 10), " " * 10**5
    assert len(Prompt(tokenizer, "a" + many + "<mask>").token_ids(room)[0]) == 2
    for text in (many, many + "<b>", many + "b<mask>"):
        with pytest.raises(ValueError, match=r"^prompt has more than"):
            Prompt(tokenizer, text).token_ids(room)


def test_a_cut_through_a_long_token_refuses_nothing() -> None:
    class Long(SlowTokenizer):
        """One token for the whole text, hundreds for any part of it."""

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [7] * (1 if len(text) == 10**5 else 900)}

    assert Prompt(Long(), "x" * 10**5).token_ids(Room(2, 1)) == [[7]]


def test_lists_and_tensors_that_cannot_fit_are_refused_by_their_length() -> None:
    room = Room(positions=100, new_tokens=20)
    # Converting any of these would raise another error.
    for ids in ([1] * 10**6 + ["a"], torch.ones(10**6 + 1, device="meta", dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"^prompt has 1000001 tokens"):
            Prompt(FakeTokenizer(), ids).token_ids(room)


def test_more_rows_than_there_are_is_refused_before_any_is_read() -> None:
    for prompt in (["x"] * 10**5, torch.ones(10**5, 3, dtype=torch.int64), [[1]] * 10**5):
        with pytest.raises(ValueError, match=r"^prompt has 100000 rows.*max_batch_size=4"):
            Prompt(None, prompt, max_rows=4)


def test_a_long_text_of_a_real_tokenizer_fits_exactly_as_far_as_it_should() -> None:
    tokenizer = train_tokenizer()
    for text in ("the quick brown fox " * 400, " " * 5000, "日本語" * 900, "😀" * 700):
        count = len(tokenizer(text)["input_ids"])
        assert len(Prompt(tokenizer, text).token_ids(Room(count + 1, 1))[0]) == count
        with pytest.raises(ValueError, match=r"^prompt has "):
            made = Prompt(tokenizer, text).token_ids(Room(count, 1))
            Room(count, 1).check("prompt", len(made[0]))


# Things that are not what they seem.


def odd_tensors() -> list[Any]:
    ids = torch.tensor([5, 6])
    return [
        ids.to("meta"),
        torch.ones(2, 2, dtype=torch.int64, device="meta"),
        ids.to_sparse(),
        torch.nested.nested_tensor([ids, ids]),
        torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        torch.ones(0, 0, 0, dtype=torch.int64),
        np.array([5, 6], dtype="datetime64[ns]"),
    ]


class Failing:
    """Whatever is asked of it fails."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __len__(self) -> int:
        raise RuntimeError("len")

    def __iter__(self) -> Any:
        raise RuntimeError("iter")


class FailingList(list[Any]):
    __repr__, __len__, __iter__ = Failing.__repr__, Failing.__len__, Failing.__iter__


class FailingDict(dict[str, Any]):
    __repr__, __len__, __iter__ = Failing.__repr__, Failing.__len__, Failing.__iter__

    def __contains__(self, key: object) -> bool:
        raise RuntimeError("contains")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("index", range(7))
def test_tensors_without_values_are_refused_by_name(index: int) -> None:
    for prompt in (odd_tensors()[index], [odd_tensors()[index]]):
        with pytest.raises((TypeError, ValueError), match=r"^prompt\b") as caught:
            tokenize(FakeTokenizer(), prompt)
        assert len(str(caught.value)) < 500


def test_a_jagged_tensor_is_a_batch() -> None:
    rows = torch.nested.nested_tensor(
        [torch.tensor([5, 6]), torch.tensor([7])], layout=torch.jagged
    )
    assert tokenize(FakeTokenizer(), rows) == ([[5, 6], [7]], True)


def test_objects_that_fail_are_refused_by_name_and_subclasses_are_read() -> None:
    wrong = [
        Failing(),
        [Failing()],
        [5, Failing()],
        FailingDict(input_ids=[5]),
        [FailingDict(role="user")],
        [[5], Failing()],
        [10**5000, "a"],
        {"input_ids": [5], "attention_mask": Failing()},
        {"input_ids": Failing()},
        {Failing(): 1},
    ]
    for prompt in wrong:
        with pytest.raises((TypeError, ValueError), match=r"^prompt\b") as caught:
            tokenize(FakeTokenizer(), prompt)
        assert len(str(caught.value)) < 500
    assert tokenize(FakeTokenizer(), FailingList([5, 6])) == ([[5, 6]], False)
    assert tokenize(FakeTokenizer(), FailingList([FailingList([5])])) == ([[5]], True)
    assert tokenize(FakeTokenizer(), np.str_("a")) == ([[1, 97]], False)
