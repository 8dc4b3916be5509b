"""What is launched early, and what it does before it waits: `dependents.py --card N [--every]`.

Prints a row for each kernel that the embedded pair's decode launches as a programmatic dependent,
or with --every for those of every decode, of which what the table knows is not compiled again but
with --all: its name and resources as in `resources.py`, whether it is launched as one, and what its
programs do to memory, or branch, before they wait; in PTX and, with --every, in machine code (0.5 s
a kernel).
"""

import argparse
import json
import re
from typing import Any

import torch
from aot import CARDS, is_known, recording, tool
from decodes import decode, every_decode
from resources import keys

from hybridgen.kernels.launch import programmatic_dependent_launch

# Wait and signal; and all that reads or writes memory but for arguments, or leads elsewhere.
PTX = (
    "griddepcontrol.wait",
    "griddepcontrol.launch_dependents",
    re.compile(r"(?:(?:ld|st|atom|red|cp)\.(?!param)|bra|ret|exit)"),
)
MACHINE_CODE = (
    "ACQBULK",
    "PREEXIT",
    re.compile(r"(?:LD|ST|ATOM|RED|UTMA|UBLK|BRA|EXIT|RET)(?!C\b|CU\b)"),
)

ALLOWED = {
    # The gain: weights, which nothing writes while rounds run.
    "_rms_norm": re.compile(r"ld\.global\S*|LDG\S*"),
    # Where a row's new tokens begin, as a hint what to prefetch; past the L1 cache.
    "_partials": re.compile(r"ld\.global\.cg\S*|LDG\S*\.STRONG\.GPU"),
}
"""What else than prefetching the programs of a kernel may do before they wait."""


def early(code: list[str], wait: str, signal: str, forbidden: re.Pattern[str]) -> list[str]:
    """Of the instructions ``code`` what a program may not do before it waits; or what it lacks."""
    if code.count(wait) != 1 or code.count(signal) != 1:
        return [f"{code.count(wait)} {wait}, {code.count(signal)} {signal}"]
    before = code[: code.index(wait)]
    return [name for name in before if forbidden.match(name) or name == signal]


def instructions(listing: str) -> list[str]:
    """Names in order, without what they are conditional on."""
    return re.findall(r"(?m)^\s+(?:/\*\w+\*/\s+)?(?:@!?%?\w+ +)?([A-Za-z][\w.]*)", listing)


def row(kernel: Any, every: bool) -> dict[str, Any]:
    if is_known(kernel):  # found to wait when it was written into the table
        return {"dependent": True, "early": []}
    found = early(instructions(kernel.asm["ptx"]), *PTX)
    if every:
        found += early(instructions(tool("nvdisasm", "-c", kernel)), *MACHINE_CODE)
    allowed = ALLOWED.get(kernel.name, re.compile("(?!)"))
    found = [name for name in found if not allowed.fullmatch(name)]
    return {"dependent": kernel.metadata.launch_pdl, "early": found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--card", type=int, choices=CARDS)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    incremental = arguments.every and not arguments.all
    known = keys(arguments.card, dependent=True) if incremental else {}
    with recording(arguments.card, known) as launches, programmatic_dependent_launch():
        if arguments.every:
            every_decode()
        else:
            decode("embedded", 1, torch.device("cuda"))
        rows = launches.rows(arguments.card)
        for name, kernel in launches.kernels.items():
            rows[name] |= row(kernel, arguments.every and kernel.metadata.launch_pdl)
            rows[name]["resources"] = rows[name]["resources"] or known[kernel.key]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
