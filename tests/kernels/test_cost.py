"""What an op is said to move, counted by hand; what it is said to launch, as it is launched."""

from typing import Any

import pytest
import torch
from all_ops import OPS
from on_device import launch
from test_cuda_graphs import arguments
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from hybridgen.kernels.cost import COSTS, Cost, cost

needs_cuda_build = pytest.mark.skipif(
    torch.version.cuda is None, reason="fake CUDA tensors need a CUDA build of torch (no card)"
)


def test_every_op_has_a_cost() -> None:
    assert COSTS.keys() == OPS.keys()


@needs_cuda_build
@pytest.mark.parametrize("name", sorted(OPS))
def test_the_launches_recorded_without_a_device_are_those_made(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybridgen.benchmarks.meter import Launch, Meter

    made = []
    for kind in (JITFunction, InterpretedFunction):

        def counted(self: Any, *args: Any, run: Any = kind.run, **kwargs: Any) -> Any:
            made.append(Launch(self.__name__, tuple(kwargs["grid"])))
            return run(self, *args, **kwargs)

        monkeypatch.setattr(kind, "run", counted)
    given = arguments(name, 0)
    launch(OPS[name], device, *given)
    monkeypatch.undo()
    with FakeTensorMode(), torch.inference_mode():
        fakes = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
            if isinstance(x, Tensor)
            else x
            for x in given
        ]
        with Meter(context=0) as meter:
            OPS[name](*fakes)
    (call,) = meter.calls
    assert call.op == name and call.launches == made
    assert all(one.programs > 0 for one in made)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def integers(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int64)


def cost_of(name: str, *given: Any, context: int = 0) -> Cost:
    return cost(name, given, OPS[name]._packet(*given), context)


def test_a_prompts_keys_and_values_are_written_and_not_read() -> None:
    tokens, heads, kv_heads, dim = 7, 4, 2, 32
    qkv, cache = meta(tokens, (heads + 2 * kv_heads) * dim), meta(2, kv_heads, tokens, dim)
    turns = meta(tokens, 1, dim, dtype=torch.float32)
    queries, pairs = 2 * tokens * heads * dim, 2 * 2 * kv_heads * tokens * dim
    norm = meta(heads + kv_heads, dim)
    assert cost_of("cache_write", qkv, cache, turns, turns, norm, 1e-6) == Cost(
        queries + pairs + 2 * 4 * tokens * dim + 2 * (heads + kv_heads) * dim, queries + pairs
    )


def test_products_read_their_weight_once() -> None:
    rows, depth, columns = 5, 64, 96
    x, norm, weight, bias = meta(rows, depth), meta(depth), meta(columns, depth), meta(columns)
    flops = 2 * rows * depth * columns
    read = 2 * (rows * depth + columns * depth)
    assert cost_of("linear_residual", x, weight, None, meta(rows, columns)) == Cost(
        read + 2 * rows * columns, 2 * rows * columns, flops
    )
    assert cost_of("norm_linear", x, norm, 1e-6, weight, bias) == Cost(
        read + 2 * depth + 2 * columns, 2 * rows * columns, flops
    )
    assert cost_of("norm_gated_linear", x, norm, 1e-6, weight, None) == Cost(
        read + 2 * depth, rows * columns, flops
    )


def test_int8_weights_are_half_of_it() -> None:
    rows, depth, columns = 5, 64, 96
    x, norm, q = meta(rows, depth), meta(depth), meta(columns, depth, dtype=torch.int8)
    scale = meta(columns, dtype=torch.float32)
    flops = 2 * rows * depth * columns
    read = 2 * rows * depth + columns * depth + 4 * columns
    assert cost_of("linear_residual", x, q, None, meta(rows, columns), scale) == Cost(
        read + 2 * rows * columns, 2 * rows * columns, flops
    )
    assert cost_of("norm_linear", x, norm, 1e-6, q, None, scale) == Cost(
        read + 2 * depth, 2 * rows * columns, flops
    )
    assert cost_of("norm_gated_linear", x, norm, 1e-6, q, None, scale) == Cost(
        read + 2 * depth, rows * columns, flops
    )


@pytest.mark.parametrize(("window", "before"), [(0, 100), (32, 31), (500, 100)])
def test_attention_reads_the_keys_that_are_seen(window: int, before: int) -> None:
    rows, tokens, q_heads, kv_heads, dim = 3, 2, 4, 2, 32
    count, width = rows * tokens, (q_heads + 2 * kv_heads) * dim
    cache, angles = meta(2, kv_heads, 8, 512, dim), meta(count, 1, dim, dtype=torch.float32)
    given = (meta(count, width), cache, integers(rows), angles, angles, None, 1e-6, window, 0.0)
    key = 2 * 2 * kv_heads * dim
    found = cost_of("attention", *given, context=100)
    assert found.read == 2 * count * width + 8 * rows + 8 * count * dim + rows * before * key
    assert found.written == 2 * count * q_heads * dim + count * key
    assert found.flops == rows * 4 * q_heads * dim * ((before + 1) + (before + 2))


