"""What it gains that the next turn of a conversation is read on from the last.

    python -m benchmarks.turns                        the embedded pair, 4 turns, greedy

Each turn asks with all that has been said and the next question. Time of a whole conversation, and
of the last turn until its first token, with ``reuse`` over without; runs are interleaved, ratios
are of medians. Transformers' own `generate`, with and without its cache of the last turn, stands
beside it. Whether the texts are the same is told: what is kept was computed token by token, which
may round otherwise.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from hybridgen import accelerate
from hybridgen.benchmarks.conditions import conditions, pair_options, tell
from hybridgen.bridge.outputs import CACHE
from hybridgen.pair import LLM_PATH, SLM_PATH

QUESTION = "\n\n# The next part, which reads what the one above has written.\ndef part(items):\n"


class Said(NamedTuple):
    """What a conversation took, of which the last turn until its first token, and its tokens."""

    seconds: float
    first: float
    tokens: list[int]


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    report = {
        **conditions("Turns", "turns", arguments, torch.device("cpu")),
        **measure(arguments),
    }
    tell(report, arguments.out)


def parse() -> argparse.Namespace:
    parser = pair_options(__doc__)
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--question", type=int, default=150, help="tokens of each")
    parser.add_argument("--new-tokens", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each way, and the ratios."""
    paths = arguments.llm or LLM_PATH, arguments.slm or SLM_PATH
    large, small = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16) for path in paths
    )
    fast = accelerate(large, small, num_drafts=arguments.num_drafts)
    asked = AutoTokenizer.from_pretrained(paths[0])(QUESTION)["input_ids"]
    question = (asked * arguments.question)[: arguments.question]
    ways: dict[str, Callable[[], Said]] = {
        "ours": partial(talk, fast, question, arguments, lambda last: {}),
        "ours, reuse": partial(talk, fast, question, arguments, lambda last: {"reuse": bool(last)}),
        "transformers": partial(talk, large, question, arguments, lambda last: {}),
        "transformers, its cache": partial(
            talk,
            large,
            question,
            arguments,
            lambda last: {CACHE: last[CACHE] if last else DynamicCache(config=large.config)},
        ),
    }
    said: dict[str, list[Said]] = {name: [] for name in ways}
    for _ in range(arguments.repeats + 1):
        for name, way in ways.items():
            said[name].append(way())
    whole = {name: median(s.seconds for s in each[1:]) for name, each in said.items()}
    first = {name: median(s.first for s in each[1:]) for name, each in said.items()}
    return {
        "seconds": {name: round(seconds, 4) for name, seconds in whole.items()},
        "first_token_seconds": {name: round(seconds, 4) for name, seconds in first.items()},
        "conversation, without / with": ratios(whole),
        "first token, without / with": ratios(first),
        "same_texts": {
            "ours": said["ours"][0].tokens == said["ours, reuse"][0].tokens,
            "transformers": said["transformers"][0].tokens
            == said["transformers, its cache"][0].tokens,
        },
    }


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    return {
        "ours": round(seconds["ours"] / seconds["ours, reuse"], 2),
        "transformers": round(seconds["transformers"] / seconds["transformers, its cache"], 2),
        "ours over transformers": round(
            seconds["transformers, its cache"] / seconds["ours, reuse"], 2
        ),
    }


def talk(
    model: Any,
    question: list[int],
    arguments: argparse.Namespace,
    more: Callable[[Any], dict[str, Any]],
) -> Said:
    """A conversation; ``more`` are arguments of a turn, by what the last one returned."""
    tokens: list[int] = []
    began, last = perf_counter(), None
    for turn in range(arguments.turns):
        tokens = tokens + question
        count = arguments.new_tokens
        if turn + 1 == arguments.turns:
            ended, count = perf_counter(), 1
        last = model.generate(
            torch.tensor([tokens]),
            max_new_tokens=count,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            **more(last),
        )
        tokens = last.sequences[0].tolist()
    return Said(perf_counter() - began, perf_counter() - ended, tokens)


if __name__ == "__main__":
    main()
