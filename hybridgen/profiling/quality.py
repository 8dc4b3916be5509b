"""What a routing metric is worth on a pair: quality beside cost, at several thresholds.

Nothing here imports torch; `sweep.py` measures it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from hybridgen.checks import check_choice, quoted
from hybridgen.profiling.files import Path, write_text

FORMAT, VERSION = "hybridgen.sweep", 1
SLM, LLM, RANDOM = "slm", "llm", "random"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """Texts of all prompts by one router at one threshold.

    router               "uncertainty", "entropy" or "random"; "slm" or "llm", which wrote alone
    threshold            None for a model alone
    llm_fraction         the share of tokens that the LLM wrote
    tokens               new ones, of all prompts
    tokens_per_second    by the clock
    log_likelihood       that the LLM gives to the new tokens: the mean, in nats a token, at
                         temperature 1 and unfiltered, whatever the sampling was
    disagreement         the share of new tokens that are not the LLM's own greedy choice there
    """

    router: str
    threshold: float | None
    llm_fraction: float
    tokens: int
    tokens_per_second: float
    log_likelihood: float
    disagreement: float


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep, and how well each metric foretells where the models differ.

    auroc           of each metric, and of the random router's noise: for the places where the SLM's
                    likeliest token is not the LLM's, in all of the routed texts. None: they never
                    differ, or always
    differing       the share of such places
    places          how many places there are
    prompts, max_new_tokens, seeds    what the texts were written of
    """

    points: tuple[Point, ...]
    auroc: Mapping[str, float | None]
    differing: float
    places: int
    prompts: int
    max_new_tokens: int
    seeds: tuple[int, ...]

    @property
    def routers(self) -> list[str]:
        """Those that have a threshold, by name."""
        return [*dict.fromkeys(p.router for p in self.points if p.threshold is not None)]

    def curve(self, router: str) -> tuple[Floats, Floats]:
        """LLM fractions [N], ascending, and log-likelihoods [N]: from the SLM alone to the LLM."""
        check_choice("router", router, self.routers)
        found = [p for p in self.points if p.router in (router, SLM, LLM)]
        found.sort(key=lambda p: p.llm_fraction)
        return (
            np.array([p.llm_fraction for p in found]),
            np.array([p.log_likelihood for p in found]),
        )

    def log_likelihood(self, router: str, llm_fraction: float) -> float:
        """That of a router at any LLM fraction, on the line between its nearest points."""
        return float(np.interp(llm_fraction, *self.curve(router)))

    def __str__(self) -> str:
        """The table that `hybridgen profile --sweep` prints."""
        head = (
            f"{'Router':<12}{'Threshold':>10}{'LLM':>8}{'tok/s':>9}{'log-lik.':>10}{'differs':>9}"
        )
        rule = "-" * len(head)
        lines = [head, rule]
        for p in self.points:
            threshold = "" if p.threshold is None else f"{p.threshold:.4g}"
            lines.append(
                f"{p.router:<12}{threshold:>10}{p.llm_fraction:>8.1%}{p.tokens_per_second:>9.1f}"
                f"{p.log_likelihood:>10.3f}{p.disagreement:>9.1%}"
            )
        lines += [rule, f"{'Router':<12}{'AUROC':>10}"]
        for name, value in self.auroc.items():
            lines.append(f"{name:<12}{'' if value is None else format(value, '.3f'):>10}")
        return "\n".join([*lines, rule, *self._notes()])

    def _notes(self) -> list[str]:
        """What the columns are."""
        return [
            f"{self.prompts} prompts, at most {self.max_new_tokens} new tokens each.",
            "log-lik.: the mean log-likelihood that the LLM gives to the text, nats a token.",
            "differs: tokens that are not the LLM's own greedy choice.",
            f"AUROC: how well the metric tells the {self.differing:.1%} of {self.places} places "
            "where the models'",
            "likeliest tokens differ from the others; 0.5 is chance.",
        ]

    def save(self, path: Path) -> None:
        """Write all of it to ``path`` as JSON."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps(values, indent=1, allow_nan=False)
        write_text(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> "Sweep":
        """The sweep that `save` wrote to ``path``; ValueError for any other file."""
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f"{quoted(str(path))} is not a sweep that hybridgen saved")
        if (version := values.pop("version", None)) != VERSION:
            raise ValueError(
                f"{quoted(str(path))} has version {quoted(version)}; this hybridgen reads {VERSION}"
            )
        points = tuple(Point(**point) for point in values.pop("points"))
        return cls(points=points, seeds=tuple(values.pop("seeds")), **values)

    def plot(self, path: Path) -> None:
        """Draw quality against the LLM's share to ``path``; ImportError without matplotlib."""
        from hybridgen.profiling.quality_plot import plot

        plot(self, path)
