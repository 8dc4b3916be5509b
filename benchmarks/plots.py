"""Plots of results, as PNG and SVG: `python -m benchmarks.report --plots DIR`.

Backgrounds are transparent, and ink and colours are between light and dark, so that the pictures
can be read on a white page and on a black one. Bars are the spread of the repeats (spread.py).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hybridgen.benchmarks.lines import Line
from hybridgen.benchmarks.spread import Spread, speed_ups, spread
from hybridgen.benchmarks.tables import (
    BASELINE,
    NAMES,
    Comparison,
    comparisons,
    device,
    floor_share,
    is_kernel,
)
from hybridgen.profiling.plots import figure, save_figure

# Each is told from white and from GitHub's dark page (#0d1117) by 3 to 1 at least, as WCAG 2.1 asks
# of graphics, and the ink by 4 to 1.
INK = "#777777"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#B5609A", "#A07800", "#7B61C9")
MARKERS = ("o", "^", "s", "D", "v", "P")
PANEL = 9.0, 4.5  # inches
LEGEND = 0.75  # inches below a panel
SPEED_UP = f'speed-up over "{BASELINE}"'


class Point(NamedTuple):
    """One line in a plot; y is a median with its spread, or three times the same number."""

    series: str
    x: float | str
    y: Spread


@dataclass(frozen=True)
class Plot:
    """What is drawn: ``points`` of all comparisons, against ``x``."""

    name: str
    title: str
    x: str
    y: str
    points: Callable[[Sequence[Comparison]], list[Point]]


def draw(lines: Iterable[Line], folder: Path) -> list[str]:
    """Draw each plot that the lines have points for; what was drawn, and what not, a line each.

    ImportError without matplotlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = comparisons(line for line in lines if line.is_right and not is_kernel(line))
    said = []
    for plot in PLOTS:
        points = plot.points(found)
        if not points:
            said.append(f"{plot.name}: not drawn, no result has what it takes")
            continue
        drawn = picture(plot, points)
        for suffix in ("png", "svg"):
            save_figure(drawn, folder / f"{plot.name}.{suffix}")
        said.append(f"{plot.name}: {len(points)} points")
    return said


def picture(plot: Plot, points: Sequence[Point]) -> Any:
    """A matplotlib Figure: a series for each name, a panel for so many as there are colours."""
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(point.series, []).append(point)
    names = [*series]
    panels = [names[at : at + len(COLORS)] for at in range(0, len(names), len(COLORS))]
    rows = [_rows(point for name in members for point in series[name]) for members in panels]
    heights = [max(PANEL[1], 1.5 + 0.5 * len(each)) for each in rows]
    drawn = figure(PANEL[0], sum(heights))
    drawn.patch.set_alpha(0)
    shared = {"sharex": True, "sharey": not any(rows), "height_ratios": heights}
    grid = drawn.subplots(len(panels), squeeze=False, **shared)[:, 0]
    for axes, members, own, height in zip(grid, panels, rows, heights, strict=True):
        for at, name in enumerate(members):
            look = {"label": name, "color": COLORS[at], "marker": MARKERS[at], "capsize": 3}
            if own:
                shift = 0.6 * ((at + 0.5) / len(members) - 0.5)
                _beside(axes, series[name], own, shift, look)
            else:
                _along(axes, series[name], look)
        if any(members):
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -LEGEND / height), "ncols": 2}
            axes.legend(**below, frameon=False, fontsize="small", labelcolor=INK)
    for axes, own in zip(grid, rows, strict=True):  # when all is drawn: they share their limits
        _dress(axes, plot, own)
    grid[0].set_title(plot.title, color=INK)
    return drawn


def _rows(points: Iterable[Point]) -> list[str]:
    """The names that a panel has in the place of numbers."""
    return [*dict.fromkeys(point.x for point in points if isinstance(point.x, str))]


def _along(axes: Any, points: Sequence[Point], look: dict[str, Any]) -> None:
    """A series over numbers."""
    ordered = sorted(points, key=lambda point: point.x)
    middles = [point.y.middle for point in ordered]
    axes.errorbar([point.x for point in ordered], middles, yerr=_bars(ordered), **look)


def _beside(
    axes: Any, points: Sequence[Point], rows: Sequence[str], shift: float, look: dict[str, Any]
) -> None:
    """A series over names, which are rows from the top; ``shift`` keeps series apart there."""
    middles = [point.y.middle for point in points]
    places = [rows.index(str(point.x)) + shift for point in points]
    axes.errorbar(middles, places, xerr=_bars(points), linestyle="none", **look)


def _bars(points: Sequence[Point]) -> list[list[float]]:
    below = [point.y.middle - point.y.low for point in points]
    return [below, [point.y.high - point.y.middle for point in points]]


def _dress(axes: Any, plot: Plot, rows: Sequence[str]) -> None:
    """Labels, lines and limits, all of it in the ink."""
    across, up = (plot.y, "") if rows else (plot.x, plot.y)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    if rows:
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
    elif plot.y == SPEED_UP:
        axes.axhline(1, color=INK, linestyle="--", linewidth=1)
        axes.set_ylim(bottom=0)
    axes.tick_params(colors=INK, labelbottom=True)
    axes.grid(color=INK, alpha=0.25)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.patch.set_alpha(0)


class Found(NamedTuple):
    """A point before it has a series: that is ``kind`` and what tells its comparison apart."""

    among: Comparison
    kind: str
    x: float | str
    y: Spread


