"""From token ids to text, one token at a time: characters, stop strings and streaming.

Three small parts, plain host code that knows no model. `Detokenizer` gives each token's text with
characters whole, `StopMatcher` finds stop strings and holds back what may become one, and
`TextStream` puts both together for a row of the loop and feeds the user's stream.

A stop string ends a row at the first token by which it is complete. That token is the last one of
the row's `tokens`; the row's `text` ends just before the stop string.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hybridgen.request import Request

REPLACEMENT = "\ufffd"  # what a decoder shows for bytes that are not (yet) a character
LONGEST_CHARACTER = 4  # bytes, and so at most tokens, of one character in UTF-8
WINDOW = 16  # tokens decoded together; more only while a character stays incomplete
LONGEST_WINDOW = 64


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of `ids` without special tokens, exactly as the model wrote it."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


class Detokenizer:
    """Text of a growing list of tokens, in pieces; a piece never ends in half a character.

    Each token decodes a window of a few tokens, not the whole text, so the cost a token is
    constant. The window starts at a group of tokens that ended a whole character, which gives
    decoders that look at their neighbours (leading spaces, runs of bytes) the context they need.

    The joined pieces are `decode` of all tokens for byte-level tokenizers. Tokenizers with byte
    *fallback* decode a run of bytes that is not valid UTF-8 as a whole to replacement characters,
    also its valid part; pieces already given are not taken back then.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._given = 0  # characters of the window's text already returned
        self._whole = 0  # tokens of the window up to the last whole character
        self._previous = 0  # the same, one group of tokens earlier

    def push(self, token: int) -> str:
        """Add a token and return the text that is certain now."""
        self._window.append(token)
        text = decode(self._tokenizer, self._window)
        certain = len(text.rstrip(REPLACEMENT))
        incomplete = len(text) - certain
        if incomplete and len(self._window) - self._whole >= LONGEST_CHARACTER:
            incomplete = min(incomplete, LONGEST_CHARACTER - 1)
            certain = len(text) - incomplete
        piece = text[self._given : certain]
        self._given = max(self._given, certain)
        if piece and not incomplete:
            self._previous, self._whole = self._whole, len(self._window)
            if self._whole > WINDOW:
                self._restart(self._previous, 0)
        elif len(self._window) > LONGEST_WINDOW:
            self._restart(len(self._window) - WINDOW, incomplete)
        return piece

    def flush(self) -> str:
        """The rest: bytes that never became a character, as replacement characters."""
        text = decode(self._tokenizer, self._window)
        piece = text[self._given :]
        self._given = len(text)
        return piece

    def _restart(self, first: int, incomplete: int) -> None:
        """Let the window begin at its token `first`."""
        self._window = self._window[first:]
        self._given = len(decode(self._tokenizer, self._window)) - incomplete
        self._whole = max(self._whole - first, 0)
        self._previous = 0


class StopMatcher:
    """Finds the first stop string in text that comes in pieces.

    The first is the one that is complete first; of two complete at the same character, the longer.
    Text that may turn out to be the beginning of a stop string is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Add a piece; return the text that no stop string can take back, up to the stop."""
        text = self._held + piece
        starts = [(text.find(stop), stop) for stop in self._stop]
        ends = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if ends:
            self.found = True
            self._held = ""
            return text[: min(ends)[1]]
        keep = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """What is still held back when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than `stop`."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0


class TextStream:
    """One row's tokens, text and stream, fed with the tokens of each round.

        stream = TextStream(tokenizer, request, row)
        stream.feed([5, 17])     # None, or how many of all its tokens the row keeps: it is over
        stream.finish()          # the text; stream.tokens are the tokens kept

    A callable stream gets each piece of the text. A transformers streamer follows transformers'
    protocol instead: the prompt [1, T] first, then each token [1] that the row keeps, then `end()`;
    being fed tokens, it also shows the stop string that the text leaves out.
    """

    def __init__(self, tokenizer: Any, request: Request, row: int) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self._tokenizer = tokenizer
        self._prompt = request.prompt_ids[row]
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(request.stop)
        self._pieces: list[str] = []
        is_streamer = hasattr(request.stream, "put") and hasattr(request.stream, "end")
        self._streamer = request.stream if is_streamer else None
        self._callback = None if is_streamer else request.stream
        self._needs_text = bool(request.stop) or self._callback is not None
        if self._streamer is not None:
            self._streamer.put(torch.tensor([self._prompt], dtype=torch.int64, device="cpu"))

    def feed(self, tokens: Sequence[int]) -> int | None:
        """Add the row's next tokens; once a stop string is complete, the number of tokens to keep.

        Tokens after the stop are ignored. Without stop strings and without a callable stream
        nothing is decoded before `finish`.
        """
        for token in tokens:
            if self._matcher.found:
                break
            self.tokens.append(token)
            if self._streamer is not None:
                self._streamer.put(torch.tensor([token], dtype=torch.int64, device="cpu"))
            if self._needs_text:
                self._emit(self._matcher.push(self._detokenizer.push(token)))
        return len(self.tokens) if self._matcher.found else None

    def finish(self) -> str:
        """Send what was held back, end the stream, and return the row's text."""
        if not self._needs_text:
            self.text = decode(self._tokenizer, self.tokens)
        else:
            if not self._matcher.found:
                self._emit(self._matcher.push(self._detokenizer.flush()))
                self._emit(self._matcher.flush())
            self.text = "".join(self._pieces)
        if self._streamer is not None:
            self._streamer.end()
        return self.text

    def full_text(self, prompt: object = None) -> str:
        """After `finish`: prompt and text together; a string `prompt` stays as the user wrote it.

        Decoding both together keeps the space between them, which tokenizers that mark a word by
        a leading space drop from the new text alone.
        """
        before = decode(self._tokenizer, self._prompt)
        whole = decode(self._tokenizer, [*self._prompt, *self.tokens])
        cut = len(decode(self._tokenizer, self.tokens)) - len(self.text)
        whole = whole[: len(whole) - cut]
        if isinstance(prompt, str) and whole.startswith(before):
            return prompt + whole[len(before) :]
        return whole

    def _emit(self, piece: str) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        if self._callback is not None:
            self._callback(piece)
