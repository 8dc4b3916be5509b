"""The attention that is compiled for a CPU, against the float64 definition, and bit by bit."""

from dataclasses import replace

import pytest
import torch
from attention_cases import EPS, NAN, Case, alone, make_case
from on_device import bits, poisoned
from test_attention import CASES, case, rope_table, truth
from test_attention import EPS as CASE_EPS
from torch import Tensor

from hybridgen.kernels import attention_numba, attention_plan, registry
from hybridgen.kernels.attention import attention_reference
from hybridgen.kernels.attention_numba import attention
from hybridgen.kernels.attention_plan import prepare

DTYPES = (torch.float32, torch.bfloat16)


def run(c: Case) -> tuple[Tensor, Tensor]:
    """Output and written cache, which is float32 as on any CPU."""
    start, cache = torch.tensor(c.start), c.cache.float()
    norm = None if c.norm is None else c.norm.float()
    given = (c.qkv.clone(), start.clone(), c.table.clone())
    with poisoned():
        angles = prepare(given[1], c.tokens, given[2], (c.window,), 2, True)
        output = attention(given[0], cache, given[1], *angles, norm, EPS, c.window, c.softcap)
    for before, after in zip((c.qkv, start, c.table), given, strict=True):
        assert torch.equal(bits(after), bits(before))
    return output, cache


@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("softcap", [0.0, 0.5])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "dim", "start"), [c for c in CASES if c[3] % 8 == 0]
)
def test_the_definition(
    batch: int,
    tokens: int,
    heads: tuple[int, int],
    dim: int,
    start: list[int],
    norm: bool,
    softcap: float,
    window: int,
) -> None:
    c = case(batch, tokens, heads, dim, cache_rows=batch + 1)
    cache, at = c["cache"].clone(), torch.tensor(start)
    weight = c["norm"] if norm else None
    angles = prepare(at, tokens, c["table"], (window,), c["group"], True)
    ours = attention(c["qkv"], cache, at, *angles, weight, CASE_EPS, window, softcap)
    exact = c["cache"].double()
    expected = truth(c["qkv"], exact, start, c["table"], weight, window, softcap)
    # float32 against float64 on values of size about 1, sums of at most 512 weighted terms.
    assert (ours.double() - expected).abs().max() < 1e-5
    assert (cache.double() - exact).abs().max() < 1e-5
    untouched = torch.ones_like(exact, dtype=torch.bool)
    for b, first in enumerate(start):
        untouched[:, :, b, first : first + tokens] = False
    assert torch.equal(cache[untouched], c["cache"][untouched])


def test_half_precision_is_rounded_once() -> None:
    """The same numbers in float32 give the same output, rounded."""
    c = make_case((30, 200), 3, dtype=torch.bfloat16)
    output, _ = run(c)
    wide, _ = run(replace(c, qkv=c.qkv.float(), cache=c.cache.float()))
    assert torch.equal(output, wide.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (5, 1)])
def test_a_tokens_bits_are_its_own(dtype: torch.dtype, window: int, heads: tuple[int, int]) -> None:
    """Whatever stands beside it: what no query may see is NaN, and so are rows of padding."""
    c = make_case((17, -1, 250), 5, heads=heads, dtype=dtype, window=window, spare=2)
    output, written = run(c)
    assert output[: c.count].isfinite().all() and (output[c.count :] == 0).all()
    for row in range(c.count):
        one, _ = run(alone(c, row, written))
        assert torch.equal(bits(one[0]), bits(output[row])), f"row {row}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_a_larger_cache_has_the_same_bits(dtype: torch.dtype) -> None:
    """Its heads are further apart."""
    c = make_case((17, 40, 250), 2, dtype=dtype)
    output, written = run(c)
    whole = written.clone()
    for b, start in enumerate(c.start):
        at = torch.tensor([start])
        angles = prepare(at, c.tokens, c.table, (0,), 2)
        part, rows = whole[:, :, b : b + 1], slice(b * c.tokens, (b + 1) * c.tokens)
        assert not part.is_contiguous()
        norm = None if c.norm is None else c.norm.float()
        found = attention(c.qkv[rows], part, at, *angles, norm, EPS, 0, 0.0)
        assert torch.equal(bits(found), bits(output[rows])), f"row {b}"
    assert torch.equal(bits(whole), bits(written))


