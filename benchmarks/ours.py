"""Our own contenders: each strategy, with its options, over one generator of the pair."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from hybridgen import HybridGenerator
from hybridgen.benchmarks.contender import Pair, Place, Work, Written
from hybridgen.kernels.launch import programmatic_dependent_launch
from hybridgen.names import DtypeName, WeightsName
from hybridgen.profiling.random_router import RandomRouting
from hybridgen.strategies.lookup import NgramDrafts
from hybridgen.strategies.speculative import Speculative

# Whatever a checkpoint recommends, all contenders sample alike.
PLAIN: dict[str, Any] = {"min_p": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@dataclass(frozen=True)
class Way:
    """A strategy with options, under the name that it has in tables.

    writers    whose greedy choice each token of a greedy text must be
    needs_slm  whether it is not for an LLM alone
    """

    name: str
    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    writers: tuple[str, ...] = ("llm",)
    needs_slm: bool = True

    def equals_llm(self, work: Work) -> bool:
        """Whether its text is promised to be that of "llm", to the token."""
        coupled = self.options.get("verification") == "coupled"
        return self.strategy in ("speculative", "lookup") and (work.is_greedy or coupled)


LLM = Way("llm", "llm", needs_slm=False)
SLM = Way("slm", "slm", writers=("slm",))
AUTO = Way("speculative, auto", "speculative", {"verification": "coupled"})
LOOKUP = Way("lookup", "lookup", {"verification": "coupled"}, needs_slm=False)


def speculative(count: int, verification: str = "rejection") -> Way:
    """``count`` drafts a round."""
    options = {"num_drafts": count, "verification": verification}
    kind = "" if verification == "rejection" else f", {verification}"
    return Way(f"speculative, K = {count}{kind}", "speculative", options)


def routed(metric: str, **options: float) -> Way:
    """By ``threshold`` or ``llm_fraction``."""
    ((name, value),) = options.items()
    return Way(f"{metric}, {name} {value:g}", metric, options, ("slm", "llm"))


class Ours:
    """A way over a generator, of which several may share one."""

    samples = True

    def __init__(self, generator: HybridGenerator, way: Way, pdl: bool = True) -> None:
        self.generator, self.way, self.pdl = generator, way, pdl
        self.name = way.name if pdl else f"{way.name}, without PDL"
        self.writers = way.writers
        self.options: dict[str, Any] = {**way.options}
        self.batch = generator.pair.max_rows

    def promises(self, work: Work) -> str | None:
        """The contender whose text it has to equal."""
        is_twin = not self.pdl and self.way == LLM
        return LLM.name if is_twin or self.way.equals_llm(work) else None

    def write(self, work: Work) -> Written:
        with nullcontext() if self.pdl else programmatic_dependent_launch(False):
            result = self.generator.generate(
                work.prompts,
                self.way.strategy,
                max_new_tokens=work.new_tokens,
                ignore_eos=True,
                seed=work.seed,
                print_stats=False,
                **(PLAIN | work.sampling),
                **self.way.options,
            )
        return Written(result.tokens, result.stats)

    def close(self) -> None:
        """The generator goes with its last contender."""
        del self.generator


def open_generator(pair: Pair, place: Place, batch: int) -> HybridGenerator:
    """The pair, with room for ``batch`` rows; it can also look drafts up, and route at random."""
    dtype = cast("DtypeName | None", place.dtype)
    weights = cast("WeightsName | None", place.slm_weights)
    generator = HybridGenerator(
        pair.slm,
        pair.llm,
        device=place.device,
        dtype=dtype,
        slm_weights=weights,
        max_batch_size=batch,
    )
    own = {"lookup": Speculative(NgramDrafts()), "random": RandomRouting()}
    generator.strategies.update(own)
    return generator


def contenders(generator: HybridGenerator, ways: Sequence[Way], pdl: bool = True) -> list[Ours]:
    """Those of ``ways`` that the pair can run, and whose texts can be judged.

    The judge has the checkpoint's weights: what an int8 SLM writes by itself is left out.
    """
    unjudged = {"slm"} if "slm_weights" in generator.pair.quantised else set()
    return [
        Ours(generator, way, pdl)
        for way in ways
        if (generator.slm is not None or not way.needs_slm) and not unjudged & {*way.writers}
    ]


def statistics(stats: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What calls come to together, by the terms of `lines.Line`."""

    def total(name: str) -> float:
        return float(sum(each.get(name, 0) for each in stats))

    written = total("total_tokens")
    found: dict[str, Any] = {"llm_fraction": total("llm_tokens") / written}
    if "draft_generated" not in stats[0]:
        return found
    steps, drafted = total("decode_steps"), total("draft_generated")
    found["tokens_per_round"] = written / steps
    found["mean_drafts"] = drafted / steps
    found["acceptance_rate"] = total("draft_accepted") / drafted if drafted else 0.0
    if stats[0]["num_drafts"] != "auto":  # else a place's drafts are not counted
        rounds = drafted / stats[0]["num_drafts"]
        columns = zip(*(each["accepted_per_position"] for each in stats), strict=True)
        found["acceptance_per_position"] = [sum(column) / rounds for column in columns]
    return found


def bytes_a_token(
    generator: HybridGenerator, way: Way, found: Mapping[str, Any], rows: int
) -> float:
    """Weights that a token of ``rows`` rows cannot but read, in bytes; drafts of "auto" apart.

    A round reads the LLM once for all its tokens, and the SLM once a draft.
    """
    llm: float = generator.llm.weight_bytes
    slm: float = generator.slm.weight_bytes if generator.slm is not None else 0
    if way.strategy in ("speculative", "lookup"):
        tokens: float = found["tokens_per_round"] * rows
        drafts: int = way.options.get("num_drafts", 0)
        return (llm + drafts * slm) / tokens
    if way.writers == ("slm", "llm"):
        share: float = found["llm_fraction"]
        return (slm + share * llm) / rows
    return (slm if way.writers == ("slm",) else llm) / rows
