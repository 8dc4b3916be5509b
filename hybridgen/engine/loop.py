"""The host's side of decoding: enqueue rounds, watch what they wrote, decide when to end.

All host decisions are here: stop strings, streaming, progress, the end. The rounds take none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hybridgen.engine.state import State


@dataclass(frozen=True)
class Program:
    """The rounds of one request.

    round     appends to every row that is not done, or marks it as routed
    routed    called with the most tokens that a routed row's LLM has yet to read: its rounds
    """

    round: Callable[[], None]
    routed: Callable[[int], None] | None = None


class Watcher(Protocol):
    """Sees a row's new tokens as they are committed."""

    def feed(self, tokens: Sequence[int]) -> int | None:
        """How many of the row's new tokens to keep once a stop string is complete, else None."""


def run(
    state: State,
    program: Program,
    watchers: Sequence[Watcher],
    progress: Callable[[int], None] | None = None,
) -> list[int]:
    """Run rounds until every row is done: the final length of each row, prompt included.

    watchers    one a row, or none where nothing needs to see the tokens before the end
    progress    called after each round with the tokens it committed
    """
    starts = lengths = state.length.tolist()
    ends: list[int | None] = [None] * len(lengths)
    while True:
        program.round()
        if program.routed is not None:
            pending = int(state.pending)  # the one value a routed block is allowed to wait for
            if pending:
                program.routed(pending)
        before, lengths = lengths, state.length.tolist()
        for row, watcher in enumerate(watchers):
            if lengths[row] > before[row] and ends[row] is None:
                kept = watcher.feed(state.tokens[row, before[row] : lengths[row]].tolist())
                if kept is not None:
                    ends[row] = starts[row] + kept
                    state.done[row] = True
        if progress is not None:
            progress(sum(lengths) - sum(before))
        if all(state.done.tolist()):
            return [
                length if end is None else end for length, end in zip(lengths, ends, strict=True)
            ]
