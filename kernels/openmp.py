"""Compiled functions run by the threads that torch's own products run on.

torch brings its OpenMP library along and is linked with it. A second pool of threads beside that
one would fight it for the cores, and a pool of Python's takes longer to wake than a product takes.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch


@cache
def parallel() -> Any | None:
    """``GOMP_parallel(function, argument, threads, 0)`` of torch's OpenMP, None where it has none.

    Each of so many threads, the calling one among them, calls ``function(argument)``; it returns
    when all have. The function is the address of one in C that takes an address.
    """
    found = _symbol("GOMP_parallel")
    if found is not None:
        found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        found.restype = None
    return found


@cache
def team_size() -> int:
    """The address of ``omp_get_num_threads()``: how many have come, which may be fewer."""
    found = _symbol("omp_get_num_threads")
    assert found is not None, "the library that has GOMP_parallel"
    return ctypes.cast(found, ctypes.c_void_p).value or 0


def _symbol(name: str) -> Any | None:
    """Of torch's OpenMP."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*")):
        try:
            return getattr(ctypes.CDLL(str(path)), name)
        except (OSError, AttributeError):
            continue
    return None
