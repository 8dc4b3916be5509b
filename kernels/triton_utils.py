"""What the launchers share."""

from functools import cache

import torch
from triton import knobs

MULTIPROCESSORS = 132  # of an H100: what is assumed where there is no card


@cache
def multiprocessors(device: torch.device) -> int:
    """How many ``device`` has: for the number of programs, on which no result may depend."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, whose bfloat16 products are wrong."""
    return bool(knobs.runtime.interpret)


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` cover ``count``."""
    return -(-count // size)
