"""The floor of decoding: every token reads every weight once."""

from time import perf_counter

import torch


def read_bandwidth(device: torch.device, size: int = 1 << 28, repeats: int = 7) -> float:
    """Bytes per second that a sum over ``size`` bytes reads, the best of ``repeats``."""
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        began = perf_counter()
        data.sum()
        synchronize(device)
        best = min(best, perf_counter() - began)
    return size / best


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
