"""What rounds keep for a profile, on the device: a hook of the batch, and its buffers.

The hook sees all logits of the model that measures. Of each distribution, at temperature 1, it
keeps the likeliest tokens with their logits, the log-probability of the first, and the entropy.
LogTokU looks at the likeliest logits alone, so it is computed of these, when all is over. A round
of drafts keeps what their p and q follow from (see `strategies.drafts`).

A distribution is of the text if it was measured after the text's own tokens, or in the round that
wrote them; after drafts that were rejected it is not. The length at the time tells, and what was
measured after the text's own tokens is not measured again. Nothing here waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from hybridgen.engine.adjustment import Adjustment
from hybridgen.engine.model import Model
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Forward
from hybridgen.kernels.recording import KEPT, NEVER, Measured, measure
from hybridgen.kernels.registry import has_numba

CANDIDATES = 10
ASIDE, ASIDE_LOGITS = 32, 1 << 18  # and no more of large vocabularies, which stay in a cache


@dataclass(frozen=True)
class Kind:
    """Who measures, and whether there are drafts; called with a batch, its variant that records.

    `Batch.own` keeps the variant, and with it its captured rounds.
    """

    by_slm: bool
    drafts: bool

    def __call__(self, batch: Batch) -> "Recorded":
        hook = Measures.allocate(batch, batch.slm if self.by_slm else batch.llm)
        recorded = batch.hooked(hook)
        if self.drafts:
            tokens = batch.rows.tokens
            shape, device = (*tokens.shape, KEPT), tokens.device
            drafts = torch.full(shape, torch.nan, dtype=torch.float32, device=device)
            recorded = recorded.recording(drafts)
        return Recorded(recorded, hook)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A batch that records, and where to."""

    batch: Batch
    measures: "Measures"


@dataclass(eq=False)
class Measures:
    """Of each position of B rows, what ``model`` said before the token there.

    compiled    what measures for the host, which has nothing to wait for: logits are put aside,
                and measured many at a time (`recording_numba`). None: each forward's at once, by
                torch's ops, which a graph captures
    room        so many logits are put aside before they are measured
    aside       in order
    waiting     how many logits
    """

    model: Model
    rows: int
    measured: Measured
    compiled: Any
    room: int
    aside: list[Any] = field(default_factory=list)
    waiting: int = 0

    @classmethod
    def allocate(cls, batch: Batch, model: Model) -> "Measures":
        rows, positions = batch.rows.tokens.shape
        vocab = min(model.vocab_size, batch.rows.vocab_size)
        measured = Measured.allocate(
            rows * positions, min(CANDIDATES, vocab), batch.rows.tokens.device
        )
        compiled = None
        if batch.by_host and has_numba():
            compiled = import_module("hybridgen.kernels.recording_numba")
        return cls(model, rows, measured, compiled, min(ASIDE * vocab, ASIDE_LOGITS))

    def start(self, adjustment: Adjustment, placed: Sequence[tuple[int, Any]]) -> None:
        """Forget what was measured in these rows."""
        self.finish()
        then = self.measured.then.view(self.rows, -1)
        for row, _ in placed:
            then[row].fill_(NEVER)

    def __call__(self, forward: Forward, logits: Tensor) -> Tensor:
        """See `state.Hook`."""
        if forward.model is not self.model:
            return logits
        of = logits, forward.start, forward.rows.length, forward.drafted
        if self.compiled is None:
            measure(*of, self.measured)
            return logits
        self.aside.append(self.compiled.put_aside(*of))
        self.waiting += logits.numel()
        if self.waiting >= self.room:
            self.finish()
        return logits

    def finish(self) -> None:
        """Measure what has been put aside."""
        if self.aside:
            self.compiled.measure(self.aside, self.measured)
            self.aside.clear()
            self.waiting = 0
