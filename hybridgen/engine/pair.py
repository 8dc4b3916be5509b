"""A pair of decoders over one arena, and the states their rounds run on."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Tensor

from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.limits import MAX_DRAFTS
from hybridgen.engine.state import State
from hybridgen.kernels.weights import MAX_VOCAB

# A round may write this many positions past a row's limit: drafts are verified before they are cut.
SLACK = 48


class Pair:
    """``slm`` and ``llm``, with room for ``rows`` sequences of ``positions`` tokens.

    slm, llm      decoders bound to this pair's arena
    positions     most tokens of a row, prompt included

    Raises ValueError for a vocabulary that is too wide to sample from.
    """

    def __init__(self, slm: Decoder, llm: Decoder, rows: int, positions: int) -> None:
        for name, decoder in (("SLM", slm), ("LLM", llm)):
            if decoder.vocab_size > MAX_VOCAB:
                raise ValueError(
                    f"the {name}'s vocab_size must be at most {MAX_VOCAB}, got {decoder.vocab_size}"
                )
        self.slm, self.llm = slm, llm
        self.rows, self.positions = rows, positions
        layouts = (slm.cache_layout(), llm.cache_layout())
        largest = self._allocate(rows, MAX_DRAFTS, torch.device("meta")).nbytes
        self.arena = Arena(layouts, rows, positions + SLACK, llm.device, largest)
        for decoder, cache in zip((slm, llm), self.arena.caches, strict=True):
            decoder.bind(cache)
        self._states: dict[tuple[int, int], State] = {}
        self._lock, self._busy = RLock(), False
        self._written = 0, 0  # the rows and positions that the last call may have written

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the arena and the states for one call; others wait for its end.

        Raises RuntimeError in the thread that holds them already: a call from inside another, such
        as from its stream callback, would overwrite what that one is reading.
        """
        with self._lock:
            if self._busy:
                raise RuntimeError(
                    "generate() was called from inside another call of the same generator (from "
                    "its stream or a custom strategy): call it after that one has returned, or "
                    "make a second HybridGenerator from the same models"
                )
            try:
                self._busy = True
                self.arena.wipe_if_broken(*self._written)
                self._written = self.rows, self.positions + SLACK
                yield
            finally:
                self._busy = False

    def state(self, rows: int, num_drafts: int) -> State:
        """The state for ``rows`` sequences and ``num_drafts`` drafts, the same one every time.

        States of all shapes lie in the same memory: whoever asks for one loads it.
        """
        key = rows, num_drafts
        if key not in self._states:
            memory = self.arena.workspace
            self._states[key] = self._allocate(rows, num_drafts, memory.device, memory)
        return self._states[key]

    def will_write(self, rows: int, positions: int) -> None:
        """Say that this turn's call writes no more than so many ``positions`` of ``rows`` rows."""
        self._written = rows, positions + SLACK

    def _allocate(
        self, rows: int, num_drafts: int, device: torch.device, memory: Tensor | None = None
    ) -> State:
        return State.allocate(
            rows,
            self.positions + SLACK,
            num_drafts,
            self.slm.vocab_size,
            self.llm.vocab_size,
            self.slm.dtype,
            device,
            memory,
        )
