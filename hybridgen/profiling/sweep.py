"""Measure what the routing metrics are worth on a pair: see `quality.Sweep`.

Each router writes texts of the same prompts, with the same seeds and on the same engine; then the
LLM reads them. Beside the metrics stand a router that asks the LLM at random, which costs the same
and knows nothing, and the two models alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hybridgen.checks import check_choice, check_float
from hybridgen.kernels.philox import uniform
from hybridgen.profiling.auroc import auroc
from hybridgen.profiling.calibrate import ROUTERS, SCORE_NAMES
from hybridgen.profiling.distribution import exceeded_by
from hybridgen.profiling.quality import LLM, RANDOM, SLM, Point, Sweep
from hybridgen.profiling.random_router import ROUTER, RandomRouting
from hybridgen.profiling.routed import Texts, refuse_options, request_of, written
from hybridgen.profiling.score import Floats, Scores, score
from hybridgen.strategies import declarations
from hybridgen.strategies.base import Strategy
from hybridgen.strategies.single import Single

if TYPE_CHECKING:
    from hybridgen.generator import HybridGenerator

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
WRITERS: dict[str, Strategy] = {
    SLM: Single(declarations.SLM),
    **ROUTERS,
    RANDOM: RandomRouting(),
    LLM: Single(declarations.LLM),
}


def sweep(
    generator: "HybridGenerator",
    prompts: Any,
    metrics: Iterable[str] = tuple(SCORE_NAMES),
    *,
    thresholds: Mapping[str, Sequence[float]] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    max_new_tokens: int = 100,
    seed: Any = 0,
    **options: Any,
) -> Sweep:
    """Let each router write texts of ``prompts``, and say what they are worth and cost.

    metrics       of "uncertainty" and "entropy"
    thresholds    a grid for each metric; None: those that the ``fractions`` of the places in the
                  SLM's own texts exceed
    fractions     from 0 to 1; the random router's too: the shares of tokens that the LLM writes
    **options     the others of `generate`, but for those of routing; ``evidence`` may be given

    Raises as `generate` does, and ValueError for a generator without an SLM.
    """
    names = [check_choice("metrics", name, SCORE_NAMES) for name in metrics]
    shares = [
        check_float("fractions", share, "numbers from 0 to 1", lambda x: 0 <= x <= 1)
        for share in fractions
    ]
    own = ("strategy", "threshold", "llm_fraction", "llm_consecutive_tokens", "stream")
    refuse_options("sweep", options, *own, "print_stats")
    runs = _Runs(generator, prompts, {"max_new_tokens": max_new_tokens, "seed": seed, **options})
    alone = runs.write(SLM)
    for name in names:
        if thresholds is None:
            values = joined(alone, SCORE_NAMES[name])
            grid = [exceeded_by(values, share) for share in shares]
        else:
            grid = [float(threshold) for threshold in thresholds[name]]
        for threshold in grid:
            runs.write(name, threshold)
    for share in shares:
        runs.write(RANDOM, 1 - share)
    runs.write(LLM)
    return runs.sweep(names, max_new_tokens)


class _Runs:
    """The texts of a sweep, and what the models say of them."""

    def __init__(
        self, generator: "HybridGenerator", prompts: Any, options: Mapping[str, Any]
    ) -> None:
        if generator.slm is None:
            raise ValueError("a sweep routes tokens between two models: the generator has no SLM")
        self.generator, self.prompts, self.options = generator, prompts, options
        self.points: list[Point] = []
        self.texts: list[Texts] = []
        self.scores: list[list[Scores]] = []

    def write(self, name: str, threshold: float | None = None) -> list[Scores]:
        """Let the router of this name write, and both models read it."""
        given = {} if threshold is None else {"threshold": threshold}
        router = WRITERS[name]
        request = request_of(self.generator, router, self.prompts, {**self.options, **given})
        texts = written(self.generator, router, request)
        scores = score(self.generator.pair, texts.whole, texts.firsts, evidence=request.evidence)
        self.points.append(point(name, threshold, texts, scores))
        self.texts.append(texts)
        self.scores.append(scores)
        return scores

    def sweep(self, metrics: Sequence[str], max_new_tokens: int) -> Sweep:
        """All of it. The places of the AUROC are those where the SLM was asked."""
        routed = [i for i, p in enumerate(self.points) if p.threshold is not None]
        scores = [of for i in routed for of in self.scores[i]]
        differs = joined(scores, "slm_ids") != joined(scores, "llm_ids")
        values = {name: joined(scores, SCORE_NAMES[name]) for name in metrics}
        values[RANDOM] = np.concatenate([noise(self.texts[i]) for i in routed])
        areas = {name: auroc(of, differs) for name, of in values.items()}
        first = self.texts[0]
        return Sweep(
            points=tuple(self.points),
            auroc={name: None if np.isnan(area) else area for name, area in areas.items()},
            differing=float(differs.mean()),
            places=len(differs),
            prompts=len(first.prompts),
            max_new_tokens=max_new_tokens,
            seeds=tuple(first.seeds),
        )


def point(name: str, threshold: float | None, texts: Texts, scores: Sequence[Scores]) -> Point:
    """What the LLM says of the ``texts`` of a router."""
    return Point(
        router=name,
        threshold=threshold,
        llm_fraction=texts.llm_fraction,
        tokens=texts.total,
        tokens_per_second=texts.total / texts.seconds,
        log_likelihood=float(joined(scores, "llm_logprob").mean()),
        disagreement=float((joined(scores, "llm_ids") != joined(scores, "token_ids")).mean()),
    )


def joined(scores: Sequence[Scores], name: str) -> npt.NDArray[Any]:
    """One array of all texts."""
    return np.concatenate([getattr(of, name) for of in scores])


def noise(texts: Texts) -> Floats:
    """The random router's metric in the place of each new token."""
    return np.concatenate(
        [
            uniform(seed, np.arange(len(prompt), len(prompt) + len(new)), 0, ROUTER)
            for prompt, new, seed in zip(texts.prompts, texts.tokens, texts.seeds, strict=True)
        ]
    ).astype(np.float64)
