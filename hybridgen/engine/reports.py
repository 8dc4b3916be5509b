"""How what a round wrote reaches the host: one small copy a round, and nothing else is read back.

A report is what `kernels.verify.commit` writes: for each row its length, its flags and its last
tokens with their writers. On a GPU it is copied into one of two pinned slots behind the round, so
that the host can read one while the next is being written.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hybridgen.kernels.verify import HEAD, WINDOW

Arrival = Callable[[], list[list[int]]]
"""Waits for a report, and gives it row by row."""


class Reports(Protocol):
    """ahead    how many rounds may be enqueued beyond the one whose report is read"""

    ahead: int

    def post(self, report: Tensor) -> Arrival:
        """Send ``report`` int64 [B, HEAD + WINDOW] after the rounds that were enqueued so far."""
        ...


class Immediate:
    """On a CPU a round is over when its call returns: a report is read where it was written."""

    ahead = 0

    def post(self, report: Tensor) -> Arrival:
        """See `Reports`."""
        return report.tolist


class Pinned:
    """Two slots of pinned memory for reports of at most ``rows`` rows."""

    ahead = 1

    def __init__(self, rows: int) -> None:
        shape = rows, HEAD + WINDOW
        self._slots = [
            (
                torch.zeros(shape, dtype=torch.int64, device="cpu", pin_memory=True),
                torch.cuda.Event(),
            )
            for _ in range(self.ahead + 1)
        ]

    def post(self, report: Tensor) -> Arrival:
        """See `Reports`."""
        self._slots.append(self._slots.pop(0))
        slot, event = self._slots[-1]
        held = slot[: len(report)]
        held.copy_(report, non_blocking=True)
        event.record()

        def arrive() -> list[list[int]]:
            event.synchronize()
            numbers: list[list[int]] = held.tolist()
            return numbers

        return arrive
