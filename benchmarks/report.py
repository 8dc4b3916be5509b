"""Tables and plots of results; fills the marked sections of README.md and benchmarks/README.md.

    python -m benchmarks.report                       tables of benchmarks/results
    python -m benchmarks.report mine.jsonl folder     of these files, and of those in the folders
    python -m benchmarks.report --plots DIR           draw what there is to draw
    python -m benchmarks.report --write               fill the sections
    python -m benchmarks.report --check               exit 1 where a section is not what it would be

No figure there is typed by hand. The section "budget" is predicted by `benchmarks.budget`, which
needs a CUDA build of torch, though no card; with another build it is left as it stands.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hybridgen.benchmarks.lines import Line, read
from hybridgen.benchmarks.readme import filled, sections
from hybridgen.benchmarks.tables import BRIEF, tables

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
FILES = (HERE.parent / "README.md", HERE / "README.md")
BANDWIDTHS = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second, by their data sheets
BUDGET = "budget"


class Section(NamedTuple):
    """Which lines a section shows.

    suites   those of these suites, None for all
    on_gpu   those measured on a GPU, or those on a CPU
    command  what measures them
    columns  titles, None for all
    """

    suites: tuple[str, ...] | None
    on_gpu: bool
    command: str
    columns: tuple[str, ...] | None = None

    def shows(self, line: Line) -> bool:
        on_gpu = str(line.setting.get("device", "cpu")).startswith("cuda")
        return on_gpu is self.on_gpu and (self.suites is None or line.suite in self.suites)

    def text(self, lines: Iterable[Line]) -> str:
        found = [line for line in lines if self.shows(line)]
        if found:
            return tables(found, self.columns)
        return f"This has not been measured yet: `{self.command}` measures it."


SECTIONS = {
    "speed": Section(("quick",), False, "hybridgen bench quick", BRIEF),
    **{
        suite: Section((suite,), False, f"hybridgen bench {suite}")
        for suite in ("quick", "decode", "routing", "peers", "kernels")
    },
    "gpu": Section(None, True, "hybridgen bench gpu"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    lines = read(files(given.paths or [RESULTS]))
    if given.plots:
        from hybridgen.benchmarks.plots import draw

        print(*draw(lines, given.plots), sep="\n")
    if given.write or given.check:
        return update(lines, write=given.write)
    if not given.plots:
        print(tables(lines) or "There are no results yet.")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", type=Path, nargs="*", help="files of results, or folders of them")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw PNG and SVG there")
    parser.add_argument("--write", action="store_true", help="fill the marked sections")
    parser.add_argument("--check", action="store_true", help="exit 1 where --write would change")
    return parser.parse_args(arguments)


def files(paths: Iterable[Path]) -> list[Path]:
    """The files, and all ``*.jsonl`` in the folders and below, in the order of their names."""
    found = []
    for path in paths:
        found += sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    return found


def update(lines: Sequence[Line], write: bool) -> int:
    """Fill the sections of `FILES`, or say which are not as they should be; the exit status."""
    stale = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        new = filled(text, contents(lines, text))
        if new != text:
            stale += [path]
            if write:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path.name}: {'written' if write else 'run python -m benchmarks.report --write'}")
    return int(bool(stale) and not write)


def contents(lines: Sequence[Line], text: str) -> dict[str, Callable[[], str]]:
    """Name -> what a section of a file says, whose text is ``text`` now."""
    found = {name: partial(section.text, lines) for name, section in SECTIONS.items()}
    return {**found, BUDGET: lambda: budget() or sections(text)[BUDGET]}


def budget() -> str | None:
    """Tables of `benchmarks.budget`, one for each batch; None where torch is no CUDA build."""
    import torch

    if torch.version.cuda is None:
        return None
    from hybridgen.benchmarks.budget import BATCHES, CONTEXT, Budget, Prices, budgets

    prices = {card: Prices(bandwidth) for card, bandwidth in BANDWIDTHS.items()}

    def row(of: Budget, step: Budget) -> str:
        cells = [of.name, str(of.launches), f"{of.bytes_a_token / 1e6:.0f}", str(of.tokens)]
        for each in prices.values():
            replayed = of.replayed(each)
            cells += [f"{1e3 * of.floor(each):.2f}", f"{1e3 * replayed:.2f}"]
            cells += [f"{replayed / step.replayed(each):.2f}"]
        return "| " + " | ".join(cells) + " |"

    found = []
    for rows in BATCHES:
        of = budgets(rows)
        heads = [f"{card}: floor, ms | replayed, ms | break-even" for card in prices]
        found += [
            f"Rows: {rows}, of {CONTEXT} tokens each.",
            "\n".join(
                [
                    "| round | launches | MB/token | most tokens | " + " | ".join(heads) + " |",
                    "|---|" + "---:|" * (3 + 3 * len(prices)),
                    *(row(each, of[0]) for each in of),
                ]
            ),
        ]
    return "\n\n".join(found)


if __name__ == "__main__":
    sys.exit(main())
