"""Text comes out in whole characters, stops where it should, and streams what it will keep."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from hybridgen.request import make_request
from hybridgen.text import LONGEST_WINDOW, Detokenizer, StopMatcher, TextStream, decode

# Every kind of character: one to four bytes, joined emoji, right-to-left, spaces and line ends.
TEXTS = st.text(
    st.one_of(
        st.sampled_from("ab e\n\tdef(){}:"),
        st.sampled_from("éßжΩ日本語中文😀🚀\u200d👩💻עב\u00a0"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"),
    ),
    max_size=40,
)


def stream(tokenizer: Any, stop: Sequence[str] = (), sink: Any = None, prompt: Any = (1,)) -> Any:
    request = make_request(
        prompt_ids=[list(prompt)],
        vocab_size=len(tokenizer),
        max_positions=10**6,
        max_batch_size=1,
        stop=list(stop),
        stream=sink,
    )
    return TextStream(tokenizer, request, 0)


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


@given(text=TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(tiny_tokenizer: Any, text: str) -> None:
    detokenizer = Detokenizer(tiny_tokenizer)
    pieces = [detokenizer.push(token) for token in encode(tiny_tokenizer, text)]
    assert "".join(pieces) == text
    assert detokenizer.flush() == ""


@given(data=st.data())
def test_any_tokens_at_all_stream_to_what_the_tokenizer_decodes(
    tiny_tokenizer: Any, data: st.DataObject
) -> None:
    # The first 257 ids are the eos and the single bytes: most sequences of them are not UTF-8.
    token = st.one_of(st.integers(0, 256), st.integers(0, len(tiny_tokenizer) - 1))
    ids = data.draw(st.lists(token, max_size=150))
    pieces: list[str] = []
    row = stream(tiny_tokenizer, sink=pieces.append)
    while ids[len(row.tokens) :]:
        start = len(row.tokens)
        assert row.feed(ids[start : start + data.draw(st.integers(1, 9))]) is None
    assert row.finish() == "".join(pieces) == decode(tiny_tokenizer, ids)
    assert row.tokens == ids


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


class CountingTokenizer:
    """Decodes as `tokenizer` does and keeps the number of tokens of each call."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.sizes: list[int] = []

    def decode(self, ids: list[int], **options: Any) -> str:
        self.sizes.append(len(ids))
        return self.tokenizer.decode(ids, **options)


@pytest.mark.parametrize("kind", ["text", "special tokens", "bytes that are no characters"])
def test_the_work_a_token_does_not_grow_with_the_text(tiny_tokenizer: Any, kind: str) -> None:
    tokens = {
        "text": encode(tiny_tokenizer, "the quick brown fox " * 200),
        "special tokens": [0] * 1000,
        "bytes that are no characters": encode(tiny_tokenizer, "🚀")[-1:] * 1000,
    }[kind]
    counting = CountingTokenizer(tiny_tokenizer)
    detokenizer = Detokenizer(counting)
    text = "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush()
    assert text == decode(tiny_tokenizer, tokens)
    assert max(counting.sizes) <= LONGEST_WINDOW + 1
    assert len(counting.sizes) <= 2 * len(tokens) + 1


def test_without_stop_and_stream_nothing_is_decoded_before_the_end(tiny_tokenizer: Any) -> None:
    counting = CountingTokenizer(tiny_tokenizer)
    ids = encode(tiny_tokenizer, "the quick brown fox")
    request = make_request(prompt_ids=[[1]], vocab_size=400, max_positions=300, max_batch_size=1)
    row = TextStream(counting, request, 0)
    row.feed(ids)
    assert counting.sizes == []
    assert row.finish() == "the quick brown fox"


def test_special_tokens_are_not_text(tiny_tokenizer: Any) -> None:
    ids = encode(tiny_tokenizer, "fox")
    pieces: list[str] = []
    row = stream(tiny_tokenizer, ["<|endoftext|>"], pieces.append)
    assert row.feed([*ids, 0]) is None
    assert row.finish() == "".join(pieces) == "fox"
    assert row.tokens == [*ids, 0]


@pytest.fixture(scope="module")
def llama_tokenizer() -> Any:
    """Words marked by a leading space, unknown characters as bytes: the decoder of Llama 2."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁Hello", "▁world", "a", "b"]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def llama_ids(tokenizer: Any, *parts: str) -> list[int]:
    """Ids of words of the vocabulary, and of the bytes of anything else."""
    vocab = tokenizer.get_vocab()
    return [
        i
        for part in parts
        for i in ([vocab[part]] if part in vocab else [3 + byte for byte in part.encode()])
    ]


@pytest.mark.parametrize("turns", [1, 30])
def test_leading_spaces_and_byte_tokens_of_other_tokenizers(
    llama_tokenizer: Any, turns: int
) -> None:
    parts = ["▁Hello", "▁world", "▁", "▁", "a", "日", "本", "😀", "😀", "▁world", "é", "b"]
    ids = llama_ids(llama_tokenizer, *parts * turns)
    pieces: list[str] = []
    row = stream(llama_tokenizer, sink=pieces.append)
    row.feed(ids)
    line = " Hello world  a日本😀😀 worldéb"
    assert row.finish() == "".join(pieces) == decode(llama_tokenizer, ids) == (line * turns)[1:]


def test_full_text_keeps_the_prompt_and_the_space_after_it(llama_tokenizer: Any) -> None:
    prompt = llama_ids(llama_tokenizer, "▁Hello")
    row = stream(llama_tokenizer, prompt=prompt)
    row.feed(llama_ids(llama_tokenizer, "▁world"))
    assert row.finish() == "world"
    assert row.full_text("Hello") == row.full_text() == "Hello world"
    assert row.full_text("<s>Hello") == "<s>Hello world"


def test_full_text_is_cut_where_the_text_is(tiny_tokenizer: Any) -> None:
    prompt = encode(tiny_tokenizer, "für ")
    row = stream(tiny_tokenizer, ["brown"], prompt=prompt)
    row.feed(encode(tiny_tokenizer, "the quick brown fox"))
    assert row.finish() == "the quick "
    assert row.full_text("für ") == "für the quick "


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
    row = stream(tiny_tokenizer, sink=ours, prompt=(5, 6, 7))
    row.feed(made[0, 3:].tolist())
    row.finish()
    assert ours.calls == theirs.calls


def test_a_streamer_sees_the_tokens_kept_and_no_more(tiny_tokenizer: Any) -> None:
    recorder = Recorder()
    row = stream(tiny_tokenizer, ["brown"], recorder)
    row.feed(encode(tiny_tokenizer, "the quick brown fox"))
    row.finish()
    assert recorder.calls[-1] == "end"
    assert [call[2] for call in recorder.calls[1:-1]] == [[token] for token in row.tokens]
