"""Strategies of a user's own: the class they subclass, and what makes one run as ours do.

`Custom` is the adapter. Whatever a strategy gives back, a text or token after token, it gets stop
strings, streaming, limits, its true tokens and the statistics that every strategy has.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import replace
from time import perf_counter
from types import GeneratorType
from typing import Any

import torch

from hybridgen.checks import check_int, quoted, shown
from hybridgen.engine.pair import Pair
from hybridgen.request import Request
from hybridgen.result import GenerationResult, Stats, add_rates, fold
from hybridgen.strategies.base import Strategy
from hybridgen.strategies.declarations import BUILT_IN, Declaration
from hybridgen.text import TextStream, full_texts, open_streams

# A custom strategy may report what the built-in ones do.
LINES = tuple(dict.fromkeys(line for built_in in BUILT_IN for line in built_in.lines))


class GenerationStrategy(ABC):
    """A way for two models to write one text; put yours into ``generator.strategies[name]``.

    ``declaration`` may say its options, statistics and lines. With one, the options are checked,
    and an argument that nobody knows is an error; with None, any keyword reaches `generate`.
    """

    declaration: Declaration | None = None

    @abstractmethod
    def generate(
        self,
        slm: Any,
        llm: Any,
        tokenizer: Any,
        prompt: Any,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        device: torch.device,
        **kwargs: Any,
    ) -> "tuple[str, Stats] | Generator[Any, bool | None, Stats | None]":
        """Write the text: token after token, or whole.

        slm, llm    decoders: ``logits = model(tokens[B, M], start[B])`` for positions start to
                    start + M - 1, after ``model.prefill(tokens[B, T], lengths)``; ``slm`` is None
                    where the generator has the LLM alone
        prompt      as the caller gave it
        **kwargs    ``request``, the checked arguments of the call with the prompt's token ids;
                    ``pair``; and what else the caller passed

        As a generator function, ``yield`` each token id as soon as it is chosen (for several
        prompts a list, one id a row, None for a row without one): it is streamed at once, and
        ``yield`` is True once no more is wanted: a stop string, an eos or the limit has come.
        ``return`` the statistics then, if there are any.

        Otherwise return (text, statistics), lists of texts for several prompts. A text made by
        `hybridgen.utils.new_text` knows its tokens; of any other, ``statistics["tokens"]`` may
        tell them, or they are those that the text encodes to.
        """


class Custom(Strategy):
    """``strategy`` as one of ours, for one call that passes it ``arguments`` by keyword."""

    def __init__(self, name: str, strategy: GenerationStrategy, arguments: dict[str, Any]) -> None:
        declared = strategy.declaration or Declaration(name, "", lines=LINES)
        self.declaration = replace(declared, name=name)
        self.strategy, self.arguments = strategy, arguments

    def run(self, pair: Pair, request: Request, tokenizer: Any) -> GenerationResult:
        """Write the texts of ``request``: a batch result, whatever the prompt."""
        began = perf_counter()
        with open_streams(tokenizer, request) as streams:
            outcome = self._call(pair, request, tokenizer)
            if isinstance(outcome, Generator):
                stats, cut = self._follow(outcome, streams, request, pair.vocab_size), False
            else:
                stats, cut = self._take(outcome, streams, request)
            texts = [stream.finish() for stream in streams]
        tokens = [stream.tokens for stream in streams]
        return GenerationResult(
            text=texts,
            tokens=tokens,
            stats=self._complete(stats, tokens, request, perf_counter() - began, cut),
            full_text=full_texts(tokenizer, request, texts, tokens),
            lines=self.declaration.lines,
            finish_reason=[stream.finish_reason for stream in streams],
        )

    def _call(self, pair: Pair, request: Request, tokenizer: Any) -> Any:
        options = {option.name: request.values[option.name] for option in self.declaration.options}
        return self.strategy.generate(
            slm=pair.slm,
            llm=pair.llm,
            tokenizer=tokenizer,
            max_new_tokens=request.max_new_tokens,
            **request.sampling._asdict(),
            device=pair.llm.device,
            request=request,
            pair=pair,
            **{**self.arguments, **options},
        )

    def _follow(
        self,
        steps: Generator[Any, bool | None, Any],
        streams: Sequence[TextStream],
        request: Request,
        vocab_size: int,
    ) -> Stats:
        """Stream what is yielded until every row has ended; the statistics, where it tells them."""
        writing = set(range(len(streams)))
        try:
            step = next(steps)
            while writing:
                for row, token in enumerate(self._tokens(step, len(streams), vocab_size)):
                    if token is not None and row in writing:
                        streams[row].feed([token])
                        if ended(streams[row], request):
                            writing.discard(row)
                if not writing and not listens(steps):
                    break
                step = next(steps) if writing else steps.send(True)
        except StopIteration as end:
            return self._checked(end.value)
        finally:
            steps.close()
        return {}

    def _take(
        self, outcome: Any, streams: Sequence[TextStream], request: Request
    ) -> tuple[Stats, bool]:
        """Stream a whole text; its statistics, and whether something was cut off."""
        try:
            text, stats = outcome
        except (TypeError, ValueError):
            text = stats = None
        texts = text if isinstance(text, list) else [text]
        if not all(isinstance(row, str) for row in texts) or not isinstance(stats, dict):
            raise TypeError(f"{self._where()} must return (text, stats), not {shown(outcome)}")
        if len(texts) != request.rows:
            raise ValueError(
                f"{self._where()} returned {len(texts)} texts for {request.rows} prompts"
            )
        told = stats.get("tokens")
        if told is not None and request.rows == 1 and not (told and isinstance(told[0], list)):
            told = [told]
        if told is not None and len(told) != request.rows:
            raise ValueError(
                f"{self._where()} told the tokens of {len(told)} texts for {request.rows} prompts"
            )
        cut = False
        for row, (stream, whole) in enumerate(zip(streams, texts, strict=True)):
            tokens = getattr(whole, "tokens", None) if told is None else told[row]
            if tokens is None:
                cut |= stream.take(whole, request.max_new_tokens)
                continue
            for token in tokens:
                if ended(stream, request):
                    break
                stream.feed([int(token)])
            cut |= len(stream.tokens) < len(tokens)
        return stats, cut

    def _tokens(self, step: Any, rows: int, vocab_size: int) -> list[int | None]:
        """What was yielded, one id a row."""
        tokens = step if isinstance(step, list) else [step]
        if len(tokens) != rows:
            raise ValueError(f"{self._where()} yielded {len(tokens)} tokens for {rows} prompts")
        name = f"{self._where()} yielded a token that"
        return [
            None if token is None else check_int(name, token, 0, vocab_size - 1) for token in tokens
        ]

    def _checked(self, stats: Any) -> Stats:
        """What a generator function returned: its statistics, or nothing."""
        if stats is not None and not isinstance(stats, dict):
            raise TypeError(f"{self._where()} must return its statistics, not {shown(stats)}")
        return stats or {}

    def _complete(
        self,
        told: Stats,
        tokens: Sequence[Sequence[int]],
        request: Request,
        elapsed: float,
        cut: bool,
    ) -> Stats:
        """The strategy's own statistics, and those of every strategy that it did not tell."""
        rows: list[Stats] = [
            {
                "strategy": self.declaration.name,
                "total_tokens": len(tokens[row]),
                "elapsed_time": elapsed,
                "prompt_tokens": len(request.prompt_ids[row]),
                "seed": request.seed[row],
            }
            for row in range(request.rows)
        ]
        rows = [add_rates(row, {}) for row in rows]
        own = {name: value for name, value in told.items() if not (cut and name == "total_tokens")}
        whole = {**fold(rows, {}), **own}
        if request.rows == 1:
            whole["rows"] = [{**rows[0], **own}]
        return whole

    def _where(self) -> str:
        return f"strategies[{quoted(self.declaration.name)}]"


def listens(steps: Any) -> bool:
    """Whether a generator can be sent something: one that yields from a list cannot."""
    while isinstance(steps, GeneratorType):
        if steps.gi_yieldfrom is None:
            return True
        steps = steps.gi_yieldfrom
    return False


def ended(stream: TextStream, request: Request) -> bool:
    """Whether a row has come to a stop string, an eos or its limit."""
    tokens = stream.tokens
    return (
        stream.stopped
        or len(tokens) >= request.max_new_tokens
        or (bool(tokens) and tokens[-1] in request.end_ids)
    )
