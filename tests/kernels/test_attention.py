"""The attention op against a plain float64 attention, token by token."""

import math
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridgen.kernels import attention_plan
from hybridgen.kernels.attention import KEY_CHUNK, attention
from hybridgen.kernels.attention_plan import prepare

EPS = 1e-6


@pytest.fixture(autouse=True)
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled where numba is has tests of its own."""
    monkeypatch.setattr(attention, "on_cpu", attention.reference)
    monkeypatch.setattr(attention_plan, "has_numba", lambda: False)


def rope_table(positions: int, dim: int) -> Tensor:
    frequencies = 100.0 ** (-torch.arange(0, dim, 2) / dim)
    angles = torch.arange(positions).unsqueeze(1) * frequencies
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack((torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)))
    return table.unsqueeze(2)


def rotate(x: Tensor, position: int, table: Tensor) -> Tensor:
    """``x`` [heads, D] at ``position``, pairs (i, i + D / 2) turned by their angle."""
    half = x.shape[-1] // 2
    cos = table[0, position, 0, :half].double()
    sin = table[1, position, 0, half:].double()
    a, b = x[:, :half], x[:, half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), 1)


def truth(
    qkv: Tensor,
    cache: Tensor,
    start: list[int],
    table: Tensor,
    norm: Tensor | None,
    window: int,
    softcap: float = 0.0,
) -> Tensor:
    """The op's definition, one token and head at a time; ``cache`` float64, written in place."""
    _, kv_heads, _, _, dim = cache.shape
    tokens = len(qkv) // len(start)
    heads = qkv.double().view(len(qkv), -1, dim)
    q_heads = heads.shape[1] - 2 * kv_heads
    rows = []
    for r, row in enumerate(heads):
        b, position = r // tokens, max(start[r // tokens] + r % tokens, 0)
        qk = row[: q_heads + kv_heads]
        if norm is not None:
            qk = qk / (qk.square().mean(-1, keepdim=True) + EPS).sqrt() * norm.double()
        qk = rotate(qk, position, table)
        cache[0, :, b, position] = qk[q_heads:]
        cache[1, :, b, position] = row[q_heads + kv_heads :]
        first = max(position - window + 1, 0) if window else 0
        outputs = []
        for h in range(q_heads):
            k, v = cache[:, h * kv_heads // q_heads, b, first : position + 1]
            scores = k @ qk[h] / math.sqrt(dim)
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            outputs.append(torch.softmax(scores, 0) @ v)
        rows.append(torch.cat(outputs))
    return torch.stack(rows)


def case(
    batch: int, tokens: int, heads: tuple[int, int], dim: int, cache_rows: int = 0
) -> dict[str, Any]:
    torch.manual_seed(batch * 100 + tokens)
    q_heads, kv_heads = heads
    return dict(
        qkv=torch.randn(batch * tokens, (q_heads + 2 * kv_heads) * dim),
        cache=torch.randn(2, kv_heads, cache_rows or batch, 2 * KEY_CHUNK, dim),
        table=rope_table(2 * KEY_CHUNK, dim),
        norm=1 + 0.3 * torch.randn(q_heads + kv_heads, dim),
        group=q_heads // kv_heads,
    )


def run(
    c: dict[str, Any],
    start: list[int],
    window: int = 0,
    invariant: bool = True,
    norm: bool = True,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Output and written cache."""
    cache = c["cache"].clone()
    at = torch.tensor(start)
    angles = prepare(at, len(c["qkv"]) // len(start), c["table"], (window,), c["group"], invariant)
    weight = c["norm"] if norm else None
    return attention(c["qkv"], cache, at, *angles, weight, EPS, window, softcap), cache


CASES = [
    (1, 1, (4, 2), 16, [0]),
    (1, 5, (3, 1), 32, [254]),
    (3, 2, (4, 4), 8, [0, 300, 17]),
    (2, 16, (8, 2), 12, [250, 3]),
    (4, 1, (2, 1), 16, [511, 0, 256, 255]),
]


@pytest.mark.parametrize("invariant", [True, False])
@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("softcap", [0.0, 0.5])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("batch", "tokens", "heads", "dim", "start"), CASES)
def test_the_definition(
    batch: int,
    tokens: int,
    heads: tuple[int, int],
    dim: int,
    start: list[int],
    norm: bool,
    softcap: float,
    window: int,
    invariant: bool,
) -> None:
    c = case(batch, tokens, heads, dim, cache_rows=batch + 1)
    ours, written = run(c, start, window, invariant, norm, softcap)
    cache = c["cache"].double()
    weight = c["norm"] if norm else None
    expected = truth(c["qkv"], cache, start, c["table"], weight, window, softcap)
    # float32 against float64 on values of size about 1, sums of at most 512 weighted terms.
    assert (ours.double() - expected).abs().max() < 1e-5
    assert (written.double() - cache).abs().max() < 1e-5
    untouched = torch.ones_like(cache, dtype=torch.bool)
    for b, first in enumerate(start):
        untouched[:, :, b, first : first + tokens] = False
    assert torch.equal(written[untouched], c["cache"][untouched])


def plans_made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with every plan that is made from now on."""
    made: list[Any] = []
    make = attention_plan._plan

    def counted(*arguments: Any) -> Any:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(attention_plan, "_plan", counted)
    return made


@pytest.mark.parametrize("path", [attention, torch.ops.hybridgen.attention])
def test_all_layers_share_the_plan_of_their_forward(
    path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two forwards, too, whose layers take turns; one of them on tiles of its own."""
    made = plans_made(monkeypatch)
    cases = [case(2, 3, (4, 2), 16), case(1, 2, (4, 2), 16)]
    starts = [torch.tensor([5, 400]), torch.tensor([77])]
    angles = [
        prepare(at, tokens, c["table"], (0, 4), 2, invariant)
        for c, at, tokens, invariant in zip(cases, starts, (3, 2), (True, False), strict=True)
    ]
    for window in (0, 4, 0):
        for c, at, rows in zip(cases, starts, angles, strict=True):
            path(c["qkv"], c["cache"], at, *rows, c["norm"], EPS, window, 0.0)
    assert len(made) == 2


def test_forwards_in_many_threads_keep_their_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of all run in turns: each waits for the others after every step."""
    made = plans_made(monkeypatch)
    starts = [[5, 400], [0, 17], [300, 301], [511, 256]]
    cases = [case(2, 1, (4, 2), 16) for _ in starts]
    expected = [run(c, start)[0] for c, start in zip(cases, starts, strict=True)]
    made.clear()
    turn = Barrier(len(starts))

    def forward(c: dict[str, Any], start: list[int]) -> list[Tensor]:
        at = torch.tensor(start)
        angles = prepare(at, 1, c["table"], (0,), 2)
        outputs = []
        for _ in range(5):
            turn.wait()
            outputs.append(attention(c["qkv"], c["cache"], at, *angles, c["norm"], EPS, 0, 0.0))
        return outputs

    with ThreadPoolExecutor(len(starts)) as pool:
        layers = list(pool.map(forward, cases, starts))
    assert len(made) == len(starts)
    for outputs, output in zip(layers, expected, strict=True):
        assert all(torch.equal(layer, output) for layer in outputs)


def test_a_plan_goes_with_its_cosines() -> None:
    c = case(2, 3, (4, 2), 16)
    cos, _ = prepare(torch.tensor([5, 400]), 3, c["table"], (0,), 2)
    mask = weakref.ref(getattr(cos, attention_plan._PLAN).masks[0])
    del cos
    assert mask() is None


@pytest.mark.parametrize("other", ["cosines", "start", "window", "group", "positions"])
def test_a_plan_is_made_where_none_fits(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whatever layer the plan at hand was made for."""
    c = case(2, 3, (4, 2), 16)
    at = torch.tensor([5, 400])
    expected, written = run(c, [5, 400], window=4)
    table, group = c["table"], c["group"]
    if other == "positions":
        table = rope_table(3 * KEY_CHUNK, 16)
    cos, sin = prepare(
        torch.tensor([5, 99]) if other == "start" else at,
        3,
        table,
        (9,) if other == "window" else (4,),
        1 if other == "group" else group,
    )
    plan = getattr(cos, attention_plan._PLAN)
    cos, sin = (rows.clone() for rows in prepare(at, 3, table, (4,), group))
    if other != "cosines":
        setattr(cos, attention_plan._PLAN, plan)
    made = plans_made(monkeypatch)
    ours = attention(c["qkv"], c["cache"], at, cos, sin, c["norm"], EPS, 4, 0.0)
    assert len(made) == 1
    assert torch.equal(ours, expected)
    assert torch.equal(c["cache"], written)


def test_a_start_of_minus_one_counts_as_zero() -> None:
    c = case(1, 2, (4, 2), 16)
    c["qkv"][1] = c["qkv"][0]
    ours, cache = run(c, [-1])
    assert torch.equal(ours[0], ours[1])
    assert torch.equal(cache[:, :, :, 1:], c["cache"][:, :, :, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_rows_are_kept_apart(dtype: torch.dtype) -> None:
    c = case(2, 3, (4, 2), 16)
    c["qkv"] = c["qkv"].to(dtype)
    expected, _ = run(c, [5, 70])
    at = torch.tensor([5, 70])
    angles = prepare(at, 3, c["table"], (0,), 2)
    padded = torch.cat((c["qkv"], c["qkv"].new_full((2, c["qkv"].shape[1]), float("nan"))))
    ours = attention(padded, c["cache"], at, *angles, c["norm"], EPS, 0, 0.0)
    assert ours.shape == (8, 64)
    assert ours.dtype == dtype
    assert torch.equal(ours[:6], expected)
    assert ours.isfinite().all()


@pytest.mark.parametrize("invariant", [True, False])
def test_the_schema_and_the_fake_shape_hold(invariant: bool) -> None:
    c = case(2, 3, (4, 2), 16)
    at = torch.tensor([5, 70])
    angles = prepare(at, 3, c["table"], (0,), 2, invariant)
    torch.library.opcheck(
        torch.ops.hybridgen.attention.default,
        (c["qkv"], c["cache"], at, *angles, c["norm"], EPS, 0, 0.0),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_no_key_is_masked_for_the_wrong_window() -> None:
    """Each window has its own mask in one plan."""
    cos, _ = prepare(torch.tensor([300]), 2, rope_table(512, 8), (0, 10, 100), 1, False)
    for window, mask in getattr(cos, attention_plan._PLAN).masks.items():
        seen = (mask[0, 0, 0] == 0).sum(-1).tolist()
        assert seen == ([window, window] if window else [301, 302])


def test_soft_capped_rows_do_not_depend_on_their_company() -> None:
    c = case(3, 9, (4, 2), 16)
    start = [100, 250, 0]
    together, cache = run(c, start, softcap=0.5)
    for b, first in enumerate(start):
        for i in range(9):
            alone = dict(c, qkv=c["qkv"][9 * b + i].unsqueeze(0), cache=cache[:, :, b : b + 1])
            assert torch.equal(run(alone, [first + i], softcap=0.5)[0][0], together[9 * b + i])
