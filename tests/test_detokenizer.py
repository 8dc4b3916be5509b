"""New text is the difference of two whole decodes, streamed or not, whatever the tokenizer."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import train_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hybridgen.detokenizer import WINDOW, Detokenizer, decode, new_text
from hybridgen.prompts import Prompt
from hybridgen.request import make_request
from hybridgen.text import TextStream, full_texts

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Marked and bare words, spaces alone, and characters that a decoder may take for something else.
WORDS = ["▁", "▁▁▁▁", "▁Hello", "▁world", "a", "b", ".", "é", "日", "\ufffd", "▁\ufffd", "<0x"]


def of_words(decoder: Any, words: Sequence[str], byte_fallback: bool = True) -> Any:
    vocabulary = [*SPECIAL, *(BYTES if byte_fallback else ()), *words]
    ids = {word: i for i, word in enumerate(vocabulary)}
    bpe = Tokenizer(models.BPE(ids, [], byte_fallback=byte_fallback, unk_token="<unk>"))
    bpe.decoder = decoder
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def llama(*after: Any) -> Any:
    """Spaces from ▁, runs of bytes as a whole: the decoder of Llama 2, Mistral and Gemma."""
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    return of_words(decoders.Sequence(parts), WORDS)


def metaspace(scheme: str) -> Any:
    return of_words(decoders.Metaspace("▁", scheme), WORDS, byte_fallback=False)


def metaspace_and_bytes(scheme: str) -> Any:
    parts = [decoders.ByteFallback(), decoders.Metaspace("▁", scheme)]
    return of_words(decoders.Sequence(parts), WORDS)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level": train_tokenizer,
    "llama 2": lambda: llama(decoders.Strip(" ", 1, 0)),
    "gemma": lambda: llama(),
    "three spaces stripped": lambda: llama(decoders.Strip(" ", 3, 0)),
    "metaspace, always": lambda: metaspace("always"),
    "metaspace, first": lambda: metaspace("first"),
    "metaspace, never": lambda: metaspace("never"),
    "metaspace and bytes": lambda: metaspace_and_bytes("always"),
    "wordpiece": lambda: of_words(
        decoders.WordPiece(), ["a", "##b", "##é", "'", ".", "\ufffd"], byte_fallback=False
    ),
    "word ends": lambda: of_words(
        decoders.BPEDecoder("</w>"), ["a</w>", "b", "é</w>", ".</w>", "\ufffd"], byte_fallback=False
    ),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def llama_tokenizer() -> Any:
    return TOKENIZERS["llama 2"]()


def difference(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    before, whole = (decode(tokenizer, ids) for ids in (prompt, [*prompt, *new]))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))
    return whole[len(list(same)) :]


def row_of(
    tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = (), sink: Any = None
) -> TextStream:
    request = make_request(
        Prompt(None, list(prompt)),
        vocab_size=10**6,
        max_positions=10**6,
        stop=list(stop),
        stream=sink,
    )
    return TextStream(tokenizer, request, 0)


def ids_of(tokenizer: Any, *parts: str) -> list[int]:
    """Ids of words of the vocabulary, and of the bytes of anything else."""
    vocab = tokenizer.get_vocab()
    return [
        i
        for part in parts
        for i in (
            [vocab[part]] if part in vocab else [vocab[BYTES[byte]] for byte in part.encode()]
        )
    ]


def sequences(tokenizer: Any, least: int, most: int) -> st.SearchStrategy[list[int]]:
    """Tokens at random, whole characters in bytes among them; ids beyond the vocabulary too."""
    size = len(tokenizer)
    few = [*range(3), size - 1, size - 2, size, size + 5]
    one = st.one_of(st.integers(0, size - 1), st.sampled_from(few)).map(lambda token: [token])
    if BYTES[0] in tokenizer.get_vocab():
        one |= st.sampled_from("\n é日😀\ufffd").map(lambda text: ids_of(tokenizer, text))
        one |= st.sampled_from(WORDS).map(lambda word: ids_of(tokenizer, word))
    elif "Ġ" in tokenizer.get_vocab():
        one |= st.sampled_from("\né日😀\ufffd").map(lambda text: tokenizer(text)["input_ids"])
    chunks = st.lists(one, min_size=least, max_size=most)
    return chunks.map(lambda parts: list(itertools.chain(*parts)))


@given(data=st.data())
def test_pieces_join_to_the_difference_of_two_whole_decodes(
    tokenizer: Any, data: st.DataObject
) -> None:
    prompt = data.draw(sequences(tokenizer, 1, 40))
    new = data.draw(sequences(tokenizer, 0, 60))
    expected = difference(tokenizer, prompt, new)
    assert new_text(tokenizer, prompt, new) == expected
    unstreamed = row_of(tokenizer, prompt)
    unstreamed.feed(new)
    pieces: list[str] = []
    streamed = row_of(tokenizer, prompt, sink=pieces.append)
    while new[len(streamed.tokens) :]:
        start = len(streamed.tokens)
        streamed.feed(new[start : start + data.draw(st.integers(1, 9))])
    stopping = row_of(tokenizer, prompt, ["never written"])
    stopping.feed(new)
    assert unstreamed.finish() == streamed.finish() == stopping.finish() == expected
    assert "".join(pieces) == expected


def is_unfinished(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether the tokens end in half a character."""
    fallback = BYTES[0] in tokenizer.get_vocab()
    run = b""
    for token in ids:
        written = tokenizer.convert_ids_to_tokens(token)
        if written is None or token in tokenizer.all_special_ids:
            continue
        if written in BYTES:
            run += bytes([BYTES.index(written)])
        elif "Ġ" in tokenizer.get_vocab():
            run += bytes(BYTE_LEVEL[character] for character in written)
        else:
            run = b""
    try:
        run.decode() if fallback else run[-3:].lstrip(bytes(range(0x80, 0xC0))).decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = sorted({*range(256)} - {*SHOWN})
