"""Where a round's time goes on a GPU, kernel by kernel: `python -m benchmarks.rounds`.

Of each strategy the milliseconds of a token; and, of calls that torch's profiler watches, each
kernel's launches, its mean time and its share, and the median gap between one kernel and the next.
Rounds are replayed from graphs, so what the host does between them is in the gaps alone. Reading
the prompt is in the kernels too, and not in the time of a token.

    python -m benchmarks.rounds                                     shapes of Qwen3, built here
    python -m benchmarks.rounds --pair llama-1b+8b@0.8 --rows 4
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from hybridgen import HybridGenerator
from hybridgen.benchmarks.bandwidth import synchronize
from hybridgen.benchmarks.command import SCRATCH
from hybridgen.benchmarks.conditions import conditions, tell
from hybridgen.benchmarks.pairs import find
from hybridgen.benchmarks.prompts import load

FEW = 4  # tokens of the calls whose time is taken off: their prompt, and what begins a text
REPEATS = 3
LONGEST_GAP = 20.0  # microseconds; longer ones are waits of another kind
WAYS: dict[str, dict[str, Any]] = {
    "llm": {"strategy": "llm"},
    "slm": {"strategy": "slm"},
    "speculative, K = 4": {"strategy": "speculative", "num_drafts": 4},
}


class Event(NamedTuple):
    """A kernel or a copy on the device, in microseconds."""

    name: str
    began: float
    ended: float


def main(arguments: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("rounds are watched on a GPU, and there is none here")
    device = torch.device("cuda")
    pair = find(arguments.pair, arguments.scratch.expanduser(), device="cuda")
    generator = HybridGenerator(pair.slm, pair.llm, device="cuda", max_batch_size=arguments.rows)
    prompts = [one.ids for one in load(pair.prompts, generator.tokenizer, arguments.rows)]
    report = conditions("Rounds, kernel by kernel", "rounds", arguments, device)
    report["ways"] = {
        name: watched(generator, prompts, arguments.new_tokens, way) for name, way in WAYS.items()
    }
    tell(report, arguments.out)


def watched(
    generator: HybridGenerator, prompts: list[list[int]], new_tokens: int, way: dict[str, Any]
) -> dict[str, Any]:
    """Of one way to write after ``prompts``."""

    def write(count: int) -> float:
        """Seconds of a call."""
        synchronize(generator.llm.device)
        began = perf_counter()
        generator.generate(
            prompts,
            max_new_tokens=count,
            temperature=0,
            ignore_eos=True,
            print_stats=False,
            seed=1,
            **way,
        )
        synchronize(generator.llm.device)
        return perf_counter() - began

    write(FEW)  # compiles, and captures
    seconds = [write(new_tokens) - write(FEW) for _ in range(REPEATS)]
    on_gpu = generator.llm.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        write(new_tokens)
    events = [
        Event(each.name, each.time_range.start, each.time_range.end)
        for each in seen.events() or ()
        if each.device_type.name == "CUDA"
    ]
    return {
        "milliseconds a token": round(1e3 * median(seconds) / (new_tokens - FEW), 3),
        **kernels(events),
    }


def kernels(events: Sequence[Event]) -> dict[str, Any]:
    """Launches and microseconds by name, what takes most first, and the median gap."""
    times: dict[str, list[float]] = defaultdict(list)
    ordered = sorted(events, key=lambda event: event.began)
    for event in ordered:
        times[event.name].append(event.ended - event.began)
    total = sum(map(sum, times.values()))
    gaps = [
        gap for one, other in pairwise(ordered) if (gap := other.began - one.ended) < LONGEST_GAP
    ]
    return {
        "median gap, us": round(median(gaps), 2) if gaps else None,
        "kernels": {
            name: {
                "launches": len(each),
                "mean, us": round(sum(each) / len(each), 2),
                "share": round(sum(each) / total, 4),
            }
            for name, each in sorted(times.items(), key=lambda item: -sum(item[1]))
        },
    }


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--pair", default="qwen3-1.7b+8b@0.8", help="as of `hybridgen bench`")
    add("--rows", type=int, default=1, help="prompts side by side")
    add("--new-tokens", type=int, default=128)
    add("--scratch", type=Path, default=SCRATCH, help="where pairs are built")
    add("--out", help="write the raw JSON there")
    return parser.parse_args(given)


if __name__ == "__main__":
    main(parse())
