"""How numbers are distributed, as a profile says it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridgen.checks import check_float, exact_list, shown

Values = NDArray[np.float64]


def distribution(values: Values, percentiles: Sequence[float]) -> dict[str, Any]:
    """See `ProfileResult.analyze_distribution`; values [n], n may be 0."""
    shares = [_percentile(share) for share in _listed(percentiles)]
    top = values[values >= np.percentile(values, 90)] if len(values) else values
    return {
        **_describe(values),
        "median": float(np.median(values)) if len(values) else None,
        "percentiles": {f"top_{_short(share)}%": highest(values, share) for share in shares},
        "top_10_percent": {name: each for name, each in _describe(top).items() if name != "std"},
    }


def highest(values: Values, percent: float) -> float | None:
    """The value above which the highest `percent` % lie, interpolated; None of no values."""
    return float(np.percentile(values, 100 - percent)) if len(values) else None


def exceeded_by(values: Values, share: float) -> float:
    """The threshold that ``share`` of the values lies above, by the rule of `kernels.routing`.

    Of n values, floor(n * share + 0.5) lie above it, fewer only where several are its very value:
    it is the next lower of them, or 0 where there is none. n is at least 1.
    """
    above = math.floor(len(values) * share + 0.5)
    return float(np.sort(values)[::-1][above]) if above < len(values) else 0.0


def _describe(values: Values) -> dict[str, Any]:
    if not len(values):
        return {"count": 0, "mean": None, "std": None, "min": None, "max": None}
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def _listed(values: object) -> list[Any]:
    listed = values.tolist() if isinstance(values, np.ndarray) else exact_list(values)
    if not isinstance(listed, list):
        raise TypeError(f"percentiles must be a list of numbers, got {shown(values)}")
    return listed


def _percentile(value: object) -> float:
    within = "numbers from 0 to 100"
    return check_float("percentiles", value, within, lambda x: 0 <= x <= 100)


def _short(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)
