"""The memory of this process: pages that come when they are written to, and go when they are free.

An arena is made for the longest texts and the most rows, of which most calls use a small part; and
loading a model frees nearly as much as it keeps.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
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


def give_back_what_files_hold(tensors: Iterable[Tensor]) -> None:
    """Of the files that ``tensors`` are mapped from: what is read again comes from them again.

    To load a checkpoint is to read all of it, and where products were fused their parts have been
    copied. Files that anybody has written to in memory alone are left as they are.
    """
    if sys.platform != "linux":
        return
    addresses = [tensor.data_ptr() for tensor in tensors if tensor.is_cpu and not tensor.is_mkldnn]
    with suppress(AttributeError, OSError, ValueError):
        for first, end in _unchanged_files():
            if any(first <= address < end for address in addresses):
                place, length = ctypes.c_void_p(first), ctypes.c_size_t(end - first)
                ctypes.CDLL(None).madvise(place, length, mmap.MADV_DONTNEED)


def _unchanged_files() -> Iterator[tuple[int, int]]:
    """The addresses of mapped files of which nothing was written to, or not to the file."""
    place = (0, 0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # addresses, rights, offset, device, inode, perhaps a path
            first, end = (int(address, 16) for address in name.split("-"))
            place = (first, end) if rest[3] != "0" else (0, 0)
        elif name == "Anonymous:" and rest[0] == "0" and place != (0, 0):
            yield place
