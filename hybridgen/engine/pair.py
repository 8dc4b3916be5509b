"""The models over one arena, and the state that their rounds run on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from threading import RLock, get_ident
from typing import Any, TypeVar, cast

import torch

from hybridgen.engine.cache import Arena, Footprint, demand
from hybridgen.engine.forks import check_usable, is_forked
from hybridgen.engine.graphs import Graphs
from hybridgen.engine.limits import MAX_DRAFTS
from hybridgen.engine.model import Model
from hybridgen.engine.remote import within_reach
from hybridgen.engine.reports import Immediate, Pinned, Reports
from hybridgen.engine.reuse import Held, nothing_held
from hybridgen.engine.room import Demand, explained
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Drafts, Memory, Routing, Rows
from hybridgen.kernels.weights import MAX_VOCAB

# A round may write this many positions past a row's limit: drafts are verified before they are cut.
SLACK = 48

Method = TypeVar("Method", bound=Callable[..., Any])


def one_at_a_time(method: Method) -> Method:
    """Let calls of the methods of a pair's owner wait for each other: they share its arena."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.pair.turn():
            return method(self, *args, **kwargs)

    return cast(Method, call)


class Pair:
    """``slm`` and ``llm``, with room for ``max_rows`` sequences of ``positions`` tokens.

    slm           None: the LLM is alone, and the arena holds its cache alone
    positions     most tokens of a row, prompt included
    vocab_size    the LLM's: a text's ids are below it, and logits end there
    graphs        where rounds are captured, on a GPU
    reports       how the host reads what rounds wrote
    held          what the caches hold of the last call, for the one whose turn it is

    The models are bound to the pair's arena, which holds the state of the rounds too. That is on
    the LLM's device; an SLM on another one has its cache there. Raises ValueError for a vocabulary
    that is too wide to sample from; what of a device's memory does not suffice is said by name.
    """

    def __init__(self, slm: Model | None, llm: Model, max_rows: int, positions: int) -> None:
        models = [llm] if slm is None else [slm, llm]
        for model in models:
            if model.vocab_size > MAX_VOCAB:
                name = "LLM" if model is llm else "SLM"
                raise ValueError(
                    f"the {name}'s vocab_size must be at most {MAX_VOCAB}, got {model.vocab_size}"
                )
        self.slm, self.llm = None if slm is None else within_reach(slm, llm.device), llm
        self.max_rows, self.positions = max_rows, positions
        self.vocab_size = llm.vocab_size
        layouts = [model.cache_layout() for model in self._models]
        needed = Memory(torch.device("meta"))
        self._allocate(needed)
        self._state_bytes = needed.used
        with explained(self.demand):
            self.arena = Arena(layouts, max_rows, positions + SLACK, llm.device, needed.used)
        for model, cache in zip(models, self.arena.caches, strict=True):
            model.bind(cache)
        self._state = self._allocate(Memory(llm.device, self.arena.workspace))
        on_gpu = llm.device.type == "cuda"
        self.graphs: Graphs | None = Graphs(llm.device) if on_gpu else None
        self.reports: Reports = Pinned(max_rows) if on_gpu else Immediate()
        if self.graphs is not None:
            self.read_prompts_by(self.graphs)
        self._batches: dict[int, Batch] = {}
        self._locks: dict[int, Any] = {}  # by process: a fork may copy one that nobody releases
        self._busy: int | None = None  # the thread that a call runs in
        self._written = 0, 0  # the rows and positions that the last call may have written
        self.held = self._left = nothing_held()

    @property
    def _models(self) -> list[Model]:
        return [self.llm] if self.slm is None else [self.slm, self.llm]

    @property
    def quantised(self) -> dict[str, str]:
        """The format of the models' weights where it is not the dtype: slm_weights, llm_weights."""
        formats = {
            name: getattr(model, "quantised", None)
            for name, model in (("slm_weights", self.slm), ("llm_weights", self.llm))
        }
        return {name: weights for name, weights in formats.items() if weights is not None}

    def context(self, reads_slm: bool = True, reads_llm: bool = True) -> int:
        """Most positions of a text that these of the models read."""
        reads = zip((self.slm, self.llm), (reads_slm, reads_llm), strict=True)
        contexts = [model.max_positions for model, read in reads if model is not None and read]
        return min(self.positions, *contexts)

    def demand(self) -> Demand:
        """What the pair takes of each device, in bytes."""
        footprints = [
            Footprint.of(
                model.cache_layout(), getattr(model, "nbytes", 0), model.vocab_size, model.dtype
            )
            for model in self._models
        ]
        rows, positions = self.max_rows, self.positions + SLACK
        return demand(footprints, rows, positions, self.llm.device, self._state_bytes)

    def _allocate(self, memory: Memory) -> tuple[Rows, Drafts, Routing]:
        rows, drafting = self.max_rows, self.llm if self.slm is None else self.slm
        # Drafts of no model are drawn from nothing.
        drawn_from = 0 if self.slm is None else min(self.slm.vocab_size, self.vocab_size)
        return (
            Rows.allocate(memory, rows, self.positions + SLACK, self.vocab_size),
            Drafts.allocate(memory, rows, MAX_DRAFTS, drawn_from, drafting.dtype),
            Routing.allocate(memory, rows),
        )

    def batch(self, rows: int) -> Batch:
        """The first ``rows`` rows, the same object every time. Whoever asks for one loads it."""
        if rows not in self._batches:
            texts, drafts, routing = self._state
            self._batches[rows] = Batch(
                self.slm,
                self.llm,
                texts.first(rows),
                drafts.first(rows),
                routing.first(rows),
                self.reports,
                self._capture if self.graphs is not None and self._capturable else None,
            )
        return self._batches[rows]

    def _capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Batch.capture`. Rows at rest are written at their first positions."""
        assert self.graphs is not None
        self.held = nothing_held()
        return self.graphs.capture(work)

    def read_prompts_by(self, graphs: Graphs) -> None:
        """Let the models that can read short prompts by graphs do so."""
        for model in self._models:
            by = getattr(model, "capture_prompts", None)
            if by is not None:
                by(graphs.record)

    def prepare_prompts(self, reads_slm: bool, reads_llm: bool) -> None:
        """Capture what short prompts are read by, in a turn; of these of the models."""
        reads = zip((self.slm, self.llm), (reads_slm, reads_llm), strict=True)
        for model in [model for model, read in reads if read]:
            prepare = getattr(model, "prepare_prompts", None)
            if prepare is not None:
                prepare()

    @property
    def _capturable(self) -> bool:
        """Whether no model decides on the host in its forward."""
        return all(getattr(model, "capturable", True) for model in self._models)

    def width(self, prompts: int) -> int:
        """How many rows a batch is to have for so many prompts.

        Where rounds are captured it is a power of two, or all: each width has graphs of its own.
        """
        if self.graphs is not None:
            prompts = 1 << (prompts - 1).bit_length()
        return min(prompts, self.max_rows)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the arena and the states for one call; others wait for its end.

        Raises RuntimeError in the thread that holds them already: a call from inside another, such
        as from its stream callback, would overwrite what that one is reading. Likewise in a process
        that was forked from the pair's, where it could not work (see `forks`).
        """
        if is_forked():
            check_usable(model.device for model in self._models)
        with self._locks.setdefault(os.getpid(), RLock()):
            if self._busy == get_ident():
                raise RuntimeError(
                    "generate() was called from inside another call of the same generator (from "
                    "its stream or a custom strategy): call it after that one has returned, or "
                    "make a second HybridGenerator from the same models"
                )
            try:
                self._busy = get_ident()
                with (
                    explained(self.demand),
                    nullcontext() if self.graphs is None else self.graphs.ours(),
                ):
                    wiped = self.arena.wipe_if_broken(*self._written)
                    self._written = self.max_rows, self.positions + SLACK
                    self.held = nothing_held() if wiped else self._left
                    self._left = nothing_held()
                    yield
            finally:
                self._busy, self.held = None, nothing_held()

    def leave(self, held: Held) -> None:
        """Say what this turn's call leaves in the caches, as its last act."""
        self._left = held

    def will_write(self, rows: int, positions: int) -> None:
        """Say that this turn's call writes no more than so many ``positions`` of ``rows`` rows."""
        self._written = rows, positions + SLACK
