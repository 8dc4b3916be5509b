"""What the launchers share."""

from functools import cache

import torch
from triton import knobs
from triton.runtime.driver import driver

# Of an H100: what is assumed where there is no card.
MULTIPROCESSORS = 132
ARCHITECTURE = 90


@cache
def multiprocessors(device: torch.device) -> int:
    """How many ``device`` has: for the number of programs, on which no result may depend."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def architecture() -> int:
    """Of the card that kernels are launched on now, 90 for sm_90; 0 if it is no CUDA card, or none
    as kernels are interpreted."""
    if interpreted():
        return 0
    try:
        target = driver.active.get_current_target()
    except RuntimeError:  # there is no card, and nothing will be launched
        return ARCHITECTURE
    return int(target.arch) if target.backend == "cuda" else 0


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, whose bfloat16 products are wrong."""
    return bool(knobs.runtime.interpret)


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` cover ``count``."""
    return -(-count // size)
