"""A token's attention has the same bits whatever its company: batch, calls, cache and programs."""

from dataclasses import replace

import pytest
import torch
from attention_cases import (
    EPS,
    NAN,
    Case,
    alone,
    check_cache,
    check_output,
    make_case,
    run,
)
from on_device import bits
from test_attention import rope_table
from torch import Tensor

from hybridgen.kernels import attention_triton
from hybridgen.kernels.attention import attention
from hybridgen.kernels.attention_plan import prepare


# A dtype decides how many keys a chunk has, a window which of them count.
@pytest.mark.parametrize(
    ("dtype", "window", "softcap"),
    [
        (torch.float32, 0, 0.0),
        (torch.float32, 100, 0.7),
        (torch.bfloat16, 0, 0.0),
        (torch.float16, 100, 0.7),
    ],
)
def test_a_token_has_the_same_bits_alone(
    device: torch.device, dtype: torch.dtype, window: int, softcap: float
) -> None:
    """Whichever tile and row its queries are in, and however long its mates are."""
    c = make_case((120, 3), 16, dtype=dtype, window=window, softcap=softcap)
    output, cache = run(device, c)
    for row in (0, 7, 8, 15, 16, 31):  # tiles of eight tokens, rows of sixteen
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
        monkeypatch.setattr(attention_triton, "SHARES", 1)
        monkeypatch.setattr(attention_triton, "multiprocessors", lambda device: 1)
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
