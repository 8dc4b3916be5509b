"""The command `hybridgen profile`: a text, and what was measured at each of its tokens."""

from __future__ import annotations

from importlib.util import find_spec

from hybridgen.cli import (
    add_fields,
    add_prompt_and_models,
    check_options,
    declared,
    load,
    prompt_of,
    write,
)

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
    add("--json", metavar="FILE", help="write the whole profile there, as JSON")
    add("--html", metavar="FILE", help="write a page there: the text, coloured by the metric")
    add("--plot", metavar="FILE", help="draw histograms and the course of the metrics there")
    return parser


def run(arguments: argparse.Namespace, own: Mapping[str, Any]) -> None:
    """Load the pair, write a text with its profile, print the summary, write the files."""
    from hybridgen.profiling.asked import asked_for

    if arguments.plot is not None and find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'hybridgen[plot]'")
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
    profile = load(arguments, own).generate_with_profile(prompt, **given)
    write(profile.summary + "\n")
    if arguments.json is not None:
        profile.save_to_file(arguments.json)
    if arguments.html is not None:
        profile.save_html(arguments.html)
    if arguments.plot is not None:
        profile.plot_distributions(arguments.plot)
