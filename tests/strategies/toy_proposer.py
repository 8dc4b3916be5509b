"""A proposer in one file: what followed the last token where it stood last, word for word."""

from dataclasses import replace

import torch
from torch import Tensor

from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Drafts
from hybridgen.strategies.declarations import SPECULATIVE
from hybridgen.strategies.speculative import Speculative


class Lookup:
    """Drafts from the text itself (Saxena 2023, "Prompt lookup decoding", with one token)."""

    reads_slm = draws = False

    def propose(self, batch: Batch, drafts: Drafts) -> Tensor | None:
        tokens, end = batch.rows.tokens, batch.rows.length[:, None] - 1
        positions = torch.arange(tokens.shape[1], dtype=torch.int64, device=tokens.device)
        found = (tokens == drafts.block[:, :1]) & (positions < end)
        at = torch.where(found, positions, -1).amax(1, keepdim=True)
        count = drafts.tokens.shape[1]
        drafts.tokens.copy_(tokens.gather(1, (at + 1 + positions[:count]).clamp_max(end)))
        return None


def lookup() -> Speculative:
    return Speculative(Lookup(), replace(SPECULATIVE, name="lookup", help="the text repeats"))
