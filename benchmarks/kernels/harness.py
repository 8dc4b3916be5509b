"""What the benchmarks share: inputs in rotation, timing, the check before it, the row of the table.

A case is one op on inputs of one shape. It has as many copies of them as exceed the GPU's cache
together, so that what a decode reads from memory comes from memory here too. On a GPU the calls on
all copies are captured in one CUDA graph, repeated until a replay takes `REPLAY` seconds: a launch
costs what it costs within a decode, and the host's part is no part of it. On a CPU they are plain
calls. Baselines are timed in the same way, right after.

Nothing that computes something wrong is timed: the op's result on each copy is compared with the
reference first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from hybridgen.kernels.launch import programmatic_dependent_launch
from hybridgen.kernels.registry import Op

Call = Callable[[], Any]

ROTATION = 128 << 20  # bytes; twice the 50 MB of an H100's cache, and more
MOST_COPIES = 512
REPLAY = 5e-3  # seconds; a wait for the GPU costs about 1e-5
MOST_CALLS = 2048  # of one graph
ROUNDS = 20


@dataclass(frozen=True)
class Target:
    """What an H100 or H200 is to reach: microseconds, or a share of the measured bandwidth."""

    microseconds: float | None = None
    bandwidth: float | None = None

    def __str__(self) -> str:
        if self.microseconds is not None:
            return f"<= {self.microseconds:g} us"
        return f">= {self.bandwidth:.0%}"


@dataclass
class Case:
    """One op on inputs of one shape.

    inputs     the op's arguments, one tuple for each copy
    nbytes     what a call cannot but move
    baselines  name -> the same work done otherwise, given a copy's number; None where not installed
    agree      raises AssertionError where a result differs from the reference's
    reference  of the inputs on the CPU; None: the op's own
    """

    name: str
    op: Op
    inputs: Sequence[tuple[Any, ...]]
    nbytes: int
    agree: Callable[[Any, Any], None]
    reference: Callable[..., Any] | None = None
    baselines: dict[str, Callable[[int], Any] | None] = field(default_factory=dict)
    target: Target | None = None


@dataclass(frozen=True)
class Row:
    """A case's line in the table; ``times_faster`` has a text where there is no ratio."""

    name: str
    nbytes: int
    seconds: float
    bandwidth: float
    times_faster: dict[str, float | str]
    target: Target | None

    @property
    def share(self) -> float:
        """Of the bandwidth measured in this run."""
        return self.nbytes / self.seconds / self.bandwidth


def copies(make: Callable[[int], tuple[Any, ...]], device: torch.device) -> list[tuple[Any, ...]]:
    """``make(0)``, ``make(1)``, ...: enough to exceed the cache of a GPU, two for a CPU."""
    made = [make(0)]
    if device.type == "cpu":
        return [*made, make(1)]
    held = sum(value.nbytes for value in made[0] if isinstance(value, Tensor))
    return made + [make(i) for i in range(1, min(-(-ROTATION // held), MOST_COPIES))]


def measure(
    case: Case, benchmark: Any, device: torch.device, bandwidth: float, pdl: bool = False
) -> Row:
    """Check the case, then time it and its baselines; ``benchmark`` is pytest-benchmark's.

    pdl  one more baseline is the op itself, not launched as programmatic dependents
    """
    for arguments in case.inputs:
        on_cpu = [a.cpu() if isinstance(a, Tensor) else a for a in arguments]
        case.agree(case.op(*arguments), (case.reference or case.op.reference)(*on_cpu))
    replay, calls = prepare([partial(case.op, *arguments) for arguments in case.inputs], device)
    benchmark.pedantic(replay, rounds=ROUNDS, warmup_rounds=2)
    seconds = median(benchmark.stats.stats.data) / calls
    times_faster = {
        name: compare(baseline, len(case.inputs), device, seconds)
        for name, baseline in case.baselines.items()
    }
    if pdl:
        with programmatic_dependent_launch(False):
            itself = compare(lambda i: case.op(*case.inputs[i]), len(case.inputs), device, seconds)
        times_faster["itself without PDL"] = itself
    row = Row(case.name, case.nbytes, seconds, bandwidth, times_faster, case.target)
    benchmark.extra_info |= {
        "case": case.name,
        "nbytes": case.nbytes,
        "microseconds_per_call": 1e6 * seconds,
        "calls_per_round": calls,
        "bandwidth_gb_per_s": bandwidth / 1e9,
        "share_of_bandwidth": row.share,
        "times_faster": times_faster,
        "target": str(case.target) if case.target else None,
    }
    return row


def compare(
    baseline: Callable[[int], Any] | None, count: int, device: torch.device, seconds: float
) -> float | str:
    """How many times as long the baseline takes on ``count`` copies, or why that is not known."""
    if baseline is None:
        return "absent"
    try:
        replay, calls = prepare([partial(baseline, i) for i in range(count)], device)
    except RuntimeError:
        return "no graph"  # it reads something back, or allocates in its own way
    return median(timed(replay) for _ in range(ROUNDS)) / calls / seconds


def prepare(calls: Sequence[Call], device: torch.device) -> tuple[Call, int]:
    """A function that makes all ``calls`` some times over and waits for them; how many in all."""
    if device.type == "cpu":
        return lambda: [call() for call in calls], len(calls)
    replay = captured(calls, 1)
    repeats = round(REPLAY / min(timed(replay) for _ in range(3)))
    repeats = max(1, min(repeats, MOST_CALLS // len(calls)))
    return captured(calls, repeats), repeats * len(calls)


def captured(calls: Sequence[Call], repeats: int) -> Call:
    """``calls`` in one CUDA graph, ``repeats`` times over."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()  # compiles, and sizes workspaces
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def timed(call: Call) -> float:
    """Seconds that one call takes."""
    began = perf_counter()
    call()
    return perf_counter() - began


def close(result: Tensor, expected: Tensor) -> None:
    """Equal but for where bfloat16 is rounded to.

    A rounding moves a number by up to 1/256 of it, and five at most come together: gate, its SiLU,
    up and their product in the reference, the result in the kernel. Rounded operands, their signs
    at random, move a sum by about 1/500 of the sums' usual size: 1/64 is seven deviations.
    """
    got, wanted = result.cpu().float(), expected.float()
    size = wanted.square().mean().sqrt()
    difference = (got - wanted).abs()
    wrong = difference > wanted.abs() * (5 / 256) + size / 64
    assert not wrong.any(), f"wrong by {difference.max():.3g}, of results of {size:.3g}"


def table(rows: Sequence[Row], on_gpu: bool) -> list[str]:
    """The rows as text; baselines as how many times as fast the op is."""
    peers = list(dict.fromkeys(name for row in rows for name in row.times_faster))
    heads = ["case", "MB", "us", "GB/s", "of measured", *(f"x {peer}" for peer in peers)]
    lines = [[*heads, "target"] if on_gpu else heads]
    for row in rows:
        ratios = [row.times_faster.get(peer, "") for peer in peers]
        line = [
            row.name,
            f"{row.nbytes / 1e6:.3f}",
            f"{1e6 * row.seconds:.1f}",
            f"{row.nbytes / row.seconds / 1e9:.1f}",
            f"{row.share:.1%}",
            *(ratio if isinstance(ratio, str) else f"{ratio:.2f}" for ratio in ratios),
        ]
        lines.append([*line, str(row.target or "")] if on_gpu else line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
