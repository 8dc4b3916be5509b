"""Whose turn it is, against the words of the contract in plain Python; by Triton too."""

import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import bits, move, poisoned
from torch import Tensor

from hybridgen.kernels.registry import Op
from hybridgen.kernels.routing import route, unread
from hybridgen.kernels.verify import HEAD, NOTE, PENDING, WINDOW

WIDTH = 16


def called(op: Op, device: torch.device | None, given: tuple[Any, ...]) -> list[Tensor]:
    """What the op makes of copies of its arguments, and these: the reference, or by Triton."""
    copies = [x if not isinstance(x, Tensor) else move(x, device or x.device) for x in given]
    with poisoned():
        result = op.reference(*copies) if device is None else op.launcher()(*copies)
    made = [result] if isinstance(result, Tensor) else [*result]
    return [x.cpu() for x in (*made, *copies) if isinstance(x, Tensor)]


def same(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(bits(a), bits(b))


def quantile(metrics: list[float], share: np.float32) -> float:
    """What so many of the metrics seen are to be above, rounded half up."""
    rank = max(math.floor(np.float32(len(metrics)) * share + np.float32(0.5)), 0)
    ordered = sorted(metrics, reverse=True) + [-math.inf] * WIDTH
    return ordered[rank] if rank < WIDTH else -math.inf


class Row:
    """The contract, a decision at a time."""

    def __init__(self, rate: float) -> None:
        self.rate, self.seen = np.float32(rate), [0.0] * 0
        self.taken = self.routed = 0

    def decide(self, value: float, done: bool) -> tuple[bool, float]:
        if done:
            return False, self.threshold
        self.seen = [*self.seen, math.inf if math.isnan(value) else value][-WIDTH:]
        owed = np.float32(self.taken) * self.rate - np.float32(self.routed)
        self.threshold = quantile(self.seen, self.rate + owed / np.float32(32))
        routed = value > self.threshold
        self.taken += 1
        self.routed += routed
        return routed, self.threshold


halves = st.integers(0, 9).map(lambda x: x / 2)  # with many ties


@settings(max_examples=30)
@given(st.data())
def test_a_moving_threshold_is_the_quantile_of_the_last_metrics(
    device: torch.device, data: st.DataObject
) -> None:
    rows = 2
    rates = [data.draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])) for _ in range(rows)]
    oracle = [Row(rate) for rate in rates]
    state = (
        torch.full((rows,), 9.0),
        torch.full((rows, WIDTH), -torch.inf),
        torch.zeros(rows, 2, dtype=torch.int64),
        torch.zeros(rows, dtype=torch.bool),
        torch.full((rows, HEAD + WINDOW), -7),
    )
    for step in range(data.draw(st.integers(1, 2 * WIDTH + 3))):
        value = torch.tensor([[0.0, data.draw(halves)] for _ in range(rows)])[:, 1]
        done = torch.tensor([False, step >= 5 and step % 3 == 0])
        length, cached = torch.tensor([40, 31]), torch.tensor([31, 30])
        given = (value, done, length, cached, torch.tensor(rates), *state, True)
        expected = called(route, None, given)
        same(called(route, device, given), expected)
        stands, state = expected[0], tuple(expected[6:])
        for row, one in enumerate(oracle):
            routed, threshold = one.decide(float(value[row]), bool(done[row]))
            assert bool(state[3][row]) is routed is not bool(stands[row])
            assert float(state[0][row]) == threshold
            told = state[4][row].tolist()
            assert told[PENDING] == (int(length[row] - cached[row]) if routed else 0)
            assert struct.unpack("f", struct.pack("i", told[NOTE])) == (threshold,)
            assert told[:PENDING] + told[NOTE + 1 :] == [-7] * (HEAD + WINDOW - 2)
            assert state[2][row].tolist() == [one.taken, one.routed]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["runs", "rising", "falling", "equal"])
