"""A pair in a process that was forked from the one that loaded it.

A fork copies one thread of many. OpenMP's are not there afterwards, and with libgomp, which torch's
Linux builds bring, the first work that is shared out to them waits for ever; a CUDA context cannot
be used at all. On one thread of a CPU the copy works, which is what torch's data loaders set for
each of their workers.
"""

import os
from collections.abc import Iterable

import torch

SPAWN = (
    'start processes with the method "spawn" (multiprocessing.get_context("spawn")) and make a '
    "generator in each"
)
_first: int | None = None  # the process that loaded models first; those forked from it inherit this


def begin_to_load() -> None:
    """Say that this process loads models.

    Raises RuntimeError where that would wait for threads that a fork has left behind.
    """
    global _first
    _first = _first or os.getpid()
    if is_forked():
        _check_threads()


def is_forked() -> bool:
    """Whether this process was forked from one that had loaded models."""
    return _first not in (None, os.getpid())


def check_usable(devices: Iterable[torch.device]) -> None:
    """Raise RuntimeError where models on ``devices`` cannot work after a fork."""
    for device in devices:
        if device.type != "cpu":
            raise RuntimeError(
                f"the generator is on {device}, and this process was forked from the one that made "
                f"it, whose context there it cannot use: {SPAWN}"
            )
    _check_threads()


def _check_threads() -> None:
    threads = torch.get_num_threads()
    if threads > 1:
        raise RuntimeError(
            f"this process was forked from one that has loaded a generator, and torch's {threads} "
            f"threads were not copied: work for them would never end. Instead, {SPAWN}, or call "
            "torch.set_num_threads(1) first in each forked one"
        )
