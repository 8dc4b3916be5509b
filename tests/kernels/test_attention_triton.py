"""The attention kernels against a plain float64 attention, and a row's bits against its company."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from on_device import bits, move, poisoned
from test_attention import rope_table, rotate
from torch import Tensor

from hybridgen.kernels import attention_triton
from hybridgen.kernels.attention import attention
from hybridgen.kernels.attention_plan import prepare

NAN = float("nan")
EPS = 0.1  # large enough that leaving it out shows
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """Arguments of one call, on the CPU; ``cache`` is NaN wherever no query may look."""

    qkv: Tensor
    cache: Tensor
    start: tuple[int, ...]
    table: Tensor
    norm: Tensor | None
    window: int = 0
    softcap: float = 0.0
    tokens: int = 1

    @property
    def dim(self) -> int:
        return self.cache.shape[4]

    @property
    def kv_heads(self) -> int:
        return self.cache.shape[1]

    @property
    def q_heads(self) -> int:
        return self.qkv.shape[1] // self.dim - 2 * self.kv_heads

    @property
    def count(self) -> int:
        return len(self.start) * self.tokens

    def position(self, row: int) -> int:
        return max(self.start[row // self.tokens] + row % self.tokens, 0)


def make_case(
    start: tuple[int, ...],
    tokens: int,
    heads: tuple[int, int] = (4, 2),
    dim: int = 32,
    dtype: torch.dtype = torch.float32,
    window: int = 0,
    softcap: float = 0.0,
    norm: bool = True,
    positions: int = 256,
    spare: int = 0,
) -> Case:
    """``spare`` counts padding rows, and rows of the cache beyond the batch."""
    torch.manual_seed(hash((start, tokens, heads, dim, window)) % 2**31)
    q_heads, kv_heads = heads
    width = (q_heads + 2 * kv_heads) * dim
    qkv = torch.full((len(start) * tokens + spare, width), NAN)
    cache = torch.full((2, kv_heads, len(start) + spare, positions, dim), NAN)
    for b, first in enumerate(start):
        row = b * tokens
        qkv[row : row + tokens] = torch.randn(tokens, width)
        qkv[row : row + max(-first, 0) + 1] = qkv[row]  # tokens that share position 0 are equal
        first = max(first, 0)
        lowest = max(first - window + 1, 0) if window else 0
        cache[:, :, b, lowest:first] = torch.randn(2, kv_heads, first - lowest, dim)
    weight = 1 + 0.3 * torch.randn(q_heads + kv_heads, dim) if norm else None
    return Case(
        qkv.to(dtype),
        cache.to(dtype),
        start,
        rope_table(positions, dim),
        None if weight is None else weight.to(dtype),
        window,
        softcap,
        tokens,
    )


def run(device: torch.device, c: Case) -> tuple[Tensor, Tensor]:
    """Output and written cache, on the CPU; raises where the kernels wrote to anything else."""
    start = torch.tensor(c.start)
    angles = prepare(start, c.tokens, c.table, (c.window,), c.q_heads // c.kv_heads)
    tensors = (c.qkv, c.cache, start, *angles, c.norm)
    given = [None if t is None else move(t, device) for t in tensors]
    arguments: Any = (*given, EPS, c.window, c.softcap)
    with poisoned():
        op = attention.launcher() if device.type == "cpu" else attention
        output = op(*arguments)
    for i, (before, after) in enumerate(zip(tensors, given, strict=True)):
        if before is not None and after is not None and i != 1:
            assert torch.equal(bits(after.cpu()), bits(before)), f"argument {i} was written to"
    return output.cpu(), arguments[1].cpu()


def rounding(dtype: torch.dtype, device: torch.device) -> float:
    """Largest relative error: half an ulp, but the interpreter cuts bfloat16 off."""
    eps = torch.finfo(dtype).eps
    return eps if dtype == torch.bfloat16 and device.type == "cpu" else eps / 2


def check_cache(device: torch.device, c: Case, written: Tensor) -> None:
    """New keys and values stand at their positions, and nothing else changed a bit."""
    expected = c.cache.clone()
    heads = c.qkv.view(len(c.qkv), -1, c.dim)
    unit = rounding(c.cache.dtype, device)
    for row in range(c.count):
        b, at = row // c.tokens, c.position(row)
        k, v = heads[row, c.q_heads :].chunk(2)
        exact, size = prepared(c, k, slice(c.q_heads, None), at)
        # Rounded once to the cache's dtype. In float32 before: the mean of D squares is off by at
        # most D half ulps and counts half in its root; some ten operations follow.
        bound = (unit + (c.dim / 2 + 16) * 2.0**-24) * size
        assert ((written[0, :, b, at].double() - exact).abs() <= bound).all(), f"row {row}"
        expected[0, :, b, at] = written[0, :, b, at]
        expected[1, :, b, at] = v.to(c.cache.dtype)
    assert torch.equal(bits(written), bits(expected))


def prepared(c: Case, x: Tensor, heads: slice, position: int) -> tuple[Tensor, Tensor]:
    """``x`` [heads, D] normalised and rotated in float64, and the size of the terms it sums."""
    x = x.double()
    if c.norm is not None:
        x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * c.norm[heads].double()
    cos, sin = c.table[:, position, 0].double().abs()
    return rotate(x, position, c.table), x.abs() * cos + x.roll(c.dim // 2, -1).abs() * sin


def check_output(device: torch.device, c: Case, output: Tensor, cache: Tensor) -> None:
    """Each query's attention over the keys and values as ``cache`` holds them.

    Bounds to first order, in the `rounding` u of the cache's dtype and e of float32. A score is a
    sum of D products, of queries rounded to u after about D/2 + 16 operations: its error is at most

        ds = (u + (3 D / 2 + 16) e) sum |q| |k| / sqrt(D) + 8 e |s|     (and 8 e cap)

    A weight is then off by a factor of 1 + ds, in numerator and denominator, and rounded to u and
    summed over n keys in float32: 2 ds + u + (n + 32) e of the weighted mean of |v|. The output is
    rounded once more, to its own dtype.
    """
    unit, single = rounding(c.cache.dtype, device), 2.0**-24
    heads = c.qkv.view(len(c.qkv), -1, c.dim)
    ours = output.view(len(c.qkv), c.q_heads, c.dim).double()
    assert ours[c.count :].isfinite().all()
    for row in range(c.count):
        b, at = row // c.tokens, c.position(row)
        lowest = max(at - c.window + 1, 0) if c.window else 0
        q, size = prepared(c, heads[row, : c.q_heads], slice(0, c.q_heads), at)
        q, size = (t.view(c.kv_heads, -1, c.dim) for t in (q, size))
        k, v = cache[:, :, b, lowest : at + 1].double()
        scores = q @ k.mT / math.sqrt(c.dim)
        products = size @ k.abs().mT / math.sqrt(c.dim)
        error = (unit + (1.5 * c.dim + 16) * single) * products + 8 * single * scores.abs()
        if c.softcap:
            scores = c.softcap * torch.tanh(scores / c.softcap)
            error = error + 8 * single * c.softcap
        weights = torch.softmax(scores, -1)
        exact = weights @ v
        worst = error.amax(-1, keepdim=True)
        keys = at + 1 - lowest
        bound = (2 * worst + unit + (keys + 32) * single) * (weights @ v.abs())
        bound = bound + rounding(c.qkv.dtype, device) * exact.abs()
        wrong = (ours[row].view_as(exact) - exact).abs() / bound
        assert wrong.max() <= 1, f"row {row}: {wrong.max():.3g} times the bound"


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


@settings(max_examples=40, phases=(Phase.generate,))  # shrinking would take minutes
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
    for row in range(3):
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


def alone(c: Case, row: int, cache: Tensor) -> Case:
    """One token of ``c`` in a call of its own, over what the call of all left in ``cache``."""
    b = row // c.tokens
    return replace(
        c,
        qkv=c.qkv[row : row + 1],
        cache=cache[:, :, b : b + 1],
        start=(c.position(row),),
        tokens=1,
    )


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (100, 0.7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_has_the_same_bits_alone(
    device: torch.device, dtype: torch.dtype, window: int, softcap: float
) -> None:
    """Whichever tile and row its queries are in, and however long its mates are."""
    c = make_case((120, 3), 16, dtype=dtype, window=window, softcap=softcap)
    output, cache = run(device, c)
    for row in (0, 3, 7, 8, 15, 16, 25, 31):
        ours, written = run(device, alone(c, row, cache))
        assert torch.equal(bits(ours[0]), bits(output[row])), row
        assert torch.equal(bits(written), bits(cache[:, :, row // 16 : row // 16 + 1])), row


@pytest.mark.parametrize("parts", [(1,) * 16, (5, 1, 10), (9, 7)])
def test_cutting_tokens_into_calls_changes_no_bit(
    device: torch.device, parts: tuple[int, ...]
) -> None:
    c = make_case((122,), 16, (3, 1), dtype=torch.bfloat16, window=9)
    output, cache = run(device, c)
    check_pieces(device, c, parts, output, cache)


def test_prefill_has_the_bits_of_decoding(device: torch.device) -> None:
    """Ninety tokens of two heads are twelve tiles of queries: more than one program's."""
    c = make_case((50,), 90, (2, 1), dtype=torch.bfloat16)
    assert attention_triton.TILES * attention_triton.ROWS < 90 * 2
    output, cache = run(device, c)
    check_cache(device, c, cache)
    check_output(device, c, output, cache)
    check_pieces(device, c, (16, 1, 57, 16), output, cache)


