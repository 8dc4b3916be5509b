"""What a round on a GPU is predicted to launch, to move and to take: `python -m benchmarks.budget`.

Every kind of round runs on fake CUDA tensors of the shapes of Qwen3-1.7B (SLM) and Qwen3-8B (LLM),
bfloat16, some with int8 weights of the SLM too, and is written down launch by launch (meter.py): no
card is needed, and nothing here is measured. For a round of L launches and B bytes:

    floor      B / bandwidth
    replayed   B / (share * bandwidth) + L * launch          in a CUDA graph
    eager      the longer of that and L * host               launch by launch

    bandwidth  3.35 TB/s, an H100's; share: 92 % of it, hoped for of the products (linear_triton.py)
    launch     1.3 us, of a kernel in a graph, on an H100 (Hazy Research's figure)
    host       12 to 20 us, what an eager launch costs the host

It leaves out what may make a round slower: the latency of dependent reads, the rounds of one
program that a flat row needs, and for more than 16 rows the weights' further reads from L2. A card
is to prove it wrong.

``tokens`` are the most that a row's round can write, all drafts accepted; ``break-even`` is how
many it has to write to be as fast as LLM steps, replayed. Bytes a token are for that most.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, Qwen3Config

from hybridgen.benchmarks.meter import Call, Meter
from hybridgen.engine.cache import Arena
from hybridgen.engine.decoder import Decoder
from hybridgen.engine.limits import MAX_DRAFTS
from hybridgen.engine.pair import SLACK
from hybridgen.engine.rounds import Batch
from hybridgen.engine.state import Drafts, Memory, Routing, Rows
from hybridgen.engine.weights import Linear
from hybridgen.kernels.uncertainty import PROBS
from hybridgen.kernels.verify import SOURCE_LLM, SOURCE_SLM
from hybridgen.strategies.drafts import SlmDrafts, speculative_round
from hybridgen.strategies.routing import llm_round, slm_round
from hybridgen.strategies.single import single_round

BATCHES = (1, 8)
DRAFTS = (1, 4, 8, 15)
CONTEXT = 512
POSITIONS = 4096 + SLACK  # of the caches; grids depend on it


@dataclass(frozen=True)
class Prices:
    """What bytes and launches cost."""

    bandwidth: float = 3.35e12  # bytes a second
    share: float = 0.92  # of the bandwidth that kernels reach
    launch: float = 1.3e-6  # seconds, in a graph
    host: tuple[float, float] = (12e-6, 20e-6)  # seconds, eager
    multiprocessors: int = 132


class Kind(NamedTuple):
    """A kind of round: ``run(batch)`` is one, which writes at most ``tokens`` tokens a row.

    int8    the SLM's weights are
    """

    run: Callable[[Batch], None]
    tokens: int = 1
    int8: bool = False


def kinds() -> dict[str, Kind]:
    """Every kind of round, by name."""
    drafted = {
        f"{'rejection' if with_q else 'coupled'}, K = {count}": Kind(
            partial(speculative_round, proposer=SlmDrafts(), num_drafts=count, with_q=with_q),
            count + 1,
        )
        for with_q in (True, False)
        for count in DRAFTS
    }
    routed = partial(slm_round, evidence=PROBS, count=1)
    smaller = {
        f"{name}, int8 SLM": drafted[name]._replace(int8=True)
        for name in ("rejection, K = 4", "coupled, K = 4")
    }
    return {
        "llm step": Kind(partial(single_round, source=SOURCE_LLM)),
        "slm step": Kind(partial(single_round, source=SOURCE_SLM)),
        **drafted,
        **smaller,
        "entropy step": Kind(partial(routed, metric="entropy", moving=False)),
        "uncertainty step": Kind(partial(routed, metric="uncertainty", moving=False)),
        "uncertainty step, moving": Kind(partial(routed, metric="uncertainty", moving=True)),
        "catch-up of 16": Kind(partial(llm_round, count=16)),
    }


class Shape(NamedTuple):
    """The numbers of a published config; 8 key heads of 128, 151,936 tokens."""

    hidden: int
    intermediate: int
    heads: int
    layers: int
    tied: bool


SLM = Shape(2048, 6144, 16, 28, True)  # Qwen3-1.7B
LLM = Shape(4096, 12288, 32, 36, False)  # Qwen3-8B


def decoder(shape: Shape) -> Decoder:
    """A bfloat16 decoder on the meta device."""
    config = Qwen3Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=8,
        head_dim=128,
        num_hidden_layers=shape.layers,
        vocab_size=151936,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        return Decoder.from_model(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def batch_of(slm: Decoder, llm: Decoder, rows: int) -> Batch:
    """A batch whose rounds are called as they are, beside a cache of `POSITIONS`."""
    device = torch.device("cuda")
    models = slm, llm
    arena = Arena([model.cache_layout() for model in models], rows, POSITIONS, device)
    for model, cache in zip(models, arena.caches, strict=True):
        model.bind(cache)
    memory = Memory(device)
    return Batch(
        slm,
        llm,
        Rows.allocate(memory, rows, POSITIONS, llm.vocab_size),
        Drafts.allocate(memory, rows, MAX_DRAFTS, slm.vocab_size, slm.dtype),
        Routing.allocate(memory, rows),
    )


def measured(rows: int, context: int, of: dict[str, Kind]) -> dict[str, list[Call]]:
    """The calls of one round of each kind, on ``rows`` rows with ``context`` tokens each."""
    made = decoder(SLM), decoder(LLM)

    def on_cuda(tensor: Tensor) -> Tensor:
        return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cuda")

    with FakeTensorMode(), torch.inference_mode():
        slm, llm = (Decoder(one.config, one.weights.map(on_cuda)) for one in made)
        smaller = Decoder(slm.config, slm.weights.map(on_cuda).change_products(as_int8))
        batches = {int8: batch_of(smaller if int8 else slm, llm, rows) for int8 in (False, True)}
        calls = {}
        for name, kind in of.items():
            with Meter(context) as meter:
                kind.run(batches[kind.int8])
            calls[name] = meter.calls
    return calls


def as_int8(linear: Linear) -> Linear:
    """The shapes and dtypes of what it is quantised to."""
    scale = torch.empty(len(linear.weight), dtype=torch.float32, device=linear.weight.device)
    return Linear(linear.weight.to(torch.int8), linear.bias, scale)


@dataclass(frozen=True)
class Budget:
    """What one kind of round comes to."""

    name: str
    rows: int
    tokens: int
    calls: Sequence[Call]

    @property
    def launches(self) -> int:
        return sum(len(call.launches) for call in self.calls)

    @property
    def torch_launches(self) -> int:
        """Those of torch's own ops."""
        return sum(len(call.launches) for call in self.calls if not call.is_ours)

    @property
    def bytes(self) -> int:
        return sum(call.cost.bytes for call in self.calls)

    @property
    def bytes_a_token(self) -> int:
        return self.bytes // (self.rows * self.tokens)

    def floor(self, prices: Prices) -> float:
        """Seconds."""
        return self.bytes / prices.bandwidth

    def replayed(self, prices: Prices) -> float:
        """Seconds."""
        return self.floor(prices) / prices.share + self.launches * prices.launch

    def eager(self, prices: Prices) -> tuple[float, float]:
        """Seconds, for a fast and a slow host."""
        least, most = (max(self.replayed(prices), self.launches * host) for host in prices.host)
        return least, most

    def as_dict(self, prices: Prices) -> dict[str, Any]:
        """All of it, the launches too, equal calls counted together."""
        counted = Counter((call.op, tuple(call.launches), call.cost) for call in self.calls)
        calls = [
            {
                "op": op,
                "calls": count,
                **cost._asdict(),
                "launches": [
                    {
                        "kernel": launch.kernel,
                        "grid": launch.grid,
                        "programs_per_multiprocessor": launch.programs / prices.multiprocessors,
                    }
                    for launch in launches
                ],
            }
            for (op, launches, cost), count in counted.items()
        ]
        return {
            "round": self.name,
            "rows": self.rows,
            "tokens": self.tokens,
            "launches": self.launches,
            "torch_launches": self.torch_launches,
            "bytes": self.bytes,
            "bytes_a_token": self.bytes_a_token,
            "flops": sum(call.cost.flops for call in self.calls),
            "floor_seconds": self.floor(prices),
            "replayed_seconds": self.replayed(prices),
            "eager_seconds": self.eager(prices),
            "ops": calls,
        }


