"""The floor of decoding: every token reads every weight once."""

from time import perf_counter

import torch


def read_bandwidth(device: torch.device, size: int | None = None, repeats: int = 7) -> float:
    """Bytes per second that a sum over ``size`` bytes reads, the best of ``repeats``.

    By default 2 GB on a GPU, else 256 MB. On a GPU so many sums are enqueued at a time that the
    wait for the device, 5 % of one, is no part of them.
    """
    on_gpu = device.type == "cuda"
    size = size or (1 << 31 if on_gpu else 1 << 28)
    sums = 16 if on_gpu else 1
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        began = perf_counter()
        for _ in range(sums):
            data.sum()
        synchronize(device)
        best = min(best, (perf_counter() - began) / sums)
    return size / best


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
