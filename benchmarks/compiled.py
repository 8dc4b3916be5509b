"""What numba gives on a CPU: compiled beside torch's and numpy's ops.

    python -m benchmarks.compiled                                   the embedded pair
    python -m benchmarks.compiled --slm FOLDER --llm FOLDER

Whole texts in several ways, and of each model steps of 1 and of 5 tokens behind some positions, and
the products of those alone, in turn with the one and the other in one process: the median time of
each, a token's or a step's, and the median ratio of the pairs with its quartiles. Models are loaded
as either has them: for torch, weights are laid out for its library, in the dtype computed in.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from hybridgen import HybridGenerator
from hybridgen.benchmarks.bandwidth import read_bandwidth
from hybridgen.benchmarks.conditions import conditions, pair_options, tell
from hybridgen.benchmarks.profiling import ratio
from hybridgen.engine.weights import Linear
from hybridgen.kernels import attention_plan, linear
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
    with torch_alone():
        plain = load(arguments)
    generator = load(arguments)
    models = {"slm": (plain.slm, generator.slm), "llm": (plain.llm, generator.llm)}
    with torch.inference_mode():
        report = {
            **conditions("What numba gives", "compiled", arguments, torch.device("cpu")),
            "GB/s read": round(read_bandwidth(torch.device("cpu")) / 1e9, 1),
            "texts": {
                name: of_texts(plain, generator, way, arguments) for name, way in WAYS.items()
            },
            "models": {name: of_models(*pair, arguments) for name, pair in models.items()},
        }
    tell(report, arguments.out)


def load(arguments: argparse.Namespace) -> HybridGenerator:
    return HybridGenerator(
        arguments.slm,
        arguments.llm,
        device="cpu",
        dtype=arguments.dtype,
        max_batch_size=1,
        max_seq_len=max(*arguments.behind, len(PROMPT) + arguments.new_tokens) + max(STEPS),
    )


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = pair_options(__doc__)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="None: what is fastest")
    parser.add_argument("--behind", type=int, nargs="+", default=[30, 250], help="positions")
    parser.add_argument("--repeats", type=int, default=50, help="of steps")
    parser.add_argument("--texts", type=int, default=15, help="how often a text is written")
    parser.add_argument("--new-tokens", type=int, default=200)
    return parser.parse_args(given)


def of_texts(
    plain: HybridGenerator,
    generator: HybridGenerator,
    way: dict[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Milliseconds a token, and the ratio."""
    count = arguments.new_tokens
    options = {"top_k": 0, "top_p": 1.0, "seed": 1, "ignore_eos": True, "print_stats": False}
    given = {"max_new_tokens": count, "repetition_penalty": 1.0, **options, **way}
    works = (partial(each.generate, PROMPT, **given) for each in (plain, generator))
    return compare(works, arguments.texts, count)


def of_models(plain: Any, model: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """By the number of tokens and positions: milliseconds, and the ratio."""
    found: dict[str, Any] = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "MB a step": {"torch": plain.weight_bytes / 1e6, "numba": model.weight_bytes / 1e6},
    }
    for count in STEPS:
        works = (products(each, count) for each in (plain, model))
        found[f"products of {count}"] = compare(works, arguments.repeats)
        tokens = torch.ones(1, count, dtype=torch.int64)
        for behind in arguments.behind:
            works = (partial(each, tokens, torch.tensor([behind])) for each in (plain, model))
            found[f"{count} behind {behind}"] = compare(works, arguments.repeats)
    return found


def products(model: Any, count: int) -> Callable[[], Any]:
    """All of a step of ``count`` tokens."""
    all_of = [*(p for layer in model.weights.layers for p in layer.products), model.weights.head]
    given = [(torch.ones(count, p.weight.shape[1], dtype=model.dtype), p) for p in all_of]
    return partial(multiply, given)


def multiply(given: Sequence[tuple[Tensor, Linear]]) -> None:
    for x, weights in given:
        product(x, *weights)


def compare(works: Iterable[Callable[[], Any]], repeats: int, parts: int = 1) -> dict[str, Any]:
    """Of the same work by torch and by numba, a part's time of so many."""
    plain, compiled = works
    times: dict[str, list[float]] = {"torch": [], "numba": []}
    for repeat in range(-2, repeats):
        with torch_alone():
            by_torch = seconds(plain)
        by_numba = seconds(compiled)
        if repeat >= 0:
            times["torch"].append(by_torch)
            times["numba"].append(by_numba)
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
        for module in (attention_plan, linear):
            stack.enter_context(patch.object(module, "has_numba", lambda: False))
        yield


if __name__ == "__main__":
    main(parse())