BYTE_LEVEL = {chr(b): b for b in SHOWN} | {chr(256 + i): b for i, b in enumerate(HIDDEN)}


@given(data=st.data())
def test_a_stop_string_is_found_at_the_first_token_by_which_it_is_complete(
    tokenizer: Any, data: st.DataObject
) -> None:
    prompt = data.draw(sequences(tokenizer, 1, 20))
    new = data.draw(sequences(tokenizer, 1, 30))
    text = difference(tokenizer, prompt, new)
    parts = [text[i : i + size] for size in (1, 2, 5) for i in range(len(text) - size + 1)]
    stops = data.draw(st.lists(st.sampled_from([*parts, " ", "\n", "é"]), min_size=1, max_size=3))
    expected, kept = text, None
    for count in range(1, len(new) + 1):
        if count < len(new) and is_unfinished(tokenizer, [*prompt, *new[:count]]):
            continue
        written = difference(tokenizer, prompt, new[:count])
        ends = [(at + len(s), at) for s in stops if (at := written.find(s)) >= 0]
        if ends:
            expected, kept = written[: min(ends)[1]], count
            break
    pieces: list[str] = []
    for sink in (None, pieces.append):
        row = row_of(tokenizer, prompt, stops, sink)
        found = row.feed(new)
        assert row.finish() == expected
        if not is_unfinished(tokenizer, [*prompt, *new]):
            assert found == kept
    assert "".join(pieces) == expected


def test_the_first_space_is_the_models(llama_tokenizer: Any) -> None:
    prompt = ids_of(llama_tokenizer, "<s>", "▁Hello")
    new = ids_of(llama_tokenizer, "▁world", "▁▁▁▁", "a")
    assert new_text(llama_tokenizer, prompt, new) == " world    a"
    row = row_of(llama_tokenizer, prompt, [" world"])
    assert (row.feed(new), row.finish()) == (1, "")


def test_a_line_end_in_bytes_stops_at_once(llama_tokenizer: Any) -> None:
    row = row_of(llama_tokenizer, ids_of(llama_tokenizer, "▁Hello"), ["\n"])
    assert row.feed(ids_of(llama_tokenizer, "a", "\n", "b")) == 2
    assert row.finish() == "a"


@pytest.mark.parametrize(
    ("prompt", "new", "text"),
    [
        (["▁Hello", "<0xC3>"], ["<0xA9>", "a"], "éa"),  # the prompt ends in half a character
        (["▁Hello", "<0xC3>"], ["a"], "a"),
        (["▁Hello", "\n"], ["\n", "a"], "\na"),
        (["▁Hello", "ö"], ["<0xFF>", "a"], "\ufffd\ufffd\ufffda"),  # a byte that spoils the run
        (["▁Hello", "ö"], ["ö", "a"], "öa"),
        (["<s>"], ["▁world"], "world"),  # nothing before: the tokenizer takes the mark off
        (["<s>"] * 100, ["▁world"], "world"),
        (["▁Hello", *["</s>"] * 100], ["▁world"], " world"),
        (["▁Hello"], ["</s>"] * 100 + ["▁world"], " world"),
        (["▁Hello"], ["<0xC3>", "</s>", "<0xA9>", "a"], "éa"),
        (["▁Hello"], [], ""),
    ],
)
def test_at_the_prompts_edge(
    llama_tokenizer: Any, prompt: list[str], new: list[str], text: str
) -> None:
    before, after = ids_of(llama_tokenizer, *prompt), ids_of(llama_tokenizer, *new)
    pieces = Detokenizer(llama_tokenizer, before)
    streamed = "".join(pieces.push(token) for token in after) + pieces.flush()
    assert streamed == new_text(llama_tokenizer, before, after) == text


def test_special_tokens_between_prompt_and_text_change_nothing() -> None:
    marked = TOKENIZERS["metaspace, always"]()
    hello, world = ids_of(marked, "▁Hello", "▁world")
    prompt = [hello, *[marked.eos_token_id] * 100]
    assert Detokenizer(marked, prompt).push(world) == new_text(marked, prompt, [world]) == " world"
    bytewise = TOKENIZERS["byte-level"]()
    rocket = bytewise("🚀")["input_ids"]
    for count in (1, 20):
        prompt = [5, 6, 7, rocket[0], *[bytewise.eos_token_id] * count]
        pieces = Detokenizer(bytewise, prompt)
        assert [pieces.push(token) for token in rocket[1:]][-1] == "🚀"


