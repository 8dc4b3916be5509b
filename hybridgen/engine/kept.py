"""Where a recorder keeps what is known of drafts."""

from dataclasses import dataclass, field
from importlib import import_module

from torch import Tensor

from hybridgen.kernels.recording import keep_drafts
from hybridgen.kernels.registry import has_numba


@dataclass(frozen=True, eq=False)
class Kept:
    """Of the last draft that stood at each position of B rows.

    values     float32 [B, T, recording.KEPT]
    by_host    on a CPU, where no round is captured: compiled code may write them
    drawn      the logits [B, V] that the drafts of this round were drawn from, so far
    """

    values: Tensor
    by_host: bool
    drawn: list[Tensor] = field(default_factory=list)

    def keep(
        self,
        start: Tensor,
        tokens: Tensor,
        draft_truncation: Tensor,
        logits: Tensor,
        truncation: Tensor,
    ) -> None:
        """Keep the round's drafts from position ``start`` [B] on, see `recording.keep_drafts`."""
        of = start, tokens, self.drawn, draft_truncation, logits, truncation
        if self.by_host and has_numba():
            import_module("hybridgen.kernels.recording_numba").keep_drafts(self.values, *of)
        else:
            keep_drafts(self.values, *of)
