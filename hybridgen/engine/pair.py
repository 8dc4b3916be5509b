"""A pair of decoders over one arena, and the states their rounds run on."""

from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
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
        self.arena = Arena(layouts, rows, positions + SLACK, llm.device)
        for decoder, cache in zip((slm, llm), self.arena.caches, strict=True):
            decoder.bind(cache)
        self._states: dict[tuple[int, int], State] = {}

    def state(self, rows: int, num_drafts: int) -> State:
        """The state for ``rows`` sequences and ``num_drafts`` drafts, the same one every time."""
        key = rows, num_drafts
        if key not in self._states:
            self._states[key] = State.allocate(
                rows,
                self.positions + SLACK,
                num_drafts,
                self.slm.vocab_size,
                self.llm.vocab_size,
                self.slm.dtype,
                self.llm.device,
            )
        return self._states[key]

    def forget(self) -> None:
        """Wipe the arena: NaN that a broken model cached would poison every later sum."""
        self.arena.clear()
