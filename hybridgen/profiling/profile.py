"""What was measured at each new token, and the numbers that follow from it.

Three metrics have a name wherever one is asked for:

    "uncertainty"   aleatoric uncertainty, from 0 (sure) to 1 (ten equal candidates)
    "epistemic"     epistemic uncertainty, 0 to 1: how little evidence the logits hold at all
    "entropy"       in nats, at temperature 1

Each is of the model that measured (`ProfileResult.measured_by`), before the token was written. A
token that it did not visit has None, and takes no part in the numbers.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import IO, Any

import numpy as np

from hybridgen.checks import check_choice, check_float, check_int
from hybridgen.profiling.distribution import Values, distribution, exceeded_by
from hybridgen.profiling.merging import joined, shared_value
from hybridgen.result import Stats

METRICS = {
    "uncertainty": "aleatoric_uncertainty",
    "epistemic": "epistemic_uncertainty",
    "entropy": "entropy",
}
ROUTING_METRICS = ("uncertainty", "entropy")
MODELS = ("slm", "llm", "lookup")
MEASURING = ("slm", "llm")


def _plain(value: Any) -> Any:
    """`value` as JSON has it: dicts, lists, strings, ints, bools, and finite floats or None."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return _finite(value) if isinstance(value, float) else value


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _integers(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


_KINDS: dict[str, Callable[[Any], Any]] = {  # numpy's scalars are none of JSON's
    "token_id": int,
    "position": int,
    "aleatoric_uncertainty": _finite,
    "epistemic_uncertainty": _finite,
    "entropy": _finite,
    "top_k_probs": _floats,
    "top_k_ids": _integers,
    "top_k_texts": tuple,
    "accepted": bool,
    "rejected_id": int,
    "p": _finite,
    "q": _finite,
}


@dataclass(frozen=True)
class TokenProfile:
    """One new token, and what stood at its place.

    token_id               its id
    token_text             what it adds to the text; "" inside a character of several tokens, of
                           which the last has it, and for tokens that no text shows
    position               0 is the first new token
    model_used             who wrote it: "slm", "llm" or "lookup" (found in the text so far)
    aleatoric_uncertainty  of the measuring model before this token; None where not measured
    epistemic_uncertainty  likewise
    entropy                likewise, in nats, at temperature 1
    top_k_probs            of the measuring model's likeliest tokens (at most 10), at temperature 1,
                           descending
    top_k_ids              their ids
    top_k_texts            their texts
    accepted               whether the draft that stood here was accepted; None: none stood here
    rejected_id            the draft that was rejected here
    rejected_text          its text
    p                      probability of the draft that stood here, under the request's sampling,
                           in the LLM's distribution
    q                      the same in the drafter's; None for lookups

    Numbers that are not finite become None. Raises ValueError where a candidate's probability is
    not finite, where the candidates' lists differ in length, and for an unknown model.
    """

    token_id: int
    token_text: str
    position: int
    model_used: str
    aleatoric_uncertainty: float | None
    epistemic_uncertainty: float | None
    entropy: float | None
    top_k_probs: tuple[float, ...] = ()
    top_k_ids: tuple[int, ...] = ()
    top_k_texts: tuple[str, ...] = ()
    accepted: bool | None = None
    rejected_id: int | None = None
    rejected_text: str | None = None
    p: float | None = None
    q: float | None = None

    def __post_init__(self) -> None:
        check_choice("model_used", self.model_used, MODELS)
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else kind(value))
        for name in ("top_k_ids", "top_k_texts"):
            values = getattr(self, name)
            if values and len(values) != len(self.top_k_probs):
                raise ValueError(
                    f"{name} must be as many as top_k_probs, {len(self.top_k_probs)}, "
                    f"or none, got {len(values)}"
                )
        if not all(map(math.isfinite, self.top_k_probs)):
            raise ValueError(f"top_k_probs must be finite, got {self.top_k_probs}")

    def value(self, metric: str) -> float | None:
        """The metric of this name, or None where it was not measured."""
        number: float | None = getattr(self, METRICS[check_choice("metric", metric, METRICS)])
        return number


