"""The attention kernels against a plain float64 attention: shapes, lengths and large scores."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import (
    DTYPES,
    EPS,
    alone,
    check_cache,
    check_output,
    make_case,
    prepared,
    run,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hybridgen.kernels import attention_triton
from hybridgen.kernels.attention import attention
from hybridgen.kernels.attention_plan import prepare

BORDERS = (-1, 0, 1, 31, 32, 63, 64, 126, 127, 128, 200, 239)


def is_small(shape: dict[str, Any]) -> bool:
    """The interpreter needs 5 ms for each program of the combination."""
    queries = len(shape["start"]) * shape["tokens"] * shape["heads"][0]
    return bool(queries * -(-shape["dim"] // attention_triton.COLUMNS) <= 100)


SHAPES = st.fixed_dictionaries(
    dict(
        start=st.lists(st.sampled_from(BORDERS), min_size=1, max_size=3).map(tuple),
        tokens=st.sampled_from((1, 1, 2, 5, 8, 16)),
        heads=st.sampled_from(((1, 1), (4, 1), (7, 1), (4, 2), (3, 3))),
        dim=st.sampled_from((32, 64, 80, 96, 128, 256)),
        dtype=st.sampled_from(DTYPES),
        window=st.sampled_from((0, 0, 1, 9, 127, 129)),
        softcap=st.sampled_from((0.0, 0.0, 0.7, 30.0)),
        norm=st.booleans(),
        spare=st.integers(0, 2),
    )
).filter(is_small)


@settings(max_examples=30, phases=(Phase.generate,))  # shrinking would take minutes
@given(shape=SHAPES)
def test_the_definition(device: torch.device, shape: dict[str, Any]) -> None:
    c = make_case(**shape)
    output, cache = run(device, c)
    check_cache(device, c, cache)
    check_output(device, c, output, cache)


def test_the_reference_computes_the_same(device: torch.device) -> None:
    c = make_case((125, -1, 60), 5, window=70, softcap=2.0)
    output, _ = run(device, c)
    start, cache = torch.tensor(c.start), c.cache.nan_to_num()
    angles = prepare(start, c.tokens, c.table, (c.window,), 2)
    expected = attention(c.qkv, cache, start, *angles, c.norm, EPS, c.window, c.softcap)
    # Both are within 1e-5 of float64, see the tests of the reference.
    assert (output - expected).abs().max() < 2e-5


@pytest.mark.parametrize(("first", "window"), [(2046, 0), (2190, 20), (2190, 200)])
def test_more_chunks_than_one_step_combines(device: torch.device, first: int, window: int) -> None:
    """Float32 keys of 256 come in chunks of 32, so 2048 of them fill a step of 64 chunks."""
    c = make_case((first,), 3, (1, 1), 256, window=window, positions=2304)
    output, cache = run(device, c)
    check_output(device, c, output, cache)
    for row in (0, 2):
        assert torch.equal(run(device, alone(c, row, cache))[0][0], output[row])


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_scores_far_beyond_the_cap(device: torch.device) -> None:
    """Exponentials overflow, and tanh is 1 or -1."""
    c = make_case((60,), 2, softcap=0.7, norm=False)
    output, cache = run(device, replace(c, qkv=c.qkv * 1e5))
    q = torch.stack(
        [prepared(c, h, slice(0), 60 + i)[0] for i, h in enumerate(c.qkv.view(2, 8, 32))]
    )
    for i in range(2):
        k, v = cache[:, :, 0, : 61 + i].double().repeat_interleave(2, 1)
        weights = torch.softmax(0.7 * (q[i, :4].unsqueeze(1) @ k.mT).sign(), -1)
        exact = (weights @ v).view(-1)
        # Relative to the values, as in the tests of the reference.
        assert (output[i] - exact).abs().max() < 1e-5 * v.abs().max()


def test_huge_scores_do_not_overflow(device: torch.device) -> None:
    c = make_case((200,), 2, norm=False)
    assert run(device, replace(c, qkv=c.qkv * 1e10))[0].isfinite().all()