def test_what_is_looked_up_is_not_read_whole() -> None:
    embedding, rope = meta(1000, 64), meta(2, 512, 1, 32, dtype=torch.float32)
    x = 2 * 6 * 64 + 2 * 6 * 4 * 32
    found = cost_of("embed", integers(3, 2), integers(3), embedding, rope)
    assert found == Cost(8 * 6 + 8 * 3 + x, x)
    sampling, one = meta(3, 4, dtype=torch.float64), integers(3)
    truncation = meta(3, 5, 3, dtype=torch.float32)
    target, draft = meta(3, 6, 1000), meta(3, 5, 900)
    found = cost_of(
        "verify_rejection", target, draft, integers(3, 5), truncation, sampling, one, one
    )
    small = 8 * 15 + 4 * 45 + 8 * 12 + 8 * 3 + 8 * 3
    assert found == Cost(2 * 3 * 6 * 1000 + 2 * 3 * (900 + 5) + small, 8 * 18 + 8 * 3 + 3)


def test_a_commit_does_not_read_the_text() -> None:
    flag, one, new = meta(3, dtype=torch.bool), integers(3), integers(3, 5)
    texts = integers(3, 4096), one, flag, integers(3, 36)
    written = 8 * (2 * 15 + 3 * 3) + 3
    drawn_from = meta(3, 4, 3, dtype=torch.float32)
    found = cost_of("commit", *texts, new, one, 2, 1, flag, one, integers(3, 16), drawn_from)
    assert found == Cost(8 * (3 * 3 + 15 + 48) + 2 * 3 + 4 * 36, written)
    found = cost_of("commit", *texts, new, None, 2, 1, None, one, integers(3, 16), None)
    assert found == Cost(8 * (2 * 3 + 15 + 48) + 3, written)


def test_a_lookup_reads_the_text_so_far() -> None:
    found = cost_of("lookup", integers(3, 4096), integers(3), integers(3, 5), context=100)
    assert found == Cost(8 * 3 * (100 + 1), 8 * 3 * (5 + 1))


def test_penalties_read_the_text_so_far() -> None:
    """It and the logits once, whatever the penalties; and no bias that is of a text's beginning."""
    vocab, real = 1000, torch.float32
    biases = meta(vocab, dtype=real), meta(vocab, dtype=real)
    texts = meta(3, 5, vocab), integers(3, 4096), integers(3), integers(3, 3)
    given = *texts, *biases, integers(3)
    read, written = 2 * 15 * vocab + 4 * vocab + 8 * 3 * (1 + 3 + 1), 4 * 15 * vocab
    assert cost_of("penalize", *given, None, None, context=100) == Cost(read, written)
    read += 8 * 3 * 100
    r, n = meta(1, dtype=real), integers(1)
    assert cost_of("penalize", *given, r, None, context=100) == Cost(read + 4, written)
    assert cost_of("penalize", *given, None, n, context=100) == Cost(read + 8, written)
    assert cost_of("penalize", *given, r, n, context=100) == Cost(read + 12, written)


def test_what_is_read_next_is_looked_up() -> None:
    tokens, one = integers(3, 4096), integers(3)
    for start, given in ((None, 0), (one, 24)):
        found = cost_of("window", tokens, one, start, integers(3, 2), integers(6, 3))
        assert found == Cost(8 * 6 + 24 + given, 8 * 6 + 8 * 18)
    found = cost_of("unread", tokens, one, meta(3, dtype=torch.bool), one, 8, 1)
    assert found == Cost(8 * 24 + 2 * 24 + 3, 8 * 24 + 3 * 24)


def test_a_threshold_that_moves_takes_the_last_metrics() -> None:
    value, one = meta(3, dtype=torch.float32), integers(3)
    flag, metrics = meta(3, dtype=torch.bool), meta(3, 128, dtype=torch.float32)
    given = value, flag, one, one, value, value, metrics, integers(3, 2), flag, integers(3, 36)
    assert cost_of("route", *given, False) == Cost(2 * 12 + 3 + 2 * 24, 2 * 3 + 24)
    assert cost_of("route", *given, True) == Cost(
        3 * 12 + 3 + 4 * 24 + 12 * 128, 2 * 3 + 3 * 24 + 12 + 24 + 12
    )


def test_logits_are_read_once() -> None:
    rows = integers(2), integers(2)
    found = cost_of("sample", meta(2, 1000), meta(2, 4, dtype=torch.float64), *rows, 1)
    assert found == Cost(2 * 2000 + 8 * 8 + 2 * 16, 2 * 8 + 4 * 6)
    truncation, kept = meta(2, 3, dtype=torch.float32), meta(2, 1000)
    given = meta(2, 1000), meta(2, 4, dtype=torch.float64), *rows, 1, integers(2), truncation, kept
    assert cost_of("sample_into", *given) == Cost(found.read, found.written + 2 * 2000)
