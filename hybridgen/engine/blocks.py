"""A forward in pieces: where a row's bits hold for so many rows of a product and no more."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]
"""Logits [B, M, V] of tokens [B, M] from start [B] on, over each layer's cache of these B rows."""


def in_blocks(forward: Forward, tokens: Tensor, start: Tensor, cache: Tensor, most: int) -> Tensor:
    """``forward`` of at most ``most`` tokens at a time: earlier ones of a row first (causal).

    tokens  int64 [B, M], start int64 [B]
    cache   [layers, 2, kv_heads, rows, positions, head_dim]
    """
    batch, count = tokens.shape
    rows = min(batch, most)
    step = most // rows
    groups = []
    for row in range(0, batch, rows):
        layers = cache[:, :, :, row : row + rows].unbind()
        group, first = tokens[row : row + rows], start[row : row + rows]
        parts = [forward(group[:, i : i + step], first + i, layers) for i in range(0, count, step)]
        groups.append(torch.cat(parts, 1))
    return torch.cat(groups)
