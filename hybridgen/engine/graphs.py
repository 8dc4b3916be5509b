"""Rounds as CUDA graphs: captured once, replayed from then on.

A round of a pair is hundreds of launches, each of which costs the host time that a replay does not
(`benchmarks/budget.py` has the counts, and what is predicted of them). A capture records the
launches and runs none, so what it needs must be there: the kernels compiled and loaded, the
workspaces allocated. Hence a round is first called, with every row at rest (`Rows.rest`), when it
reads and writes real memory and changes nothing that is committed.

All of a pair's graphs are captured and replayed on one stream of its own and share one pool: they
never run at the same time, and what one leaves there no other reads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

WARM_UPS = 2  # the first call compiles; a second one allocates as every later one does


class Graphs:
    """The graphs of one pair on ``device``; ``captured`` is called after each round's capture."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.captured: Callable[[], object] = _nothing

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What replays the round ``work``. It is called within `ours`, every row at rest."""
        replay = self.record(work)
        self.captured()
        return replay

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What replays ``work``, which is done twice before. It is called within `ours`."""
        for _ in range(WARM_UPS):
            work()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: another generator, say.
        with torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            work()
        return _Replay(graph, work)

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Work on the stream of the graphs, after what was enqueued before and before the rest."""
        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            self.stream.wait_stream(before)
            with torch.cuda.stream(self.stream):
                try:
                    yield
                finally:
                    before.wait_stream(self.stream)


class _Replay:
    """A captured graph, and the work that it was captured of.

    The graph knows no more than the addresses of what the work reads and holds: tensors that went
    with the work would be memory of others, and read all the same.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, work: Callable[[], None]) -> None:
        self.graph, self.work = graph, work

    def __call__(self) -> None:
        self.graph.replay()


def _nothing() -> None:
    pass
