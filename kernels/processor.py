"""What the processor can do, as far as torch or the system says."""

from contextlib import suppress
from functools import cache
from pathlib import Path

import torch


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 products (AVX512_BF16 or AMX)."""
    return _has("_is_avx512_bf16_supported", "avx512_bf16") or cpu_has_amx()


@cache
def cpu_has_amx() -> bool:
    """Whether this CPU has products of tiles of bfloat16."""
    return _has("_is_amx_tile_supported", "amx_bf16")


def _has(probe: str, flag: str) -> bool:
    """As torch's ``probe`` says, or else what the system calls ``flag``."""
    with suppress(AttributeError, RuntimeError):
        return bool(getattr(torch.cpu, probe)())
    with suppress(OSError):
        return flag in Path("/proc/cpuinfo").read_text()
    return False
