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
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*")):
        try:
            found = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        found.restype = None
        return found
    return None
