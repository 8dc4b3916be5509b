"""What the door into transformers costs, and what a processor in Python does.

    python -m benchmarks.bridge                       the embedded pair, 200 tokens, greedy

`accelerate(llm, slm).generate` against `HybridGenerator.generate` of the same text: above 1 is the
cost of transformers' preparation and of its shapes. Then the accelerated model against the plain
one, without more, with a repetition penalty (an op of the round) and with a logits processor in
Python (asked about each token). Runs are interleaved, ratios are of medians, texts are compared.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

from hybridgen import HybridGenerator, accelerate
from hybridgen.benchmarks.conditions import conditions, pair_options, tell
from hybridgen.pair import LLM_PATH, SLM_PATH

PROMPT = "def quicksort(items):\n"


class Half(LogitsProcessor):
    """Scores halved: the greedy text stays, the call costs what a call costs."""

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        return scores * 0.5


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cpu")
    report = {
        **conditions("The door into transformers", "bridge", arguments, device),
        **measure(arguments),
    }
    tell(report, arguments.out)


def parse() -> argparse.Namespace:
    parser = pair_options(__doc__)
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a token of each way, and the ratios."""
    paths = arguments.llm or LLM_PATH, arguments.slm or SLM_PATH
    large, small = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in paths
    )
    tokenizer = AutoTokenizer.from_pretrained(paths[0])
    generator = HybridGenerator(small, large, tokenizer=tokenizer, device="cpu")
    fast = accelerate(large, small, num_drafts=arguments.num_drafts)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    count = {"max_new_tokens": arguments.new_tokens}
    greedy = {**inputs, **count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    asked: dict[str, dict[str, Any]] = {
        "": {"repetition_penalty": 1.0},
        ", repetition penalty": {"repetition_penalty": 1.1},
        ", processor in Python": {"logits_processor": [Half()]},
    }
    ways: dict[str, Callable[[], Any]] = {
        "HybridGenerator": lambda: (
            generator.generate(
                inputs["input_ids"][0],
                temperature=0,
                repetition_penalty=1.0,
                num_drafts=arguments.num_drafts,
                ignore_eos=True,
                print_stats=False,
                **count,
            ).tokens
        )
    }
    for name, more in asked.items():
        ways["accelerated" + name] = partial(new, fast, inputs, {**greedy, **more})
        ways["transformers" + name] = partial(new, large, inputs, {**greedy, **more})
    texts = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            began = perf_counter()
            way()
            seconds[name].append(perf_counter() - began)
    took = {name: median(times) for name, times in seconds.items()}
    return {
        "ms_per_token": {n: round(1000 * t / arguments.new_tokens, 3) for n, t in took.items()},
        "accelerated / HybridGenerator": round(took["accelerated"] / took["HybridGenerator"], 3),
        "transformers / accelerated": {
            name.removeprefix(", ") or "plain": round(
                took["transformers" + name] / took["accelerated" + name], 2
            )
            for name in asked
        },
        "same_texts": all(
            texts["accelerated" + name] == texts["transformers" + name] for name in asked
        )
        and texts["HybridGenerator"] == texts["accelerated"],
    }


def new(model: Any, inputs: Any, given: dict[str, Any]) -> list[int]:
    """The new tokens of one call."""
    tokens: list[int] = model.generate(**given)[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


if __name__ == "__main__":
    main()
