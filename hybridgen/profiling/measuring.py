"""What rounds keep for a profile, on the device: a hook of the batch, and its buffers.

The hook sees all logits of the model that measures. Of each distribution, at temperature 1, it
keeps the likeliest tokens with their logits, the log-probability of the first, and the entropy.
LogTokU looks at the likeliest logits alone, so it is computed of these, when all is over. A round
of drafts keeps what their p and q follow from (see `strategies.drafts`).

A distribution is of the text if it was measured after the text's own tokens, or in the round that
wrote them; after drafts that were rejected it is not. The length at the time tells, and what was
measured after the text's own tokens is not measured again. Nothing here waits for the device.

On a CPU a small model's step is a few hundred calls of ops, so that here each one counts: there
logits are put aside, and `ASIDE` distributions are measured at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridgen.engine.adjustment import Adjustment
from hybridgen.engine.limits import MAX_FEED
from hybridgen.engine.model import Model
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Forward
from hybridgen.strategies.drafts import DRAWN, JUDGED

CANDIDATES = 10
ASIDE = 32
NEVER = -1
_UNDERFLOW = -1000.0  # of a log-probability: e**x is 0 there too, and 0 * -inf is not


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
    aside         float32 [N, V]: logits that are to be measured; None: they are at once
    places        int64 [N]: where
    waiting       how many there are
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
    aside: Tensor | None
    places: Tensor
    waiting: int = 0

    @classmethod
    def allocate(cls, batch: Batch, model: Model) -> "Measures":
        rows, positions = batch.rows.tokens.shape
        device, places = batch.rows.tokens.device, rows * positions
        vocab = min(model.vocab_size, batch.rows.vocab_size)
        k, room = min(CANDIDATES, vocab), max(ASIDE, MAX_FEED * rows)

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
            zeros(room, vocab) if batch.rows.tokens.is_cpu and batch.capture is None else None,
            never(room),
        )

    def start(self, adjustment: Adjustment, placed: Sequence[tuple[int, Any]]) -> None:
        """Forget what was measured in these rows."""
        self.finish()
        positions = len(self.then) // len(self.first)
        for row, _ in placed:
            self.then[row * positions : (row + 1) * positions].fill_(NEVER)

    def __call__(self, forward: Forward, logits: Tensor) -> Tensor:
        """See `state.Hook`."""
        if forward.model is self.model:
            columns = logits.shape[1]
            place = self._places(forward, columns)
            then = forward.rows.length
            if columns > 1:
                then = then.unsqueeze(1).expand(-1, columns).reshape(-1)
            self.then.index_copy_(0, place, then)
            if self.aside is None:
                self._measure(logits.flatten(0, 1).float(), place)
            else:
                self._put_aside(self.aside, logits.flatten(0, 1), place)
        return logits

    def _put_aside(self, aside: Tensor, logits: Tensor, place: Tensor) -> None:
        if self.waiting + len(place) > len(aside):
            self.finish()
        self.waiting, first = self.waiting + len(place), self.waiting
        aside[first : self.waiting].copy_(logits)
        self.places[first : self.waiting].copy_(place)

    def finish(self) -> None:
        """Measure what has been put aside."""
        if self.aside is not None and self.waiting:
            self._measure(self.aside[: self.waiting], self.places[: self.waiting])
            self.waiting = 0

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

    def _measure(self, logits: Tensor, place: Tensor) -> None:
        """Measure float32 logits [N, V], and keep that at ``place`` [N]."""
        top, ids = logits.topk(self.top.shape[1], 1)
        logprobs = logits.log_softmax(1)
        likeliest = logprobs.gather(1, ids.narrow(1, 0, 1)).view(-1)
        logprobs.clamp_min_(_UNDERFLOW)
        negentropy = logprobs.exp().mul_(logprobs).sum(1)
        kept = self.top, self.ids, self.logprob, self.negentropy
        for buffer, measured in zip(kept, (top, ids, likeliest, negentropy), strict=True):
            if self.aside is not None:
                # Of two at one place the last one stays, which torch does not promise.
                buffer.numpy()[place.numpy()] = measured.numpy()
            else:
                buffer.index_copy_(0, place, measured)
