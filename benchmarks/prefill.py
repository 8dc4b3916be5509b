"""How fast prompts are read: several in shared blocks, against one prompt after the other.

    python -m benchmarks.prefill                            the embedded pair
    python -m benchmarks.prefill --slm DIR --llm DIR        any other

Both ways are measured in one interleaved run, so that a slow moment of the machine hits both alike;
medians are reported.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from hybridgen import HybridGenerator
from hybridgen.benchmarks.bandwidth import synchronize
from hybridgen.benchmarks.conditions import conditions
from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    generator = HybridGenerator(
        arguments.slm, arguments.llm, device=arguments.device, dtype=arguments.dtype
    )
    lengths = [int(length) for length in arguments.lengths.split(",")]
    report = {
        **conditions("Reading prompts", "prefill", arguments, generator.device),
        "lengths": lengths,
        "models": {
            name: measure(model, lengths, arguments.repeats)
            for name, model in (("slm", generator.slm), ("llm", generator.llm))
            if isinstance(model, Decoder)
        },
    }
    for name, result in report["models"].items():
        print(
            f"{name}  {result['dtype']}  {result['tokens_per_second']:10.0f} tokens/s  "
            f"{result['times_faster']:.2f} times as fast as one by one"
        )
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--slm", help="folder of the small model")
    parser.add_argument("--llm", help="folder of the large model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="of both models; default: the generator's own choice")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lengths", default="500,500,500,500", help="tokens of each prompt")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", help="write the raw JSON there")
    return parser.parse_args()


@torch.inference_mode()
def measure(model: Decoder, lengths: list[int], repeats: int) -> dict[str, Any]:
    """Seconds of every run after one warm-up, together and one by one; medians and their ratio."""
    arena = Arena([model.cache_layout()], len(lengths), max(lengths), model.device)
    model.bind(arena.caches[0])
    generator = torch.Generator().manual_seed(0)
    shape = len(lengths), max(lengths)
    tokens = torch.randint(0, model.vocab_size, shape, generator=generator).to(model.device)
    seconds: dict[str, list[float]] = {"together": [], "one by one": []}
    for repeat in range(-1, repeats):
        for name, runs in seconds.items():
            synchronize(model.device)
            began = perf_counter()
            if name == "together":
                model.prefill(tokens, lengths)
            else:
                for row, length in enumerate(lengths):
                    model.prefill(tokens[row : row + 1], [length], [row])
            synchronize(model.device)
            if repeat >= 0:
                runs.append(perf_counter() - began)
    together, alone = (median(runs) for runs in seconds.values())
    return {
        "dtype": str(model.dtype),
        "tokens_per_second": sum(lengths) / together,
        "times_faster": alone / together,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
