"""Rounds to verify: a draft by a table of logits, and the arguments that a verification takes."""

from typing import NamedTuple

import torch
from torch import Tensor

from hybridgen.kernels.philox import DRAFT
from hybridgen.kernels.sampling import sample
from hybridgen.kernels.verify import verify_coupled, verify_rejection

INF, NAN = float("inf"), float("nan")
PLAIN = (1.0, 0, 1.0, 0.0)
GREEDY = (0.0, 0, 1.0, 0.0)
SAMPLINGS = [
    PLAIN,
    (0.6, 0, 1.0, 0.0),
    (1.5, 3, 1.0, 0.0),
    (1.0, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.3),  # trap 26: the verifier applies min-p as well
    (0.8, 3, 0.9, 0.1),
]


class World(NamedTuple):
    """An LLM [V, V] and a draft [V, V'] that know the last token alone."""

    llm: Tensor
    slm: Tensor


class Round(NamedTuple):
    """The arguments of a verification, B rows."""

    target_logits: Tensor  # [B, K + 1, V]
    draft_logits: Tensor  # [B, K, V']
    drafts: Tensor  # [B, K]
    draft_truncation: Tensor  # [B, K, 3]
    sampling: Tensor  # [B, 4]
    seed: Tensor  # [B]
    length: Tensor  # [B]

    def rejection(self) -> tuple[Tensor, Tensor, Tensor]:
        return verify_rejection(*self)

    def coupled(self) -> tuple[Tensor, Tensor, Tensor]:
        return verify_coupled(self.target_logits, self.drafts, *self[4:])

    def rows(self, index: Tensor) -> "Round":
        return Round(*(field[index] for field in self))


def world(vocab: int = 4, draft_vocab: int = 0, noise: float = 1.0, seed: int = 0) -> World:
    generator = torch.Generator().manual_seed(seed)
    draft_vocab = draft_vocab or vocab
    shared = torch.randn(max(vocab, draft_vocab), max(vocab, draft_vocab), generator=generator)
    other = shared + noise * torch.randn(shared.shape, generator=generator)
    return World(shared[:, :vocab].contiguous(), other[:, :draft_vocab].contiguous())


def draft(
    models: World, drafts: int, rows: int, sampling: tuple = PLAIN, stream: int = DRAFT
) -> Round:
    """Draft from the token 0 at position 10, as the loop does: one seed a row, 0, 1, 2, ..."""
    params = torch.tensor([sampling], dtype=torch.float64).expand(rows, -1)
    seed, length = torch.arange(rows), torch.full((rows,), 10)
    last = torch.zeros(rows, dtype=torch.int64)
    tokens, logits, truncations = [last], [], []
    for i in range(drafts):
        logits.append(models.slm[tokens[-1]])
        token, truncation = sample(logits[-1], params, seed, length + i, stream)
        tokens.append(token)
        truncations.append(truncation)
    read = torch.stack(tokens, 1)
    return Round(
        models.llm[read],
        torch.stack(logits, 1) if logits else torch.empty(rows, 0, models.slm.shape[1]),
        read[:, 1:],
        torch.stack(truncations, 1) if truncations else torch.empty(rows, 0, 3),
        params,
        seed,
        length,
    )
