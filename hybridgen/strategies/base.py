"""What a strategy is, and what the strategies that run as rounds share."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from tqdm.auto import tqdm

from hybridgen.engine.loop import Program, run
from hybridgen.engine.pair import Pair
from hybridgen.engine.state import State
from hybridgen.engine.steps import embeddable
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.request import Request
from hybridgen.result import GenerationResult, Stats, add_rates, fold
from hybridgen.strategies.declarations import Declaration
from hybridgen.text import full_texts, open_streams


class GenerationStrategy(ABC):
    """A way for two models to write one text; put yours into ``generator.strategies[name]``.

    A ``declaration`` makes its options known: `generate` checks them and refuses any other, and the
    command line can show them. Without one, every keyword is passed on as it is.
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
    ) -> tuple[str, Stats] | GenerationResult:
        """Return the new text and its statistics.

        slm, llm    decoders: ``logits = model(tokens[B, M], start[B])`` for positions start to
                    start + M - 1, after ``model.prefill(tokens[B, T], lengths)``
        prompt      as the caller gave it
        **kwargs    ``request``, the checked arguments of the call with the prompt's token ids;
                    ``pair``, what the decoders are part of; and the strategy's own options
        """


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


class RoundStrategy(ABC):
    """A strategy whose work is a `Program` of rounds over the pair's state."""

    declaration: Declaration
    reads_slm = True
    reads_llm = True

    @property
    def name(self) -> str:
        return self.declaration.name

    def num_drafts(self, request: Request) -> int:
        """Drafts of a round; 0 where nothing is drafted."""
        return 0

    def threshold(self, request: Request) -> float:
        """The routing threshold; 0 where nothing is routed."""
        return 0.0

    @abstractmethod
    def program(self, state: State, pair: Pair, request: Request) -> Program:
        """The rounds of this request."""

    @abstractmethod
    def describe(self, counts: RowCounts, state: State, row: int, request: Request) -> Stats:
        """The statistics of one row that only this strategy has."""

    def run(self, pair: Pair, request: Request, tokenizer: Any) -> GenerationResult:
        """Write the texts of the request: a batch result, whatever the prompt."""
        began = perf_counter()
        with open_streams(tokenizer, request) as streams:
            state = self.start(pair, request)
            with progress_bar(request) as progress:
                run(state, self.program(state, pair, request), streams, progress)
            if bool(state.broken.any()):
                self.refuse_broken(state)
            texts = [stream.finish() for stream in streams]
        elapsed = perf_counter() - began
        tokens = [stream.tokens for stream in streams]
        rows = [
            self.row_stats(state, row, len(tokens[row]), request, elapsed)
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
        self, state: State, row: int, kept: int, request: Request, elapsed: float
    ) -> Stats:
        """The statistics of one row; tokens after its stop string do not count."""
        first = len(request.prompt_ids[row])
        written = state.source[row, first : first + kept].tolist()
        counts = RowCounts(tuple(written))
        return add_rates(
            {
                "strategy": self.name,
                "total_tokens": counts.total,
                "slm_tokens": counts.slm,
                "llm_tokens": counts.llm,
                "elapsed_time": elapsed,
                "prompt_tokens": first,
                "seed": request.seed[row],
                **self.describe(counts, state, row, request),
            },
            self.declaration.statistics,
        )

    def start(self, pair: Pair, request: Request) -> State:
        """Load the request into its state and let the models read the prompts but for one token."""
        prompts = request.prompt_ids
        limits = [len(prompt) + request.max_new_tokens for prompt in prompts]
        pair.will_write(request.rows, max(limits))
        state = pair.state(request.rows, self.num_drafts(request))
        state.load(
            prompts,
            limits,
            request.seed,
            request.sampling,
            request.end_ids,
            self.threshold(request),
        )
        lengths = [len(prompt) - 1 for prompt in prompts]
        tokens = state.tokens[:, : max(lengths)]
        for model, reads in ((pair.slm, self.reads_slm), (pair.llm, self.reads_llm)):
            if reads:
                model.prefill(embeddable(state, tokens, model), lengths)
        return state

    def refuse_broken(self, state: State) -> None:
        """Name the rows in which a model computed NaN."""
        rows = state.broken.nonzero()[:, 0].tolist()
        raise ValueError(
            f"a model computed NaN or infinite logits in row(s) {rows} of the prompt, after "
            f"{[int(state.length[row]) for row in rows]} tokens: check its weights and dtype"
        )


@contextmanager
def progress_bar(request: Request) -> Iterator[Callable[[int], Any] | None]:
    """Counts new tokens on the terminal; None without a terminal, or while text streams."""
    if request.stream is not None or not sys.stderr.isatty():
        yield None
        return
    with tqdm(total=request.rows * request.max_new_tokens, unit="tok", leave=False) as bar:
        yield bar.update
