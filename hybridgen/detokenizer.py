"""From token ids to text: what new tokens add to the text of their prompt.

The one definition, `new_text`: decode the prompt, decode prompt and new tokens together, and take
what the second has beyond the first. Decoding the new tokens alone would be something else: a
tokenizer that marks words by a leading space (Llama 2, Mistral) drops it at the beginning of a
text, and a character may begin in the prompt. `Detokenizer` gives the same text in pieces, one
token at a time, at a constant cost a token.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are not (yet) a character
LONGEST_CHARACTER = 4  # bytes, and so at most tokens, of one character in UTF-8
WINDOW = 16  # tokens decoded together

_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]  # of vocabularies with byte fallback


def decode(tokenizer: Any, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """The text of `ids`, exactly as the model wrote it."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )
    return text


def new_text(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """What the tokens `new` add to the text of the tokens `prompt`, without special tokens.

    Where the end of the prompt's text changes as tokens follow (half a character that becomes
    whole), the changed part belongs to the new text.
    """
    return split_text(tokenizer, prompt, new)[1]


def split_text(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> tuple[str, str]:
    """The end of the prompt's text that `new` changes (mostly nothing), and `new_text`."""
    before = decode(tokenizer, prompt)
    whole = decode(tokenizer, [*prompt, *new])
    shared = _common(before, whole)
    return before[shared:], whole[shared:]


class Detokenizer:
    """`new_text` of a growing list of tokens, in pieces; a piece never ends in half a character.

    Each token decodes a window of a few tokens that begins with the prompt's last ones and moves
    on at whole characters, so the decoder has the neighbours that it looks at.

    `tail` is text that is whole, but that the next token may still take back: the text of a
    `ByteRun`, which becomes part of a piece when the run is over.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()) -> None:
        self.tail = ""
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary(tokenizer)
        self._repeated = ""  # end of the prompt's text that the first new tokens give again
        self._run = ByteRun()
        self._window: list[int] = []
        self._text = ""  # of the window
        self._given = 0  # characters of it already returned
        self._whole = 0  # tokens of the window up to the last whole character
        self._previous = 0  # the same, one group of tokens earlier
        first = len(prompt) - self._vocabulary.trailing_run(prompt)
        self._move(self._context(prompt[:first]))
        for token in prompt[first:]:
            self.push(token)
        self.tail, self._repeated = "", self._rest()

    def push(self, token: int) -> str:
        """Add a token and return the text that is certain now."""
        byte = self._vocabulary.bytes.get(token)
        if byte is not None:
            piece = self._push_byte(token, byte)
        elif self._run.size and self._vocabulary.is_skipped(token):
            return ""
        else:
            piece = self._end_run() + self._extend([token])
        piece, self._repeated = _without(piece, self._repeated)
        self.tail = "" if self._run.partial else _without(self._run.text, self._repeated)[0]
        return piece

    def flush(self) -> str:
        """The rest: bytes that never became a character, as replacement characters."""
        return _without(self._rest(), self._repeated)[0]

    def _extend(self, tokens: list[int]) -> str:
        """Add tokens to the window; the whole characters that they add to its text."""
        self._window += tokens
        text = decode(self._tokenizer, self._window)
        if text == self._text and self._vocabulary.is_skipped(tokens[-1]):
            self._window.pop()
            return ""
        self._text = text
        certain = len(text) - self._unfinished(text)
        piece = text[self._given : certain]
        self._given = max(self._given, certain)
        if piece and certain == len(text):
            self._previous, self._whole = self._whole, len(self._window)
            if self._whole > WINDOW:
                self._move(self._window[self._previous :])
        return piece

    def _unfinished(self, text: str) -> int:
        """How many characters at the end of the window's text stand for half a character."""
        if not text.endswith(REPLACEMENT):
            return 0
        shown = len(text) - len(text.rstrip(REPLACEMENT))
        return min(shown, self._vocabulary.unfinished_bytes(self._window))

    def _move(self, window: Sequence[int]) -> None:
        """Let these tokens be the window; their text has been given, but for half a character."""
        self._window = list(window)
        self._text = decode(self._tokenizer, self._window)
        self._given = len(self._text) - self._unfinished(self._text)
        self._whole, self._previous = len(self._window), 0

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of the prompt that are text: enough that they have some."""
        size = WINDOW
        while True:
            window = self._vocabulary.visible(prompt[-size:])
            enough = len(window) >= LONGEST_CHARACTER and decode(self._tokenizer, window)
            if enough or size >= len(prompt):
                return window
            size *= 2

    def _push_byte(self, token: int, byte: int) -> str:
        """Add a byte to the run: nothing is certain of it until it is over or spoiled."""
        run = self._run
        run.size += 1
        if run.spoiled:
            return REPLACEMENT
        run.partial.append(token)
        try:
            whole = run.utf8.decode(bytes([byte]))
        except UnicodeDecodeError:
            return self._spoil()
        if whole:
            run.text += self._extend(run.partial)
            run.partial = []
        return ""

    def _spoil(self) -> str:
        """The run is not UTF-8: all of it is replacement characters."""
        self._move(self._run.partial[-1:])
        self._given = len(self._text)
        self._run = ByteRun(self._run.size, spoiled=True)
        return REPLACEMENT * self._run.size

    def _end_run(self) -> str:
        """Another token follows the run: its text is certain."""
        if not self._run.size:
            return ""
        piece = self._spoil() if self._run.partial else self._run.text
        self._run = ByteRun()
        return piece

    def _rest(self) -> str:
        """What would be added to the pieces if no token followed."""
        if self._run.partial:
            return REPLACEMENT * self._run.size
        return self._run.text + self._text[self._given :]


@dataclass
class ByteRun:
    """Byte tokens in a row, of a vocabulary with byte fallback.

    They are decoded as a whole: to UTF-8, or, where one byte does not belong there, to one
    replacement character for each.
    """

    size: int = 0
    text: str = ""  # while it is valid
    partial: list[int] = field(default_factory=list)  # tokens of a character that is incomplete
    spoiled: bool = False
    utf8: Any = field(default_factory=codecs.getincrementaldecoder("utf-8"))


class Vocabulary:
    """What the tokens of a tokenizer are made of."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._skipped: dict[int, bool] = {}
        self.bytes = _fallback_bytes(tokenizer)

    def is_skipped(self, token: int) -> bool:
        """Whether decoding leaves the token out: it is special, or there is none of this id."""
        if token not in self._skipped:
            self._skipped[token] = self._tokenizer.convert_ids_to_tokens(token) is None or decode(
                self._tokenizer, [token]
            ) != decode(self._tokenizer, [token], skip_special_tokens=False)
        return self._skipped[token]

    def visible(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that are not skipped."""
        return [token for token in tokens if not self.is_skipped(token)]

    def trailing_run(self, tokens: Sequence[int]) -> int:
        """How many tokens at the end are one run of fallback bytes, skipped ones between them."""
        if not self.bytes:
            return 0
        start = len(tokens)
        while start and (tokens[start - 1] in self.bytes or self.is_skipped(tokens[start - 1])):
            start -= 1
        return len(tokens) - start

    def unfinished_bytes(self, tokens: Sequence[int]) -> int:
        """Bytes at the end of the tokens that are the beginning of one character, or may be."""
        end = b""
        for token in reversed(tokens):
            written = self._bytes_of(token)
            if written is None:
                return LONGEST_CHARACTER - 1
            end = written + end
            if len(end) >= LONGEST_CHARACTER - 1:
                break
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        utf8.decode(end[1 - LONGEST_CHARACTER :])
        return len(utf8.getstate()[0])

    def _bytes_of(self, token: int) -> bytes | None:
        """Those of a token's text, or None where the tokenizer does not tell."""
        written = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(written, bytes):
            return written
        if not isinstance(written, str):
            return b""
        if REPLACEMENT in written and self._tokenizer.convert_tokens_to_ids(written) != token:
            return None
        if re.fullmatch(r"<0x[0-9A-F]{2}>", written):
            return bytes([int(written[3:5], 16)])
        try:
            return bytes(_BYTE_LEVEL[character] for character in written)
        except KeyError:
            return written.encode("utf-8", "replace")


def _fallback_bytes(tokenizer: Any) -> dict[int, int]:
    """Byte of each byte token, where one bad byte spoils the whole run; else nothing."""
    ids = tokenizer.convert_tokens_to_ids(["<0x41>", "<0xFF>"])
    if None in ids or tokenizer.convert_ids_to_tokens(ids) != ["<0x41>", "<0xFF>"]:
        return {}
    if decode(tokenizer, ids) != 2 * REPLACEMENT:
        return {}
    ids = tokenizer.convert_tokens_to_ids(_BYTE_TOKENS)
    written = tokenizer.convert_ids_to_tokens(ids)
    return {ids[byte]: byte for byte in range(256) if written[byte] == _BYTE_TOKENS[byte]}


def _byte_level() -> dict[str, int]:
    """Byte of each character in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    shown += range(ord("®"), ord("ÿ") + 1)
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTE_LEVEL = _byte_level()


def _common(first: str, second: str) -> int:
    """Length of the longest common beginning."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _without(piece: str, repeated: str) -> tuple[str, str]:
    """`piece` without what it begins with of `repeated`, and what of that may come in the next."""
    if not piece or not repeated:
        return piece, repeated
    shared = _common(repeated, piece)
    return piece[shared:], repeated[shared:] if shared == len(piece) else ""
