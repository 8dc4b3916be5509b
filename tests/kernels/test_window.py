"""What a model reads next: tokens and places of each text, kept within it; by Triton too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import move, poisoned
from torch import Tensor

from hybridgen.kernels.window import window

UNWRITTEN = -7


def texts(data: st.DataObject, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Tokens that tell their row and place, and lengths."""
    tokens = torch.arange(rows * width).view(rows, width)
    length = data.draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows))
    return tokens, torch.tensor(length)


@settings(max_examples=60)
@given(st.data())
def test_follows_the_formula(device: torch.device, data: st.DataObject) -> None:
    rows, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 16))
    places = data.draw(st.integers(1, 17))
    tokens, length = texts(data, rows, 30)
    starts = st.lists(st.integers(-4, 33), min_size=rows, max_size=rows)
    start = torch.tensor(data.draw(starts)) if data.draw(st.booleans()) else None
    expected = torch.full((rows, count + 2), UNWRITTEN), torch.full((places, rows + 1), UNWRITTEN)
    for row, end in enumerate(length.tolist()):
        first = end - count if start is None else int(start[row])
        for i in range(count):
            expected[0][row, 1 + i] = tokens[row, min(max(first + i, 0), end - 1)]
        for p in range(places):
            expected[1][p, row] = first + p
    for call, place in ((window, torch.device("cpu")), (window.launcher(), device)):
        given = [None if x is None else move(x, place) for x in (tokens, length, start)]
        written = [torch.full_like(x, UNWRITTEN, device=place) for x in expected]
        with poisoned():
            call(*given, written[0][:, 1:-1], written[1][:, :-1])
        for got, want in zip(written, expected, strict=True):
            assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_without_a_start_it_is_the_end(count: int) -> None:
    tokens, length = torch.arange(40).view(2, 20), torch.tensor([20, 1])
    ids, positions = torch.empty(2, count, dtype=torch.int64), torch.empty(1, 2, dtype=torch.int64)
    window(tokens, length, None, ids, positions)
    assert ids.tolist() == [[*range(20 - count, 20)], [20] * count]
    assert positions.tolist() == [[20 - count, 1 - count]]