def test_strides_of_what_it_reads_change_no_bits() -> None:
    """Nor is anything compiled for them: that would take seconds in the midst of a call."""
    c = make_case((17, 40, 250), 2)
    output, written = run(c)
    known = attention_numba.attend_function.cache_info().currsize

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack((tensor, torch.full_like(tensor, -7)), -1)[..., 0]

    start = torch.tensor(c.start)
    cos, sin = prepare(start, c.tokens, c.table, (0,), 2)
    given = [strided(t) for t in (c.qkv, start, cos, sin, c.norm)]
    assert not any(t.is_contiguous() for t in given)
    cache = c.cache.clone()
    again = attention(given[0], cache, *given[1:], EPS, 0, 0.0)
    assert torch.equal(bits(again), bits(output)) and torch.equal(bits(cache), bits(written))
    assert attention_numba.attend_function.cache_info().currsize == known


def test_threads_share_the_work_and_change_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    c = make_case((17, 3, 250), 2, heads=(6, 3))
    output, written = run(c)
    monkeypatch.setattr(attention_numba, "SHARED", 0)
    for threads in (2, 3, 4, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        pools = attention_numba._pool.cache_info().misses
        again, written_again = run(c)
        assert torch.equal(bits(again), bits(output))
        assert torch.equal(bits(written_again), bits(written))
        assert attention_numba._pool.cache_info().misses == pools + 1, "nothing was shared"


def test_nan_of_one_row_stays_there() -> None:
    c = make_case((9, 9), 1)
    qkv = c.qkv.clone()
    qkv[0, 3] = NAN
    output, _ = run(replace(c, qkv=qkv))
    clean, _ = run(c)
    assert output[0].isnan().any()
    assert torch.equal(bits(output[1]), bits(clean[1]))


def test_angles_carry_no_plan() -> None:
    table = rope_table(256, 8)
    cos, sin = prepare(torch.tensor([-1, 40]), 2, table, (0,), 1)
    at = torch.tensor([0, 0, 40, 41])
    assert torch.equal(cos, table[0, at]) and torch.equal(sin, table[1, at])
    assert not hasattr(cos, attention_plan._PLAN)


@pytest.mark.parametrize(("dim", "dtype"), [(12, torch.float32), (16, torch.float16)])
def test_what_is_not_compiled_is_the_references(dim: int, dtype: torch.dtype) -> None:
    c = make_case((30, 200), 3, dim=dim, dtype=dtype)
    c = replace(c, cache=c.cache.nan_to_num())  # the reference masks what it does not see
    output, written = run(c)
    start, cache = torch.tensor(c.start), c.cache.float()
    angles = prepare(start, c.tokens, c.table, (0,), 2)
    expected = attention_reference(c.qkv, cache, start, *angles, c.norm.float(), EPS, 0, 0.0)
    assert torch.equal(output, expected) and torch.equal(bits(written), bits(cache))


def test_the_op_takes_it_where_numba_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def new() -> registry.Op:
        return registry.Op("attention", attention_reference, "", "attention_numba:attention")

    c = make_case((3,), 1)
    start = torch.tensor(c.start)
    angles = prepare(start, 1, c.table, (0,), 2)
    arguments = (c.cache.float(), start, *angles, c.norm, EPS, 0, 0.0)
    op = new()
    op(c.qkv, *arguments)
    assert op.on_cpu is attention
    registry.has_numba.cache_clear()
    monkeypatch.setenv("HYBRIDGEN_NUMBA", "0")
    try:
        op = new()
        op(c.qkv, *arguments)
        assert op.on_cpu is attention_reference
    finally:
        registry.has_numba.cache_clear()