def budgets(rows: int, context: int = CONTEXT) -> list[Budget]:
    """Of every kind of round."""
    found = kinds()
    calls = measured(rows, context, found)
    return [Budget(name, rows, kind.tokens, calls[name]) for name, kind in found.items()]


def report(of: Sequence[Budget], prices: Prices) -> list[str]:
    """A line for each; the first one is the LLM's own step."""
    step = of[0].replayed(prices)
    lines = [
        f"{'round':26}rows  launches (torch)  MB a token   floor  replayed   of it"
        "      eager, ms  tokens  break-even"
    ]
    for budget in of:
        floor, replayed = budget.floor(prices), budget.replayed(prices)
        low, high = budget.eager(prices)
        lines.append(
            f"{budget.name:26}{budget.rows:4}{budget.launches:10}{budget.torch_launches:8}"
            f"{budget.bytes_a_token / 1e6:12.1f}{1e3 * floor:8.2f}{1e3 * replayed:10.2f}"
            f"{floor / replayed:8.0%}{1e3 * low:8.1f} - {1e3 * high:4.1f}"
            f"{budget.tokens:8}{replayed / step:12.2f}"
        )
    return lines


def details(budget: Budget, prices: Prices) -> list[str]:
    """Launch by launch, equal calls of an op on one line: kernel[grid], and programs an SM."""
    lines = [f"{budget.name}, rows: {budget.rows}"]
    for call in budget.as_dict(prices)["ops"]:
        moved = call["read"] + call["written"]
        each = moved / (prices.bandwidth * prices.share) + len(call["launches"]) * prices.launch
        kernels = ", ".join(
            f"{one['kernel']}[{', '.join(map(str, one['grid']))}]"
            f" {one['programs_per_multiprocessor']:.1f}"
            if one["grid"]
            else "torch"
            for one in call["launches"]
        )
        lines.append(
            f"  {call['calls']:4} x {call['op']:18}{moved / 1e6:10.3f} MB {1e6 * each:7.1f} us  "
            f"{kernels}"
        )
    return lines


