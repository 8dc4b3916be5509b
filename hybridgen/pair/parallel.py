"""Data parallelism over single-threaded processes.

Two processes of one thread meet once a step; two threads of one process meet at every operation,
and on a machine that does anything else each of those meetings can cost a scheduler's slice.
"""

import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def launch(worker: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``worker(rank, *args)`` in each process and wait; one process runs in place."""
    if processes == 1:
        worker(0, *args)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        spawn(_enter, args=(worker, processes, store, args), nprocs=processes)


def _enter(
    rank: int, worker: Callable[..., None], processes: int, store: str, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    try:
        worker(rank, *args)
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(value: float) -> float:
    """The mean of one number over the processes."""
    if world_size() == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.item() / world_size()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one exchange."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat.div_(world_size())
    parts = torch.split(flat, [g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def share(parameters: list[torch.nn.Parameter], owner: int) -> None:
    """Give every process the owner's values of ``parameters``, in one exchange."""
    if world_size() == 1 or not parameters:
        return
    with torch.no_grad():
        flat = torch.cat([p.flatten() for p in parameters])
        dist.broadcast(flat, src=owner)
        parts = torch.split(flat, [p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))
