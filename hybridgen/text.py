"""A row's text as its tokens come: stop strings and streaming.

Plain host code that knows no model. `Detokenizer` (in its own file) gives each token's text,
`StopMatcher` finds stop strings and holds back what may become one, and `TextStream` puts both
together for a row of the loop and feeds the user's stream.

A stop string ends a row at the first token by which it is complete. That token is the last one of
the row's `tokens`; the row's `text` ends just before the stop string.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

from hybridgen.detokenizer import Detokenizer, decode, new_text, split_text
from hybridgen.parameters import is_streamer
from hybridgen.request import Request


class Stopped(Exception):
    """Raised by a stream to end the call: what was read and written so far is left for reuse."""


class StopMatcher:
    """Finds the first stop string in text that comes in pieces.

    The first is the one that is complete first; of two complete at the same character, the longer.
    Text that may turn out to be the beginning of a stop string is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.found = False

    def push(self, piece: str, tail: str = "") -> str:
        """Add a piece; return the text that no stop string can take back, up to the stop.

        `tail` is text after the piece that may yet change: it can complete a stop string, which
        ends the row and so makes it certain, but is not kept.
        """
        certain = self._held + piece
        text = certain + tail
        starts = [(text.find(stop), stop) for stop in self._stop]
        ends = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if ends:
            self.found = True
            self._held = ""
            return text[: min(ends)[1]]
        keep = len(certain) - max((_overlap(certain, stop) for stop in self._stop), default=0)
        self._held = certain[keep:]
        return certain[:keep]

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

        with open_streams(tokenizer, request) as streams:
            streams[row].feed([5, 17])   # None, or how many of all its tokens the row keeps
            streams[row].finish()        # the text; `tokens` are the tokens kept

    A callable stream gets each piece of the text, of a list of prompts after the row's number. A
    transformers streamer follows transformers' protocol instead: the prompt [1, T] first, then each
    token [1] that the row keeps, then `end()`; being fed tokens, it also shows the stop string that
    the text leaves out.
    """

    def __init__(self, tokenizer: Any, request: Request, row: int) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self._tokenizer = tokenizer
        self._prompt = request.prompt_ids[row]
        self._matcher = StopMatcher(request.stop)
        self._ends, self._limit = request.end_ids, request.max_new_tokens
        self._pieces: list[str] = []
        self._taken = False
        self._streamer = request.stream if is_streamer(request.stream) else None
        self._callback = None if self._streamer is not None else request.stream
        if self._callback is not None and request.is_batch:
            self._callback = partial(self._callback, row)
        self._needs_text = bool(request.stop) or self._callback is not None
        if self._needs_text:
            self._detokenizer = Detokenizer(tokenizer, self._prompt)
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
                piece = self._detokenizer.push(token)
                self._emit(self._matcher.push(piece, self._detokenizer.tail))
        return len(self.tokens) if self._matcher.found else None

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._matcher.found

    @property
    def finish_reason(self) -> str:
        """ "stop", "eos" or "length"; "end" where a strategy of one's own ended before these."""
        if self.stopped:
            return "stop"
        if self.tokens and self.tokens[-1] in self._ends:
            return "eos"
        return "length" if len(self.tokens) >= self._limit else "end"

    def take(self, text: str, most: int) -> bool:
        """Add a whole text whose tokens nobody knows, in place of tokens; whether it was cut.

        Its tokens are those that it encodes to, at most ``most``.
        """

        def encode(part: str) -> list[int]:
            return list(self._tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])

        kept = self._matcher.push(text)
        kept += "" if self._matcher.found else self._matcher.flush()
        self.tokens = encode(kept)
        if len(self.tokens) > most:
            self.tokens = self.tokens[:most]
            kept = decode(self._tokenizer, self.tokens)
        if self._streamer is not None:
            for token in self.tokens:
                self._streamer.put(torch.tensor([token], dtype=torch.int64, device="cpu"))
        self._taken = True
        self._emit(kept)
        return kept != text

    def finish(self) -> str:
        """Send what was held back and return the row's text."""
        if self._taken:
            self.text = "".join(self._pieces)
        elif not self._needs_text:
            self.text = new_text(self._tokenizer, self._prompt, self.tokens)
        else:
            if not self._matcher.found:
                self._emit(self._matcher.push(self._detokenizer.flush()))
                self._emit(self._matcher.flush())
            self.text = "".join(self._pieces)
        return self.text

    def _emit(self, piece: str) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        if self._callback is not None:
            self._callback(piece)


@contextmanager
def open_streams(tokenizer: Any, request: Request) -> Iterator[list[TextStream]]:
    """A `TextStream` for each row; `end()` of a transformers streamer follows, come what may.

    Who reads a streamer in another thread would wait for ever without it. When generation fails,
    its error is the one that is raised, whatever `end()` does.
    """
    end = request.stream.end if is_streamer(request.stream) else None
    try:
        yield [TextStream(tokenizer, request, row) for row in range(request.rows)]
    except BaseException:
        if end is not None:
            with suppress(Exception):
                end()
        raise
    if end is not None:
        end()


def full_texts(
    tokenizer: Any, request: Request, texts: Sequence[str], tokens: Sequence[Sequence[int]]
) -> list[str]:
    """Prompt and new text of each row: `texts` of the new `tokens`, cut at stop strings or not.

    A prompt that was given as a string stays as it was; any other is decoded. Either way its
    special tokens are kept. Half a character at its end that new tokens make whole is in the text.
    """
    rows = zip(request.prompt_texts, request.prompt_ids, texts, tokens, strict=True)
    whole = []
    for written, prompt, text, new in rows:
        if written is None:
            changed, _ = split_text(tokenizer, prompt, new)
            written = decode(tokenizer, prompt, skip_special_tokens=False).removesuffix(changed)
        whole.append(written + text)
    return whole