def table(of: Sequence[Budget]) -> str:
    """The JSON of tests/budget.json: launches and megabytes a token, by round and rows."""
    lines = []
    for budget in of:
        held = budget.launches, round(budget.bytes_a_token / 1e6, 1)
        lines.append(f'"{budget.name}, rows: {budget.rows}": {json.dumps(held)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    prices = Prices()
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens of a row")
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES, help="rows")
    parser.add_argument("--bandwidth", type=float, default=prices.bandwidth, help="bytes/s")
    parser.add_argument("--share", type=float, default=prices.share)
    parser.add_argument("--launch", type=float, default=prices.launch, help="seconds")
    parser.add_argument("--host", type=float, nargs=2, default=prices.host, help="seconds")
    parser.add_argument("--multiprocessors", type=int, default=prices.multiprocessors)
    parser.add_argument("--launches", action="store_true", help="list every round's launches")
    parser.add_argument("--json", type=Path, help="write all of it, launch by launch")
    parser.add_argument("--table", type=Path, help="write what tests/budget.json holds")
    given = parser.parse_args(arguments)
    prices = Prices(
        given.bandwidth, given.share, given.launch, tuple(given.host), given.multiprocessors
    )
    found: list[Budget] = []
    for rows in given.batch:
        found += budgets(rows, given.context)
        latest = found[-len(kinds()) :]
        print(*report(latest, prices), "", sep="\n")
        for budget in latest if given.launches else ():
            print(*details(budget, prices), "", sep="\n")
    if given.json:
        rounds = [budget.as_dict(prices) for budget in found]
        given.json.write_text(json.dumps({"prices": vars(prices), "rounds": rounds}, indent=1))
    if given.table:
        given.table.write_text(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
