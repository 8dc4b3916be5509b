"""Kernels of rounds, added up; and the calls that are watched, on a CPU, where no kernel runs."""

import pytest
import torch
from conftest import TinyPair

from hybridgen import HybridGenerator
from hybridgen.benchmarks import rounds
from hybridgen.benchmarks.rounds import Event, kernels


def test_kernels_are_added_up_by_name() -> None:
    """In whatever order they come; a long wait is no gap."""
    events = [
        Event("product", 10.0, 14.0),
        Event("norm", 0.0, 1.0),
        Event("product", 1.5, 9.5),
        Event("norm", 50.0, 51.0),
    ]
    assert kernels(events) == {
        "median gap, us": 0.5,
        "kernels": {
            "product": {"launches": 2, "mean, us": 6.0, "share": round(12 / 14, 4)},
            "norm": {"launches": 2, "mean, us": 1.0, "share": round(2 / 14, 4)},
        },
    }
    assert kernels([]) == {"median gap, us": None, "kernels": {}}


def test_every_way_is_written(tiny_pair: TinyPair) -> None:
    generator = HybridGenerator(str(tiny_pair.slm), str(tiny_pair.llm), device="cpu")
    for way in rounds.WAYS.values():
        found = rounds.watched(generator, [[5, 6, 7], [9, 8]], 12, way)
        assert found["milliseconds a token"] > 0 and not found["kernels"]


def test_without_a_card_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="there is none here"):
        rounds.main(rounds.parse([]))
