"""What a strategy is, and what the strategies that run as rounds share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import compress
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hybridgen.engine.loop import Placed, Program, Text, Watcher, run
from hybridgen.engine.pair import Pair
from hybridgen.engine.processing import adjusted
from hybridgen.engine.progress import shows_progress
from hybridgen.engine.reuse import Held
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Hook
from hybridgen.engine.steps import prefill
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_LOOKUP, SOURCE_SLM
from hybridgen.request import Request
from hybridgen.result import GenerationResult, Stats, add_rates, fold
from hybridgen.strategies.declarations import Declaration
from hybridgen.text import Stopped, TextStream, full_texts, open_streams


class Strategy(ABC):
    """A way for two models to write one text.

    reads_slm, reads_llm    which models it runs: their contexts limit the text
    llm_decides             every token is one that the LLM would write
    """

    declaration: Declaration
    reads_slm = True
    reads_llm = True
    llm_decides = True

    @abstractmethod
    def run(self, pair: Pair, request: Request, tokenizer: Any) -> GenerationResult:
        """Write the texts of ``request``: a batch result, whatever the prompt."""


class Recorder(Protocol):
    """What sees a call from inside."""

    def recorded(self, batch: Batch) -> Batch:
        """The variant of ``batch`` whose rounds keep what is wanted of them."""
        ...

    def watch(self, text: Text, new: Sequence[int]) -> bool:
        """See `loop.Watcher`."""
        ...


@dataclass(frozen=True)
class Written:
    """What there is to say of a text: its tokens up to a stop string count.

    sources    who wrote each token
    rounds     each round that gave some: what the program called it, and how many it gave
    note       the last number that a round left for it
    """

    sources: tuple[int, ...]
    rounds: tuple[tuple[Any, int], ...]
    note: int

    @property
    def total(self) -> int:
        return len(self.sources)

    @property
    def slm(self) -> int:
        return self.sources.count(SOURCE_SLM)

    @property
    def llm(self) -> int:
        return self.sources.count(SOURCE_LLM)

    @property
    def lookup(self) -> int:
        return self.sources.count(SOURCE_LOOKUP)


class RoundStrategy(Strategy):
    """A strategy whose work is a `Program` of rounds over a batch of the pair."""

    def load(self, batch: Batch, request: Request, rows: Sequence[int]) -> None:
        """Load what only this strategy keeps of the texts that have been put into ``rows``."""

    @abstractmethod
    def program(self, batch: Batch, request: Request) -> Program:
        """The rounds of this request, all from `Batch.round`: later ones could not be captured."""

    @abstractmethod
    def describe(self, written: Written, request: Request) -> Stats:
        """The statistics of one row that only this strategy has."""

    def run(
        self, pair: Pair, request: Request, tokenizer: Any, recorder: Recorder | None = None
    ) -> GenerationResult:
        """Write the texts of ``request``: a batch result, whatever the prompt."""
        batch, program = self.prepare(pair, request, recorder=recorder)
        began = perf_counter()
        with open_streams(tokenizer, request) as streams:

            def ended(text: Text) -> None:
                streams[text.index].finish()

            with watchers(streams, request) as watching:
                if recorder is not None:
                    watching.append(recorder.watch)
                texts = self.write(pair, batch, program, request, watching, ended)
        rows = [
            self.row_stats(text, len(stream.tokens), request) | pair.quantised
            for text, stream in zip(texts, streams, strict=True)
        ]
        stats = fold(rows, self.declaration.statistics)
        stats["elapsed_time"] = perf_counter() - began
        tokens, written = [s.tokens for s in streams], [s.text for s in streams]
        self.leave(pair, batch, request, texts, [len(kept) for kept in tokens])
        return GenerationResult(
            text=written,
            tokens=tokens,
            stats=add_rates(stats, self.declaration.statistics),
            full_text=full_texts(tokenizer, request, written, tokens),
            lines=self.declaration.lines,
            finish_reason=[stream.finish_reason for stream in streams],
        )

    def prepare(
        self,
        pair: Pair,
        request: Request,
        observe: Callable[[Batch], Hook] | None = None,
        recorder: Recorder | None = None,
    ) -> tuple[Batch, Program]:
        """The batch and the rounds of such a request, captured where they have not been yet.

        observe     makes what is to see the models' logits as they are; its rounds are not captured
        recorder    sees them as tokens are drawn from them
        """
        batch = pair.batch(pair.width(request.rows))
        if observe is not None:
            batch = batch.hooked(observe(batch), captured=False)
        batch = adjusted(batch, request.adjustment)
        if recorder is not None:
            batch = recorder.recorded(batch)
        with capturing(pair):
            program = self.program(batch, request)
        batch.rows.rest()
        return batch, program

    def write(
        self,
        pair: Pair,
        batch: Batch,
        program: Program,
        request: Request,
        watching: Sequence[Watcher],
        ended: Callable[[Text], None] = lambda text: None,
    ) -> list[Text]:
        """Write the request's texts by the rounds of a ``program`` on ``batch``, see `loop.run`."""
        texts = [
            Text(i, prompt, len(prompt) + request.max_new_tokens, request.seed[i])
            for i, prompt in enumerate(request.prompt_ids)
        ]
        pair.will_write(batch.width, max(text.limit for text in texts))
        held = pair.held if request.reuse else None
        start = partial(self.start, batch, request, held)
        try:
            run(batch, program, texts, start, watching, ended)
        except Stopped:
            self.leave(pair, batch, request, texts, [len(text.tokens) for text in texts])
            raise
        return texts

    def leave(
        self,
        pair: Pair,
        batch: Batch,
        request: Request,
        texts: Sequence[Text],
        kept: Sequence[int],
    ) -> None:
        """Let the next call know what the caches hold of ``texts``, with kept[i] new tokens each.

        Of the texts that were in a row one after the other it is the last.
        """
        tokens: dict[int, Sequence[int]] = {
            text.row: [*text.prompt, *text.tokens[:count]]
            for text, count in zip(texts, kept, strict=True)
            if text.row >= 0
        }
        pair.leave(Held(tokens, torch.stack(self.cached(batch, request))))

    def cached(self, batch: Batch, request: Request) -> tuple[Tensor, Tensor]:
        """Of how many tokens, from its start on, the SLM and the LLM hold each row: int64 [B] each.

        It may be fewer than are there. A model that has just written a token has not read it.
        """
        read, unread = batch.rows.length - 1, torch.zeros_like(batch.rows.length)
        return (read if self.reads_slm else unread), (read if self.reads_llm else unread)

    def row_stats(self, text: Text, kept: int, request: Request) -> Stats:
        """The statistics of one row; tokens after its stop string do not count."""
        written = Written(tuple(text.sources[:kept]), tuple(text.rounds), text.note)
        return add_rates(
            {
                "strategy": request.strategy,
                "total_tokens": written.total,
                "slm_tokens": written.slm,
                "llm_tokens": written.llm,
                "elapsed_time": text.seconds,
                "prompt_tokens": len(text.prompt),
                "seed": text.seed,
                **({"reused_tokens": text.reused} if request.reuse else {}),
                **self.describe(written, request),
            },
            self.declaration.statistics,
        )

    def start(self, batch: Batch, request: Request, held: Held | None, placed: Placed) -> None:
        """Put texts into rows, and let the models read their prompts but for one token.

        held    what they have read already
        """
        rows, texts = [row for row, _ in placed], [text for _, text in placed]
        prompts = [text.prompt for text in texts]
        limits, seeds = [text.limit for text in texts], [text.seed for text in texts]
        batch.rows.load(prompts, limits, seeds, request.sampling, request.end_ids, rows)
        self.load(batch, request, rows)
        for hook in batch.rows.hooks:
            hook.start(request.adjustment, placed)
        lengths = [len(prompt) - 1 for prompt in prompts]
        starts = [held.take(row, text.prompt) if held else (0, 0) for row, text in placed]
        slm_starts = [slm for slm, _ in starts]
        unread = dict(zip(rows, zip(slm_starts, lengths, strict=True), strict=True))
        slm_reads = self.reads_slm and not self.slm_waits(batch, request, unread)
        if slm_reads:
            prefill(batch.rows, batch.slm, lengths, rows, slm_starts)
        if self.reads_llm:
            prefill(batch.rows, batch.llm, lengths, rows, [llm for _, llm in starts])
        for text, start in zip(texts, starts, strict=True):
            text.reused = min(compress(start, (slm_reads, self.reads_llm)), default=0)

    def slm_waits(
        self, batch: Batch, request: Request, unread: Mapping[int, tuple[int, int]]
    ) -> bool:
        """Whether the SLM reads of new texts only as it is asked.

        unread    by row, from which token of the text to which; where it waits this is the only
                  word of it
        """
        return False


@contextmanager
def capturing(pair: Pair) -> Iterator[None]:
    """Count the rounds that are compiled and captured meanwhile, where that can be seen."""
    if pair.graphs is None or not shows_progress():
        yield
        return
    before = pair.graphs.captured
    with tqdm(desc="compiling and capturing", unit=" rounds", leave=False) as bar:
        pair.graphs.captured = bar.update
        try:
            yield
        finally:
            pair.graphs.captured = before


@contextmanager
def watchers(streams: Sequence[TextStream], request: Request) -> Iterator[list[Watcher]]:
    """What sees the tokens as they come: the text, and a progress bar.

    The bar is shown on a terminal and in a notebook, where no text is streamed.
    """

    def show(text: Text, new: Sequence[int]) -> bool:
        return streams[text.index].feed(new) is not None

    if request.stream is not None or not shows_progress():
        yield [show]
        return

    def progress(text: Text, new: Sequence[int]) -> bool:
        bar.update(len(new))
        return False

    with tqdm(total=request.rows * request.max_new_tokens, unit="tok", leave=False) as bar:
        yield [show, progress]
