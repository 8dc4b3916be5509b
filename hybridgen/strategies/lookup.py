"""The text drafts for itself: what followed its end where that stood before (prompt lookup)."""

from torch import Tensor

from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Drafts
from hybridgen.kernels.lookup import lookup


class NgramDrafts:
    """Drafts without a model, by `hybridgen.kernels.lookup`: code, lists and quotations repeat.

    Where nothing is found the drafts are the last token, at the cost of reading them.
    """

    reads_slm = draws = False

    def propose(self, batch: Batch, drafts: Drafts) -> Tensor | None:
        """See `Proposer`. The drafts come from nowhere, so no distribution is told."""
        lookup(batch.rows.tokens, batch.rows.length, drafts.tokens)
        return None
