"""Short prompts on a GPU: read by one graph, beside the cache, and copied to their rows.

Launch by launch a block of prompts costs the host 24 ms, for the 36 layers of Qwen3-8B, however
short they are; an H200 has read the weights in 4. (By graphs it had a first token after 18 ms
instead of 27, of Qwen3-1.7B after 7 instead of 13.) So prompts that are read from their first
token on, up to the longest of `SLOTS`, are read where all is fixed: each in a slot of a buffer, as
if it were as long as the slot. What follows a prompt there no token of it sees, and it is not
copied.

The length of a prompt alone says which slots it is read in, and in a block of how many rows.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

SLOTS = {64: 4, 128: 2, 256: 1, 512: 1}
"""Tokens of a slot -> slots of a graph: together the rows of a block."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Makes of work what does it again, see `Graphs.record`."""


def slot(length: int, start: int) -> int | None:
    """Tokens of the slots that such a prompt is read in; None where it is not read so."""
    if start > 0 or length == 0:
        return None
    return next((tokens for tokens in SLOTS if length <= tokens), None)


def space_for(cache: Tensor) -> Tensor:
    """Room for what any one of the graphs reads into: for Qwen3-8B 75 MB."""
    layers, two, heads, _, _, dim = cache.shape
    rows = max(slots * length for length, slots in SLOTS.items())
    return cache.new_zeros(layers * two * heads * rows * dim)


class PromptGraph:
    """Reads prompts of up to ``length`` tokens, ``SLOTS[length]`` at a time.

    read   of ``tokens`` [slots, length] all keys and values into ``kept``, made like the cache but
           with slots for rows: called with both, it is captured
    space  `space_for` them, which graphs that are not replayed at the same time may share
    """

    def __init__(
        self,
        length: int,
        cache: Tensor,
        space: Tensor,
        read: Callable[[Tensor, Tensor], None],
        capture: Capture,
    ) -> None:
        layers, two, heads, _, _, dim = cache.shape
        slots = SLOTS[length]
        self.tokens = torch.zeros(slots, length, dtype=torch.int64, device=cache.device)
        shape = layers, two, heads, slots, length, dim
        self.kept = space[: math.prod(shape)].view(shape)
        self._replay = capture(partial(read, self.tokens, self.kept))

    def read(self, prompts: Sequence[Tensor], rows: Sequence[int], cache: Tensor) -> None:
        """Keys and values of the prompts, int64 [T] each, to ``rows`` of the cache."""
        slots = len(self.tokens)
        for first in range(0, len(prompts), slots):
            some = prompts[first : first + slots]
            for at, prompt in enumerate(some):
                self.tokens[at, : len(prompt)].copy_(prompt)
            self._replay()
            for at, (prompt, row) in enumerate(zip(some, rows[first:], strict=False)):
                cache[:, :, :, row, : len(prompt)].copy_(self.kept[:, :, :, at, : len(prompt)])