def named(found: Sequence[Found], apart: str = "") -> list[Point]:
    """Points; comparisons that differ in ``apart`` alone have series in common."""
    among = {id(one.among): one.among for one in found}
    names = dict(zip(among, labels([*among.values()], apart), strict=True))
    return [Point(_joined(one.kind, names[id(one.among)]), one.x, one.y) for one in found]


def speed_up_points(
    x: Callable[[Line], Any], kind: Callable[[Line], str], apart: str = ""
) -> Callable[[Sequence[Comparison]], list[Point]]:
    """Points at ``x`` of each line that has one, in series of two places and more.

    One place alone shows nothing of how speed depends on ``x``.
    """

    def points(groups: Sequence[Comparison]) -> list[Point]:
        found = [
            Found(among, kind(line), at, gained)
            for among in groups
            for line in among.lines
            if (at := x(line)) is not None
            and line.contender != BASELINE
            and (gained := spread(speed_ups(line, among.find(BASELINE))))
        ]
        places: dict[str, set[Any]] = {}
        for point in (before := named(found, apart)):
            places.setdefault(point.series, set()).add(point.x)
        pairs = zip(found, before, strict=True)
        return named([one for one, point in pairs if len(places[point.series]) > 1], apart)

    return points


def floor_points(groups: Sequence[Comparison]) -> list[Point]:
    """Share of the floor by contender, in per cent, a series for each comparison."""
    found = [
        Found(among, "", line.contender, Spread(*(100 * each for each in share)))
        for among in groups
        for line in among.lines
        if (share := floor_share(line))
    ]
    return named(found)


def quality_points(groups: Sequence[Comparison]) -> list[Point]:
    """Quality against the LLM's share of the tokens, a series for each metric that routes.

    The models alone stand beside those of their comparison, where it has two shares or more.
    """
    found = [
        Found(
            among,
            line.contender.split(",")[0],
            100 * line.statistics["llm_fraction"],
            Spread(*[line.statistics["quality"]] * 3),
        )
        for among in groups
        if sum(map(_is_routed, among.lines)) > 1
        for line in among.lines
        if {"llm_fraction", "quality"} <= set(line.statistics)
        and (_is_routed(line) or line.contender in NAMES)
    ]
    return named(found)


def _is_routed(line: Line) -> bool:
    """Whether the LLM's share is one of choice: of speculation all text is the LLM's."""
    return bool({"threshold", "llm_fraction"} & set(line.options))


def labels(groups: Sequence[Comparison], apart: str = "") -> list[str]:
    """What tells each comparison from the others, in words; not by ``apart``."""
    told = [_told(among.lines[0]) for among in groups]
    names = dict.fromkeys(name for each in told for name in each)
    values = {name: {each[name] for each in told if name in each} for name in names}
    differing = [name for name in names if name != apart and len(values[name]) > 1]
    return [_joined(*(each.get(name, "") for name in differing)) for each in told]


def _told(line: Line) -> dict[str, str]:
    """What a comparison is, word by word; what only some have is no difference by itself."""
    setting, facts = line.setting, line.facts
    drawn = setting.get("sampling", {})
    sampled = drawn if drawn.get("temperature") else {}
    return {
        "suite": line.suite,
        "pair": line.pair.partition("@")[0],  # what follows is a fact
        **{name: f"{name.replace('_', ' ')} {value}" for name, value in facts.items()},
        "temperature": "greedy",
        **{name: f"{name.replace('_', '-')} {value:g}" for name, value in sampled.items()},
        "batch": f"batch {setting.get('batch', 1)}",
        "prompts": str(setting.get("prompts", "")),
        "num_prompts": f"{setting.get('num_prompts', '')} prompts",
        "new_tokens": f"{setting.get('new_tokens', '')} tokens",
        "dtypes": ", ".join(map(str, dict.fromkeys(setting.get("dtypes", {}).values()))),
        "device": device(line),
    }


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _drafts(line: Line) -> int | None:
    """K, where it is a number."""
    drafts = line.options.get("num_drafts")
    return drafts if isinstance(drafts, int) else None


def _kind(line: Line) -> str:
    """The contender without its K."""
    return ", ".join(part for part in line.contender.split(", ") if not part.startswith("K ="))


PLOTS = (
    Plot(
        "speed-up-by-drafts",
        "Speed-up by drafts a round",
        "drafts a round",
        SPEED_UP,
        speed_up_points(_drafts, _kind),
    ),
    Plot(
        "speed-up-by-agreement",
        "Speed-up by how often the models agree",
        "agreement",
        SPEED_UP,
        speed_up_points(
            lambda line: line.facts.get("agreement"), lambda line: line.contender, "agreement"
        ),
    ),
    Plot(
        "speed-up-by-batch",
        "Speed-up by rows of a batch",
        "rows",
        SPEED_UP,
        speed_up_points(
            lambda line: line.setting.get("batch"), lambda line: line.contender, "batch"
        ),
    ),
    Plot(
        "share-of-floor",
        "Share of the floor: reading the weights alone, over the time measured",
        "contender",
        "per cent of the floor",
        floor_points,
    ),
    Plot(
        "quality-by-llm-share",
        "Quality of routed text",
        "tokens by the LLM, per cent",
        "mean log-likelihood by the LLM, nats",
        quality_points,
    ),
)
