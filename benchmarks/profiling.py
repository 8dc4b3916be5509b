"""What a profile costs: `generate_with_profile` beside `generate`, on a CPU.

    python -m benchmarks.profiling                    the embedded pair, 200 tokens

Two ratios of each strategy: of the time in which the text is written, which is what recording
costs, and of the whole call, in which the profile is also put together (texts of tokens and of
candidates). Both ways write the same text; runs are interleaved, in turn the one and the other
first, and ratios are medians of the pairs'. Without a GPU nothing is said of one.
"""

import argparse
from statistics import median
from time import perf_counter
from typing import Any

import torch

from hybridgen import HybridGenerator
from hybridgen.benchmarks.conditions import conditions, pair_options, tell

PROMPT = "def quicksort(items):\n"
SAMPLED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
GREEDY = {"temperature": 0}
WAYS: dict[str, dict[str, Any]] = {
    "slm": {"strategy": "slm"},
    "llm": {"strategy": "llm"},
    "uncertainty": {"strategy": "uncertainty", "threshold": 0.8},
    "uncertainty, 4 consecutive": {
        "strategy": "uncertainty",
        "threshold": 0.8,
        "llm_consecutive_tokens": 4,
    },
    "speculative, K = 4": {"strategy": "speculative", "num_drafts": 4},
    "speculative coupled, K = 4": {
        "strategy": "speculative",
        "num_drafts": 4,
        "verification": "coupled",
    },
}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    report = {
        **conditions("What a profile costs", "profiling", arguments, device),
        "with a profile / without": measure(arguments),
    }
    tell(report, arguments.out)


def parse() -> argparse.Namespace:
    parser = pair_options(__doc__)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=15)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The ratios of each strategy, greedy and sampled."""
    generator = HybridGenerator(arguments.slm, arguments.llm, device="cpu")
    found = {}
    for name, options in WAYS.items():
        for mode, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
            asked = {
                "max_new_tokens": arguments.new_tokens,
                "ignore_eos": True,
                "seed": 1,
                "print_stats": False,
                **sampling,
                **options,
            }
            found[f"{name}, {mode}"] = ratios(generator, asked, arguments.repeats)
    return found


def ratios(generator: HybridGenerator, asked: dict[str, Any], repeats: int) -> dict[str, float]:
    """Medians over pairs of runs."""
    writing, calls = [], []
    for turn in range(repeats + 1):
        order = (False, True) if turn % 2 else (True, False)
        runs = {profiled: run(generator, asked, profiled) for profiled in order}
        (plain, text), (recorded, same) = runs[False], runs[True]
        if text != same:
            raise SystemExit(f"recording changed the text of {asked}")
        if turn:  # the first pair warms up
            writing.append(recorded[0] / plain[0])
            calls.append(recorded[1] / plain[1])
    return {"writing": round(median(writing), 3), "call": round(median(calls), 3)}


def run(
    generator: HybridGenerator, asked: dict[str, Any], profiled: bool
) -> tuple[tuple[float, float], str]:
    """Seconds of the writing and of the call, and the text."""
    began = perf_counter()
    if profiled:
        profile = generator.generate_with_profile(PROMPT, **asked)
        stats, text = profile.stats, profile.generated_text
    else:
        result = generator.generate(PROMPT, **asked)
        stats, text = result.stats, result.text
    return (stats["elapsed_time"], perf_counter() - began), text


if __name__ == "__main__":
    main()