@dataclass(frozen=True, repr=False)
class ProfileResult:
    """A text with what was measured while it was written.

    tokens           one `TokenProfile` for each new token, in the order of the text
    generated_text   the new text: what the tokens add, but for what a stop string cut off
    stats            those of `GenerationResult`; "strategy" is profiled_uncertainty or
                     profiled_entropy where routing was on
    metric           "uncertainty" or "entropy": what routed, or what was asked for; methods take it
                     where they are given no other
    threshold        above it a token was routed to the LLM; None where nothing was routed
    measured_by      whose distributions were measured: "slm" or "llm"
    """

    tokens: tuple[TokenProfile, ...]
    generated_text: str
    stats: Stats
    metric: str
    threshold: float | None
    measured_by: str

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, ROUTING_METRICS)
        check_choice("measured_by", self.measured_by, MEASURING)
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "stats", _plain(self.stats))
        object.__setattr__(self, "threshold", _finite(self.threshold))

    def __len__(self) -> int:
        """The number of new tokens."""
        return len(self.tokens)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[TokenProfile]:
        return iter(self.tokens)

    def __repr__(self) -> str:
        return (
            f"ProfileResult({self.strategy}, {len(self)} tokens, "
            f"metric={self.metric!r}, threshold={self.threshold})"
        )

    @property
    def strategy(self) -> str:
        """Its name in the statistics."""
        return str(self.stats.get("strategy", "unknown"))

    @property
    def model_usage(self) -> dict[str, int]:
        """How many tokens each of "slm", "llm" and "lookup" wrote; they add up to all."""
        return {model: sum(t.model_used == model for t in self.tokens) for model in MODELS}

    def values(self, metric: str | None = None, model: str | None = None) -> Values:
        """A metric of the tokens that have it, in their order, float64 [n].

        model    only of the tokens that this one wrote
        """
        name = self._metric(metric)
        if model is not None:
            check_choice("model", model, MODELS)
        chosen = (t.value(name) for t in self.tokens if model in (None, t.model_used))
        return np.array([value for value in chosen if value is not None], dtype=np.float64)

    def analyze_distribution(
        self, metric: str | None = None, percentiles: Sequence[float] = (10, 20, 30)
    ) -> dict[str, Any]:
        """How a metric is distributed over the tokens.

        percentiles    shares of the highest values, in percent, 0 to 100

        count, mean, std (of the values themselves, not of a sample), min, max, median;
        percentiles, where "top_10%" is the value above which the highest 10 % lie (numpy's
        percentile 90, interpolated); top_10_percent, a dict of mean, min, max and count of the
        values that are at least that of "top_10%". Where no token has the metric, count is 0 and
        all other numbers are None.

        Raises ValueError for an unknown metric and for a percentile out of range.
        """
        return distribution(self.values(metric), percentiles)

    def get_high_uncertainty_tokens(
        self, n: int = 10, metric: str | None = None
    ) -> list[TokenProfile]:
        """The `n` tokens of the highest metric, the highest first; of equals, the earlier first.

        Tokens that were not measured are not among them.
        """
        name = self._metric(metric)
        count = check_int("n", n, 0)
        measured = [(value, t) for t in self.tokens if (value := t.value(name)) is not None]
        return [t for _, t in sorted(measured, key=lambda pair: -pair[0])[:count]]

    def suggest_threshold(self, llm_fraction: float, metric: str | None = None) -> float:
        """The threshold that this share of the measured tokens lies above.

        It is one of the values measured, see `distribution.exceeded_by`. A routed text is another
        text, so the share that the LLM then writes differs somewhat.

        Raises ValueError for a share outside 0 to 1, and where no token has the metric.
        """
        accepted = "a number from 0 to 1"
        share = check_float("llm_fraction", llm_fraction, accepted, lambda x: 0 <= x <= 1)
        values = self.values(metric)
        if not len(values):
            raise ValueError(
                f"metric {self._metric(metric)!r} was measured at none of the {len(self)} tokens: "
                "no threshold can be suggested"
            )
        return exceeded_by(values, share)

    def merge(self, *others: "ProfileResult") -> "ProfileResult":
        """This profile and others as one, see `merged`."""
        return ProfileResult.merged([self, *others])

    @classmethod
    def merged(cls, profiles: Iterable["ProfileResult"]) -> "ProfileResult":
        """Several profiles as one: texts and tokens follow one another, positions count on.

        Statistics fold as those of a list of prompts do, with one dict a profile in
        stats["rows"]; times add up. A threshold in which they differ becomes None.

        Raises ValueError for no profiles, and for such that differ in strategy, metric or in who
        measured.
        """
        parts = list(profiles)
        if not parts:
            raise ValueError("profiles must be at least one, got none")
        for name in ("strategy", "metric", "measured_by"):
            shared_value(name, [getattr(part, name) for part in parts])
        tokens: list[TokenProfile] = []
        for part in parts:
            first = len(tokens)
            tokens += [replace(token, position=first + i) for i, token in enumerate(part.tokens)]
        thresholds = {part.threshold for part in parts}
        return cls(
            tuple(tokens),
            "".join(part.generated_text for part in parts),
            joined([part.stats for part in parts]),
            parts[0].metric,
            thresholds.pop() if len(thresholds) == 1 else None,
            parts[0].measured_by,
        )

    def save_to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the profile to `path` as JSON; `load` gives it back exactly.

        The file is plain JSON of a versioned form, see `hybridgen.profiling.files`. It appears
        whole or not at all.
        """
        from hybridgen.profiling.files import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ProfileResult":
        """The profile that `save_to_file` wrote.

        Raises ValueError that names the file for other versions and damaged files.
        """
        from hybridgen.profiling.files import load

        return load(path)

    def plot_distributions(self, path: str | os.PathLike[str]) -> None:
        """Draw how the metrics are distributed, by who wrote, and how they run over the text.

        path    a picture of the kind that its suffix names: png, pdf, svg, ...; png without one

        The threshold is marked on the metric that it belongs to. No display is needed, and pyplot's
        figures and settings are left alone.

        Raises ImportError where matplotlib, the extra "plot", is not installed; ValueError for an
        unknown kind of picture.
        """
        from hybridgen.profiling.plots import plot_distributions

        plot_distributions(self, path)

    def save_html(self, path: str | os.PathLike[str], metric: str | None = None) -> None:
        """Write one HTML file that shows the text, coloured by a metric.

        metric    by which it is coloured at first; the page lets choose among them

        Hovering a token shows its metrics, the likeliest candidates and, where a draft stood, what
        became of it with p and q. The page filters by who wrote and by the highest values. It needs
        nothing beside it, no network and, for text and colours, no JavaScript.
        """
        from hybridgen.profiling.report import save_html

        save_html(self, path, metric)

    @property
    def summary(self) -> str:
        """The block that `print_summary` prints, without a final newline."""
        from hybridgen.profiling.summary import summary

        return summary(self)

    def print_summary(self, file: IO[str] | None = None) -> None:
        """Print tokens, speed, who wrote, the metric's distribution and the most uncertain tokens.

        file    where to, else to the standard output; what its encoding lacks is escaped
        """
        text, out = self.summary, file or sys.stdout
        encoding = getattr(out, "encoding", None)
        if encoding:
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        print(text, file=out)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame: a row for each token, a column for each field of `TokenProfile`.

        Raises ImportError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas") from error
        names = [field.name for field in fields(TokenProfile)]
        rows = [[getattr(token, name) for name in names] for token in self.tokens]
        return pandas.DataFrame(rows, columns=names)

    def _metric(self, metric: str | None) -> str:
        return self.metric if metric is None else check_choice("metric", metric, METRICS)
