"""Build the API reference from the docstrings.

    python docs/api.py site        then open site/index.html

Of the package, the names that it exports; of its kernels, every op. Anything that is public and has
no docstring is an error.
"""

import argparse
import re
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pdoc
import pdoc.doc
import pdoc.render
from jinja2 import pass_context

import hybridgen
import hybridgen.kernels

MODULES = ("hybridgen", "hybridgen.utils", "hybridgen.chat", "hybridgen.named_pairs")
ENTRY = re.compile(r"(\*{0,2}\w\S*(?: \S+)*)  +(\S.*)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="the folder to write to")
    build(parser.parse_args().site)


def build(site: Path) -> None:
    """Write the pages. Raises RuntimeError with all that pdoc warns of or finds undocumented."""
    for name in hybridgen.__all__:  # imported when first used, and pdoc looks into the module
        setattr(hybridgen, name, getattr(hybridgen, name))
    # What a base class that is on no page declares would not be shown.
    hybridgen.HybridGenerator.generate = hybridgen.HybridGenerator.generate
    modules = [*MODULES, *kernels()]
    pdoc.render.env.filters["to_markdown"] = to_markdown
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pdoc.pdoc(*modules, output_directory=site)
    faults = [str(warning.message) for warning in said if issubclass(warning.category, UserWarning)]
    faults += [f"{name} has no docstring" for name in undocumented(modules)]
    if faults:
        raise RuntimeError("\n".join(faults))


def kernels() -> Iterator[str]:
    """The modules of the kernels' ops; what Triton compiles has no other interface."""
    for module in iter_modules(hybridgen.kernels.__path__, "hybridgen.kernels."):
        if not module.name.endswith(("_triton", "triton_utils")):
            yield module.name


def undocumented(modules: list[str]) -> Iterator[str]:
    """Public classes and functions on the pages of these modules that say nothing."""
    for name in modules:
        module = pdoc.doc.Module(import_module(name))
        if not module.docstring:
            yield name
        for doc in module.own_members:
            shown = isinstance(doc, (pdoc.doc.Class, pdoc.doc.Function)) and doc.name[0] != "_"
            if shown and not doc.docstring:
                yield doc.fullname


@pass_context
def to_markdown(context: Any, docstring: str) -> str:
    """In place of pdoc's filter: our docstrings are Markdown but for their aligned tables."""
    return "\n\n".join(map(block, re.split(r"\n{2,}", docstring)))


def block(paragraph: str) -> str:
    """A table of lines like ``name    what it is``; else the paragraph as it is."""
    lines = paragraph.splitlines()
    if not lines or not ENTRY.match(lines[0]):
        return paragraph
    rows: list[list[str]] = []
    for line in lines:
        if entry := ENTRY.match(line):
            rows.append([entry[1], entry[2]])
        elif line.startswith("    ") and rows:
            rows[-1][1] += " " + line.strip()
        else:
            return paragraph
    cells = (f"| `{name}` | {text.replace('|', '&#124;')} |" for name, text in rows)
    return "\n".join(["| | |", "|-|-|", *cells])


if __name__ == "__main__":
    main()
