"""The memory of this process: pages that come when they are written to, and go when they are free.

An arena is made for the longest texts and the most rows, of which most calls use a small part; and
loading a model frees nearly as much as it keeps.
"""

import ctypes
import mmap
import sys
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


def untouched_zeros(nbytes: int) -> Tensor:
    """Zeros on the CPU, uint8 [nbytes > 0]: what is never written to is in no memory.

    `torch.zeros` writes every page. Huge ones would come whole, 2 MB for a token's few hundred
    bytes in each head of each layer; and a forked process must not write to its parent's.

    Raises `torch.OutOfMemoryError` where the system grants no such range of addresses.
    """
    private: dict[str, Any] = {}
    if hasattr(mmap, "MAP_PRIVATE"):
        private["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        pages = mmap.mmap(-1, nbytes, **private)
    except OSError as error:
        raise torch.OutOfMemoryError(f"Tried to allocate {nbytes:,} bytes: {error}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def give_back_what_is_free() -> None:
    """To the system: glibc keeps what was freed between blocks that are still in use."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
