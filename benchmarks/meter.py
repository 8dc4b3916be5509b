"""What a call launches on a GPU, and the bytes it moves, without a GPU.

`Meter` is a dispatch mode for fake CUDA tensors, which have shapes and no memory. An op of ours
runs its own launcher, whose launches are written down and not made, so kernels and grids are what a
GPU would get. Of torch's own ops a view is nothing, the memory of a new tensor is nothing (a
graph's comes from its pool), and any other is one launch, or what `LAUNCHES` says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import KernelInterface

from hybridgen.kernels.cost import Cost, cost, nbytes
from hybridgen.kernels.registry import OPS

Grid = tuple[int, ...]
LAUNCHES = {"sort": 3}  # torch's sort of short rows: a copy, their indices, the sort itself
LOOKUPS = ("gather.", "index_select.")  # they read as much of the first tensor as they give
NO_LAUNCH = ("empty", "new_empty", "_unsafe_view")


class Launch(NamedTuple):
    """One launch of a kernel; a torch op's grid is unknown, ()."""

    kernel: str
    grid: Grid = ()

    @property
    def programs(self) -> int:
        return prod(self.grid) if self.grid else 0


@dataclass
class Call:
    """One call of an op: what it launched, and its cost."""

    op: str
    launches: list[Launch]
    cost: Cost

    @property
    def is_ours(self) -> bool:
        return self.op in OPS


class Meter(TorchDispatchMode):
    """Within: the calls of every op, in order. To be entered within a FakeTensorMode.

    context  tokens of every row before those that an op is given
    """

    def __init__(self, context: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = context
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "hybridgen":
            return self._ours(func.__name__.partition(".")[0], args)
        if func.namespace != "aten":  # prim.device asks where a tensor is
            return func(*args, **(kwargs or {}))
        with self:  # in inference mode composite ops come whole
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        result = func(*args, **(kwargs or {}))
        count = launches_of(func)
        if count:
            name = func._schema.name.removeprefix("aten::")
            call = Call(name, [Launch(name)] * count, _moved(func, args, kwargs or {}, result))
            self.calls.append(call)
        return result

    def _ours(self, name: str, args: Any) -> Any:
        with recorded() as launches, self:  # a copy that a launcher makes is a call of its own
            result = OPS[name].launcher()(*args)
        self.calls.append(Call(name, launches, cost(name, args, result, self.context)))
        return result


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within: kernels are not launched, but listed."""
    launches: list[Launch] = []

    def launch(kernel: Any, grid: Grid) -> Any:
        return lambda *args, **options: launches.append(Launch(kernel.__name__, tuple(grid)))

    with patch.object(KernelInterface, "__getitem__", launch):
        yield launches


def launches_of(func: Any) -> int:
    """How many kernels, or copies, an op of torch's starts."""
    name = func._schema.name.removeprefix("aten::")
    aliases = [result.alias_info for result in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return 0 if is_view or name.startswith(NO_LAUNCH) else LAUNCHES.get(name, 1)


def _moved(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Cost:
    """Its tensors once each: those that it only reads, and those that it gives or writes."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    given |= kwargs
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            given.pop(argument.name, None)
    if func.__name__.startswith(LOOKUPS):
        given["self"] = result
    return Cost(nbytes(tree_leaves(given)), nbytes(tree_leaves(result)))
