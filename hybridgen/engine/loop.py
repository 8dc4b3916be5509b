"""The host's side of decoding: enqueue rounds, watch what they wrote, decide when to end.

All host decisions are here and in the watchers: stop strings, streaming, progress, the end. The
rounds take none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hybridgen.engine.state import Rows


@dataclass(frozen=True)
class Program:
    """The rounds of one request.

    round     appends to every row that is not done, or marks it as routed
    pending   int64 [1], set by ``round``: most tokens that a routed row's LLM has yet to read
    routed    called with that number where it is not 0: the rounds of the routed rows
    """

    round: Callable[[], None]
    pending: Tensor | None = None
    routed: Callable[[int], None] | None = None


class Watcher(Protocol):
    """Sees the tokens of every row as they are committed."""

    def __call__(self, rows: Rows, row: int, first: int, last: int) -> bool:
        """``rows.tokens[row, first:last]`` are new. Returns whether the row ends with them."""
        ...


def run(rows: Rows, program: Program, watchers: Sequence[Watcher] = ()) -> None:
    """Run rounds until every row is done. A row that a watcher ends is not shown any more."""
    lengths = rows.length.tolist()
    ended: set[int] = set()
    while True:
        program.round()
        if program.pending is not None and program.routed is not None:
            pending = int(program.pending)  # the one value a routed block is allowed to wait for
            if pending:
                program.routed(pending)
        before, lengths = lengths, rows.length.tolist()
        for row, (first, last) in enumerate(zip(before, lengths, strict=True)):
            if first < last and row not in ended:
                told = [watcher(rows, row, first, last) for watcher in watchers]
                if any(told):
                    ended.add(row)
                    rows.done[row] = True
        if all(rows.done.tolist()):
            return
