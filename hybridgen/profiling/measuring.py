"""What rounds keep for a profile, on the device: a hook of the batch, and its buffers.

The hook sees all logits of the model that measures. Of each distribution, at temperature 1, it
keeps the likeliest tokens with their logits, the log-probability of the first, and the entropy.
LogTokU looks at the likeliest logits alone, so it is computed of these, when all is over. A round
of drafts keeps what their p and q follow from (see `strategies.drafts`).

A distribution is of the text if it was measured after the text's own tokens, or in the round that
wrote them; after drafts that were rejected it is not. The length at the time tells, and what was
measured after the text's own tokens is not measured again. Nothing here waits for the device.

On a CPU a small model's step is a few hundred calls of ops, so that here each one counts: there
places are looked up by the host, which has nothing to wait for, and logits are put aside and
measured many at a time: up to `ASIDE` distributions, but of large vocabularies no more than
`ASIDE_LOGITS` logits, whose copies stay in a cache. What comes twice is then measured once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
ASIDE, ASIDE_LOGITS = 32, 1 << 18
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
    waiting       which of them are of which place
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
    waiting: dict[int, int] = field(default_factory=dict)

    @classmethod
    def allocate(cls, batch: Batch, model: Model) -> "Measures":
        rows, positions = batch.rows.tokens.shape
        device, places = batch.rows.tokens.device, rows * positions
        vocab = min(model.vocab_size, batch.rows.vocab_size)
        k, room = min(CANDIDATES, vocab), min(ASIDE, max(1, ASIDE_LOGITS // vocab))

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
        if self.aside is not None:
            self._put_aside(self.aside, forward, logits)
            return logits
        columns = logits.shape[1]
        place = self._places(forward, columns)
        then = forward.rows.length
        if columns > 1:
            then = then.unsqueeze(1).expand(-1, columns).reshape(-1)
        self.then.index_copy_(0, place, then)
        self._measure(logits.flatten(0, 1).float(), place)
        return logits

    def _put_aside(self, aside: Tensor, forward: Forward, logits: Tensor) -> None:
        """Do as `_places` and `_measure` do, the first by the host and the second later."""
        then, held, waiting = self.then.numpy(), aside.numpy(), self.waiting
        said = logits.float().numpy()
        starts, lengths = forward.start.tolist(), forward.rows.length.tolist()
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            first = row * (len(then) // len(starts))
            for column in range(logits.shape[1]):
                position = start + column + 1
                place = first + position
                if then[place] >= position or (position > length and not forward.drafted):
                    continue
                if place not in waiting and len(waiting) == len(aside):
                    self.finish()
                held[waiting.setdefault(place, len(waiting))] = said[row, column]
                then[place] = length

    def finish(self) -> None:
        """Measure what has been put aside."""
        if self.aside is not None and self.waiting:
            places = torch.tensor([*self.waiting], dtype=torch.int64, device="cpu")
            self._measure(self.aside[: len(places)], places)
            self.waiting.clear()

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
            buffer.index_copy_(0, place, measured)
