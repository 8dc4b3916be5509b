"""Text comes out in whole characters, stops where it should, and streams what it will keep."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from hybridgen.detokenizer import decode
from hybridgen.prompts import Prompt
from hybridgen.request import make_request
from hybridgen.text import StopMatcher, TextStream, open_streams

# Every kind of character: one to four bytes, joined emoji, right-to-left, spaces and line ends.
TEXTS = st.text(
    st.one_of(
        st.sampled_from("ab e\n\tdef(){}:"),
        st.sampled_from("éßжΩ日本語中文😀🚀\u200d👩💻עב\u00a0"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"),
    ),
    max_size=40,
)


def make(stop: Sequence[str] = (), sink: Any = None, prompt: Any = (1,)) -> Any:
    return make_request(
        Prompt(None, list(prompt)),
        vocab_size=1000,
        max_positions=10**6,
        stop=list(stop),
        stream=sink,
    )


def stream(tokenizer: Any, *options: Any, **more: Any) -> TextStream:
    return TextStream(tokenizer, make(*options, **more), 0)


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def cut_by_hand(tokenizer: Any, ids: list[int], stops: Sequence[str]) -> tuple[str, int]:
    """Text and tokens that remain, by decoding every beginning of `ids` as a whole."""
    for count in range(1, len(ids) + 1):
        text = decode(tokenizer, ids[:count]).rstrip("\ufffd")
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        if ends:
            return text[: min(ends)[1]], count
    return decode(tokenizer, ids), len(ids)


@given(text=TEXTS, data=st.data())
def test_stop_strings_cut_text_and_tokens_at_the_same_place(
    tiny_tokenizer: Any, text: str, data: st.DataObject
) -> None:
    piece_of_text = st.builds(
        lambda start, size: text[start : start + size],
        st.integers(0, max(len(text) - 1, 0)),
        st.integers(1, 6),
    ).filter(bool)
    some = (
        st.one_of(piece_of_text, st.text("ab e", min_size=1, max_size=3)) if text else st.just("a")
    )
    stops = data.draw(st.lists(some, min_size=1, max_size=3))
    ids = encode(tiny_tokenizer, text)
    expected, kept = cut_by_hand(tiny_tokenizer, ids, stops)

    pieces: list[str] = []
    row = stream(tiny_tokenizer, stops, pieces.append)
    fed, over = 0, None
    while fed < len(ids) and over is None:
        size = data.draw(st.integers(1, 9))
        over = row.feed(ids[fed : fed + size])
        fed += size
        assert expected.startswith("".join(pieces)), "streamed what a stop string takes back"
    assert row.finish() == "".join(pieces) == expected
    assert len(row.tokens) == kept
    assert over == (kept if any(stop in text for stop in stops) else None)


def test_a_stop_string_at_each_offset_of_a_text(tiny_tokenizer: Any) -> None:
    text = "für 日本: 😀 the quick brown fox\n"
    ids = encode(tiny_tokenizer, text)
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            row = stream(tiny_tokenizer, [text[start:end]])
            kept = row.feed(ids)
            assert (row.finish(), kept) == cut_by_hand(tiny_tokenizer, ids, [text[start:end]])


def test_tokens_after_the_stop_are_ignored(tiny_tokenizer: Any) -> None:
    ids = encode(tiny_tokenizer, "one two three")
    pieces: list[str] = []
    row = stream(tiny_tokenizer, ["two"], pieces.append)
    kept = row.feed(ids)
    assert row.feed(ids) == kept
    assert row.tokens == ids[:kept]
    assert row.finish() == "".join(pieces) == "one "


@pytest.mark.parametrize("pieces", [["xaby"], ["x", "a", "b", "y"], ["xa", "by"]])
def test_the_stop_string_that_is_complete_first_wins(pieces: list[str]) -> None:
    """However the text is cut into pieces; of two complete together, the longer."""
    for stops, expected in ((["ab", "xaby"], "x"), (["ab", "xab"], ""), (["xaby", "by"], "")):
        matcher = StopMatcher(stops)
        given_out = ""
        for piece in pieces:
            if not matcher.found:
                given_out += matcher.push(piece)
        assert matcher.found
        assert given_out == expected


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["\n\nclass"])
    assert matcher.push("a = 1\n") == "a = 1"
    assert matcher.push("\ncl") == ""
    assert matcher.push("ever\n") == "\n\nclever"
    assert not matcher.found
    assert matcher.flush() == "\n"


def test_a_tail_completes_a_stop_string_but_is_not_kept() -> None:
    matcher = StopMatcher(["ab\ufffd", "c\n"])
    assert matcher.push("xab", "é") == "x"
    assert matcher.push("\ufffd\ufffd") == ""
    assert matcher.found
    matcher = StopMatcher(["c\n"])
    assert matcher.push("abc", "\n") == "ab"
    assert matcher.found


def test_half_a_character_is_held_back_until_it_is_whole_or_the_end(tiny_tokenizer: Any) -> None:
    rocket = encode(tiny_tokenizer, "🚀")
    assert len(rocket) > 2  # not in the training text, so it is no token of its own
    pieces: list[str] = []
    row = stream(tiny_tokenizer, sink=pieces.append)
    for token in rocket[:-1]:
        row.feed([token])
        assert pieces == []
    row.feed([rocket[-1], *rocket[:-1]])
    assert pieces == ["🚀"]
    assert row.finish() == "🚀\ufffd"


def test_without_stop_and_stream_nothing_is_decoded_before_the_end(tiny_tokenizer: Any) -> None:
    def decode(ids: list[int], **options: Any) -> str:
        decoded.append(ids)
        return str(tiny_tokenizer.decode(ids, **options))

    decoded: list[list[int]] = []
    ids = encode(tiny_tokenizer, "the quick brown fox")
    row = stream(SimpleNamespace(decode=decode), prompt=[5])
    row.feed(ids)
    assert decoded == []
    assert row.finish() == "the quick brown fox"


def test_special_tokens_are_not_text(tiny_tokenizer: Any) -> None:
    ids = encode(tiny_tokenizer, "fox")
    pieces: list[str] = []
    row = stream(tiny_tokenizer, ["<|endoftext|>"], pieces.append)
    assert row.feed([*ids, 0]) is None
    assert row.finish() == "".join(pieces) == "fox"
    assert row.tokens == [*ids, 0]


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.calls.append((tuple(value.shape), value.dtype, value.tolist()))

    def end(self) -> None:
        self.calls.append("end")


def test_a_streamer_sees_what_transformers_itself_would_show_it(tiny_tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = Recorder()
    prompt = torch.tensor([[5, 6, 7]])
    made = Qwen3ForCausalLM(config).generate(
        prompt, streamer=theirs, max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    ours = Recorder()
    with open_streams(tiny_tokenizer, make(sink=ours, prompt=(5, 6, 7))) as (row,):
        row.feed(made[0, 3:].tolist())
        row.finish()
    assert ours.calls == theirs.calls


def test_a_streamer_sees_the_tokens_kept_and_no_more(tiny_tokenizer: Any) -> None:
    recorder = Recorder()
    with open_streams(tiny_tokenizer, make(["brown"], recorder)) as (row,):
        row.feed(encode(tiny_tokenizer, "the quick brown fox"))
        row.finish()
    assert recorder.calls[-1] == "end"
    assert [call[2] for call in recorder.calls[1:-1]] == [[token] for token in row.tokens]


class Failing(Recorder):
    """A streamer that fails at its `calls`-th token, and again at the end."""

    def put(self, value: torch.Tensor) -> None:
        super().put(value)
        if len(self.calls) == 3:
            raise LookupError("the reader is gone")

    def end(self) -> None:
        super().end()
        raise OSError("the end fails too")


def test_a_streamer_is_told_the_end_also_of_a_failure(tiny_tokenizer: Any) -> None:
    recorder, failing = Recorder(), Failing()
    with (
        pytest.raises(KeyboardInterrupt),
        open_streams(tiny_tokenizer, make(sink=recorder)) as (row,),
    ):
        row.feed([5])
        raise KeyboardInterrupt
    assert recorder.calls[-1] == "end"
    with (
        pytest.raises(LookupError, match="the reader is gone"),
        open_streams(tiny_tokenizer, make(sink=failing)) as (row,),
    ):
        row.feed([5, 6, 7])
    assert failing.calls.count("end") == 1
