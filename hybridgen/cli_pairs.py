"""The command `hybridgen pairs`: the table of named pairs."""

from __future__ import annotations

from hybridgen.cli_terminal import check_there_is_a_stdout, write
from hybridgen.named_pairs import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any

    from hybridgen.strategies.declarations import Declaration

DESCRIPTION = """\
List the pairs that --pair knows: published checkpoints with one tokenizer.
They are read from the hub, or from its cache where there is no network.
"""


def build_parser(declarations: Sequence[Declaration] | None = None) -> argparse.ArgumentParser:
    """The command's arguments: none."""
    import argparse

    return argparse.ArgumentParser(
        prog="hybridgen pairs",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(arguments: argparse.Namespace, own: Mapping[str, Any]) -> None:
    """Print the table."""
    check_there_is_a_stdout()
    write(table() + "\n")
