"""What rounds keep for a profile is what can be said of their logits, and stands in its place.

Both forms of each function, torch's ops and the compiled one, beside a loop over numpy's numbers.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import random_logits
from torch import Tensor

from hybridgen.kernels import recording, recording_numba
from hybridgen.kernels.recording import KEPT, NEVER, Measured

POSITIONS = 9
DTYPES = [torch.float32, torch.bfloat16]
VOCABS = [1, 10, 63, 64, 65, 5000]


def compiled_measure(*given: Any) -> None:
    """As a recorder calls it, but for one forward."""
    *forward, measured = given
    recording_numba.measure([recording_numba.put_aside(*forward)], measured)


MEASURE = [recording.measure, compiled_measure]
KEEP_DRAFTS = [recording.keep_drafts, recording_numba.keep_drafts]

both = pytest.mark.parametrize("form", [0, 1], ids=["torch", "compiled"])


def spread(row: Tensor, k: int) -> tuple[list[float], list[int], float, float]:
    """The largest k logits, whose they are, the log-probability of the first, minus the entropy."""
    x = row.double().numpy()
    order = np.argsort(-x, kind="stable")[:k]
    largest = float(x.max())
    with np.errstate(invalid="ignore"):
        p = np.exp(x - largest) / np.exp(x - largest).sum()
    told = p[p > 0]
    return (
        x[order].tolist(),
        order.tolist(),
        float(np.log(p.max())),
        float((told * np.log(told)).sum()),
    )


def measured_here(
    logits: Tensor, start: Tensor, length: Tensor, drafted: bool, into: Measured
) -> None:
    """`recording.measure`, distribution by distribution."""
    k = into.top.shape[1]
    for b in range(logits.shape[0]):
        for c in range(logits.shape[1]):
            position = int(start[b]) + 1 + c
            at = b * POSITIONS + position
            behind = position > int(length[b]) and not drafted
            if position < 1 or behind or int(into.then[at]) >= position:
                continue
            top, ids, logprob, negentropy = spread(logits[b, c], k)
            into.top[at], into.ids[at] = torch.tensor(top), torch.tensor(ids)
            into.logprob[at], into.negentropy[at], into.then[at] = (
                logprob,
                negentropy,
                int(length[b]),
            )


def wanted(of: Measured) -> list[Tensor]:
    """Without those of position 0, which nobody wants."""
    return [buffer.view(-1, POSITIONS, *buffer.shape[1:])[:, 1:] for buffer in of]


@st.composite
def forwards(draw: Any) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Logits with masked ones among them, where their tokens begin, how long texts are, drafts."""
    batch, columns = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    seed, dtype = (
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )
    logits = random_logits(batch * columns, draw(st.sampled_from(VOCABS)), 4.0, seed)
    masked = draw(st.integers(0, logits.shape[1] - 1))
    logits[:, 1 : 1 + masked] = -torch.inf
    rows = st.integers(-1, POSITIONS - 1 - columns)
    start = [draw(rows) for _ in range(batch)]
    length = [draw(st.integers(1, POSITIONS - 1)) for _ in range(batch)]
    shaped = logits.to(dtype).view(batch, columns, -1)
    return shaped, torch.tensor(start), torch.tensor(length), draw(st.booleans())


@both
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_measures_are_those_of_each_distribution(form: int, data: st.DataObject) -> None:
    """Also where some were measured before: after the same tokens, or others."""
    logits, start, length, drafted = data.draw(forwards())
    batch, _, vocab = logits.shape
    found, expected = (
        Measured.allocate(batch * POSITIONS, min(10, vocab), torch.device("cpu")) for _ in range(2)
    )
    before = torch.tensor(
        data.draw(
            st.lists(st.integers(NEVER, 8), min_size=len(found.then), max_size=len(found.then))
        )
    )
    for of in (found, expected):
        of.then.copy_(before)
    MEASURE[form](logits, start, length, drafted, found)
    measured_here(logits, start, length, drafted, expected)
    *numbers, found_then = wanted(found)
    *right, right_then = wanted(expected)
    assert torch.equal(found_then, right_then)
    # The reference is told which of equal logits comes first by topk, so ids are looked up.
    for name, x, y in zip(Measured._fields, numbers, right, strict=False):
        if name != "ids":
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    check_ids(logits, start, found)


