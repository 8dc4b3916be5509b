"""Which dtype a model is fastest in where it runs."""

from pathlib import Path

import torch

SMALL_MODEL = 2_000_000


def default_dtype(parameters: int, device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA and on CPUs that multiply it natively; float32 elsewhere.

    Below `SMALL_MODEL` parameters float32 is faster on CPU too: products are then so short that
    the conversions around them cost more than the bytes they save.
    """
    if device.type == "cuda":
        return torch.bfloat16
    if device.type != "cpu" or not cpu_has_bfloat16():
        return torch.float32
    return torch.bfloat16 if parameters > SMALL_MODEL else torch.float32


def int8_dtype(device: torch.device) -> torch.dtype:
    """What a model with int8 weights computes in: on CPU its products have a kernel in bfloat16."""
    return torch.bfloat16 if device.type == "cuda" or cpu_has_bfloat16() else torch.float32


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
