"""A captured op replays with what is in its arguments then, not with what was there at capture.

Lengths, seeds, positions, parameters, tokens and weights change between replays; each replay must
give the bits of an eager launch on the same values, in the results and in what the op writes. On a
GPU a replay is a CUDA graph's. Under the interpreter it is the call itself, which proves the rest
of these tests, and a stand-in that repeats what it computed at capture must be found out.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from all_ops import OPS
from on_device import bits, move
from torch import Tensor

from hybridgen.kernels.launch import programmatic_dependent_launch
from hybridgen.kernels.philox import TARGET
from hybridgen.kernels.uncertainty import PROBS
from hybridgen.kernels.verify import HEAD, SOURCE_LLM, SOURCE_SLM, WINDOW

Call = Callable[[], Any]
Capture = Callable[[Call], Call]

ROWS, VOCAB, DRAFTS = 2, 100, 1
POSITIONS, HEADS, KV_HEADS, DIM, HIDDEN = 256, 4, 2, 32, 64


def arguments(name: str, seed: int) -> tuple[Any, ...]:
    """CPU arguments of an op; other values for another ``seed``, the shapes are the same."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    logits = 4 * normal(ROWS, DRAFTS + 1, VOCAB)
    row, draft_logits = logits[:, 0], logits[:, 1:] + normal(ROWS, DRAFTS, VOCAB)
    sampling = torch.tensor([[0.7, 20, 0.9, 0.0], [1.0, 0, 1.0, 0.05], [0.0, 0, 1.0, 0.0]])
    sampling = sampling[seed : seed + ROWS].double()
    draws = integers(0, 1 << 40, ROWS), integers(4, 40, ROWS)  # seed, and position or length
    drafts = draft_logits.argmax(2)
    largest = draft_logits.amax(2, keepdim=True)
    log_z = (draft_logits - largest).logsumexp(2, keepdim=True)
    truncation = torch.cat([draft_logits.amin(2, keepdim=True), largest, log_z], 2)
    start = integers(0, POSITIONS - DRAFTS, ROWS)
    x, norm, weight = normal(ROWS, HIDDEN), 1 + normal(HIDDEN), normal(96, HIDDEN)
    width = (HEADS + 2 * KV_HEADS) * DIM
    table: dict[str, Callable[[], tuple[Any, ...]]] = {
        "embed": lambda: (drafts, start, normal(VOCAB, HIDDEN), normal(2, POSITIONS, 1, DIM)),
        "rms_norm": lambda: (x, norm, 1e-6),
        "norm_linear": lambda: (x, norm, 1e-6, weight, normal(96)),
        "norm_gated_linear": lambda: (x, norm, 1e-6, weight, None),
        "linear_residual": lambda: (x, weight, None, normal(ROWS, 96)),
        "attention": lambda: (
            normal(ROWS * DRAFTS, width),
            normal(2, KV_HEADS, ROWS, POSITIONS, DIM),
            start,
            normal(ROWS * DRAFTS, 1, DIM),
            normal(ROWS * DRAFTS, 1, DIM),
            1 + normal(HEADS + KV_HEADS, DIM),
            1e-6,
            0,
            0.0,
        ),
        "cache_write": lambda: (
            normal(ROWS, width),
            normal(2, KV_HEADS, ROWS, DIM),
            normal(ROWS, 1, DIM),
            normal(ROWS, 1, DIM),
            1 + normal(HEADS + KV_HEADS, DIM),
            1e-6,
        ),
        "filter_logits": lambda: (row, sampling),
        "sample": lambda: (row, sampling, *draws, TARGET),
        "sample_into": lambda: (
            row,
            sampling,
            *draws,
            TARGET,
            integers(0, 9, ROWS, 3)[:, 1],
            normal(ROWS, 2, 3)[:, 1],
            normal(ROWS, 2, VOCAB)[:, 1],
        ),
        "sample_measured": lambda: (row, sampling, *draws, TARGET, 10, PROBS),
        "entropy": lambda: (row, sampling[:, 0].float()),
        "logtoku": lambda: (row, 10, PROBS),
        "verify_coupled": lambda: (logits, drafts, sampling, *draws),
        "verify_rejection": lambda: (logits, draft_logits, drafts, truncation, sampling, *draws),
        "lookup": lambda: (integers(0, 3, ROWS, 48), draws[1], integers(0, 3, ROWS, 5)),
        "penalize": lambda: (
            logits,
            integers(0, 9, ROWS, 48),
            draws[1],
            integers(0, 5, ROWS, 3),
            normal(VOCAB),
            normal(VOCAB),
            draws[1] + 2 - seed,
            torch.tensor([1.5 - seed]),
            torch.tensor([2 + seed]),
        ),
        "commit": lambda: (
            integers(0, VOCAB, ROWS, 48),
            draws[1],
            torch.tensor([False, seed == 0]),
            integers(0, 9, ROWS, HEAD + WINDOW),
            integers(0, 4, ROWS, DRAFTS + 1),
            integers(1, DRAFTS + 2, ROWS),
            SOURCE_LLM,
            SOURCE_SLM,
            torch.tensor([False, seed == 1]),
            draws[1] + integers(1, 4, ROWS),
            torch.tensor([[2, -1], [seed, 3]]),
            truncation,
        ),
        "window": lambda: (
            integers(0, VOCAB, ROWS, 48),
            draws[1],
            draws[1] - integers(-2, 4, ROWS),
            integers(0, VOCAB, ROWS, 3)[:, 1:],
            integers(0, 9, 4, ROWS),
        ),
        "route": lambda: (
            normal(ROWS, 2)[:, 1],
            torch.tensor([False, seed == 1]),
            draws[1],
            draws[1] - integers(1, 4, ROWS),
            torch.rand(ROWS, generator=generator),
            normal(ROWS),
            normal(ROWS, 32),
            integers(0, 70, ROWS, 2),
            torch.tensor([False, seed == 0]),
            integers(0, 9, ROWS, HEAD + WINDOW),
            True,
        ),
        "unread": lambda: (
            integers(0, VOCAB, ROWS, 48),
            draws[1],
            torch.tensor([True, seed == 0]),
            draws[1] - integers(1, 4, ROWS),
            4,
            0,
        ),
    }
    return table[name]()


