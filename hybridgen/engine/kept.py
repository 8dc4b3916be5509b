"""Where a recorder keeps what is known of every token."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Kept:
    """Of the token at each position of B rows.

    values    [B, T, ...]
    by_host   whether the host may look where the tokens are: on a CPU, where no round is captured
    """

    values: Tensor
    by_host: bool

    def keep(self, start: Tensor, measured: Tensor) -> None:
        """Keep ``measured`` [B * N, ...] of the tokens at position ``start`` int64 [B] and after.

        What is not committed is overwritten by what is committed there later.
        """
        batch, positions, *rest = self.values.shape
        count = measured.numel() // (batch * math.prod(rest))
        measured = measured.to(self.values.dtype).view(batch, count, *rest)
        if self.by_host:  # a few hundred calls of torch's ops are a small model's step
            kept, new = self.values.numpy(), measured.numpy()
            for row, first in enumerate(start.tolist()):
                kept[row, first : first + count] = new[row, : positions - first]
            return
        place = start[:, None]
        if count > 1:
            place = place + torch.arange(count, dtype=torch.int64, device=start.device)
        place = place.clamp_max(positions - 1)
        index = place.view(*place.shape, *[1] * len(rest)).expand(measured.shape)
        self.values.scatter_(1, index, measured)
