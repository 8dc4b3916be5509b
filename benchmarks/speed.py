"""Tokens per second against transformers, on the same checkpoints, dtype and threads.

    python -m benchmarks.speed                              the embedded pair
    python -m benchmarks.speed --slm DIR --llm DIR          any other
    python -m benchmarks.speed --shape smollm2-135m         a random llama of that shape, alone
    python -m benchmarks.speed --device cuda --pdl          and with programmatic dependent launch

Every contender writes the same number of tokens after the same prompts; runs are interleaved, so
that a slow moment of the machine hits all alike, and medians are reported, and ratios to
transformers' ``generate`` and to its assisted ``generate``. The floor is the time to read the
LLM's weights once a round at the bandwidth measured in this run.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hybridgen import HybridGenerator
from hybridgen.benchmarks.bandwidth import read_bandwidth, synchronize
from hybridgen.benchmarks.conditions import conditions
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.loading import load_model
from hybridgen.engine.transformers_decoder import TransformersDecoder
from hybridgen.kernels.launch import programmatic_dependent_launch
from hybridgen.pair import LLM_PATH, SLM_PATH

PROMPTS = (
    "def quicksort(items):\n",
    "import os\nimport sys\n\n\nclass Parser:\n    ",
    "    def read(self, size=-1):\n        ",
)
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
SAMPLED: dict[str, Any] = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
PEERS = ("transformers", "transformers assisted")
Contender = Callable[[list[int], bool, int], dict[str, Any] | None]


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        slm, llm = checkpoints(arguments, Path(folder))
        generator, *dependents = [
            HybridGenerator(slm, llm, device=arguments.device, dtype=arguments.dtype)
            for _ in range(1 + arguments.pdl)  # rounds are captured with PDL, or without
        ]
        peers = [
            load_model(path, "checkpoint", generator.device, decoder.dtype)
            for path, decoder in ((slm, slm_of(generator)), (llm, generator.llm))
        ]
    contenders = build(generator, peers[0], peers[1], arguments)
    for other in dependents:
        contenders |= {
            f"{name}, PDL": dependent(write) for name, write in strategies(other, arguments).items()
        }
    shape = arguments.shape
    title = f"A random llama of the shape of {shape}" if shape else pair_title(arguments)
    report = {
        **conditions(title, "speed", arguments, generator.device),
        "dtypes": {"slm": str(slm_of(generator).dtype), "llm": str(generator.llm.dtype)},
        "new_tokens": arguments.new_tokens,
        "modes": {
            mode: measure(contenders, generator, arguments, sampled=mode == "sampled")
            for mode in arguments.modes.split(",")
        },
        "floor": floor(generator),
    }
    show(report)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(report, indent=1) + "\n")


def pair_title(arguments: argparse.Namespace) -> str:
    """What the table is about."""
    if arguments.slm is None:
        return "The embedded pair"
    return f"{Path(arguments.slm).name} and {Path(arguments.llm).name}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--slm", help="folder of the small model")
    parser.add_argument("--llm", help="folder of the large model")
    parser.add_argument("--shape", choices=["smollm2-135m"], help="a random llama; LLM alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="of both models; default: the generator's own choice")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--num-drafts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--modes", default="greedy,sampled")
    parser.add_argument(
        "--pdl", action="store_true", help="each strategy with programmatic dependent launch too"
    )
    parser.add_argument("--out", help="write the raw JSON there")
    return parser.parse_args()


def checkpoints(arguments: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    """What to load: the embedded pair, two folders, or one random model as both."""
    if arguments.shape is None:
        return arguments.slm or SLM_PATH, arguments.llm or LLM_PATH
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    config.dtype = torch.bfloat16
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(LLM_PATH).save_pretrained(folder)
    return str(folder), str(folder)


def build(
    generator: HybridGenerator, slm: Any, llm: Any, arguments: argparse.Namespace
) -> dict[str, Contender]:
    """Functions that write ``new_tokens`` after a prompt: (ids, sampled, seed) -> statistics."""
    count = arguments.new_tokens

    def peer(assistant: Any) -> Contender:
        def write(ids: list[int], sampled: bool, seed: int) -> None:
            torch.manual_seed(seed)
            prompt = torch.tensor([ids], device=generator.device)
            llm.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=count,
                max_new_tokens=count,
                assistant_model=assistant,
                pad_token_id=0,
                **({"do_sample": True, **SAMPLED} if sampled else GREEDY),
            )

        return write

    peers = {"transformers": peer(None)}
    if arguments.shape is None:
        peers["transformers assisted"] = peer(slm)
    return peers | strategies(generator, arguments)


def strategies(generator: HybridGenerator, arguments: argparse.Namespace) -> dict[str, Contender]:
    """Our own contenders."""
    count, drafts = arguments.new_tokens, arguments.num_drafts

    def ours(strategy: str, **options: Any) -> Contender:
        def write(ids: list[int], sampled: bool, seed: int) -> dict[str, Any]:
            result = generator.generate(
                ids,
                strategy,
                max_new_tokens=count,
                ignore_eos=True,
                seed=seed,
                print_stats=False,
                **(SAMPLED if sampled else {"temperature": 0.0}),
                **options,
            )
            return result.stats

        return write

    contenders = {"llm": ours("llm")}
    if arguments.shape is None:
        contenders |= {
            "slm": ours("slm"),
            "speculative": ours("speculative", num_drafts=drafts),
            "speculative auto": ours("speculative"),
            "speculative coupled": ours("speculative", num_drafts=drafts, verification="coupled"),
            "uncertainty, llm_fraction 0.2": ours("uncertainty", llm_fraction=0.2),
        }
    return contenders


def dependent(write: Contender) -> Contender:
    """The same, its kernels launched, or captured, as programmatic dependents."""

    def launched(ids: list[int], sampled: bool, seed: int) -> dict[str, Any] | None:
        with programmatic_dependent_launch():
            return write(ids, sampled, seed)

    return launched


def measure(
    contenders: dict[str, Contender],
    generator: HybridGenerator,
    arguments: argparse.Namespace,
    sampled: bool,
) -> dict[str, Any]:
    """Seconds of every run, interleaved, after one warm-up each; medians and ratios."""
    prompts = [generator.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    tokens_per_round: dict[str, list[float]] = {}
    for repeat in range(-1, arguments.repeats):
        for name, write in contenders.items():
            for index, ids in enumerate(prompts):
                synchronize(generator.device)
                began = perf_counter()
                stats = write(ids, sampled, 100 * max(repeat, 0) + index)
                synchronize(generator.device)
                if repeat < 0:
                    continue
                seconds[name].append(perf_counter() - began)
                if stats is not None and "draft_generated" in stats:
                    per_round = stats["total_tokens"] / stats["decode_steps"]
                    tokens_per_round.setdefault(name, []).append(per_round)
    medians = {name: median(runs) for name, runs in seconds.items()}
    return {
        name: {
            "milliseconds_per_token": 1e3 * medians[name] / arguments.new_tokens,
            "ratio_to": {peer: medians[peer] / medians[name] for peer in PEERS if peer in medians},
            "tokens_per_round": median(tokens_per_round.get(name, [1.0])),
            "seconds": runs,
        }
        for name, runs in seconds.items()
    }


def floor(generator: HybridGenerator) -> dict[str, float]:
    """Milliseconds to read each model's weights once."""
    bandwidth = read_bandwidth(generator.device)
    return {
        "bandwidth_gb_per_s": bandwidth / 1e9,
        "llm_milliseconds": 1e3 * generator.llm.weight_bytes / bandwidth,
        "slm_milliseconds": 1e3 * slm_of(generator).weight_bytes / bandwidth,
    }


