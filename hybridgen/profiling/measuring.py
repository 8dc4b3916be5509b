"""What rounds keep for a profile, on the device: a hook of the batch, and its buffers.

The hook sees all logits of the model that measures. Of each distribution, at temperature 1, it
keeps the likeliest tokens with their logits, the log-probability of the first, and the entropy.
LogTokU looks at the likeliest logits alone, so it is computed of these, when all is over. A round
of drafts keeps what their p and q follow from (see `strategies.drafts`).

A distribution is of the text if it was measured after the text's own tokens, or in the round that
wrote them; after drafts that were rejected it is not. The length at the time tells, and what was
measured after the text's own tokens is not measured again. Nothing here waits for the device.

On a CPU a small model's step is a few hundred calls of ops, so that here each one counts: there
logits are put aside, and later looked up by the host, which has nothing to wait for, and measured
many at a time: up to `ASIDE` distributions, but of large vocabularies no more than `ASIDE_LOGITS`
logits, which stay in a cache. What comes twice is then measured once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybridgen.engine.adjustment import Adjustment
from hybridgen.engine.limits import MAX_FEED
from hybridgen.engine.model import Model
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Forward, integers
from hybridgen.kernels.likeliest import likeliest, likeliest_reference
from hybridgen.strategies.drafts import DRAWN, JUDGED

CANDIDATES = 10
ASIDE, ASIDE_LOGITS = 32, 1 << 18
NEVER = -1


@dataclass(frozen=True)
class Kind:
    """Who measures, and whether there are drafts; called with a batch, its variant that records.

    `Batch.own` keeps the variant, and with it its captured rounds.
    """

    by_slm: bool
    drafts: bool

    def __call__(self, batch: Batch) -> "Recorded":
        hook = Measures.allocate(batch, batch.slm if self.by_slm else batch.llm)
        shape, device = batch.rows.tokens.shape, batch.rows.tokens.device
        kept = {
            name: torch.full((*shape, width), torch.nan, dtype=torch.float32, device=device)
            for name, width in ((DRAWN, 4), (JUDGED, 5))
            if self.drafts
        }
        return Recorded(batch.hooked(hook).recording(kept), hook)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A batch that records, and where to."""

    batch: Batch
    measures: "Measures"


class Aside(NamedTuple):
    """A `Forward` as it was when its logits, ``columns`` of each row, were put aside."""

    columns: int
    starts: list[int]
    lengths: list[int]
    drafted: bool