def check_pieces(
    device: torch.device, c: Case, parts: tuple[int, ...], output: Tensor, cache: Tensor
) -> None:
    """Calls of ``parts`` tokens, one after the other, give the bits of one call with all."""
    pieces, written, first = [], c.cache, 0
    for part in parts:
        qkv = c.qkv[first : first + part]
        piece = replace(c, qkv=qkv, cache=written, start=(c.start[0] + first,), tokens=part)
        ours, written = run(device, piece)
        pieces.append(ours)
        first += part
    assert torch.equal(bits(torch.cat(pieces)), bits(output))
    assert torch.equal(bits(written), bits(cache))


def test_permuting_the_batch_permutes_the_rows(device: torch.device) -> None:
    """Trap 19: parameters read for row 0 alone."""
    c = make_case((130, -1, 7, 200), 2, dtype=torch.bfloat16)
    output, cache = run(device, c)
    order = [2, 0, 3, 1]
    rows = [2 * b + i for b in order for i in range(2)]
    start = tuple(c.start[b] for b in order)
    other, written = run(
        device, replace(c, qkv=c.qkv[rows], cache=c.cache[:, :, order], start=start)
    )
    assert torch.equal(bits(other), bits(output[rows]))
    assert torch.equal(bits(written), bits(cache[:, :, order]))


