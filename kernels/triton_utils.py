"""What the launchers share."""

from triton import knobs


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, whose bfloat16 products are wrong."""
    return bool(knobs.runtime.interpret)


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` cover ``count``."""
    return -(-count // size)
