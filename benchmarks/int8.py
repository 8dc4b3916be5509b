"""What int8 weights cost and save: bits, acceptance, time of a step, bytes.

    python -m benchmarks.int8 --out int8.json                       the embedded pair
    python -m benchmarks.int8 --slm FOLDER --llm FOLDER --prompts spec-bench
    python -m benchmarks.int8 --table "the embedded pair=int8.json" ...        of docs/models.md

Three generators of one pair: plain, with an int8 SLM, and with both models int8. Of each model the
held-out loss on this package's sources, fed in steps of 16 tokens; the processor's time of a step
of 1 and of 5 tokens behind a quarter of the positions, interleaved; and the bytes that a step
reads. Of each generator the rounds of K = 4, greedy and drawn with rejection at temperature 0.8,
all rows of the prompts at once. On a CPU, where times are those of the process.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import Tensor

import hybridgen
from hybridgen import HybridGenerator
from hybridgen.benchmarks import prompts
from hybridgen.benchmarks.conditions import conditions, pair_options, tell
from hybridgen.names import WeightsName

WEIGHTS: dict[str, tuple[WeightsName | None, WeightsName | None]] = {
    "plain": (None, None),
    "int8 SLM": ("int8", None),
    "int8 both": ("int8", "int8"),
}
DRAFTS = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.8, "verification": "rejection"},
}
STEPS = (1, 5)
FED = 16


def main(arguments: argparse.Namespace) -> None:
    if arguments.table:
        print(table(dict(one.split("=", 1) for one in arguments.table)))
        return
    torch.set_num_threads(arguments.threads)
    generators = {name: opened(arguments, *weights) for name, weights in WEIGHTS.items()}
    models: dict[str, dict[str, Any]] = {
        "slm": {"plain": generators["plain"].slm, "int8": generators["int8 SLM"].slm},
        "llm": {"plain": generators["plain"].llm, "int8": generators["int8 both"].llm},
    }
    text = held_out(generators["plain"].tokenizer, arguments.tokens)
    with torch.inference_mode():
        of_models = {role: compare(both, text, arguments) for role, both in models.items()}
    report = {
        **conditions("int8 weights", "int8", arguments, torch.device("cpu")),
        "models": of_models,
        "rounds": {name: rounds(one, arguments) for name, one in generators.items()},
    }
    tell(report, arguments.out)


def opened(
    arguments: argparse.Namespace, slm_weights: WeightsName | None, llm_weights: WeightsName | None
) -> HybridGenerator:
    return HybridGenerator(
        arguments.slm,
        arguments.llm,
        device="cpu",
        dtype=arguments.dtype,
        slm_weights=slm_weights,
        llm_weights=llm_weights,
        max_batch_size=arguments.count,
        max_seq_len=arguments.positions,
    )


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = pair_options(__doc__)
    parser.add_argument("--table", nargs="+", metavar="PAIR=FILE", help="of results, in markdown")
    parser.add_argument("--dtype", default="bfloat16", help="that is computed in")
    parser.add_argument("--prompts", default="code", help="see `hybridgen bench`")
    parser.add_argument("--count", type=int, default=8, help="prompts, written at once")
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=2048, help="of the held-out text")
    parser.add_argument("--positions", type=int, default=1024, help="of the caches")
    parser.add_argument("--repeats", type=int, default=30)
    return parser.parse_args(given)


def held_out(tokenizer: Any, count: int) -> Tensor:
    """The first ``count`` tokens of the engine's sources, int64 [1, count]."""
    files = sorted((Path(hybridgen.__file__).parent / "engine").glob("*.py"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:count]
    return torch.tensor([ids], dtype=torch.int64)


def compare(models: dict[str, Any], text: Tensor, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of the same model with these weights."""
    times: dict[str, dict[int, list[float]]] = {
        name: {count: [] for count in STEPS} for name in models
    }
    behind = torch.tensor([arguments.positions // 4])
    for repeat in range(-1, arguments.repeats):
        for count in STEPS:
            for name, model in models.items():
                began = process_time()
                model(text[:, :count], behind)
                if repeat >= 0:
                    times[name][count].append(process_time() - began)
    return {
        name: {
            "bits_a_token": bits(model, text.split(arguments.positions // 2, 1)),
            "milliseconds": {str(n): 1e3 * median(values) for n, values in times[name].items()},
            "bytes_a_step": model.weight_bytes,
        }
        for name, model in models.items()
    }


def bits(model: Any, windows: Sequence[Tensor]) -> float:
    """Mean of -log2 p of each token of the windows [1, T], but for their first."""
    total, counted = 0.0, 0
    for window in windows:
        for first in range(0, window.shape[1] - 1, FED):
            tokens = window[:, first : first + FED]
            following = window[0, first + 1 : first + FED + 1]
            scores = model(tokens, torch.tensor([first]))[0, : len(following)].float()
            total += float(torch.nn.functional.cross_entropy(scores, following, reduction="sum"))
            counted += len(following)
    return total / counted / math.log(2)


def rounds(generator: HybridGenerator, arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens a round and drafts accepted at K = 4."""
    found = prompts.load(arguments.prompts, generator.tokenizer, arguments.count)
    texts: Any = [prompt.ids for prompt in found]
    told = {}
    for name, options in DRAFTS.items():
        stats = generator.generate(
            texts,
            num_drafts=4,
            max_new_tokens=arguments.new_tokens,
            ignore_eos=True,
            seed=1,
            repetition_penalty=1.0,
            print_stats=False,
            **options,  # type: ignore[arg-type]
        ).stats
        told[name] = {
            "tokens_a_round": stats["total_tokens"] / stats["decode_steps"],
            "acceptance_rate": stats["acceptance_rate"],
        }
    return told


def table(files: dict[str, str]) -> str:
    """Of results, by the names of their pairs."""
    heads = ["pair, weights", "bits a token", "1 token, ms", "5 tokens, ms", "MB a step"]
    heads += ["greedy: tokens a round", "accepted", "drawn: tokens a round", "accepted"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for pair, file in files.items():
        report = json.loads(Path(file).read_text(encoding="utf-8"))
        of = {"slm": ("plain", "int8 SLM"), "llm": ("plain", "int8 both")}
        for role, generators in of.items():
            for (weights, told), name in zip(
                report["models"][role].items(), generators, strict=True
            ):
                cells = [f"{pair}, {role.upper()}, {weights}", f"{told['bits_a_token']:.3f}"]
                cells += [f"{told['milliseconds'][str(count)]:.2f}" for count in STEPS]
                cells.append(f"{told['bytes_a_step'] / 1e6:.1f}")
                for drawn in report["rounds"][name].values():
                    cells.append(f"{drawn['tokens_a_round']:.2f}")
                    cells.append(f"{drawn['acceptance_rate']:.1%}")
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(parse())
