"""Call an op's Triton launcher: interpreted on CPU tensors, or for real on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hybridgen.kernels.registry import Op


@contextmanager
def poisoned() -> Iterator[None]:
    """Uninitialised memory reads as NaN, True or the largest integer: an unwritten result shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on ``device`` with the same strides, offset and surroundings."""
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    moved = storage.clone().to(device)
    return moved.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def launch(op: Op, device: torch.device, *arguments: Any) -> Any:
    """``op`` by its Triton kernels, on copies of the CPU ``arguments``; results on the CPU.

    Raises AssertionError where an argument that the op only reads was written to.
    """
    given = [move(a, device) if isinstance(a, Tensor) else a for a in arguments]
    with poisoned():
        results = op.launcher()(*given) if device.type == "cpu" else op(*given)
    schema = getattr(torch.ops.hybridgen, op.name).default._schema
    declared = schema.arguments[: len(given)]  # what is left out has a default, and comes last
    for argument, before, after in zip(declared, arguments, given, strict=True):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if isinstance(before, Tensor) and not written:
            same = torch.equal(bits(after.cpu()), bits(before))
            assert same, f"{op.name} wrote to its argument {argument.name}"
    if isinstance(results, Tensor):
        return results.cpu()
    return None if results is None else tuple(result.cpu() for result in results)


def bits(tensor: Tensor) -> Tensor:
    """The same numbers as integers, so that NaN equals itself and -0 is not 0."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    if tensor.is_floating_point():
        return tensor.contiguous().view(integer[tensor.element_size()])
    return tensor
