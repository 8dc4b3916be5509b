"""Plots show the lines that have what they take, and can be read on white and on black."""

from pathlib import Path

import pytest
from made_lines import line

pytest.importorskip("matplotlib")

from hybridgen.benchmarks import plots
from hybridgen.benchmarks.lines import Line
from hybridgen.benchmarks.tables import comparisons


def sweep() -> list[Line]:
    """Lines for each of the plots."""
    made = []
    for agreement in (0.5, 0.9):
        for batch in (1, 4):
            common = {
                "suite": "decode",
                "pair": f"qwen3-1.7b+8b@{agreement}",
                "facts": {"agreement": agreement},
                "setting": {"batch": batch},
            }
            floor = {"bandwidth": 1e9, "bytes": 1e6, "seconds": 1e-3}
            made.append(line("llm", [4, 5, 6, 5, 4], floor=floor, **common))
            for drafts in (1, 4):
                name = f"speculative, K = {drafts}"
                times = [2, 2.5, 3, 2, 2]
                made.append(line(name, times, options={"num_drafts": drafts}, **common))
    for share in (0.1, 0.3):
        statistics = {"llm_fraction": share, "quality": -2 + share}
        options = {"llm_fraction": share}
        name = f"entropy, llm_fraction {share}"
        made.append(line(name, [1, 1], suite="routing", statistics=statistics, options=options))
    for name, share in (("slm", 0.0), ("llm", 1.0)):
        alone = {"llm_fraction": share, "quality": share - 2}
        made += [
            line(name, [1, 1], suite=suite, statistics=alone) for suite in ("routing", "quick")
        ]
    drafted = {"llm_fraction": 0.2, "quality": -1.0}  # the LLM's own text, routed by nobody
    made.append(line("speculative, auto", [1, 1], suite="routing", statistics=drafted))
    return made


def points(name: str, lines: list[Line]) -> list[plots.Point]:
    (plot,) = (plot for plot in plots.PLOTS if plot.name == name)
    return plot.points(comparisons(lines))


def test_each_plot_is_drawn_as_png_and_svg(tmp_path: Path) -> None:
    said = plots.draw(sweep(), tmp_path / "plots")
    assert len(said) == len(plots.PLOTS)
    assert not [each for each in said if "not drawn" in each]
    for plot in plots.PLOTS:
        assert (tmp_path / "plots" / f"{plot.name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / "plots" / f"{plot.name}.svg").read_text(encoding="utf-8")


def test_a_plot_without_lines_is_not_drawn_and_said_so(tmp_path: Path) -> None:
    said = plots.draw([line("llm", [1, 2]), line("slm")], tmp_path)
    assert all("not drawn" in each for each in said) and len(said) == len(plots.PLOTS)
    assert not list(tmp_path.iterdir())


def test_speed_up_by_drafts_has_a_series_for_each_comparison() -> None:
    found = points("speed-up-by-drafts", sweep())
    assert {point.series for point in found} == {
        f"speculative, agreement {agreement}, batch {batch}"
        for agreement in (0.5, 0.9)
        for batch in (1, 4)
    }
    assert {point.x for point in found} == {1, 4}
    assert found[0].y == (2, 2, 2)


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("speed-up-by-agreement", "speculative, K = 4, batch 4"),
        ("speed-up-by-batch", "speculative, K = 4, agreement 0.9"),
    ],
)
def test_comparisons_that_differ_in_x_alone_are_one_series(name: str, series: str) -> None:
    found = points(name, sweep())
    assert len([point for point in found if point.series == series]) == 2
    assert len(found) == 8


def test_one_place_shows_nothing_of_how_speed_depends_on_it() -> None:
    lines = [line("llm", [2, 2]), line("speculative, K = 4", [1, 1], options={"num_drafts": 4})]
    assert not points("speed-up-by-drafts", lines)


def test_quality_is_drawn_of_routed_text() -> None:
    found = points("quality-by-llm-share", sweep())
    assert [(point.series, point.x, point.y.middle) for point in found] == [
        ("entropy", 10, -1.9),
        ("entropy", 30, -1.7),
        ("slm", 0, -2),
        ("llm", 100, -1),
    ]


def test_the_share_of_the_floor_is_that_of_each_repeat() -> None:
    found = points("share-of-floor", sweep())
    assert found[0].x == "llm" and found[0].y == (20, 20, 25)


def test_every_point_is_seen_in_a_panel_of_its_series() -> None:
    """Panels share their limits, and have as many series as there are colours."""
    lines = sweep()
    for batch in (8, 16, 32):
        common = {"suite": "decode", "setting": {"batch": batch}}
        lines.append(line("llm", [100, 100], **common))
        for drafts in (1, 4):
            name = f"speculative, K = {drafts}"
            lines.append(line(name, [batch, batch], options={"num_drafts": drafts}, **common))
    for plot in plots.PLOTS:
        found = plot.points(comparisons(lines))
        panels = plots.picture(plot, found).axes
        series = {point.series for point in found}
        assert len(panels) == -(-len(series) // len(plots.COLORS))
        shown = 0
        for axes in panels:
            (left, right), (low, high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
            for container in axes.containers:
                for x, y in zip(*container.lines[0].get_data(), strict=True):
                    assert left <= x <= right and low <= y <= high
                    shown += 1
        assert shown == len(found)


def luminance(color: str) -> float:
    """As WCAG 2.1 defines it, of #rrggbb."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_ink_and_colors_are_told_from_the_page(page: str) -> None:
    def contrast(color: str) -> float:
        low, high = sorted((luminance(color), luminance(page)))
        return (high + 0.05) / (low + 0.05)

    assert contrast(plots.INK) >= 4
    assert min(map(contrast, plots.COLORS)) >= 3
