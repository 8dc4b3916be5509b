"""What numba gives on a CPU: compiled beside torch's and numpy's ops.

    python -m benchmarks.compiled                                   the embedded pair
    python -m benchmarks.compiled --slm FOLDER --llm FOLDER

Whole texts in several ways, and of each model steps of 1 and of 5 tokens behind some positions, in
turn with the one and the other in one process: the median time of each, a token's or a step's, and
the median ratio of the pairs with its quartiles. Beside a step's is the time of its products alone,
which are the same in both.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from hybridgen import HybridGenerator
from hybridgen.benchmarks.conditions import conditions, pair_options, tell
from hybridgen.benchmarks.profiling import ratio
from hybridgen.engine.weights import Linear
from hybridgen.kernels import attention_plan
from hybridgen.kernels.linear import product
from hybridgen.kernels.registry import OPS, has_numba

STEPS = (1, 5)
PROMPT = "def area(radius):"
SAMPLED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
WAYS: dict[str, dict[str, Any]] = {
    "llm, greedy": {"strategy": "llm", "temperature": 0},
    "llm, sampled": {"strategy": "llm", **SAMPLED},
    "speculative, greedy": {"strategy": "speculative", "num_drafts": 4, "temperature": 0},
    "speculative, sampled": {"strategy": "speculative", "num_drafts": 4, **SAMPLED},
    "speculative, no filter": {"strategy": "speculative", "num_drafts": 4, "temperature": 1},
    "uncertainty, sampled": {"strategy": "uncertainty", "threshold": 0.5, **SAMPLED},
}


def main(arguments: argparse.Namespace) -> None:
    if not has_numba():
        raise SystemExit("numba is not installed: pip install -e '.[cpu]'")
    torch.set_num_threads(arguments.threads)
    generator = HybridGenerator(
        arguments.slm,
        arguments.llm,
        device="cpu",
        dtype=arguments.dtype,
        max_batch_size=1,
        max_seq_len=max(*arguments.behind, len(PROMPT) + arguments.new_tokens) + max(STEPS),
    )
    with torch.inference_mode():
        report = {
            **conditions("What numba gives", "compiled", arguments, torch.device("cpu")),
            "texts": {name: of_texts(generator, way, arguments) for name, way in WAYS.items()},
            "models": {
                role: of_model(model, arguments)
                for role, model in (("slm", generator.slm), ("llm", generator.llm))
            },
        }
    tell(report, arguments.out)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = pair_options(__doc__)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="None: what is fastest")
    parser.add_argument("--behind", type=int, nargs="+", default=[30, 250], help="positions")
    parser.add_argument("--repeats", type=int, default=50, help="of steps")
    parser.add_argument("--texts", type=int, default=15, help="how often a text is written")
    parser.add_argument("--new-tokens", type=int, default=200)
    return parser.parse_args(given)


def of_texts(
    generator: HybridGenerator, way: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Milliseconds a token, and the ratio."""
    count = arguments.new_tokens
    options = {"top_k": 0, "top_p": 1.0, "seed": 1, "ignore_eos": True, "print_stats": False}
    given = {"max_new_tokens": count, **options, **way}
    return compare({"": partial(generator.generate, PROMPT, **given)}, arguments.texts, count)


def of_model(model: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """By the number of tokens and positions: milliseconds, and the ratio."""
    found: dict[str, Any] = {"dtype": str(model.dtype).removeprefix("torch.")}
    products = [*(p for layer in model.weights.layers for p in layer.products), model.weights.head]
    for count in STEPS:
        tokens = torch.ones(1, count, dtype=torch.int64)
        given = [(torch.ones(count, p.weight.shape[1], dtype=model.dtype), p) for p in products]
        alone = partial(multiply, given)
        for behind in arguments.behind:
            step = partial(model, tokens, torch.tensor([behind]))
            works = {"": step, "products": alone}
            found[f"{count} behind {behind}"] = compare(works, arguments.repeats)
    return found


def multiply(given: Sequence[tuple[Tensor, Linear]]) -> None:
    for x, weights in given:
        product(x, *weights)


def compare(works: Mapping[str, Callable[[], Any]], repeats: int, parts: int = 1) -> dict[str, Any]:
    """Of the work "" with both, and of the others with numba; a part's time of so many."""
    times: dict[str, list[float]] = {
        "torch": [],
        "numba": [],
        **{name: [] for name in works if name},
    }
    for repeat in range(-2, repeats):
        with torch_alone():
            took = {"torch": seconds(works[""])}
        took |= {name or "numba": seconds(work) for name, work in works.items()}
        for name, value in took.items():
            if repeat >= 0:
                times[name].append(value)
    return {
        **{f"{name}, ms": round(1e3 * median(each) / parts, 3) for name, each in times.items()},
        "torch / numba": ratio(times["numba"], times["torch"]),
    }


def seconds(work: Callable[[], Any]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


@contextmanager
def torch_alone() -> Iterator[None]:
    """Without what numba has compiled."""
    with ExitStack() as stack:
        for op in OPS.values():
            stack.enter_context(patch.object(op, "on_cpu", op.reference))
        stack.enter_context(patch.object(attention_plan, "has_numba", lambda: False))
        yield


if __name__ == "__main__":
    main(parse())
