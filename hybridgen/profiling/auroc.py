"""How well numbers tell two classes apart."""

import numpy as np
import numpy.typing as npt


def auroc(values: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """The area under the ROC curve of ``values`` [N] for the classes ``positive`` [N] bool.

    That is the probability that a positive one's value is the larger, of a random pair of one of
    each class; equal values count as half (Mann and Whitney 1947, by ranks). NaN where a class is
    empty. Raises ValueError for values that are NaN, or of another length.
    """
    numbers, of = np.asarray(values, np.float64), np.asarray(positive, bool)
    if numbers.shape != of.shape or numbers.ndim != 1:
        raise ValueError(f"values {numbers.shape} and positive {of.shape} must be one array each")
    if np.isnan(numbers).any():
        raise ValueError("values must not be NaN: they have no rank")
    hits = int(of.sum())
    misses = len(of) - hits
    if not hits or not misses:
        return float("nan")
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]  # from 1, equal values share their mean
    return float((ranks[of].sum() - hits * (hits + 1) / 2) / (hits * misses))
