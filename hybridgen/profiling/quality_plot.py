"""A picture of a sweep, by matplotlib, the extra "plot"."""

from typing import Any

from hybridgen.profiling.files import Path
from hybridgen.profiling.plots import figure, save_figure
from hybridgen.profiling.quality import LLM, RANDOM, SLM, Sweep

STYLES = {"uncertainty": ("#1f77b4", "o-"), "entropy": ("#d95f02", "s-"), RANDOM: ("0.45", "x--")}


def plot(sweep: Sweep, path: Path) -> None:
    """Draw quality against the LLM's share of tokens; the suffix of ``path`` names the format."""
    drawn = figure(7, 4.5)
    axes: Any = drawn.subplots()
    for router in sweep.routers:
        shares, values = sweep.curve(router)
        color, style = STYLES.get(router, ("0.2", ".-"))
        area = sweep.auroc.get(router)
        label = router if area is None else f"{router} (AUROC {area:.3f})"
        axes.plot(100 * shares, values, style, color=color, label=label, markersize=5)
    for point in sweep.points:
        if point.router in (SLM, LLM):
            where = (100 * point.llm_fraction, point.log_likelihood)
            axes.plot(*where, "k.", markersize=10, zorder=3)
            up = point.router == SLM
            axes.annotate(
                f"{point.router} alone",
                where,
                xytext=(8, -4) if up else (-8, -14),
                textcoords="offset points",
                ha="left" if up else "right",
            )
    axes.set_xlabel("tokens written by the LLM, %")
    axes.set_ylabel("log-likelihood of the text by the LLM,\nnats a token")
    axes.set_title("Quality against the LLM's share of the tokens")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_figure(drawn, path)