def check_ids(logits: Tensor, start: Tensor, found: Measured) -> None:
    """Where this forward was measured, the ids are of the largest logits."""
    for b in range(logits.shape[0]):
        for c in range(logits.shape[1]):
            at = b * POSITIONS + int(start[b]) + 1 + c
            ids = found.ids[at]
            if int(start[b]) + 1 + c > 0 and int(ids[0]) != NEVER:
                assert torch.equal(logits[b, c, ids].float(), found.top[at])
                assert len(set(ids.tolist())) == len(ids)


@both
def test_logits_may_be_part_of_a_longer_row(form: int) -> None:
    """As where the SLM's vocabulary is padded further than the LLM's."""
    whole = random_logits(6, 80).view(2, 3, 80)
    given = torch.tensor([1, 2]), torch.tensor([3, 3]), True
    found, expected = (Measured.allocate(2 * POSITIONS, 10, torch.device("cpu")) for _ in range(2))
    MEASURE[form](whole[:, :, :70], *given, found)
    MEASURE[form](whole[:, :, :70].contiguous(), *given, expected)
    for x, y in zip(wanted(found), wanted(expected), strict=True):
        assert torch.equal(x, y)


def test_a_place_behind_the_last_is_nobodys() -> None:
    """Of the compiled form: torch's ops are given none, for a cache has room for all drafts."""
    found = Measured.allocate(2 * POSITIONS, 5, torch.device("cpu"))
    then = found.then.clone()
    given = torch.tensor([POSITIONS - 1] * 2), torch.tensor([POSITIONS] * 2), True
    compiled_measure(random_logits(2, 64).view(2, 1, 64), *given, found)
    assert torch.equal(found.then, then) and not found.top.any()


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by_model", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_drafts_stand_in_their_places(
    form: int, dtype: torch.dtype, by_model: bool, count: int
) -> None:
    """Tokens that are a view, one of them beyond the LLM's vocabulary; the last behind the end."""
    logits = random_logits(2 * (count + 1), 50).to(dtype).view(2, count + 1, 50)
    block = torch.tensor([[9, 3, 49, 7, 1], [9, 8, 61, 2, 0]])
    tokens, truncation = block[:, 1 : 1 + count], torch.randn(2, count + 1, 3)
    drawn = [random_logits(2, 64, seed=i).to(dtype) for i in range(count)] if by_model else []
    told, start = torch.randn(2, 5, 3)[:, :count], torch.tensor([2, POSITIONS - count])
    kept, expected = (torch.full((2, POSITIONS, KEPT), 7.0) for _ in range(2))
    KEEP_DRAFTS[form](kept, start, tokens, drawn, told, logits, truncation)
    for b in range(2):
        for c in range(count):
            token = int(tokens[b, c])
            own = [float(drawn[c][b, token]), *told[b, c]] if by_model else [torch.nan] * 4
            judged = [float(logits[b, c, min(token, 49)]), *truncation[b, c]]
            expected[b, int(start[b]) + c] = torch.tensor([token, *own, *judged])
    torch.testing.assert_close(kept, expected, rtol=0, atol=0, equal_nan=True)


def test_what_was_put_aside_is_measured_in_its_order() -> None:
    """Several forwards at once leave what they leave one by one, whatever changes meanwhile."""
    start, length = torch.tensor([2, 3]), torch.tensor([3, 4])
    one_by_one, at_once = (
        Measured.allocate(2 * POSITIONS, 10, torch.device("cpu")) for _ in range(2)
    )
    aside = []
    for i, drafted in enumerate([True, False, True, False]):
        logits = random_logits(4, 100, 4.0, seed=i).view(2, 2, 100)
        aside.append(recording_numba.put_aside(logits, start, length, drafted))
        recording.measure(logits, start, length, drafted, one_by_one)
        start += i % 2
        length += i % 2
    recording_numba.measure(aside, at_once)
    for found, expected in zip(wanted(at_once), wanted(one_by_one), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
