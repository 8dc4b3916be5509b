"""A CUDA graph without a card: what a round does to tensors is recorded once, and done again.

A replay runs the recorded ops on the recorded tensors, and nothing of the Python around them: a
value that the host had in its hand at capture stays what it was then, and memory that moved is
missed. As while a real stream captures, a value that is read back is an error.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from hybridgen.engine.decoder import Decoder
from hybridgen.engine.pair import Pair
from hybridgen.engine.reports import Arrival
from hybridgen.kernels.registry import Op

aten = torch.ops.aten
READS_BACK = {
    aten._local_scalar_dense.default,
    aten.item.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
}


class ReadBack(RuntimeError):
    """A value was read while a graph was being captured."""


class Recording(TorchDispatchMode):
    """Runs ops and notes how to run them again."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS_BACK:
            raise ReadBack(str(func))
        return self.note(lambda: func(*args, **(kwargs or {})), [args, kwargs])

    def note(self, call: Callable[[], Any], given: Any) -> Any:
        """Run ``call``; a replay runs it again, and puts what it makes where it was put first."""
        made = call()
        held = {storage(tensor) for tensor in tensors(given)}
        kept = [tensor if storage(tensor) not in held else None for tensor in tensors(made)]

        def again() -> None:
            for place, value in zip(kept, tensors(call()), strict=True):
                if place is not None:
                    place.copy_(value)

        self.steps.append(again)
        return made


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


class FakeGraphs:
    """In the place of `hybridgen.engine.graphs.Graphs`. ``rounds`` counts captures of rounds."""

    def __init__(self) -> None:
        self.rounds = self.replays = 0
        self.captured: Callable[[], object] = lambda: None

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        replay = self.record(work)
        self.rounds += 1
        self.captured()
        return replay

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        recording = Recording()
        with recording, ops_noted(recording):
            work()

        def replay() -> None:
            self.replays += 1
            for step in recording.steps:
                step()

        return replay

    def ours(self) -> Any:
        return nullcontext()


@contextmanager
def ops_noted(recording: Recording) -> Iterator[None]:
    """An op of ours is one step, however it computes, and so is a forward.

    On a CPU both decide on the host: a forward how many keys its mask has, say.
    """

    inside = False

    def one_step(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(called: Any, *arguments: Any) -> Any:
            nonlocal inside
            if inside:  # an op of a forward
                return call(called, *arguments)
            inside = True
            try:
                with _disable_current_modes():
                    return recording.note(lambda: call(called, *arguments), arguments)
            finally:
                inside = False

        return noted

    with pytest.MonkeyPatch.context() as patch:
        for kind in (Decoder, Op):
            patch.setattr(kind, "__call__", one_step(kind.__call__))
        yield


class Late:
    """Reports one round late, as on a GPU: what was so when they were sent."""

    ahead = 1

    def post(self, report: Tensor) -> Arrival:
        told = report.tolist()
        return lambda: told


def as_on_a_gpu(pair: Pair) -> FakeGraphs:
    """Let ``pair`` capture its rounds and read their reports one round late."""
    graphs: Any = FakeGraphs()
    pair.graphs, pair.reports = graphs, Late()
    pair._batches.clear()
    fake: FakeGraphs = graphs
    return fake
