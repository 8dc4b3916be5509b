"""Pictures of a profile: what its metrics are like, by who wrote, and where they rise.

matplotlib, the extra "plot", is imported when a picture is drawn. Figures are made without pyplot,
whose state is the user's.
"""

import io
import math
import os
from typing import Any

import numpy as np

from hybridgen.profiling.files import Path, write
from hybridgen.profiling.profile import MODELS, ProfileResult
from hybridgen.profiling.summary import LABELS, MODEL_LABELS, title, totals

PANELS = ("entropy", "uncertainty", "epistemic")
BINS = 30
SIZE = (12.0, 11.0)  # inches
DOTS = 120  # an inch

# Okabe and Ito's colours, which the colour-blind tell apart; the markers serve a print in grey.
COLORS = {"slm": "#0072B2", "llm": "#E69F00", "lookup": "#009E73"}
MARKERS = {"slm": "o", "llm": "^", "lookup": "s"}
_UNITS = {"entropy": " (nats)", "uncertainty": " (aleatoric)", "epistemic": " uncertainty"}


def figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure, sizes in inches; ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib, the extra 'plot': pip install 'hybridgen[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(drawn: Any, path: Path) -> None:
    """Write a Figure to `path`, as the kind of picture that its suffix names, else as png."""
    kind = os.path.splitext(path)[1][1:].lower() or "png"
    content = io.BytesIO()
    drawn.savefig(content, format=kind, dpi=DOTS)
    write(path, content.getvalue())


def plot_distributions(profile: ProfileResult, path: Path) -> None:
    """See `ProfileResult.plot_distributions`."""
    drawn = figure(*SIZE)
    head = " | ".join([title(profile), *totals(profile)])
    drawn.suptitle(head, parse_math=False)
    grid = drawn.add_gridspec(1 + len(PANELS), len(PANELS))
    series: Any = None
    for number, metric in enumerate(PANELS):
        _histogram(profile, metric, drawn.add_subplot(grid[0, number]))
        series = drawn.add_subplot(grid[1 + number, :], sharex=series)
        _series(profile, metric, series)
    series.set_xlabel("position")
    save_figure(drawn, path)


def _histogram(profile: ProfileResult, metric: str, axes: Any) -> None:
    """Counts of the metric's values, those of each model on top of the last one's."""
    axes.set_xlabel(LABELS[metric] + _UNITS[metric])
    axes.set_ylabel("tokens")
    axes.yaxis.get_major_locator().set_params(integer=True)
    values = {model: profile.values(metric, model) for model in MODELS}
    values = {model: found for model, found in values.items() if len(found)}
    if not values:
        _say_nothing(axes)
        return
    edges = np.histogram_bin_edges(np.concatenate([*values.values()]), BINS)
    labels = [f"{MODEL_LABELS[model]}: {len(found)}" for model, found in values.items()]
    colors = [COLORS[model] for model in values]
    axes.hist([*values.values()], edges, stacked=True, color=colors, label=labels)
    _mark_threshold(profile, metric, axes.axvline)
    axes.legend(fontsize="small")


def _series(profile: ProfileResult, metric: str, axes: Any) -> None:
    """The metric over the text, with a gap where it was not measured."""
    axes.set_ylabel(LABELS[metric] + _UNITS[metric])
    values = [token.value(metric) for token in profile]
    if not len(profile.values(metric)):
        _say_nothing(axes)
        return
    places = [token.position for token in profile]
    whole = [math.nan if value is None else value for value in values]
    axes.plot(places, whole, color="0.75", linewidth=0.8, zorder=1)
    for model in MODELS:
        points = [
            (token.position, value)
            for token, value in zip(profile, values, strict=True)
            if token.model_used == model and value is not None
        ]
        if points:
            style = {"color": COLORS[model], "marker": MARKERS[model]}
            axes.scatter(*zip(*points, strict=True), s=14, label=MODEL_LABELS[model], **style)
    _mark_threshold(profile, metric, axes.axhline)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))  # beside the points


def _mark_threshold(profile: ProfileResult, metric: str, line: Any) -> None:
    if profile.threshold is not None and metric == profile.metric:
        label = f"threshold {profile.threshold:.4g}"
        line(profile.threshold, color="black", linestyle="--", linewidth=1, label=label)


def _say_nothing(axes: Any) -> None:
    axes.text(0.5, 0.5, "measured at no token", transform=axes.transAxes, ha="center", va="center")
