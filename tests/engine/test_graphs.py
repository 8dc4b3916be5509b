"""Capture on a card as far as it goes without one: what a graph is given, and what it keeps."""

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hybridgen.engine.graphs import WARM_UPS, Graphs


class Work:
    """Holds what it reads, as a closure does."""

    def __init__(self) -> None:
        self.calls = 0
        self.read = torch.zeros(3, dtype=torch.float32, device="cpu")

    def __call__(self) -> None:
        self.calls += 1


@pytest.fixture
def replayed() -> list[int]:
    """As long as graphs were replayed often."""
    return []


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, replayed: list[int]) -> Graphs:
    """Graphs whose captures record nothing."""
    stream = SimpleNamespace(synchronize=lambda: None)
    stand_ins: dict[str, Callable[..., Any]] = {
        "Stream": lambda device: stream,
        "graph_pool_handle": lambda: (0, 1),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: replayed.append(1)),
        "graph": lambda graph, **options: nullcontext(),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return Graphs(torch.device("cpu"))


def test_work_is_done_before_it_is_captured_and_never_again(
    graphs: Graphs, replayed: list[int]
) -> None:
    work = Work()
    replay = graphs.record(work)
    for _ in range(3):
        replay()
    assert work.calls == WARM_UPS + 1
    assert len(replayed) == 3


@pytest.mark.parametrize("capture", ["capture", "record"])
def test_what_the_work_reads_lives_as_long_as_its_graph(graphs: Graphs, capture: str) -> None:
    work = Work()
    read = weakref.ref(work.read)
    replay = getattr(graphs, capture)(work)
    del work
    gc.collect()
    assert read() is not None
    del replay
    gc.collect()
    assert read() is None


def test_rounds_are_told_and_other_work_is_not(graphs: Graphs) -> None:
    told: list[int] = []
    graphs.captured = lambda: told.append(1)
    graphs.record(Work())
    assert not told
    graphs.capture(Work())
    assert told == [1]