@pytest.mark.parametrize("name", ["byte-level", "llama 2", "metaspace, always"])
def test_a_replacement_character_is_a_character_like_any_other(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    literal = tokenizer("\ufffd")["input_ids"] if name == "byte-level" else []
    literal = literal or ids_of(tokenizer, "\ufffd")
    prompt = [len(tokenizer) - 1]
    pieces = Detokenizer(tokenizer, prompt)
    for _ in range(3):
        assert "".join(pieces.push(token) for token in literal) == "\ufffd"
    row = row_of(tokenizer, prompt, ["\ufffd"])
    assert row.feed([*literal, prompt[0]]) == len(literal)
    half = row_of(TOKENIZERS["byte-level"](), [5], ["\ufffd"])
    assert half.feed(train_tokenizer()("🚀")["input_ids"]) is None


class Lossy:
    """Shows tokens as their text, replacement characters where it is none, as some libraries do."""

    def __init__(self, tokenizer: Any) -> None:
        self.decode = tokenizer.decode
        self.ids = {tokenizer.decode([i]): i for i in range(len(tokenizer))}

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return self.decode([ids])

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        if isinstance(tokens, list):
            return [self.ids.get(token) for token in tokens]
        return self.ids.get(tokens) if "\ufffd" not in tokens else None


@given(data=st.data())
def test_tokenizers_that_do_not_tell_the_bytes_of_a_token(
    tiny_tokenizer: Any, data: st.DataObject
) -> None:
    prompt = data.draw(sequences(tiny_tokenizer, 1, 20))
    new = data.draw(sequences(tiny_tokenizer, 0, 40))
    known = len(tiny_tokenizer)
    prompt, new = ([token for token in ids if token < known] for ids in (prompt, new))
    pieces = Detokenizer(Lossy(tiny_tokenizer), prompt)
    text = "".join(pieces.push(token) for token in new) + pieces.flush()
    assert text == new_text(tiny_tokenizer, prompt, new)


def test_half_a_character_is_no_character_until_the_end(llama_tokenizer: Any) -> None:
    rocket = ids_of(llama_tokenizer, "🚀")
    pieces: list[str] = []
    row = row_of(llama_tokenizer, [3], sink=pieces.append)
    row.feed([*rocket, *ids_of(llama_tokenizer, "a"), *rocket[:-1]])
    assert pieces == ["🚀a"]
    assert row.finish() == "🚀a\ufffd\ufffd\ufffd" == "".join(pieces)


class CountingTokenizer:
    """Does as `tokenizer` does and keeps the number of tokens of each decode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.sizes: list[int] = []

    def decode(self, ids: list[int], **options: Any) -> str:
        self.sizes.append(len(ids))
        return self.tokenizer.decode(ids, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize(
    "kind", ["words", "special", "<0x80>", "<0x0A>", "日本", "\U0001f680", "missing"]
)
@pytest.mark.parametrize("name", ["byte-level", "llama 2"])
def test_the_work_a_token_does_not_grow_with_the_text(name: str, kind: str) -> None:
    tokenizer = TOKENIZERS[name]()
    if kind == "special":
        tokens = [tokenizer.eos_token_id]
    elif kind == "missing":
        tokens = [len(tokenizer)]
    elif name == "byte-level":
        text = {"words": "the quick fox ", "<0x0A>": "\n", "<0x80>": "🚀"}.get(kind, kind)
        tokens = tokenizer(text)["input_ids"][-1 if kind == "<0x80>" else 0 :]
    else:
        tokens = ids_of(tokenizer, *(["▁Hello", "▁world"] if kind == "words" else [kind]))
    tokens = (tokens * 2000)[:2000]
    counting = CountingTokenizer(tokenizer)
    pieces = Detokenizer(counting, [len(tokenizer) - 1])
    begun = len(counting.sizes)
    text = "".join(pieces.push(token) for token in tokens) + pieces.flush()
    assert text == new_text(tokenizer, [len(tokenizer) - 1], tokens)
    assert max(counting.sizes) <= 2 * WINDOW
    assert len(counting.sizes) - begun <= 2 * len(tokens) + 2


def test_full_text_is_the_prompt_as_written_or_with_its_special_tokens(
    llama_tokenizer: Any,
) -> None:
    prompt = ids_of(llama_tokenizer, "<s>", "▁Hello", "<0xC3>")
    request = make_request(Prompt(None, [prompt, prompt]), vocab_size=10**6, max_positions=10**6)
    request = replace(request, prompt_texts=("<s> Hello, as written", None))
    new = ids_of(llama_tokenizer, "<0xA9>", "▁world", "</s>")
    texts = [new_text(llama_tokenizer, prompt, new)] * 2
    assert full_texts(llama_tokenizer, request, texts, [new, new]) == [
        "<s> Hello, as writtené world",
        "<s> Helloé world",
    ]
