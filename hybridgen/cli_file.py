"""`hybridgen --file PROMPTS --out RESULTS`: many prompts, a line of JSON for each."""

from __future__ import annotations

import sys
from pathlib import Path

from hybridgen.cli_options import check_options, declared, load, template_kwargs

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any


def run(arguments: argparse.Namespace, own: Mapping[str, Any]) -> None:
    """Load the pair, continue the prompts, say what was done."""
    given = check_options(arguments, declared(own))
    kwargs = template_kwargs(arguments.chat_template_kwargs)
    check_paths(arguments)
    generator = load(arguments, own)
    prepare = None
    if arguments.chat:
        from hybridgen.chat import Chat

        prepare = Chat(generator, arguments.system, kwargs).opened_by
    done = generator.generate_file(arguments.file, arguments.out, prepare=prepare, **given)
    if arguments.stats == "json":
        import json

        print(json.dumps(vars(done)), file=sys.stderr)
    elif arguments.stats == "text":
        print(done, file=sys.stderr)


def check_paths(arguments: argparse.Namespace) -> None:
    """Refuse files that cannot be read or written, before models load."""
    prompts, results = Path(arguments.file), Path(arguments.out)
    with prompts.open("rb"):
        pass
    if results.exists() and results.samefile(prompts):
        raise ValueError("--out must not be the file of --file")
    with results.open("ab"):
        pass
