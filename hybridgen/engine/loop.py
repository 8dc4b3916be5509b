"""The host's side of decoding: enqueue rounds, read their reports, decide when a text ends.

All host decisions are here, in the programs and in the watchers: which round comes next, stop
strings, streaming, progress, the end. The rounds take none. On a GPU the host stays one round ahead
of what it reads: while a report is on its way the next round already runs. What is enqueued past
the end of a text writes where nobody looks.

A list of texts may be longer than the batch is wide: when a row is done, the next text is put into
it while the others go on. Nothing that is decided here looks at more than one text, so what becomes
of one depends on the others no further than a model's own arithmetic does.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

from hybridgen.engine.reports import Arrival
from hybridgen.engine.rounds import Batch
from hybridgen.kernels.verify import (
    BROKEN,
    DONE,
    FLAGS,
    HEAD,
    LENGTH,
    NOTE,
    PENDING,
    WINDOW,
    WRITER,
)


@dataclass(eq=False)
class Text:
    """A prompt and what has been written after it.

    index      among the request's prompts
    limit      the length at which it ends, prompt included
    tokens     the new ones
    sources    who wrote each of them
    rounds     each round that gave some: what the program says of it, and how many it gave
    note       the last number that a round left for it (see `kernels.verify.NOTE`)
    row        that it was put into; -1 before
    reused     tokens of the prompt that no model had to read as it began
    seconds    from when it was put into its row to its end
    """

    index: int
    prompt: Sequence[int]
    limit: int
    seed: int
    tokens: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    rounds: list[tuple[Any, int]] = field(default_factory=list)
    note: int = 0
    row: int = -1
    reused: int = 0
    began: float = 0.0
    seconds: float = 0.0

    @property
    def length(self) -> int:
        """Tokens so far, prompt included."""
        return len(self.prompt) + len(self.tokens)


class Outcome(NamedTuple):
    """What a round did, as far as the texts go that are still being written.

    name       what the program's `enqueue` returned
    texts      their numbers among the request's prompts, in the order of the rows
    gained     how many tokens each of them got
    to_come    how many each may still get
    left       the number that the round left of each for the host (see `kernels.verify.PENDING`)
    seconds    that the round took; None where it cannot be told from other work
    """

    name: Any
    texts: list[int]
    gained: list[int]
    to_come: list[int]
    left: list[int]
    seconds: float | None

    @property
    def pending(self) -> int:
        """The largest number that was left."""
        return max(self.left, default=0)


class Program:
    """The rounds of one request: which comes next.

    waits    it is chosen by the report of the round before, so that none can be enqueued earlier
    """

    waits = False

    def enqueue(self) -> Any:
        """Enqueue the next round. What is returned comes back with its outcome."""
        raise NotImplementedError

    def reported(self, outcome: Outcome) -> None:
        """A round is over. Unless the program waits, others may have been enqueued since."""


@dataclass(frozen=True)
class Repeat(Program):
    """The same round again and again; ``name`` is what its outcomes are told under."""

    round: Callable[[], None]
    name: Any = None

    def enqueue(self) -> Any:
        """Enqueue the round."""
        self.round()
        return self.name


Watcher = Callable[[Text, Sequence[int]], bool]
"""Sees the new tokens of a text, which has them already; returns whether the text ends there."""

Placed = Sequence[tuple[int, Text]]
"""Texts, and the rows that they are put into."""


class _Flight(NamedTuple):
    """A round whose report is on its way, and the texts that were in the rows then."""

    name: Any
    arrive: Arrival
    seats: tuple[Text | None, ...]
    enqueued: float


def run(
    batch: Batch,
    program: Program,
    texts: Iterable[Text],
    load: Callable[[Placed], None],
    watchers: Sequence[Watcher] = (),
    ended: Callable[[Text], None] = lambda text: None,
) -> None:
    """Run rounds until every one of ``texts`` is written.

    load     called with texts and rows: puts them there, and lets the models read the prompts
    ended    called with each text when it is complete

    Raises ValueError, naming the texts, where a model computed NaN.
    """
    _Loop(batch, program, iter(texts), load, watchers, ended).run()


class _Loop:
    def __init__(
        self,
        batch: Batch,
        program: Program,
        waiting: Iterator[Text],
        load: Callable[[Placed], None],
        watchers: Sequence[Watcher],
        ended: Callable[[Text], None],
    ) -> None:
        self.batch, self.program, self.waiting, self.load = batch, program, waiting, load
        self.watchers, self.ended = watchers, ended
        self.seats: list[Text | None] = [None] * batch.width
        self.flying: deque[_Flight] = deque()
        self.ahead = 0 if program.waits else batch.reports.ahead
        self.arrived = 0.0  # when the last report was read
        self.unclean = 0  # so many rounds to come share their time with other work

    def run(self) -> None:
        self._seat()
        while any(text is not None for text in self.seats):
            while len(self.flying) <= self.ahead:
                self._enqueue()
            self._read(self.flying.popleft())
            self._seat()

    def _seat(self) -> None:
        """Put waiting texts into the rows that are free."""
        free = [row for row, text in enumerate(self.seats) if text is None]
        placed = list(zip(free, self.waiting, strict=False))
        if not placed:
            return
        began = perf_counter()
        self.load(placed)
        for row, text in placed:
            self.seats[row], text.row, text.began = text, row, began
        self.unclean = 2 * self.ahead

    def _enqueue(self) -> None:
        now = perf_counter()
        name = self.program.enqueue()
        arrive = self.batch.reports.post(self.batch.rows.report)
        self.flying.append(_Flight(name, arrive, tuple(self.seats), now))

    def _read(self, flight: _Flight) -> None:
        """Wait for a round's report, and tell its news."""
        report = flight.arrive()
        began, self.arrived = max(flight.enqueued, self.arrived), perf_counter()
        texts, gained, to_come, left, broken = [], [], [], [], []
        for row, text in enumerate(flight.seats):
            if text is None or text is not self.seats[row]:
                continue  # nobody's, or of a text that has ended since
            told = report[row]
            texts.append(text.index)
            gained.append(told[LENGTH] - text.length)
            to_come.append(0 if told[FLAGS] & DONE else text.limit - told[LENGTH])
            left.append(told[PENDING])
            take(text, told, flight.name)
            if told[FLAGS] & BROKEN:
                broken.append(text)
            if self._ends(row, text, told, gained[-1]):
                text.seconds = self.arrived - text.began
                self.seats[row] = None
                self.ended(text)
        if broken:
            refuse(broken)
        seconds = None if self.unclean else self.arrived - began
        self.unclean = max(self.unclean - 1, 0)
        self.program.reported(Outcome(flight.name, texts, gained, to_come, left, seconds))

    def _ends(self, row: int, text: Text, told: Sequence[int], gained: int) -> bool:
        """Show the new tokens to the watchers; whether the text is complete."""
        done = bool(told[FLAGS] & DONE)
        if gained:
            new = text.tokens[-gained:]
            if any([watcher(text, new) for watcher in self.watchers]) and not done:
                self.batch.rows.done[row].fill_(True)
                return True
        return done


def take(text: Text, told: Sequence[int], name: Any) -> None:
    """Add what its row's report tells to ``text``."""
    words = [told[HEAD + place % WINDOW] for place in range(text.length, told[LENGTH])]
    text.tokens += [word % WRITER for word in words]
    text.sources += [word // WRITER for word in words]
    text.note = told[NOTE]
    if words:
        text.rounds.append((name, len(words)))


def refuse(broken: Sequence[Text]) -> None:
    """Raise ValueError: a model computed NaN for these texts."""
    raise ValueError(
        f"a model computed NaN or infinite logits in row(s) {[text.index for text in broken]} of "
        f"the prompt, after {[text.length for text in broken]} tokens: check its weights and dtype"
    )
