"""What a model must be able to do: the protocol between the rounds and whatever computes logits."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from hybridgen.engine.cache import CacheLayout


class Model(Protocol):
    """A causal language model over a static cache that is bound to it once.

    It holds no length: the caller says where each row's tokens go, and each token sees the
    positions up to its own. Rolling back is forgetting: the next call overwrites.
    """

    vocab_size: int

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its logits."""
        ...

    @property
    def max_positions(self) -> int:
        """The longest sequence the model is made for, in tokens."""
        ...

    def cache_layout(self) -> CacheLayout:
        """What the model keeps per position."""
        ...

    def bind(self, cache: Tensor) -> None:
        """Use ``cache`` [layers, 2, kv_heads, rows, positions, head_dim] from now on."""
        ...

    def prefill(
        self,
        tokens: Tensor,
        lengths: Sequence[int],
        rows: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        """Read the prompts ``tokens[i, :lengths[i]]``, tokens int64 [N, T].

        Prompt i is read into row ``rows[i]`` of the cache, from its position ``starts[i]`` on: of
        what is before, that row has keys and values. None: into row i, from position 0 on. What is
        kept of a prompt does not depend on the others.
        """
        ...

    def __call__(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Logits [B, M, vocab_size] of ``tokens`` int64 [B, M], M from 1 to 16 (`MAX_FEED`).

        Token i of row b is at position ``max(start[b] + i, 0)``; start int64 [B]. Tokens that share
        position 0 are equal.
        """
        ...
