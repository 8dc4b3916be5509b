"""What is measured: each suite is a list of experiments, the most telling first.

An experiment is one pair, one set of prompts, and contenders that do the same work in turns. The
suite "kernels" is no list: its files are pytest-benchmark's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from hybridgen.benchmarks.ours import AUTO, LLM, LOOKUP, SLM, Way, routed, speculative

GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
DRAFTS = (1, 2, 3, 4, 6, 8, 12, 15)
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
AGREEMENTS = (0.5, 0.7, 0.9)
USUAL = (LLM, SLM, speculative(4), AUTO, speculative(4, "coupled"))
VARIANTS = ("transformers lookup", "transformers static", "transformers compiled")
EVERY_PEER = (
    "transformers",
    "llama.cpp",
    "openvino",
    "ctranslate2",
    "vllm",
    "sglang",
)


@dataclass(frozen=True)
class Experiment:
    """One comparison.

    title       what it is to show; no two of a suite and pair are alike in title and setting
    pair        its name
    ways        our contenders
    peers       names of peers; those that are not installed are named, and left out
    without     names of peers' contenders that are left out
    sampling    as `contender.Work` has it
    batch       prompts that a call takes
    prompts     how many there are
    new_tokens  of each
    repeats     after one that warms up
    without_pdl our contenders not launched as programmatic dependents too
    """

    title: str
    pair: str
    ways: tuple[Way, ...]
    peers: tuple[str, ...] = ("transformers",)
    sampling: Mapping[str, float] = field(default_factory=lambda: GREEDY)
    batch: int = 1
    prompts: int = 4
    new_tokens: int = 64
    repeats: int = 5
    without_pdl: bool = False
    without: tuple[str, ...] = VARIANTS


def quick() -> list[Experiment]:
    ways = (*USUAL, routed("uncertainty", llm_fraction=0.2))
    one = Experiment("strategies", "embedded", ways)
    return [one, replace(one, sampling=SAMPLED)]


def decode(pair: str = "embedded") -> list[Experiment]:
    """Drafts and verifications, then batches."""
    drafts = tuple(speculative(count) for count in DRAFTS)
    coupled = tuple(speculative(count, "coupled") for count in (4, 8))
    alone = Experiment("drafts", pair, (LLM, SLM, *drafts, AUTO, *coupled, LOOKUP))
    several = Experiment("batches", pair, USUAL, prompts=8)
    return [
        replace(alone, sampling=SAMPLED),
        replace(alone, ways=(LLM, SLM, *drafts, AUTO, LOOKUP)),
        *(replace(several, batch=batch, sampling=SAMPLED) for batch in (2, 4, 8)),
    ]


def routing(pair: str = "embedded") -> list[Experiment]:
    """What a budget of the LLM costs, and what the text is worth to the LLM."""
    budgets = [
        routed(metric, llm_fraction=fraction)
        for metric in ("uncertainty", "entropy")
        for fraction in FRACTIONS
    ]
    chance = [routed("random", threshold=1 - fraction) for fraction in FRACTIONS]
    levels = [routed("uncertainty", threshold=level) for level in (0.5, 0.8)]
    levels += [routed("entropy", threshold=level) for level in (1.5, 2.5)]
    ways = (LLM, SLM, AUTO, *budgets, *chance, *levels)
    return [Experiment("budgets", pair, ways, sampling=SAMPLED, prompts=8)]


def peers() -> list[Experiment]:
    """The embedded pair, and a real model; each beside every peer that is installed."""
    one = Experiment("peers", "embedded", (*USUAL, LOOKUP), EVERY_PEER, without=())
    real = replace(one, pair="smollm2", prompts=3, new_tokens=48, repeats=3)
    return [one, replace(one, sampling=SAMPLED), real, replace(real, sampling=SAMPLED)]


def gpu() -> list[Experiment]:
    """What a card is to show, the first things first: a loan may end early."""
    shaped = "qwen3-1.7b+8b@0.8"
    ways = (LLM, SLM, *(speculative(count) for count in (2, 4, 6, 8)), AUTO)
    first = Experiment("drafts", shaped, ways, peers=(), sampling=SAMPLED, new_tokens=256)
    few = replace(first, ways=(LLM, SLM, speculative(4), AUTO), repeats=3)
    brief = replace(few, prompts=2, new_tokens=64, repeats=2)  # peers take many times as long
    return [
        first,
        replace(brief, title="beside transformers", peers=("transformers",)),
        replace(few, title="dependent launches", sampling=GREEDY, without_pdl=True),
        *(replace(few, title="batches", batch=batch, prompts=batch) for batch in (4, 16)),
        replace(few, title="budgets", ways=(LLM, SLM, routed("uncertainty", llm_fraction=0.2))),
        replace(brief, title="peers", peers=EVERY_PEER, without=()),
        *(
            replace(few, title="agreement", pair=f"qwen3-1.7b+8b@{agreement}")
            for agreement in AGREEMENTS
        ),
        replace(first, pair="llama-1b+8b@0.8"),
        replace(first, pair="qwen3-0.6b+4b@0.8"),
        replace(first, title="strategies", pair="embedded", ways=USUAL),
    ]


SUITES: dict[str, Callable[[], list[Experiment]]] = {
    "quick": quick,
    "decode": decode,
    "routing": routing,
    "peers": peers,
    "gpu": gpu,
}


def smallest(one: Experiment) -> Experiment:
    """The same on the tiny pair, as little as can be: to see that all of it runs."""
    prompts = min(one.prompts, 2 * one.batch)
    return replace(one, pair="tiny", prompts=prompts, new_tokens=6, repeats=2)