def test_a_broken_row_stays_alone(device: torch.device) -> None:
    """Trap 27: a NaN row, and padding rows of NaN, leave the bits of the others."""
    c = make_case((130, 70, 7), 2)
    output, cache = run(device, c)
    padding = torch.full((3, c.qkv.shape[1]), NAN)
    broken, written = run(
        device, replace(c, qkv=torch.cat((c.qkv[:2], padding[:2], c.qkv[4:], padding)))
    )
    assert torch.equal(broken[[0, 1, 4, 5]], output[[0, 1, 4, 5]])
    assert torch.equal(bits(written[:, :, [0, 2]]), bits(cache[:, :, [0, 2]]))
    assert broken[2:4].isnan().all()
    assert torch.equal(broken[6:], torch.zeros(3, output.shape[1]))


def test_a_larger_cache_changes_no_bit(device: torch.device) -> None:
    c = make_case((130, 70), 2, dim=80)
    output, cache = run(device, c)
    large = torch.full((2, 2, 5, 768, 80), NAN)
    large[:, :, :2, :256] = c.cache
    other, written = run(device, replace(c, cache=large, table=rope_table(768, 80)))
    assert torch.equal(other, output)
    assert torch.equal(bits(written[:, :, :2, :256]), bits(cache))


def test_it_does_not_matter_who_computes_a_chunk(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = make_case((250,), 5, (1, 1), 256, window=240, positions=512)
    output, cache = run(device, c)
    for programs in (1, 3):
        monkeypatch.setattr(attention_triton, "PROGRAMS", programs)
        other, written = run(device, c)
        assert torch.equal(other, output)
        assert torch.equal(bits(written), bits(cache))


def test_rows_may_be_apart(device: torch.device) -> None:
    """Trap 22: a stride of rows, or of the caches of rows and heads, taken for granted."""
    c = make_case((130, 70), 3)
    expected, cache = run(device, c)
    wide = torch.full((6, c.qkv.shape[1] + 48), NAN)
    wide[:, 16:-32] = c.qkv
    layers = torch.full((2, 3, 5, 256, 32), NAN)
    layers[:, 1:, 1:3] = c.cache
    apart = replace(c, qkv=wide[:, 16:-32], cache=layers[:, 1:, 1:3])
    output, written = run(device, apart)
    assert torch.equal(output, expected)
    assert torch.equal(bits(written), bits(cache))


@pytest.mark.parametrize("far", ["values", "heads", "rows"])
def test_caches_beyond_two_to_the_31_elements(device: torch.device, far: str) -> None:
    """Offsets in 32 bits would wrap around. Most of the memory is never touched."""
    c = make_case((3, 5, 9), 1, (3, 3), dtype=torch.bfloat16)
    strides = [256 * 32 * n for n in (9, 3, 1)]
    axis = ("values", "heads", "rows").index(far)
    strides[axis] = 2**31 if far == "values" else 2**30
    size = sum(s * (n - 1) for s, n in zip(strides, (2, 3, 3), strict=True)) + 256 * 32
    storage = torch.empty(size, dtype=torch.bfloat16, device=device)
    cache = storage.as_strided(c.cache.shape, (*strides, 32, 1))
    cache[:, :, :, :16].copy_(c.cache[:, :, :, :16])
    start = torch.tensor(c.start)
    tensors = [t.to(device) for t in (start, *prepare(start, 1, c.table, (0,), 1))]
    op = attention.launcher() if device.type == "cpu" else attention
    norm = None if c.norm is None else c.norm.to(device)
    output = op(c.qkv.to(device), cache, *tensors, norm, EPS, 0, 0.0)
    expected, written = run(device, c)
    assert torch.equal(output.cpu(), expected)
    assert torch.equal(bits(cache[:, :, :, :16].cpu()), bits(written[:, :, :, :16]))


@pytest.mark.gpu
def test_a_replayed_graph_reads_the_lengths_anew() -> None:
    device = torch.device("cuda")
    first, then = make_case((200, 7), 5), make_case((30, 140), 5)
    inputs = []
    for c in (first, then):
        start = torch.tensor(c.start)
        angles = prepare(start, 5, c.table, (0,), 2)
        inputs.append([t.to(device) for t in (c.qkv, c.cache, start, *angles)])
    fixed = [t.clone() for t in inputs[0]]
    assert first.norm is not None
    arguments = (*fixed, first.norm.to(device), EPS, 0, 0.0)
    attention(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = attention(*arguments)
    for c, values in ((first, inputs[0]), (then, inputs[1])):
        for target, value in zip(fixed, values, strict=True):
            target.copy_(value)
        graph.replay()
        expected, cache = run(device, replace(c, norm=first.norm))
        assert torch.equal(output.cpu(), expected)
        assert torch.equal(bits(fixed[1].cpu()), bits(cache))