@dataclass(eq=False)
class Measures:
    """Of each position of B rows, what ``model`` said before the token there: position p of row b
    at b * T + p. At position 0, which is a prompt's, is what nobody wants.

    top           float32 [B * T, k]: the largest logits, in descending order
    ids           int64 [B * T, k]: whose they are
    logprob       float32 [B * T]: of the likeliest, in softmax(logits)
    negentropy    float32 [B * T]: of softmax(logits), in nats
    then          int64 [B * T]: how long the text was then, `NEVER` where nothing was measured
    first         int64 [B]: b * T
    after         int64 [B]: b * T + 1
    column        int64 [MAX_FEED]: 1, 2, ...
    held          float32 [N, V]: room for logits put aside; N = 0: all are measured at once, by
                  torch's ops, which a graph captures
    aside         whose they are, in order
    waiting       how many they are
    """

    model: Model
    top: Tensor
    ids: Tensor
    logprob: Tensor
    negentropy: Tensor
    then: Tensor
    first: Tensor
    after: Tensor
    column: Tensor
    held: npt.NDArray[np.float32]
    aside: list[Aside] = field(default_factory=list)
    waiting: int = 0

    @classmethod
    def allocate(cls, batch: Batch, model: Model) -> "Measures":
        rows, positions = batch.rows.tokens.shape
        device, places = batch.rows.tokens.device, rows * positions
        vocab = min(model.vocab_size, batch.rows.vocab_size)
        k, room = min(CANDIDATES, vocab), min(ASIDE, max(1, ASIDE_LOGITS // vocab))
        by_host = batch.rows.tokens.is_cpu and batch.capture is None

        def numbers(first: int, count: int, step: int = 1) -> Tensor:
            last = first + count * step
            return torch.arange(first, last, step, dtype=torch.int64, device=device)

        def never(*shape: int) -> Tensor:
            return torch.full(shape, NEVER, dtype=torch.int64, device=device)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        return cls(
            model,
            zeros(places, k),
            never(places, k),
            zeros(places),
            zeros(places),
            never(places),
            numbers(0, rows, positions),
            numbers(1, rows, positions),
            numbers(1, MAX_FEED),
            np.zeros((room if by_host else 0, vocab), np.float32),
        )

    def start(self, adjustment: Adjustment, placed: Sequence[tuple[int, Any]]) -> None:
        """Forget what was measured in these rows."""
        self.finish()
        positions = len(self.then) // len(self.first)
        for row, _ in placed:
            self.then[row * positions : (row + 1) * positions].fill_(NEVER)

    def __call__(self, forward: Forward, logits: Tensor) -> Tensor:
        """See `state.Hook`."""
        if forward.model is not self.model:
            return logits
        if logits.shape[0] * logits.shape[1] <= len(self.held):
            self._put_aside(forward, logits)
        else:
            self.finish()
            self._measure_at_once(forward, logits)
        return logits

    def _measure_at_once(self, forward: Forward, logits: Tensor) -> None:
        columns = logits.shape[1]
        place = self._places(forward, columns)
        then = forward.rows.length
        if columns > 1:
            then = then.unsqueeze(1).expand(-1, columns).reshape(-1)
        self.then.index_copy_(0, place, then)
        self._measure(logits.flatten(0, 1).float(), place)

    def _put_aside(self, forward: Forward, logits: Tensor) -> None:
        """Let `finish` do what `_measure_at_once` does."""
        rows, columns, vocab = logits.shape
        if self.waiting + rows * columns > len(self.held):
            self.finish()
        last = self.waiting + rows * columns
        self.held[self.waiting : last] = logits.float().numpy().reshape(-1, vocab)
        self.waiting = last
        starts, lengths = forward.start.tolist(), forward.rows.length.tolist()
        self.aside.append(Aside(columns, starts, lengths, forward.drafted))

    def finish(self) -> None:
        """Measure what has been put aside."""
        if not self.aside:
            return
        wanted = self._wanted()
        if wanted:
            logits = torch.from_numpy(self.held[: self.waiting])
            if len(wanted) < len(logits):
                logits = logits.index_select(0, integers([*wanted.values()]))
            self._measure(logits, integers([*wanted]), logits)
        self.aside.clear()
        self.waiting = 0

    def _wanted(self) -> dict[int, int]:
        """To each place that is to be measured, the last of what is ``held`` that is its."""
        then, wanted, index = self.then.numpy(), dict[int, int](), 0
        for columns, starts, lengths, drafted in self.aside:
            for first, start, length in zip(self.first.tolist(), starts, lengths, strict=True):
                for position in range(start + 1, start + 1 + columns):
                    place = first + position
                    if then[place] < position and (position <= length or drafted):
                        wanted[place], then[place] = index, length
                    index += 1
        return wanted

    def _places(self, forward: Forward, columns: int) -> Tensor:
        """Where the measures of logits [B, M, V] are kept: [B * M]."""
        if columns == 1:
            return forward.start + self.after
        first = self.first.unsqueeze(1)
        place = (forward.start.unsqueeze(1) + self.column[:columns]).clamp_min_(0)
        index = (place + first).view(-1)
        known = self.then.index_select(0, index).view(place.shape) >= place
        if not forward.drafted:  # behind the end of the text, nobody's tokens were read
            known |= place > forward.rows.length.unsqueeze(1)
        return (place.masked_fill_(known, 0) + first).view(-1)

    def _measure(self, logits: Tensor, place: Tensor, relative: Tensor | None = None) -> None:
        """Measure float32 logits [N, V], and keep that at ``place`` [N].

        relative    where logits less the largest may be written: as good as a buffer of its own
        """
        kept = self.top, self.ids, self.logprob, self.negentropy
        measure = likeliest if len(self.held) else likeliest_reference
        measure(logits, place, *kept, relative)
