"""The floor of decoding: every token reads every weight once."""

from time import perf_counter

import torch


def read_bandwidth(device: torch.device, size: int | None = None, repeats: int = 7) -> float:
    """Bytes per second that a sum over ``size`` bytes reads, the best of ``repeats``.

    By default so many that waiting for the device is no part of it: 2 GB on a GPU, else 256 MB.
    """
    size = size or (1 << 31 if device.type == "cuda" else 1 << 28)
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