def test_the_rate_is_kept_whatever_the_metrics_do(rate: float, kind: str) -> None:
    metrics = {
        "runs": lambda step: step // 100 % 2 + step % 7 / 7,
        "rising": lambda step: float(step),
        "falling": lambda step: -float(step),
        "equal": lambda step: 1.0,
    }
    live, length, cached = torch.tensor([False]), torch.tensor([40]), torch.tensor([31])
    threshold, seen = torch.full((1,), 9.0), torch.full((1, 2 * WIDTH), -torch.inf)
    decisions, routed = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([False])
    report, rates = torch.zeros(1, HEAD + WINDOW, dtype=torch.int64), torch.tensor([rate])
    for step in range(1000):
        value, state = torch.tensor([metrics[kind](step)]), (threshold, seen, decisions)
        route.reference(value, live, length, cached, rates, *state, routed, report, True)
        owed = (step + 1) * rate - int(decisions[0, 1])
        # In float32, at the edges; where no rate is to be met there is none to be off.
        assert abs(owed) < 32 * max(rate, 1 - rate) * (0 < rate < 1) + 1.01


@pytest.mark.parametrize("moving", [False, True])
def test_a_row_that_is_done_or_broken_is_not_routed(device: torch.device, moving: bool) -> None:
    """The first is done, of the second the metric is NaN; the third is routed."""
    metrics = torch.full((3, WIDTH), -torch.inf)
    given = (
        torch.tensor([5.0, torch.nan, 5.0]),
        torch.tensor([True, False, False]),
        torch.tensor([9, 9, 9]),
        torch.tensor([4, 4, 4]),
        torch.tensor([1.0, 0.0, 1.0]),
        torch.tensor([1.0, 2.0, 3.0]),
        metrics,
        torch.tensor([[0, 0], [1, 0], [2, 2]]),
        torch.tensor([True, True, False]),
        torch.full((3, HEAD + WINDOW), -7),
        moving,
    )
    found = called(route, None, given)
    same(called(route, device, given), found)
    assert found[0].tolist() == [True, True, False]
    threshold, kept, decisions, routed, report = found[6:]
    assert routed.tolist() == [False, False, True]
    assert report[:, PENDING].tolist() == [0, 0, 5]
    if not moving:
        assert threshold.tolist() == [1, 2, 3] and torch.equal(kept, metrics)
        assert decisions.tolist() == [[0, 0], [1, 0], [2, 2]] and bool(
            (report[:, NOTE] == -7).all()
        )
    else:
        assert threshold.tolist() == [1, torch.inf, -torch.inf]
        assert decisions.tolist() == [[0, 0], [2, 0], [3, 3]]
        assert kept[1, 1] == torch.inf and kept[2, 2] == 5 and torch.equal(kept[0], metrics[0])


@settings(max_examples=60)
@given(st.data())
def test_the_llm_reads_on_from_where_it_was(device: torch.device, data: st.DataObject) -> None:
    rows, count = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    keep, numbers = data.draw(st.integers(0, 1)), {"min_size": rows, "max_size": rows}
    length = torch.tensor(data.draw(st.lists(st.integers(2, 30), **numbers)))
    behind = torch.tensor(data.draw(st.lists(st.integers(1, 20), **numbers)))
    routed = torch.tensor(data.draw(st.lists(st.booleans(), **numbers)))
    cached = (length - behind).clamp_min(0)
    tokens = torch.arange(rows * 60).view(rows, 60)
    given = (tokens, length, routed, cached, count, keep)
    found = called(unread, None, given)
    same(called(unread, device, given), found)
    ids, first, last, *_, read = found
    for row, (end, was) in enumerate(zip(length.tolist(), cached.tolist(), strict=True)):
        begin = was if routed[row] else end
        assert int(first[row]) == begin
        assert int(read[row]) == (min(was + count, end - keep) if routed[row] else was)
        places = [min(begin + i, end - 1) for i in range(count)]
        assert ids[row].tolist() == tokens[row, places].tolist()
        own = [i for i in range(count) if begin + i < end]
        assert int(last[row]) == row * count + (own[-1] if own else 0)
