"""What a profile costs: `generate_with_profile` beside `generate`, on a CPU.

    python -m benchmarks.profiling                    the embedded pair, 100 tokens

Two ratios of each strategy: of the time in which the text is written, which is what recording
costs, and of the whole call, in which the profile is also put together (texts of tokens and of
candidates). Both ways write the same text. Texts are short and runs interleaved, in turn the one
and the other first, so that what else the machine does meets both: of the ratios of such pairs the
report has median and quartiles. Beside them is the ratio of the fastest run with to the fastest
without, which says something of a quiet machine only. Without a GPU nothing is said of one.
"""

import argparse
from collections.abc import Sequence
from statistics import quantiles
from time import perf_counter
from typing import Any, NamedTuple

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

Ratios = dict[str, dict[str, Any]]


class Seconds(NamedTuple):
    """Of one run."""

    writing: float
    call: float


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
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=31)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Ratios]:
    """The ratios of each strategy, greedy and sampled."""
    generator = HybridGenerator(arguments.slm, arguments.llm, device="cpu")
    found = {}
    for name, options in WAYS.items():
        for mode, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
            asked = {
                "max_new_tokens": arguments.new_tokens,
                "ignore_eos": True,
                "seed": 1,
                "repetition_penalty": 1.0,
                "print_stats": False,
                **sampling,
                **options,
            }
            found[f"{name}, {mode}"] = ratios(generator, asked, arguments.repeats)
    return found


def ratios(generator: HybridGenerator, asked: dict[str, Any], repeats: int) -> Ratios:
    """Of the writing and of the call, over pairs of runs."""
    seconds: dict[bool, list[Seconds]] = {False: [], True: []}
    for turn in range(repeats + 1):
        order = (False, True) if turn % 2 else (True, False)
        runs = {profiled: run(generator, asked, profiled) for profiled in order}
        if runs[False][1] != runs[True][1]:
            raise SystemExit(f"recording changed the text of {asked}")
        if turn:  # the first pair warms up
            for profiled, (took, _) in runs.items():
                seconds[profiled].append(took)
    return {
        part: ratio(*([getattr(took, part) for took in seconds[how]] for how in (False, True)))
        for part in Seconds._fields
    }


def ratio(plain: Sequence[float], recorded: Sequence[float]) -> dict[str, Any]:
    """Of seconds without and with a profile, or whatever else, pair by pair."""
    each = [with_it / without for without, with_it in zip(plain, recorded, strict=True)]
    low, middle, high = quantiles(each, n=4, method="inclusive")
    return {
        "median": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "of the fastest": round(min(recorded) / min(plain), 3),
        "fastest without, s": round(min(plain), 4),
    }


def run(generator: HybridGenerator, asked: dict[str, Any], profiled: bool) -> tuple[Seconds, str]:
    """What a run took, and the text."""
    began = perf_counter()
    if profiled:
        profile = generator.generate_with_profile(PROMPT, **asked)
        stats, text = profile.stats, profile.generated_text
    else:
        result = generator.generate(PROMPT, **asked)
        stats, text = result.stats, result.text
    return Seconds(stats["elapsed_time"], perf_counter() - began), text


if __name__ == "__main__":
    main()