def slm_of(generator: HybridGenerator) -> Decoder | TransformersDecoder:
    """The small model, which each pair here has."""
    assert generator.slm is not None
    return generator.slm


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    floor_ms = report["floor"]["llm_milliseconds"]
    print(f"{report['machine']}, {report['dtypes']}, {report['new_tokens']} new tokens")
    print(
        f"read bandwidth {report['floor']['bandwidth_gb_per_s']:.1f} GB/s: the LLM's weights alone "
        f"cost {floor_ms:.2f} ms a token"
    )
    for mode, results in report["modes"].items():
        peers = [peer for peer in PEERS if peer in results]
        heads = "".join(f"{'x ' + peer:>24s}" for peer in peers)
        print(f"{mode:32s}{'ms/token':>10s}{heads}{'tokens/round':>14s}{'of floor':>10s}")
        for name, result in results.items():
            per_token, rounds = result["milliseconds_per_token"], result["tokens_per_round"]
            ratios = "".join(f"{result['ratio_to'][peer]:24.2f}" for peer in peers)
            share = f"{floor_ms / rounds / per_token:10.1%}" if every_round_reads_llm(name) else ""
            print(f"  {name:30s}{per_token:10.2f}{ratios}{rounds:14.2f}{share}")


def every_round_reads_llm(name: str) -> bool:
    """Whether the LLM's weights bound the contender's time from below."""
    return not name.startswith(("slm", "uncertainty", "entropy"))


if __name__ == "__main__":
    main()