def direct(call: Call) -> Call:
    """No capture: every replay is a call."""
    return call


def frozen(call: Call) -> Call:
    """A capture that went wrong: every replay gives the results of the first."""
    results = call()
    return lambda: results


def graph(call: Call) -> Call:
    """Captured in a CUDA graph, after a warm-up that compiles the kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = call()

    def replay() -> Any:
        captured.replay()
        return results

    return replay


def dependents(call: Call) -> Call:
    """The same, its kernels launched as programmatic dependents."""
    with programmatic_dependent_launch():
        return graph(call)


def check(name: str, device: torch.device, capture: Capture) -> None:
    """Replay with other values than those of the capture, and with these again."""
    op = OPS[name]

    def launch(values: list[Any]) -> Any:
        return op(*values) if device.type == "cuda" else op.launcher()(*values)

    def place(values: tuple[Any, ...]) -> list[Any]:
        return [move(v, device) if isinstance(v, Tensor) else v for v in values]

    first, other = arguments(name, 0), arguments(name, 1)
    held = place(first)
    replay = capture(lambda: launch(held))
    for values in (other, first):
        eager = place(values)
        with programmatic_dependent_launch(False):
            expected = [*tensors(launch(eager)), *tensors(eager)]
        for kept, value in zip(held, values, strict=True):
            if isinstance(value, Tensor):
                kept.copy_(value)
        got = [*tensors(replay()), *tensors(held)]
        for index, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert torch.equal(bits(a), bits(b)), f"{name}: result or argument {index}"


def tensors(values: Any) -> list[Tensor]:
    """Those among an op's results or arguments."""
    if isinstance(values, Tensor):
        return [values]
    return [value for value in values or () if isinstance(value, Tensor)]


@pytest.mark.parametrize("name", OPS)
def test_a_replay_reads_its_arguments_anew(name: str, device: torch.device) -> None:
    check(name, device, graph if device.type == "cuda" else direct)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_a_replay_of_dependent_launches_gives_the_bits_of_others(name: str) -> None:
    check(name, torch.device("cuda"), dependents)


@pytest.mark.parametrize("name", OPS)
def test_a_replay_of_stale_values_is_found_out(name: str) -> None:
    with pytest.raises(AssertionError, match=name):
        check(name, torch.device("cpu"), frozen)
