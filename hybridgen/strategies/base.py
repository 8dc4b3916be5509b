"""What a strategy is, and what the strategies that run as rounds share."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from tqdm.auto import tqdm

from hybridgen.engine.loop import Program, Watcher, run
from hybridgen.engine.pair import Pair
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Rows
from hybridgen.engine.steps import prefill
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.request import Request
from hybridgen.result import GenerationResult, Stats, add_rates, fold
from hybridgen.strategies.declarations import Declaration
from hybridgen.text import TextStream, full_texts, open_streams


class Strategy(ABC):
    """A way for two models to write one text.

    reads_slm, reads_llm    which models it runs: their contexts limit the text
    """

    declaration: Declaration
    reads_slm = True
    reads_llm = True

    @abstractmethod
    def run(self, pair: Pair, request: Request, tokenizer: Any) -> GenerationResult:
        """Write the texts of ``request``: a batch result, whatever the prompt."""


@dataclass(frozen=True)
class RowCounts:
    """Who wrote the tokens of one row."""

    sources: tuple[int, ...]

    @property
    def total(self) -> int:
        return len(self.sources)

    @property
    def slm(self) -> int:
        return self.sources.count(SOURCE_SLM)

    @property
    def llm(self) -> int:
        return self.sources.count(SOURCE_LLM)

    def accepted_runs(self) -> list[int]:
        """SLM tokens before each LLM token, the end of the row counting as one: one a round."""
        runs, run = [], 0
        for source in self.sources:
            if source == SOURCE_LLM:
                runs.append(run)
                run = 0
            else:
                run += 1
        return [*runs, run] if run else runs


class RoundStrategy(Strategy):
    """A strategy whose work is a `Program` of rounds over a batch of the pair."""

    def load(self, batch: Batch, request: Request) -> None:
        """Load what only this strategy keeps, after the rows have been loaded."""

    @abstractmethod
    def program(self, batch: Batch, request: Request) -> Program:
        """The rounds of this request, from `Batch.round`."""

    @abstractmethod
    def describe(self, counts: RowCounts, batch: Batch, row: int, request: Request) -> Stats:
        """The statistics of one row that only this strategy has."""

    def run(self, pair: Pair, request: Request, tokenizer: Any) -> GenerationResult:
        """Write the texts of ``request``: a batch result, whatever the prompt."""
        began = perf_counter()
        with open_streams(tokenizer, request) as streams:
            batch = self.start(pair, request)
            with watchers(streams, request) as watching:
                run(batch.rows, self.program(batch, request), watching)
            refuse_broken(batch.rows)
            texts = [stream.finish() for stream in streams]
        elapsed = perf_counter() - began
        tokens = [stream.tokens for stream in streams]
        rows = [
            self.row_stats(batch, row, len(tokens[row]), request, elapsed)
            for row in range(request.rows)
        ]
        return GenerationResult(
            text=texts,
            tokens=tokens,
            stats=fold(rows, self.declaration.statistics),
            full_text=full_texts(tokenizer, request, texts, tokens),
            lines=self.declaration.lines,
        )

    def row_stats(
        self, batch: Batch, row: int, kept: int, request: Request, elapsed: float
    ) -> Stats:
        """The statistics of one row; tokens after its stop string do not count."""
        first = len(request.prompt_ids[row])
        written = batch.rows.source[row, first : first + kept].tolist()
        counts = RowCounts(tuple(written))
        return add_rates(
            {
                "strategy": request.strategy,
                "total_tokens": counts.total,
                "slm_tokens": counts.slm,
                "llm_tokens": counts.llm,
                "elapsed_time": elapsed,
                "prompt_tokens": first,
                "seed": request.seed[row],
                **self.describe(counts, batch, row, request),
            },
            self.declaration.statistics,
        )

    def start(self, pair: Pair, request: Request) -> Batch:
        """Load the request into its batch and let the models read the prompts but for one token."""
        prompts = request.prompt_ids
        limits = [len(prompt) + request.max_new_tokens for prompt in prompts]
        pair.will_write(request.rows, max(limits))
        batch = pair.batch(request.rows)
        batch.rows.load(prompts, limits, request.seed, request.sampling, request.end_ids)
        self.load(batch, request)
        lengths = [len(prompt) - 1 for prompt in prompts]
        for model, reads in ((pair.slm, self.reads_slm), (pair.llm, self.reads_llm)):
            if reads:
                prefill(batch.rows, model, lengths)
        return batch


def refuse_broken(rows: Rows) -> None:
    """Raise ValueError, naming the rows, where a model computed NaN."""
    if not bool(rows.broken.any()):
        return
    broken = rows.broken.nonzero()[:, 0].tolist()
    raise ValueError(
        f"a model computed NaN or infinite logits in row(s) {broken} of the prompt, after "
        f"{[int(rows.length[row]) for row in broken]} tokens: check its weights and dtype"
    )


@contextmanager
def watchers(streams: Sequence[TextStream], request: Request) -> Iterator[list[Watcher]]:
    """What sees the tokens as they come: the text, and a progress bar.

    The bar is shown on a terminal where no text is streamed.
    """

    def text(rows: Rows, row: int, first: int, last: int) -> bool:
        return streams[row].feed(rows.tokens[row, first:last].tolist()) is not None

    if request.stream is not None or not sys.stderr.isatty():
        yield [text]
        return

    def progress(rows: Rows, row: int, first: int, last: int) -> bool:
        bar.update(last - first)
        return False

    with tqdm(total=request.rows * request.max_new_tokens, unit="tok", leave=False) as bar:
        yield [text, progress]
