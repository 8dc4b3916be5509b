"""A threshold for a share of tokens, from texts that the pair writes of the user's own prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridgen.checks import check_choice, check_float, check_int
from hybridgen.parameters import SEEDS
from hybridgen.profiling.distribution import exceeded_by
from hybridgen.profiling.routed import Texts, refuse_options, request_of, written
from hybridgen.profiling.score import Floats, score
from hybridgen.strategies.declarations import ENTROPY, UNCERTAINTY
from hybridgen.strategies.routing import TokenRouting, route_rate

if TYPE_CHECKING:
    from hybridgen.generator import HybridGenerator

SCORE_NAMES = {"uncertainty": "aleatoric", "entropy": "entropy"}
"""What routes, and its name in `Scores`."""

ROUTERS = {of.name: TokenRouting(of) for of in (UNCERTAINTY, ENTROPY)}

NEVER = 1e30  # a threshold that no metric exceeds

_BOOTSTRAP = 0  # its seed
Interval = tuple[float, float]


@dataclass(frozen=True, repr=False)
class Calibration:
    """A threshold, and what it gave: for ``generate(strategy=metric, threshold=threshold)``.

    llm_fraction          what was asked for
    threshold_interval    where thresholds lie that are chosen from other prompts and texts of this
                          kind, at the ``confidence``; by a bootstrap over prompts and their tokens
    achieved_fraction     measured: the share of tokens that the LLM wrote in texts that were routed
                          by the threshold, after it had been chosen and with other seeds
    fraction_interval     of the achieved fraction, by the same bootstrap
    tokens                that the achieved fraction is of
    prompts               that they continue
    """

    metric: str
    llm_fraction: float
    threshold: float
    threshold_interval: Interval
    achieved_fraction: float
    fraction_interval: Interval
    confidence: float
    tokens: int
    prompts: int

    def __repr__(self) -> str:
        low, high = self.threshold_interval
        least, most = self.fraction_interval
        return (
            f"Calibration({self.metric} > {self.threshold:.4g} ({low:.4g} to {high:.4g}): asked "
            f"{self.llm_fraction:.1%} by the LLM, achieved {self.achieved_fraction:.1%} "
            f"({least:.1%} to {most:.1%}) of {self.tokens} tokens, {self.prompts} prompts)"
        )


def calibrate(
    generator: "HybridGenerator",
    prompts: Any,
    metric: str = "uncertainty",
    llm_fraction: float = 0.2,
    max_new_tokens: int = 200,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    **options: Any,
) -> Calibration:
    """See `HybridGenerator.calibrate`."""
    check_choice("metric", metric, SCORE_NAMES)
    check_float("llm_fraction", llm_fraction, "a number from 0 to 1", lambda x: 0 <= x <= 1)
    check_float("confidence", confidence, "a number between 0 and 1", lambda x: 0 < x < 1)
    check_int("resamples", resamples, 1)
    refuse_options("calibrate", options, "strategy", "threshold", "stream", "print_stats")
    if generator.slm is None:
        raise ValueError("calibrate() measures the SLM, and the generator has none")
    router = ROUTERS[metric]
    options |= {"max_new_tokens": max_new_tokens}
    request = request_of(generator, router, prompts, options | {"threshold": NEVER})
    writes, count = request.llm_consecutive_tokens, request.rows
    rate, threshold = route_rate(llm_fraction, writes), NEVER
    values: list[Floats] = []
    for _ in range(2):  # texts by the SLM alone, then texts that are routed nearly as asked
        texts = written(generator, router, request)
        values = asked(generator, texts, metric, request.evidence, threshold, writes)
        threshold = exceeded_by(np.concatenate(values), rate)
        seeds = [(seed + count) % SEEDS for seed in request.seed]
        given = options | {"threshold": threshold, "seed": seeds}
        request = request_of(generator, router, prompts, given)
    texts = written(generator, router, request)
    rng = np.random.default_rng(_BOOTSTRAP)
    thresholds = [
        exceeded_by(np.concatenate(resampled(values, rng)), rate) for _ in range(resamples)
    ]
    fractions = resampled_fractions(texts, resamples, rng)
    return Calibration(
        metric=metric,
        llm_fraction=float(llm_fraction),
        threshold=threshold,
        threshold_interval=interval(thresholds, confidence),
        achieved_fraction=texts.llm_fraction,
        fraction_interval=interval(fractions, confidence),
        confidence=float(confidence),
        tokens=texts.total,
        prompts=count,
    )


def asked(
    generator: "HybridGenerator",
    texts: Texts,
    metric: str,
    evidence: str,
    threshold: float,
    writes: int,
) -> list[Floats]:
    """What the metric was where the SLM was asked for a token, text by text."""
    scores = score(generator.pair, texts.whole, texts.firsts, llm=False, evidence=evidence)
    metrics = [getattr(of, SCORE_NAMES[metric]) for of in scores]
    return [values[visited(values, threshold, writes)] for values in metrics]


def visited(values: Floats, threshold: float, writes: int) -> list[int]:
    """The places where the SLM is asked: not where the LLM writes on, ``writes`` tokens in all."""
    places, place = [], 0
    while place < len(values):
        places.append(place)
        place += writes if values[place] > threshold else 1
    return places


def resampled(values: Sequence[Floats], rng: np.random.Generator) -> list[Floats]:
    """Texts drawn with replacement, and of each as many of its values, drawn so too."""
    drawn = [values[i] for i in rng.integers(len(values), size=len(values))]
    return [of[rng.integers(len(of), size=len(of))] for of in drawn]


def resampled_fractions(texts: Texts, resamples: int, rng: np.random.Generator) -> Floats:
    """The LLM's share of tokens, of texts and tokens drawn in the same way: [resamples]."""
    totals = np.array([len(tokens) for tokens in texts.tokens])
    shares = np.array(texts.llm_tokens) / totals
    drawn = rng.integers(len(totals), size=(resamples, len(totals)))
    llm = rng.binomial(totals[drawn], shares[drawn])
    fractions: Floats = llm.sum(1) / totals[drawn].sum(1)
    return fractions


def interval(values: Sequence[float] | Floats, confidence: float) -> Interval:
    """The middle of the values, so much of them: from and to."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
