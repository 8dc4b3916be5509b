"""The command `hybridgen profile`: a text, and what was measured at each of its tokens."""

from __future__ import annotations

from importlib.util import find_spec

from hybridgen.cli import prompt_of
from hybridgen.cli_options import add_fields, add_prompt_and_models, check_options, declared, load
from hybridgen.cli_terminal import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any

    from hybridgen.strategies.declarations import Declaration

DESCRIPTION = """\
Continue PROMPT, and show what was measured at each token: how unsure the
model was, who wrote, and which drafts were accepted. Without a strategy,
threshold, fraction or metric the SLM writes alone, which shows what a
threshold would route. The text is the one of `hybridgen` for the same options.
"""

SWEPT = 8  # texts of a sweep
EPILOG = """\
examples:
  hybridgen profile "def quicksort(items):" --seed 1
      the SLM alone: take a threshold from the percentiles
  hybridgen profile "def quicksort(items):" --seed 1 --threshold 0.9
      routed by uncertainty; --metric entropy by entropy
  hybridgen profile "import os" --strategy speculative --html report.html
      which drafts were accepted, as a page to read
  hybridgen profile - --json profile.json < prompt.txt
      every number of every token
  hybridgen profile "def quicksort(items):" --sweep --plot sweep.png
      what a metric is worth on this pair, beside a random choice
"""


def build_parser(declarations: Sequence[Declaration] | None = None) -> argparse.ArgumentParser:
    """The command's arguments; options not given are None.

    declarations    of the strategies to choose from; None: of the built-in ones
    """
    import argparse

    from hybridgen.strategies.declarations import BUILT_IN, THRESHOLDS

    parser = argparse.ArgumentParser(
        prog="hybridgen profile",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_prompt_and_models(parser)
    default = "uncertainty or entropy with a threshold, fraction or metric, else slm"
    add_fields(parser, BUILT_IN if declarations is None else declarations, None, default)
    add = parser.add_argument_group("profile").add_argument
    add("--metric", choices=[*THRESHOLDS], help="what routes, or what is shown first")
    add(
        "--routing",
        action=argparse.BooleanOptionalAction,
        help="route by the metric, or let the SLM write alone",
    )
    add(
        "--sweep",
        metavar="N",
        type=int,
        nargs="?",
        const=SWEPT,
        help="instead, for a grid of thresholds: what N texts of the prompt cost, and what they "
        f"are worth to the LLM, by each metric and by chance ({SWEPT} if N is not given)",
    )
    add("--json", metavar="FILE", help="write the whole profile there, as JSON")
    add("--html", metavar="FILE", help="write a page there: the text, coloured by the metric")
    add("--plot", metavar="FILE", help="draw histograms and the course of the metrics there")
    return parser


def run(arguments: argparse.Namespace, own: Mapping[str, Any]) -> None:
    """Load the pair, write texts, print what was measured of them, write the files."""
    if arguments.plot is not None and find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'hybridgen[plot]'")
    if arguments.sweep is None:
        profile(arguments, own)
    else:
        sweep(arguments, own)


def sweep(arguments: argparse.Namespace, own: Mapping[str, Any]) -> None:
    """Thresholds, what they cost, and what the texts are worth."""
    texts = arguments.sweep
    if texts < 1:
        raise ValueError(f"--sweep must be at least 1, the texts of a threshold, got {texts}")
    for name in ("strategy", "routing", "threshold", "llm_fraction", "html"):
        if getattr(arguments, name) is not None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} has no meaning with --sweep, which tries every router")
    prompt, metric = prompt_of(arguments), arguments.metric
    arguments.strategy = metric or "uncertainty"  # whose options there may be
    given = check_options(arguments, declared(own))
    del given["strategy"]
    generator = load(arguments, own)
    from hybridgen.profiling.calibrate import SCORE_NAMES
    from hybridgen.profiling.sweep import sweep as measured

    found = measured(generator, [prompt] * texts, [metric] if metric else SCORE_NAMES, **given)
    write(f"{found}\n")
    if arguments.json is not None:
        found.save(arguments.json)
    if arguments.plot is not None:
        found.plot(arguments.plot)


def profile(arguments: argparse.Namespace, own: Mapping[str, Any]) -> None:
    """One text, token by token."""
    from hybridgen.profiling.asked import asked_for

    prompt, declarations = prompt_of(arguments), declared(own)
    routing = {"routing_metric": arguments.metric, "enable_routing": arguments.routing}
    asked = asked_for(
        [each.name for each in declarations],
        arguments.strategy,
        arguments.threshold,
        arguments.llm_fraction,
        **routing,
    )
    wanted, arguments.strategy = arguments.strategy, asked.strategy
    given = check_options(arguments, declarations) | {"strategy": wanted, **routing}
    found = load(arguments, own).generate_with_profile(prompt, **given)
    write(found.summary + "\n")
    if arguments.json is not None:
        found.save_to_file(arguments.json)
    if arguments.html is not None:
        found.save_html(arguments.html)
    if arguments.plot is not None:
        found.plot_distributions(arguments.plot)
