"""A long list of prompts in one call, against calls of one batch after the other.

    python -m benchmarks.many_prompts                       the embedded pair, 64 prompts, 8 rows

In one call a row that has ended takes the next prompt at once; a call of one batch waits for its
longest text. Both write the same texts, which end at blank lines and so at lengths of their own.
Runs are interleaved, and the ratio is that of medians. At best it is the mean of each batch's
longest text over the mean text.
"""

import argparse
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch

from hybridgen import HybridGenerator
from hybridgen.benchmarks.bandwidth import synchronize
from hybridgen.benchmarks.conditions import conditions, pair_options, tell

OPENINGS = (
    "def quicksort(items):\n", "import os\nimport sys\n\n\nclass Parser:\n    ", "x = ",
    "    def read(self, size=-1):\n        ", "for item in items:\n    ", "class Stack:\n",
    "from collections import ", "try:\n    import numpy\nexcept ImportError:\n    ",
)  # fmt: skip
STOP = ["\n\n"]


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    generator = HybridGenerator(
        arguments.slm, arguments.llm, device=arguments.device, max_batch_size=arguments.rows
    )
    report = {
        **conditions("A list of prompts in one call", "many_prompts", arguments, generator.device),
        **measure(generator, arguments),
    }
    tell(report, arguments.out)


def parse() -> argparse.Namespace:
    parser = pair_options(__doc__)
    parser.add_argument("--strategy", default="speculative")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def measure(generator: HybridGenerator, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every run, interleaved, after a warm-up; the texts' lengths and the ratios."""
    rows = arguments.rows
    prompts = [OPENINGS[i % len(OPENINGS)] for i in range(arguments.prompts)]
    seeds = [*range(arguments.prompts)]

    def write(first: int, last: int) -> list[list[int]]:
        result = generator.generate(
            prompts[first:last],
            arguments.strategy,
            max_new_tokens=arguments.new_tokens,
            stop=STOP,
            temperature=0.8,
            seed=seeds[first:last],
            print_stats=False,
        )
        tokens: list[list[int]] = result.tokens
        return tokens

    def one_call() -> list[list[int]]:
        return write(0, len(prompts))

    def batches() -> list[list[int]]:
        starts = range(0, len(prompts), rows)
        return [tokens for first in starts for tokens in write(first, first + rows)]

    seconds: dict[str, list[float]] = {"one call": [], "batch by batch": []}
    lengths: list[int] = []
    for repeat in range(-1, arguments.repeats):
        for name, call in (("one call", one_call), ("batch by batch", batches)):
            synchronize(generator.device)
            began = perf_counter()
            lengths = [len(tokens) for tokens in call()]
            synchronize(generator.device)
            if repeat >= 0:
                seconds[name].append(perf_counter() - began)
    longest = [max(lengths[first : first + rows]) for first in range(0, len(lengths), rows)]
    return {
        "seconds": seconds,
        "lengths": lengths,
        "speedup": median(seconds["batch by batch"]) / median(seconds["one call"]),
        "at best": mean(longest) / mean(lengths),
    }


if __name__ == "__main__":
    main()
