"""What the processor can do, as far as torch or the system says."""

from functools import cache
from pathlib import Path

import torch


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 products (AVX512_BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    try:
        return any(bool(getattr(torch.cpu, name)()) for name in probes)
    except (AttributeError, RuntimeError):
        pass
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
